"""Tiers by liquidity: deterministic, within their caps, and quiet at the boundaries."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.tiers import (
    Basis,
    Liquidity,
    TierPolicy,
    assign_tiers,
    digest_of,
    liquidity_of,
    measurable_by_bars,
    why,
)
from market_data_pipeline.domain.universe import Instrument, Tier

if TYPE_CHECKING:
    from collections.abc import Sequence

TEN_AND_TWENTY = TierPolicy({Tier.T0: 10, Tier.T1: 20})


def ranked(count: int, tiers: Sequence[Tier] = ()) -> list[Liquidity]:
    """Symbols S001, S002, … from the most to the least liquid; ``tiers`` of the first ones, T2 of all others."""
    given_tiers = [*tiers, *[Tier.T2] * (count - len(tiers))]
    return [Liquidity(f"S{n:03}", tier, 1e9 / (n + 1), Basis.ADV) for n, tier in enumerate(given_tiers, 1)]


def tiers_of(figures: Sequence[Liquidity], policy: TierPolicy = TEN_AND_TWENTY) -> dict[str, Tier]:
    return {placing.of.symbol: placing.tier for placing in assign_tiers(figures, policy)}


def settled(figures: Sequence[Liquidity], policy: TierPolicy = TEN_AND_TWENTY) -> list[Liquidity]:
    """The same figures of symbols that have the tiers which follow from them."""
    tiers = tiers_of(figures, policy)
    return [replace(figure, tier=tiers[figure.symbol]) for figure in figures]


figures = st.lists(
    st.builds(
        Liquidity,
        st.from_regex(r"[A-Z]{1,3}", fullmatch=True),
        st.sampled_from(Tier),
        st.none() | st.integers(0, 20).map(float),
        st.just(Basis.ADV),
    ),
    unique_by=lambda figure: figure.symbol,
    max_size=60,
)
policies = st.builds(
    lambda t0, t1, band: TierPolicy({Tier.T0: t0, Tier.T1: t1}, band),
    st.integers(0, 15),
    st.integers(0, 25),
    st.sampled_from([0.0, 0.1, 0.5]),
)


@given(figures, policies)
def test_no_tier_is_larger_than_its_cap_and_no_place_stays_free_while_somebody_has_a_figure(
    universe: list[Liquidity], policy: TierPolicy
) -> None:
    tiers = tiers_of(universe, policy)
    known = sum(figure.daily_value is not None for figure in universe)
    assert len(tiers) == len(universe)
    assert list(tiers.values()).count(Tier.T0) == min(policy.caps[Tier.T0], known)
    assert list(tiers.values()).count(Tier.T1) == min(policy.caps[Tier.T1], known - min(policy.caps[Tier.T0], known))
    assert {tiers[figure.symbol] for figure in universe if figure.daily_value is None} <= {Tier.T2}


@given(figures, policies, st.randoms())
def test_the_order_in_which_symbols_are_handed_in_does_not_matter(
    universe: list[Liquidity], policy: TierPolicy, random: object
) -> None:
    shuffled = list(universe)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign_tiers(shuffled, policy) == assign_tiers(universe, policy)
    assert digest_of(shuffled, policy) == digest_of(universe, policy)


@given(figures, policies)
def test_the_same_figures_again_move_nobody(universe: list[Liquidity], policy: TierPolicy) -> None:
    again = assign_tiers(settled(universe, policy), policy)
    assert [placing for placing in again if placing.moves] == []


@given(figures, policies)
def test_who_is_beyond_the_band_is_on_the_right_side_whatever_it_was(universe: list[Liquidity], policy: TierPolicy) -> None:
    for placing in assign_tiers(universe, policy):
        if placing.rank is None:
            continue
        cap, margin = policy.caps[Tier.T0], policy.margin(Tier.T0)
        if placing.rank <= cap - margin:
            assert placing.tier is Tier.T0
        if placing.rank > cap + margin:
            assert placing.tier is not Tier.T0


@given(st.lists(st.integers(0, 38), max_size=40))
def test_neighbours_that_change_places_change_no_tier(swaps: list[int]) -> None:
    """Ranks that wander by less than the band: every swap is of two neighbours, and each symbol takes part in one at most."""
    universe = settled(ranked(40))
    values = [figure.daily_value for figure in universe]
    swapped: set[int] = set()
    for place in swaps:
        if not {place, place + 1} & swapped:
            values[place], values[place + 1] = values[place + 1], values[place]
            swapped |= {place, place + 1}
    moved = [replace(figure, daily_value=value) for figure, value in zip(universe, values, strict=True)]
    assert [placing.of.symbol for placing in assign_tiers(moved, TEN_AND_TWENTY) if placing.moves] == []


def test_a_new_universe_is_ranked_and_ties_are_broken_by_symbol() -> None:
    same = [Liquidity(symbol, Tier.T2, 5.0, Basis.ADV) for symbol in ("C", "A", "B")]
    assert tiers_of(same, TierPolicy({Tier.T0: 1, Tier.T1: 1})) == {"A": Tier.T0, "B": Tier.T1, "C": Tier.T2}


def test_a_symbol_crosses_the_boundary_only_when_it_is_beyond_the_band() -> None:
    policy = TierPolicy({Tier.T0: 20, Tier.T1: 20})
    universe = settled(ranked(60), policy)
    # The newcomer is at rank 19: within two ranks of the boundary.
    near = [replace(f, daily_value=1e9 / 19.5) if f.symbol == "S030" else f for f in universe]
    assert tiers_of(near, policy)["S030"] is Tier.T1
    inside = [replace(f, daily_value=1e9 / 18.5) if f.symbol == "S030" else f for f in universe]
    moves = {p.of.symbol: (p.tier, why(p, policy)) for p in assign_tiers(inside, policy) if p.moves}
    assert moves == {
        "S030": (Tier.T0, "rank 18 is within the 20 of T0 by 2 or more"),
        "S020": (Tier.T1, "rank 21: others took its place"),
    }


def test_a_place_that_is_free_goes_to_the_best_of_the_others() -> None:
    universe = [figure for figure in settled(ranked(40)) if figure.symbol != "S003"]
    moves = {p.of.symbol: (p.tier, why(p, TEN_AND_TWENTY)) for p in assign_tiers(universe, TEN_AND_TWENTY) if p.moves}
    assert moves == {"S011": (Tier.T0, "rank 10: a place was free"), "S031": (Tier.T1, "rank 30: a place was free")}


def test_a_symbol_without_any_figure_is_of_the_last_tier_though_there_is_room() -> None:
    (lost,) = assign_tiers([Liquidity("X", Tier.T0)], TEN_AND_TWENTY)
    assert (lost.tier, lost.rank, why(lost, TEN_AND_TWENTY)) == (Tier.T2, None, "nothing tells how liquid it is")


def test_two_figures_of_one_symbol_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="two figures"):
        assign_tiers([Liquidity("X", Tier.T0, 1.0), Liquidity("X", Tier.T0, 2.0)], TEN_AND_TWENTY)


def instrument(symbol_id: int, **but: object) -> Instrument:
    return replace(Instrument(symbol_id, f"S{symbol_id}", "XNAS", "XNYS", Tier.T2), **but)  # type: ignore[arg-type]


def test_bars_come_before_the_files_figure_and_that_before_the_capitalisation() -> None:
    universe = [instrument(1, adv_21d=5.0, mkt_cap=1000.0), instrument(2, adv_21d=7.0), instrument(3, mkt_cap=500.0), instrument(4)]
    found = liquidity_of(universe, {1: 100.0})
    # A tenth of the first one's capitalisation changes hands a day: so much is taken of the third's.
    assert [(f.basis, f.daily_value) for f in found] == [
        (Basis.BARS, 100.0),
        (Basis.ADV, 7.0),
        (Basis.CAP, 50.0),
        (Basis.NONE, None),
    ]


@pytest.mark.parametrize(
    ("but", "is_measured"),
    [
        ({}, True),
        ({"asset_type": "etf", "currency": "USD"}, True),
        ({"asset_type": "crypto", "calendar": "24/7", "currency": "USD"}, False),
        ({"asset_type": "fx"}, False),
        ({"asset_type": "index"}, False),
        ({"calendar": "XHKG"}, False),
        ({"calendar": "XHKG", "currency": "HKD"}, False),
        ({"calendar": "XLON", "currency": "USD"}, True),
    ],
)
def test_bars_measure_only_what_trades_in_shares_and_in_the_base_currency(but: dict[str, str], *, is_measured: bool) -> None:
    assert measurable_by_bars(instrument(1, **but)) is is_measured
