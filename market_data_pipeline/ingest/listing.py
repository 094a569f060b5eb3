"""The use-case that decides when instruments were listed, from the ledger and the fetches: once a day is often enough."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from market_data_pipeline.domain.candles import FETCHED_INTERVALS, Interval
from market_data_pipeline.domain.capabilities import Lane
from market_data_pipeline.domain.listing import (
    ListingEvidence,
    ListingFinding,
    ListingKind,
    ListingPolicy,
    Reply,
    Witness,
    findings,
)
from market_data_pipeline.ingest.candles import ingest_candles
from market_data_pipeline.ingest.report import Stretch
from market_data_pipeline.storage.bulk import EPOCH
from market_data_pipeline.storage.listing import Company, ListingStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.storage.listing import StoredFinding

# Answers older than this say nothing of now; a delisting takes five sessions.
_LOOK_BACK = timedelta(days=45)
# Others are asked with it at nearly the same time, or at least on the same day.
_AT_ONCE, _SAME_DAY = timedelta(minutes=30), timedelta(days=1)
# An instrument that nobody has is asked for again after a week, and then after as long as it has been gone: relistings are rare,
# long suspensions are not. Seven requests in the first year.
_FIRST_PROBE = timedelta(days=7)
_PROBES_AT_ONCE = 20
_PROBED_DAYS = 5
_NO_COMPANY = Company(0, 0, frozenset())


@dataclass(frozen=True, slots=True)
class ListingChange:
    """What changed for one instrument. ``is_taken_back``: bars came that say it was wrong."""

    symbol_id: int
    symbol: str
    finding: ListingFinding
    is_taken_back: bool = False


def infer_listings(pipeline: Pipeline, *, run_id: str | None = None, probes: int = _PROBES_AT_ONCE) -> list[ListingChange]:
    """Take back what bars contradict, then find first and last sessions and what was never listed; what changed, by symbol.

    Asks nobody, except for at most ``probes`` instruments of which nobody has had anything for a week or longer: one request each,
    to notice that they are back. Repeating it is safe; with no new evidence it changes nothing.
    """
    now, store = pipeline.clock.now(), ListingStore(pipeline.engine)
    known_at = pipeline.known_at(now)
    if probes:
        _probe(pipeline, store, now=now, most=probes, run_id=run_id)
    wrong = store.contradicted()
    for found in wrong:
        store.take_back(found, now=now, known_at=known_at)
    policy = _policy(pipeline)
    candidates = store.candidates(since=now - _LOOK_BACK, asked=policy.confirm_after)
    instruments = {i.symbol_id: i for i in pipeline.universe.instruments()} if candidates or wrong else {}
    changes = [_change(found, instruments, is_taken_back=True) for found in wrong]
    asked = [instruments[symbol_id] for symbol_id in candidates if symbol_id in instruments]
    for symbol_id, evidence in _evidence(pipeline, store, asked, now=now).items():
        new = store.record(symbol_id, findings(evidence, policy), known_at=known_at, run_id=run_id)
        changes += [ListingChange(symbol_id, instruments[symbol_id].symbol, finding) for finding in new]
    return changes


def _policy(pipeline: Pipeline) -> ListingPolicy:
    healing = pipeline.settings.healing_policy
    return ListingPolicy(confirm_after=healing.confirm_after, give_up_after=healing.give_up_after)


def _change(found: StoredFinding, instruments: Mapping[int, Instrument], *, is_taken_back: bool) -> ListingChange:
    instrument = instruments.get(found.symbol_id)
    symbol = f"number {found.symbol_id}" if instrument is None else instrument.symbol
    return ListingChange(found.symbol_id, symbol, found.finding, is_taken_back)


def _evidence(
    pipeline: Pipeline, store: ListingStore, instruments: Sequence[Instrument], *, now: datetime
) -> dict[int, ListingEvidence]:
    if not instruments:
        return {}
    symbol_ids, since = [i.symbol_id for i in instruments], now - _LOOK_BACK
    extents, barren = store.extents(symbol_ids), store.barren(symbol_ids, now=now)
    answers = store.answers(symbol_ids, since=since)
    at_once = store.company(symbol_ids, since=since, grain=_AT_ONCE)
    same_day = store.company(symbol_ids, since=since, grain=_SAME_DAY)
    fruitful = {provider for (provider, _), company in same_day.items() if company.with_bars}
    configured = {interval: pipeline.bars_providers(interval) for interval in FETCHED_INTERVALS}

    def is_healthy(symbol_id: int, provider: str, at: datetime) -> bool | None:
        near, wide = (
            companies.get((provider, EPOCH + (at - EPOCH) // grain * grain), _NO_COMPANY)
            for companies, grain in ((at_once, _AT_ONCE), (same_day, _SAME_DAY))
        )
        bare_near, bare_wide = (company.bare - (symbol_id in company.without) for company in (near, wide))
        if not wide.with_bars + bare_wide:
            return None
        return bare_near <= near.with_bars and 0 < wide.with_bars >= bare_wide

    found = {}
    for instrument in instruments:
        symbol_id = instrument.symbol_id
        extent, (leading, trailing) = extents.get(symbol_id), barren[symbol_id]
        found[symbol_id] = ListingEvidence(
            firsts={} if extent is None else dict(extent.firsts),
            last=None if extent is None else max(extent.lasts.values()),
            last_closed_at=None if extent is None else extent.last_closed_at,
            leading=leading,
            trailing=trailing,
            answers=[
                Witness(provider, at, reply, reply is Reply.BARS or is_healthy(symbol_id, provider, at))
                for provider, at, reply in answers.get(symbol_id, ())
            ],
            serving=frozenset(
                provider.name
                for serving in configured.values()
                for provider, capability in serving
                if capability.knows(instrument.calendar)
                and (provider.name in fruitful or provider.name in {name for name, *_ in answers.get(symbol_id, ())})
            ),
            others_traded=store.others_traded(symbol_id, max(b.session for b in leading)) if leading else None,
        )
    return found


def _probe(pipeline: Pipeline, store: ListingStore, *, now: datetime, most: int, run_id: str | None) -> None:
    """Ask once more for what nobody had, the longest untouched first."""
    gone = [found for found in store.current() if found.finding.kind is not ListingKind.FIRST_SESSION]
    newest = store.newest_fetches([found.symbol_id for found in gone])
    due = []
    for found in gone:
        asked_at = newest.get(found.symbol_id) or found.known_from
        if now - asked_at >= max(_FIRST_PROBE, asked_at - found.known_from):
            due.append((asked_at, found.symbol_id))
    if not due:
        return
    chosen = {symbol_id for _, symbol_id in sorted(due)[:most]}
    instruments = [i for i in pipeline.universe.instruments() if i.symbol_id in chosen]
    interval = next((i for i in (Interval.D1, *FETCHED_INTERVALS) if pipeline.bars_providers(i)), None)
    if interval is None:
        return
    today = now.date()
    stretches = [
        Stretch(i, max(first, i.active_from or first), min(today, i.active_to or today))
        for i in instruments
        for first in [today - timedelta(days=_PROBED_DAYS)]
    ]
    live = [stretch for stretch in stretches if stretch.first <= stretch.last]
    for _ in ingest_candles(live, interval, pipeline=pipeline, refetch=True, run_id=run_id, lane=Lane.HEALING):
        pass
