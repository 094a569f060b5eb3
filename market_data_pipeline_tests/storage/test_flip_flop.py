"""Two servers of one provider tell different values in turn: revisions end, what is new is taken, and the past reads as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.healing import HealingPolicy
from market_data_pipeline.storage.bulk import MOST_TENURES, CandleWriter
from market_data_pipeline.storage.candles import CandleReader
from market_data_pipeline_tests.storage.builders import MONDAY, Answer, Bar, add_symbols, at, batch, flat, opened_at

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from market_data_pipeline.domain.ports import WriteReport

POLICY = HealingPolicy()
AGAINST_ONE_DATABASE = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
OLD, NEW = flat(10.0, volume=100.0), flat(10.0, volume=127.0)


class Bench:
    """One bar of one symbol, told again and again."""

    def __init__(self, engine: Engine, interval: Interval = Interval.M1) -> None:
        self.engine, self.interval = engine, interval
        self.writer, self.reader = CandleWriter(engine), CandleReader(engine)
        (self.symbol_id,) = add_symbols(engine, f"S{np.random.default_rng().integers(1 << 40):X}")
        self.stamp = opened_at(MONDAY, 0, interval)
        self.told = 0

    def tell(
        self, bar: Bar, *, provider: str = "yahoo", float32_prices: bool = False, ranking: list[str] | None = None
    ) -> WriteReport:
        self.told += 1
        answer = Answer(self.symbol_id, MONDAY, {0: bar}, slots=1)
        whole = batch(answer, interval=self.interval, provider=provider, float32_prices=float32_prices)
        return self.writer.write(whole, now=at(self.told), policy=POLICY, known_at=at(self.told), ranking=ranking)

    def stored(self, told: int | None = None) -> tuple[float, float]:
        """Close and volume as they are, or as they were known after so many answers."""
        span = (self.stamp, self.stamp + 1)
        columns = self.reader.read([self.symbol_id], self.interval, *span, as_of=None if told is None else at(told)).columns
        return float(columns.close[0]), float(columns.volume[0])

    def revisions(self) -> int:
        return len(self.reader.revisions(self.symbol_id, self.interval, self.stamp, self.stamp + 1).columns)

    def dropped(self) -> list[dict[str, int]]:
        with self.engine.connect() as connection:
            query = "select dropped from fetches where symbol_id = %s order by fetch_id"
            return [row[0] for row in connection.exec_driver_sql(query, (self.symbol_id,))]


@AGAINST_ONE_DATABASE
@given(st.sampled_from([Interval.M1, Interval.D1]), st.booleans(), st.lists(st.integers(0, 3), min_size=1, max_size=25))
def test_revisions_are_bounded_by_the_values_ever_told_and_every_new_value_lands(
    engine: Engine,
    interval: Interval,
    is_float32: bool,  # noqa: FBT001 - hypothesis passes it
    told: list[int],
) -> None:
    bench = Bench(engine, interval)
    history: list[int] = []
    for place, value in enumerate(told):
        bar = flat(float(np.float32(10.1 + value)), volume=100.0 + value)
        report = bench.tell(bar, float32_prices=is_float32)
        tenures = sum(1 for index, held in enumerate(history) if held == value and (not index or history[index - 1] != value))
        is_new, is_same = value not in told[:place], bool(history) and history[-1] == value
        refused = not is_same and tenures >= MOST_TENURES
        assert report.flip_flops == int(refused)
        assert not (is_new and refused)
        history.append(history[-1] if refused else value)
        assert bench.stored()[1] == 100.0 + history[-1]
    assert bench.revisions() <= MOST_TENURES * len(set(told)) - 1
    for place, value in enumerate(history, start=1):
        assert bench.stored(place)[1] == 100.0 + value


@pytest.mark.parametrize("interval", [Interval.M1, Interval.D1])
def test_twenty_flips_make_three_revisions_and_are_counted_where_they_were_told(engine: Engine, interval: Interval) -> None:
    bench = Bench(engine, interval)
    reports = [bench.tell(bar) for _ in range(10) for bar in (OLD, NEW)]
    assert bench.revisions() == 3
    assert sum(report.flip_flops for report in reports) == 8
    assert bench.dropped() == [{}] * 4 + [{"flip_flop": 1}, {}] * 8
    assert bench.stored() == (10.0, 127.0)


def test_a_correction_survives_one_relapse(engine: Engine) -> None:
    bench = Bench(engine)
    for bar in (OLD, NEW, OLD, NEW):
        bench.tell(bar)
    assert bench.stored() == (10.0, 127.0)
    bench.tell(OLD)
    assert bench.stored() == (10.0, 127.0)
    bench.tell(flat(11.0))
    assert bench.stored() == (11.0, 100.0)


def test_the_noise_of_widened_float32_is_the_same_value(engine: Engine) -> None:
    bench = Bench(engine)
    price = float(np.float32(198.63))
    for turn in range(10):
        noise = turn * 1e-9
        for value in (price, price + 1):
            bench.tell(flat(value + noise), float32_prices=True)
    assert bench.revisions() == 3


def test_a_provider_asked_for_on_purpose_takes_over_as_often_as_it_is_asked_for(engine: Engine) -> None:
    bench = Bench(engine)
    for _ in range(5):
        for provider, bar in (("yahoo", OLD), ("alpaca", NEW)):
            report = bench.tell(bar, provider=provider, ranking=[provider])
            assert (report.flip_flops, report.left_alone) == (0, 0)
            assert bench.stored() == (bar.close, bar.volume)


def test_a_session_with_a_flip_flop_in_it_is_compared_again_the_next_time(engine: Engine) -> None:
    bench = Bench(engine)
    for bar in (OLD, NEW, OLD, NEW, OLD):
        bench.tell(bar)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("select digest from coverage where symbol_id = %s", (bench.symbol_id,)).scalar() is None
    assert bench.tell(NEW).unchanged == 1
