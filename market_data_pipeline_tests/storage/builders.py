"""Batches for the store, "valid, except …". Their grid is a toy: every session opens at 14:30 UTC and has as many bars as asked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import sqlalchemy as sa

from market_data_pipeline.domain.candles import CandleColumns, Interval
from market_data_pipeline.domain.ports import AnsweredSession, CandleBatch, Fetch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.engine import Engine

    from market_data_pipeline.domain.ports import CorporateAction, RefusedBars

MONDAY = date(2024, 3, 4)
TUESDAY = date(2024, 3, 5)
WEDNESDAY = date(2024, 3, 6)
# Long after those sessions: every bar of them is due.
LATER = datetime(2024, 3, 10, 12, tzinfo=UTC)
NAN = float("nan")


class Bar(NamedTuple):
    """The values of one bar; unknown VWAP and trade count are NaN."""

    open: float
    high: float
    low: float
    close: float
    volume: float = 100.0
    vwap: float = NAN
    trades: float = NAN


def flat(price: float, volume: float = 100.0) -> Bar:
    """A bar that did not move."""
    return Bar(price, price, price, price, volume)


@dataclass(frozen=True)
class Answer:
    """What a provider said of one session: bars by slot, and the slots that were silent. ``due`` None: all of them."""

    symbol_id: int
    session: date
    bars: Mapping[int, Bar | float] = field(default_factory=dict)
    slots: int = 5
    silent: Sequence[int] = ()
    due: Sequence[int] | None = None

    def but(self, bars: Mapping[int, Bar | float]) -> Answer:
        """The same answer with other values in some slots."""
        return replace(self, bars={**self.bars, **bars})


def full(symbol_id: int, session: date, price: float = 10.0, *, slots: int = 5) -> Answer:
    """An answer with every bar of the session: ``price`` and a cent more each slot."""
    return Answer(symbol_id, session, {slot: round(price + slot / 100, 2) for slot in range(slots)}, slots)


def opens_at(session: date) -> int:
    """When the toy session opens, epoch seconds."""
    return int(datetime(session.year, session.month, session.day, 14, 30, tzinfo=UTC).timestamp())


def opened_at(session: date, slot: int, interval: Interval = Interval.M1) -> int:
    """The stamp of a bar: the instant it opens, for 1d midnight UTC of the session."""
    if interval.is_daily:
        return int(datetime(session.year, session.month, session.day, tzinfo=UTC).timestamp())
    return opens_at(session) + slot * interval.seconds


def answered(answer: Answer, interval: Interval = Interval.M1) -> AnsweredSession:
    """The session part of an answer."""

    def marked(slots: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        mask = np.zeros(answer.slots, bool)
        mask[list(slots)] = True
        return mask

    opens = opens_at(answer.session)
    return AnsweredSession(
        symbol_id=answer.symbol_id,
        session=answer.session,
        opens_at=opens,
        closes_at=opens + 23_400 if interval.is_daily else opens + answer.slots * interval.seconds,
        bars=marked(list(answer.bars)),
        silent=marked(answer.silent),
        due=marked(list(range(answer.slots)) if answer.due is None else answer.due),
    )


def fetch(**different: Any) -> Fetch:  # noqa: ANN401 - the fields of Fetch, each of its own type
    """The provenance of a good answer."""
    valid = Fetch(
        provider="yahoo",
        symbol="AAPL",
        interval=Interval.M1,
        request="/v8/finance/chart/AAPL?interval=1m",
        started_at=LATER,
        latency_seconds=0.1,
        outcome="ok",
        status=200,
    )
    return replace(valid, **different)


def batch(
    *answers: Answer,
    interval: Interval = Interval.M1,
    provider: str = "yahoo",
    float32_prices: bool = False,
    flags: int = 0,
    refused: Sequence[tuple[int, int, RefusedBars]] = (),
    actions: Sequence[tuple[int, int, CorporateAction]] = (),
) -> CandleBatch:
    """One batch with one fetch; the answers may come in any order, each (symbol, session) once."""
    ordered = sorted(answers, key=lambda answer: (answer.symbol_id, answer.session))
    rows = [
        (answer.symbol_id, index, opened_at(answer.session, slot, interval), bar if isinstance(bar, Bar) else flat(bar))
        for index, answer in enumerate(ordered)
        for slot, bar in sorted(answer.bars.items())
    ]
    values = np.array([bar for *_, bar in rows], np.float64).reshape(-1, len(Bar._fields))
    return CandleBatch(
        interval=interval,
        symbol_id=np.array([symbol_id for symbol_id, *_ in rows], np.int32),
        columns=CandleColumns(np.array([stamp for *_, stamp, _ in rows], np.int64), *values.T.copy()),
        session_index=np.array([index for _, index, *_ in rows], np.int32),
        fetch_index=np.zeros(len(rows), np.int32),
        flags=np.full(len(rows), flags, np.int16),
        sessions=[answered(answer, interval) for answer in ordered],
        fetches=[fetch(provider=provider, interval=interval)],
        refused=refused,
        actions=actions,
        float32_prices=float32_prices,
    )


def at(seconds: float) -> datetime:
    """A knowledge time: so many seconds after LATER."""
    return LATER + timedelta(seconds=seconds)


def add_symbols(engine: Engine, *symbols: str) -> list[int]:
    """Put symbols into the universe as they are; their ids, in the order given."""
    with engine.begin() as connection:
        version = connection.execute(
            sa.text(
                "insert into universe_versions"
                " (version_tag, source, source_sha256, symbols, added, changed, deactivated, loaded_by)"
                " values (gen_random_uuid()::text, 'a test', 'none', :symbols, :symbols, 0, 0, 'a test') returning version_id"
            ),
            {"symbols": len(symbols)},
        ).scalar_one()
        added = connection.execute(
            sa.text(
                "insert into symbol_universe (symbol, exchange, calendar, tier, version_id) "
                "select symbol, 'XNYS', 'XNYS', 'T0', :version from unnest(cast(:symbols as text[])) as symbol "
                "returning symbol, symbol_id"
            ),
            {"version": version, "symbols": list(symbols)},
        )
        ids = {str(row.symbol): int(row.symbol_id) for row in added}
    return [ids[symbol] for symbol in symbols]
