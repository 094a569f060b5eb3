"""Several answers about the same sessions become one: every bar once, with the answer it came from. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.candles import CandleColumns
from market_data_pipeline.domain.ports import AnsweredSession

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from market_data_pipeline.domain.candles import Bools, Int16s, Int32s
    from market_data_pipeline.domain.finality import Settlement
    from market_data_pipeline.ingest.judge import Judged

# Providers that must be silent at once for one to be the other's witness.
_WITNESSES = 2


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One judged answer. ``is_evidence``: it may count as an attempt. ``silence_counts``: what it lacks was not traded.

    The silence of another feed than the series' does not count: what nobody traded on one exchange was traded on others.
    """

    judged: Judged
    is_evidence: bool = True
    silence_counts: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """Bars of one symbol, sorted and unique; ``part`` says which of the parts each came from, ``session_index`` which session."""

    columns: CandleColumns
    part: Int32s
    session_index: Int32s
    flags: Int16s
    sessions: Sequence[AnsweredSession]


def merge(parts: Sequence[Part]) -> Merged:
    """One answer from several about one symbol, the better provider's first: of two bars for one stamp the earlier part's is kept.

    Bars of disjoint parts are the same whatever the order. A session is an attempt where any part of it is one, all parts
    together: a second provider that is as silent is no second attempt, but a witness. A slot is silent where a part whose silence
    counts has nothing there, between bars of its own, and no part has the bar; witnessed where another provider's part with bars of
    the session has nothing there either.
    """
    if len(parts) == 1 and parts[0].is_evidence and parts[0].silence_counts:
        judged = parts[0].judged
        return Merged(judged.columns, np.zeros(len(judged.columns), np.int32), judged.session_index, judged.flags, judged.sessions)
    dates = sorted({session.session for part in parts for session in part.judged.sessions})
    index_of = {session: index for index, session in enumerate(dates)}
    columns = CandleColumns.concat([part.judged.columns for part in parts])
    origin = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.judged.columns) for part in parts])
    session_index = np.concatenate([np.empty(0, np.int32), *(_indexes(part, index_of) for part in parts)])
    flags = np.concatenate([np.empty(0, np.int16), *(part.judged.flags for part in parts)])
    # lexsort: by stamp, and of one stamp the earliest part first.
    order = np.lexsort((origin, columns.opened_at))
    stamps = columns.opened_at[order]
    order = order[np.concatenate((np.ones(min(len(stamps), 1), bool), stamps[1:] != stamps[:-1]))]
    return Merged(
        columns=columns.take(order),
        part=origin[order],
        session_index=session_index[order].astype(np.int32),
        flags=flags[order].astype(np.int16),
        sessions=[_session(day, parts) for day in dates],
    )


def _indexes(part: Part, index_of: dict[date, int]) -> Int32s:
    places = np.array([index_of[session.session] for session in part.judged.sessions], np.int32)
    indexes: Int32s = places[part.judged.session_index]
    return indexes


def _session(day: date, parts: Sequence[Part]) -> AnsweredSession:
    mine = [(part, session) for part in parts for session in part.judged.sessions if session.session == day]
    first = mine[0][1]
    bars = _any([session.bars for _, session in mine])
    heard: dict[str, tuple[Bools, Bools, Bools]] = {}
    for part, session in mine:
        if part.is_evidence and part.silence_counts:
            quiet = session.silent if session.quiet is None else session.quiet
            # Silence of a provider without a single bar of the session is no second opinion, unless bars are around it.
            credible = session.silent if session.is_barren else session.silent | quiet
            name = part.judged.fetch.provider
            before = heard.get(name, (np.zeros(len(bars), bool),) * 3)
            heard[name] = before[0] | session.silent, before[1] | quiet, before[2] | credible
    nothing = np.zeros(len(bars), bool)
    silent = _any([nothing, *(silent for silent, _, _ in heard.values())]) & ~bars
    quiet = _any([nothing, *(quiet for _, quiet, _ in heard.values())]) & ~bars
    agreed = np.sum([nothing, *(credible for *_, credible in heard.values())], axis=0) >= _WITNESSES
    return AnsweredSession(
        symbol_id=first.symbol_id,
        session=day,
        opens_at=first.opens_at,
        closes_at=first.closes_at,
        bars=bars,
        silent=silent,
        due=_any([session.due for _, session in mine]),
        is_evidence=any(part.is_evidence for part, _ in mine),
        is_whole=any(session.is_whole for part, session in mine if part.is_evidence),
        settlement=_latest([session.settlement for _, session in mine]),
        quiet=quiet,
        is_barren=all(session.is_barren for _, session in mine),
        witnessed=silent & agreed if len(heard) >= _WITNESSES else None,
        seconded=quiet & ~silent & agreed if len(heard) >= _WITNESSES else None,
        providers=tuple(sorted(name for name, (_, quiet_here, _) in heard.items() if (quiet_here & ~bars).any())),
        starts_at=first.starts_at,
        ends_at=first.ends_at,
        next_over_at=first.next_over_at,
    )


def _latest(settlements: Sequence[Settlement | None]) -> Settlement | None:
    """The one that is final last: a session of several providers' bars is final when each of them has corrected its own."""
    return max(filter(None, settlements), key=lambda settlement: settlement.final_from, default=None)


def _any(masks: Sequence[Bools]) -> Bools:
    return reduce(np.logical_or, masks)
