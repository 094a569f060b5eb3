"""Which closes stand in for bars that nobody traded."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.filling import carried_closes

# P present, e confirmed empty, h halted, m missing.
verdicts = st.lists(st.tuples(st.integers(0, 2), st.sampled_from("Pehm")), max_size=40).map(sorted)


def carried(kinds: str, session: list[int] | None = None) -> list[float | None]:
    close = np.array([float(place) if kind == "P" else np.nan for place, kind in enumerate(kinds)])
    empty, halted = (np.array([kind == which for kind in kinds], bool) for which in "eh")
    sessions = np.array(session if session is not None else [0] * len(kinds), np.int32)
    found = carried_closes(close, empty=empty, halted=halted, session=sessions)
    return [None if np.isnan(value) else float(value) for value in found]


def test_a_close_is_carried_over_empty_and_halted_bars_and_over_nothing_else() -> None:
    assert carried("PeePehhe") == [None, 0, 0, None, 3, None, None, 3]
    assert carried("eePe") == [None, None, None, 2]
    assert carried("PmeePe") == [None, None, None, None, None, 4]
    assert carried("") == []


def test_no_close_is_carried_into_the_next_session() -> None:
    assert carried("PeeP", [0, 0, 1, 1]) == [None, 0, None, None]


@given(verdicts)
def test_only_empty_bars_are_filled_each_with_the_last_close_before_it(bars: list[tuple[int, str]]) -> None:
    session, kinds = [number for number, _ in bars], "".join(kind for _, kind in bars)
    for place, value in enumerate(carried(kinds, session)):
        before = [p for p in range(place) if session[p] == session[place]]
        newest = max((p for p in before if kinds[p] == "P"), default=None)
        gap = [p for p in before if newest is not None and p > newest and kinds[p] == "m"]
        expected = float(newest) if kinds[place] == "e" and newest is not None and not gap else None
        assert value == expected
