"""What the newest stored sessions say of themselves: what they lack, and which prices are off, on a real database."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.promises import Share
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.ingest.promises import price_sanity, session_completeness
from market_data_pipeline.settings import Settings
from market_data_pipeline.wiring import open_pipeline
from market_data_pipeline_tests.cli.builders import store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from market_data_pipeline.ingest.pipeline import Pipeline

MONDAY, TUESDAY = date(2024, 12, 2), date(2024, 12, 3)
AT = datetime(2024, 12, 3, 23, 30, tzinfo=UTC)


@pytest.fixture
def pipeline(database_url: str, tmp_path: Path) -> Iterator[Pipeline]:
    """Tuesday night in New York; AAPL is T0, MSFT T1, VOD trades in London."""
    with open_pipeline(Settings(home=tmp_path, database_url=SecretStr(database_url), clock=AT.isoformat())) as opened:
        entries = [
            UniverseEntry("AAPL", "XNAS", Tier.T0),
            UniverseEntry("MSFT", "XNAS", Tier.T1),
            UniverseEntry("VOD.L", "XLON", Tier.T1),
        ]
        opened.universe.load(entries, version_tag="t", source="t", source_sha256="0" * 64, loaded_by="t")
        yield opened


def run(pipeline: Pipeline, statement: str, **values: object) -> None:
    with pipeline.engine.begin() as connection:
        connection.exec_driver_sql(statement, values)


def refuse(pipeline: Pipeline, opened_at: str) -> None:
    """A bar of AAPL that broke a law."""
    run(
        pipeline,
        "insert into refused_bars (symbol_id, interval_s, opened_at, reason, bar, fetch_id) "
        "select symbol_id, 60, %(opened_at)s, 'high below low', '{}', (select min(fetch_id) from fetches) "
        "from symbol_universe where symbol = 'AAPL'",
        opened_at=opened_at,
    )


def split_aapl(pipeline: Pipeline, day: date, value: float) -> None:
    run(
        pipeline,
        "insert into corporate_actions (symbol_id, kind, session_date, provider, value, fetch_id, known_from) "
        "select symbol_id, 'split', %(day)s, 'yahoo', %(value)s, (select min(fetch_id) from fetches), now() "
        "from symbol_universe where symbol = 'AAPL'",
        day=day,
        value=value,
    )


# --- completeness


def test_what_is_missing_is_counted_by_tier_and_named_worst_first(pipeline: Pipeline) -> None:
    store(pipeline, "AAPL", TUESDAY, lacking=[5], known_at=AT)
    store(pipeline, "MSFT", TUESDAY, lacking=range(100), known_at=AT)
    store(pipeline, "VOD.L", TUESDAY, known_at=AT)
    found = session_completeness(pipeline, Interval.M1)
    assert found.sessions == {"XNYS": TUESDAY, "XLON": TUESDAY}
    assert found.shares == {Tier.T0: Share(1, 390), Tier.T1: Share(100, 390 + 510)}
    assert [(one.symbol, one.missing) for one in found.incomplete] == [("AAPL", 1), ("MSFT", 100)]


def test_a_symbol_that_the_ledger_never_heard_of_is_missing_all(pipeline: Pipeline) -> None:
    store(pipeline, "AAPL", TUESDAY, known_at=AT)
    store(pipeline, "VOD.L", TUESDAY, known_at=AT)
    found = session_completeness(pipeline, Interval.M1)
    assert [(one.symbol, one.missing, one.unasked) for one in found.incomplete] == [("MSFT", 390, 390)]


def test_an_interval_that_nobody_follows_is_unknown(pipeline: Pipeline) -> None:
    store(pipeline, "AAPL", TUESDAY, known_at=AT)
    assert not session_completeness(pipeline, Interval.H1).is_known


def test_of_an_interval_that_no_provider_serves_nothing_is_expected(pipeline: Pipeline) -> None:
    store(pipeline, "AAPL", TUESDAY, known_at=AT)
    settings = pipeline.settings.model_copy(update={"policy_bars_1h": "files"})
    with open_pipeline(settings) as without:
        assert session_completeness(without, Interval.H1).sessions == {}


# --- prices


def test_neighbouring_minutes_off_by_a_factor_are_wrong_on_both_sides(pipeline: Pipeline) -> None:
    store(pipeline, "AAPL", TUESDAY, known_at=AT)
    run(
        pipeline,
        "update candles_intraday set open = open / 4, high = high / 4, low = low / 4, close = close / 4, "
        "as_of = as_of + interval '1 second' where opened_at = '2024-12-03 15:00Z'",
    )
    found = price_sanity(pipeline, Interval.M1)
    assert [(one.symbol, one.opened_at.minute, one.step.is_wrong) for one in found.odd] == [("AAPL", 0, True), ("AAPL", 1, True)]


def test_minutes_of_another_unit_than_the_day_before_are_wrong_from_their_first_on(pipeline: Pipeline) -> None:
    """Nothing within the session says so: its minutes agree with each other."""
    store(pipeline, "AAPL", MONDAY, interval=Interval.D1, price=300.0, known_at=AT)
    store(pipeline, "AAPL", TUESDAY, price=30_000.0, known_at=AT)
    [found] = price_sanity(pipeline, Interval.M1).odd
    assert (found.close_before, found.opened_at, found.step.is_wrong) == (300.5, datetime(2024, 12, 3, 14, 30, tzinfo=UTC), True)


@pytest.mark.parametrize(("monday", "tuesday", "wrong"), [(1_200.0, 120.0, False), (120.0, 121.0, True)])
def test_on_the_day_of_a_split_daily_prices_step_by_it_or_are_wrong(
    pipeline: Pipeline,
    monday: float,
    tuesday: float,
    wrong: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    store(pipeline, "AAPL", MONDAY, interval=Interval.D1, price=monday, known_at=AT)
    store(pipeline, "AAPL", TUESDAY, interval=Interval.D1, price=tuesday, known_at=AT)
    split_aapl(pipeline, TUESDAY, 10.0)
    assert bool(price_sanity(pipeline, Interval.D1).wrong) is wrong


def test_a_leap_overnight_is_doubted_until_a_second_provider_says_the_same(pipeline: Pipeline) -> None:
    store(pipeline, "AAPL", MONDAY, interval=Interval.D1, price=10.0, known_at=AT)
    store(pipeline, "AAPL", TUESDAY, interval=Interval.D1, price=50.0, known_at=AT)
    [doubted] = price_sanity(pipeline, Interval.D1).doubtful
    assert (doubted.symbol, doubted.session, doubted.step.is_wrong) == ("AAPL", TUESDAY, False)
    run(
        pipeline,
        "insert into second_opinions (symbol_id, interval_s, session, stored_provider, second_provider, verdict, reason, compared, "
        "only_stored, only_second, off, fields, winner, decided_by, second_fetch_id, asked_at) "
        "select symbol_id, 86400, %(session)s, 'yahoo', 'massive', 'agree', 'the same', 1, 0, 0, 0, '{}', 'yahoo', 'agreement', "
        "(select min(fetch_id) from fetches), now() from symbol_universe where symbol = 'AAPL'",
        session=TUESDAY,
    )
    found = price_sanity(pipeline, Interval.D1)
    assert (found.doubtful, [one.is_agreed for one in found.odd]) == ([], [True])


def test_a_refused_bar_counts_until_another_stands_in_its_place(pipeline: Pipeline) -> None:
    store(pipeline, "AAPL", TUESDAY, lacking=[30], known_at=AT)
    refuse(pipeline, "2024-12-03 15:00Z")
    refuse(pipeline, "2024-12-03 15:01Z")
    [refused] = price_sanity(pipeline, Interval.M1).refused
    assert (refused.reason, refused.bars, refused.example) == ("high below low", 1, "AAPL")


def test_what_was_odd_in_an_older_session_is_not_looked_at(pipeline: Pipeline) -> None:
    store(pipeline, "AAPL", MONDAY, price=100.0, known_at=AT)
    run(
        pipeline,
        "update candles_intraday set open = open * 9, high = high * 9, low = low * 9, close = close * 9, "
        "as_of = as_of + interval '1 second' where opened_at = '2024-12-02 15:00Z'",
    )
    assert price_sanity(pipeline, Interval.M1).odd == []
