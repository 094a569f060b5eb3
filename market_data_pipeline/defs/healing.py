"""From what is due in the ledger to the runs to ask for: boxes of partitions, in turn, with a share for each tier. Pure."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from market_data_pipeline.domain.candles import FETCHED_INTERVALS, Interval
from market_data_pipeline.domain.partitions import Box, Cell, Grain, PartitionPlan, boxes, cells_between
from market_data_pipeline.domain.universe import Tier

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from market_data_pipeline.storage.ledger import DueGap, DueRecheck

PARTITIONS_A_HEALING_RUN = 500
_AGAIN = "again"
# As the ledger has it (storage.ledger.HEAD_START_SECONDS): gaps and rechecks come from it in that order, and are merged in it.
HEAD_START = timedelta(seconds=300)
# The part of a tick's runs that is each tier's, rounded down; what nobody claims, and the rest, go to whoever has waited longest.
SHARES: Mapping[Tier, float] = {Tier.T0: 0.5, Tier.T1: 0.3, Tier.T2: 0.2}


@dataclass(frozen=True, slots=True)
class Healing:
    """One run to ask for: a box of partitions of one interval, and what names what is due in it together with the attempt.

    ``again``: sessions that are asked for whatever the ledger has of them, both included; None where only what is missing is.
    ``turn``: since when the longest due of it is, with the head start of the better tiers. ``tier``: the best of any symbol in it.
    """

    interval: Interval
    box: Box
    digest: str
    again: tuple[date, date] | None
    tier: Tier
    turn: tuple[datetime, int]

    @property
    def cause(self) -> str:
        """Why the run is there, as its tag says it."""
        return "gap" if self.again is None else "recheck"


@dataclass(eq=False, slots=True)
class _Need:
    """What is due in one partition."""

    turn: tuple[datetime, int]
    tier: Tier
    attempts: list[str] = field(default_factory=list)
    again: tuple[date, date] | None = None


def healings(
    gaps: Sequence[DueGap],
    plan: PartitionPlan,
    *,
    symbols: Sequence[str],
    in_flight: Mapping[Interval, set[Cell]],
    now: datetime,
    rechecks: Sequence[DueRecheck] = (),
    tiers: Mapping[int, Tier] | None = None,
) -> list[Healing]:
    """The runs that heal ``gaps`` and ask ``rechecks`` again: neighbours share a box, and the boxes come in turn.

    A gap that lies in a partition to recheck, or beside one, rides in its run: the requests are sent anyway. Left out is what is in
    flight, and what Dagster has no key for yet: a new symbol's is added by the symbols sensor.
    """
    existing = {interval: plan.periods(interval).existing(now) for interval in FETCHED_INTERVALS}
    columns = frozenset(symbols)
    needs: dict[Interval, dict[Cell, _Need]] = {interval: {} for interval in FETCHED_INTERVALS}
    dues: list[tuple[DueGap | DueRecheck, str]] = [(gap, f"{gap.attempts}:{gap.failures}") for gap in gaps]
    dues += [(recheck, f"{_AGAIN}:{recheck.finality}") for recheck in rechecks]
    for place, (due, attempt) in enumerate(dues):
        tier = (tiers or {}).get(due.symbol_id, Tier.T2)
        turn = due.due_since + HEAD_START * list(Tier).index(tier), place
        for cell in _cells(due, plan, existing[due.interval]):
            if cell.symbol not in columns or cell in in_flight.get(due.interval, ()):
                continue
            need = needs[due.interval].setdefault(cell, _Need(turn, tier))
            need.turn, need.tier = min(need.turn, turn), min(need.tier, tier)
            need.attempts.append(f"{due.symbol}:{due.first}:{attempt}:{due.due_since}")
            if attempt.startswith(_AGAIN):
                need.again = _spanning(need.again, (due.first, due.last), plan.periods(due.interval).days_of(cell.period))
    found: list[Healing] = []
    for interval, mine in needs.items():
        is_whole = plan.periods(interval).grain is Grain.SESSION
        if is_whole:
            _ride_along(mine, existing[interval], symbols)
        alike: dict[object, list[Cell]] = defaultdict(list)
        for cell, need in mine.items():
            # Where partitions are sessions, the box itself says which are asked for again.
            alike[(need.again is not None) if is_whole else need.again].append(cell)
        for cells in alike.values():
            for box in boxes(cells, periods=existing[interval], symbols=symbols, largest=PARTITIONS_A_HEALING_RUN):
                inside = cells_between(box.first, box.last, periods=existing[interval], symbols=symbols)
                found.append(_healing(interval, box, [(cell, mine[cell]) for cell in inside]))
    return sorted(found, key=lambda healing: (healing.turn, healing.box))


def _healing(interval: Interval, box: Box, inside: Sequence[tuple[Cell, _Need]]) -> Healing:
    named = "\n".join(f"{cell.key} {attempt}" for cell, need in inside for attempt in sorted(need.attempts))
    spans = [need.again for _, need in inside if need.again is not None]
    return Healing(
        interval,
        box,
        digest=hashlib.sha256(named.encode()).hexdigest()[:16],
        again=(min(first for first, _ in spans), max(last for _, last in spans)) if spans else None,
        tier=min(need.tier for _, need in inside),
        turn=min(need.turn for _, need in inside),
    )


def _cells(due: DueGap | DueRecheck, plan: PartitionPlan, existing: Sequence[str]) -> Iterator[Cell]:
    for period in plan.periods(due.interval).keys(due.first, due.last):
        if existing and period <= existing[-1]:
            yield Cell(period, plan.column_of(due.symbol))


def _spanning(known: tuple[date, date] | None, new: tuple[date, date], within: tuple[date, date]) -> tuple[date, date]:
    first, last = max(new[0], within[0]), min(new[1], within[1])
    return (first, last) if known is None else (min(known[0], first), max(known[1], last))


def _ride_along(needs: Mapping[Cell, _Need], periods: Sequence[str], symbols: Sequence[str]) -> None:
    """Gaps beside a session to recheck are rechecked, too. A finished session is asked for whole in any case: it costs nothing."""
    beside: dict[Cell, tuple[date, date]] = {}
    neighbours = dict[str, list[str]]()
    for one, other in [*pairwise(periods), *pairwise(symbols)]:
        neighbours.setdefault(one, []).append(other)
        neighbours.setdefault(other, []).append(one)
    for cell, need in needs.items():
        if need.again is not None:
            near = [Cell(period, cell.symbol) for period in neighbours.get(cell.period, ())]
            near += [Cell(cell.period, symbol) for symbol in neighbours.get(cell.symbol, ())]
            beside |= {other: (date.fromisoformat(other.period),) * 2 for other in near}
    for cell in beside.keys() & needs.keys():
        needs[cell].again = needs[cell].again or beside[cell]


def in_turn(found: Sequence[Healing], room: int) -> list[Healing]:
    """``found``, which is in turn, in another order: the first ``room`` are those of this tick, a share of them for each tier.

    The one that has waited longest of all is always among them: it is the first of its tier, and where its tier's share is less
    than one, some place is nobody's.
    """
    chosen: list[Healing] = []
    for tier, share in SHARES.items():
        chosen += [healing for healing in found if healing.tier is tier][: int(room * share)]
    taken = {id(healing) for healing in chosen}
    rest = [healing for healing in found if id(healing) not in taken]
    first = sorted([*chosen, *rest[: max(room - len(chosen), 0)]], key=lambda healing: (healing.turn, healing.box))
    return [*first, *rest[max(room - len(chosen), 0) :]]
