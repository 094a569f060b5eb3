"""Several answers about the same sessions become one."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import CandleColumns
from market_data_pipeline.ingest.judge import judge
from market_data_pipeline.ingest.merge import Part, merge
from market_data_pipeline_tests.ingest.builders import (
    LONG_AFTER,
    MONDAY,
    XNYS,
    an_answer,
    bars_at,
    grid_of,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from market_data_pipeline.domain.candles import Bools
    from market_data_pipeline.ingest.merge import Merged

TUESDAY = MONDAY.replace(day=3)
GRID = grid_of(MONDAY, TUESDAY)
OPENS = GRID.opened_at.tolist()
BARS = len(OPENS)


def a_part(slots: Collection[int], *, wanted: Bools | None = None, is_evidence: bool = True, silence_counts: bool = True) -> Part:
    """The part of a provider that has bars in these slots of two sessions."""
    answer = an_answer(bars_at([OPENS[slot] for slot in sorted(slots)]))
    judged = judge(
        answer, symbol_id=1, window=whole(GRID), grid=GRID, calendar=XNYS, now=LONG_AFTER, settle_seconds=90, wanted=wanted
    )
    return Part(judged, is_evidence, silence_counts)


def chain(slots_of_each: Sequence[Collection[int]]) -> list[Part]:
    """Parts as ingesting makes them: each provider fills only the holes that those before it left."""
    parts, lacking = [], np.ones(BARS, bool)
    for slots in slots_of_each:
        parts.append(a_part(slots, wanted=lacking.copy()))
        lacking[list(slots)] = False
    return parts


def said(merged: Merged) -> list[tuple[list[bool], list[bool], bool]]:
    return [(session.bars.tolist(), session.silent.tolist(), session.is_evidence) for session in merged.sessions]


def test_twelve_bars_of_one_and_378_of_another_are_one_session_with_the_part_of_each_bar() -> None:
    merged = merge(chain([range(12), range(390)]))
    assert merged.columns.opened_at.tolist() == OPENS[:390]
    assert merged.part.tolist() == [0] * 12 + [1] * 378
    assert merged.session_index.tolist() == [0] * 390


def test_a_minute_that_both_lack_between_bars_is_silent_and_one_that_only_one_lacks_is_not() -> None:
    first, second = [s for s in range(390) if s not in {100, 200}], [s for s in range(390) if s != 100]
    merged = merge(chain([first, second]))
    assert np.flatnonzero(merged.sessions[0].silent).tolist() == [100]


def of(part: Part, provider: str) -> Part:
    """The same from another provider."""
    return replace(part, judged=replace(part.judged, fetch=replace(part.judged.fetch, provider=provider)))


def test_what_two_providers_lack_between_bars_is_witnessed_and_what_one_says_twice_is_not() -> None:
    part = a_part([s for s in range(390) if s not in {100, 389}])
    [alone, _] = merge([part, part]).sessions
    assert alone.witnessed is None
    [session, _] = merge([part, of(part, "massive")]).sessions
    assert session.witnessed is not None
    assert session.seconded is not None
    assert np.flatnonzero(session.witnessed).tolist() == [100]
    # Nobody has a bar after it: both may have been cut short.
    assert np.flatnonzero(session.seconded).tolist() == [389]
    assert session.providers == ("massive", "yahoo")


def test_a_provider_without_a_bar_of_the_session_is_nobodys_witness() -> None:
    part = a_part([s for s in range(390) if s != 100])
    [session, _] = merge([part, of(a_part([]), "massive")]).sessions
    assert session.witnessed is None or not session.witnessed.any()
    foreign = replace(of(part, "massive"), silence_counts=False)
    assert merge([part, foreign]).sessions[0].witnessed is None


def test_the_silence_of_another_feed_says_nothing() -> None:
    holed = [s for s in range(390) if s != 100]
    merged = merge([a_part([], is_evidence=False), a_part(holed, silence_counts=False)])
    assert not merged.sessions[0].silent.any()
    assert merged.sessions[0].is_evidence


def test_an_answer_from_the_past_is_no_evidence_and_with_another_that_is_the_session_was_attempted() -> None:
    stale = a_part(range(50), is_evidence=False)
    assert not merge([stale]).sessions[0].is_evidence
    assert merge([stale, a_part(range(60, 390))]).sessions[0].is_evidence


def test_nothing_merges_to_nothing() -> None:
    merged = merge([])
    assert (len(merged.columns), merged.sessions) == (0, [])


SLOTS = st.sets(st.integers(0, BARS - 1), max_size=40)


@given(st.lists(SLOTS, min_size=1, max_size=3))
def test_every_bar_is_there_once_with_the_first_who_had_it(slots_of_each: list[set[int]]) -> None:
    merged = merge(chain(slots_of_each))
    everything = sorted(set().union(*slots_of_each))
    assert merged.columns.opened_at.tolist() == [OPENS[slot] for slot in everything]
    assert merged.part.tolist() == [next(n for n, slots in enumerate(slots_of_each) if slot in slots) for slot in everything]
    assert sum(int(session.bars.sum()) for session in merged.sessions) == len(merged.columns)
    for session in merged.sessions:
        assert not (session.bars & session.silent).any()


@given(st.lists(SLOTS, min_size=1, max_size=3))
def test_the_order_in_which_parts_are_merged_does_not_matter(slots_of_each: list[set[int]]) -> None:
    parts = chain(slots_of_each)
    merged = merge(parts)
    for order in permutations(range(len(parts))):
        other = merge([parts[place] for place in order])
        assert other.columns.opened_at.tolist() == merged.columns.opened_at.tolist()
        assert [order[part] for part in other.part.tolist()] == merged.part.tolist()
        assert said(other) == said(merged)


@given(SLOTS, SLOTS)
def test_of_two_bars_for_one_minute_the_earlier_parts_is_kept(first: set[int], second: set[int]) -> None:
    merged = merge([a_part(first), a_part(second)])
    assert merged.columns.opened_at.tolist() == [OPENS[slot] for slot in sorted(first | second)]
    assert merged.part.tolist() == [0 if slot in first else 1 for slot in sorted(first | second)]


def test_an_empty_answer_that_counts_is_an_attempt_for_every_session_it_covers() -> None:
    barren = a_part([])
    assert len(barren.judged.columns) == len(CandleColumns.empty())
    assert [session.is_evidence for session in merge([barren]).sessions] == [True, True]
