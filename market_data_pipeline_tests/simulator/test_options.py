"""The chains that simulated vendors make up: lawful prices, lawful expiries, and the chain of a file as it is."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.simulator.clock import microseconds
from market_data_pipeline.simulator.market import Market, grid_of
from market_data_pipeline.simulator.options import RATE, black_scholes, contracts_of, expiries
from market_data_pipeline.simulator.vendor import Scene
from market_data_pipeline_tests.simulator.directories import CLOSE, LATER, minute, session_of_minutes, write_bars

if TYPE_CHECKING:
    from pathlib import Path

    from market_data_pipeline.simulator.options import Contract

SPOTS, YEARS, SIGMAS = st.floats(1.0, 5000.0), st.floats(0.002, 3.0), st.floats(0.05, 2.0)


def chain(directory: Path, now: datetime = LATER, seed: int = 7) -> list[Contract]:
    return contracts_of(Scene(Market(directory), microseconds(now), seed, ""), "AAPL")


@given(SPOTS, st.floats(0.5, 1.5), YEARS, SIGMAS)
def test_a_call_less_a_put_is_the_share_less_the_strike_paid_later(spot: float, away: float, years: float, sigma: float) -> None:
    strike = spot * away
    call, put = (black_scholes(spot, strike, years, sigma, right) for right in "CP")
    assert math.isclose(call.price - put.price, spot - strike * math.exp(-RATE * years), abs_tol=1e-6 * spot)
    assert math.isclose(call.delta - put.delta, 1.0, abs_tol=1e-9)


@given(SPOTS, st.floats(0.8, 1.25), YEARS, SIGMAS, st.sampled_from("CP"))
def test_delta_is_how_the_price_moves_with_the_share(spot: float, away: float, years: float, sigma: float, right: str) -> None:
    nudge = spot * 1e-4
    low, high = (black_scholes(spot + by, spot * away, years, sigma, right).price for by in (-nudge, nudge))
    assert math.isclose((high - low) / (2 * nudge), black_scholes(spot, spot * away, years, sigma, right).delta, abs_tol=0.02)


def test_a_textbook_call_has_the_textbook_price() -> None:
    """Hull, Options, Futures and Other Derivatives, example 15.6: spot 42, strike 40, 10 %, half a year, 20 %: 4.76 and 0.81."""
    call, put = (black_scholes(42, 40, 0.5, 0.2, right, rate=0.1).price for right in "CP")
    assert (round(call, 2), round(put, 2)) == (4.76, 0.81)


@settings(deadline=None)  # the calendar is built on the first call
@given(st.dates(date(2006, 1, 2), date(2026, 6, 1)))
def test_expiries_are_three_sessions_to_come_of_which_the_last_is_monthly(today: date) -> None:
    grid = grid_of("XNYS")
    found = expiries(today, grid)
    sessions = {date(1970, 1, 1) + timedelta(days=int(day)) for day in grid.session}
    assert len(set(found)) == 3
    assert found == sorted(found)
    assert set(found) <= sessions
    assert found[1] - found[0] >= timedelta(days=5)
    assert 14 <= found[2].day <= 21


def test_the_chain_of_good_friday_expires_on_thursday() -> None:
    assert expiries(date(2026, 3, 30), grid_of("XNYS"))[0] == date(2026, 4, 2)


def test_a_made_up_chain_surrounds_the_last_price_and_is_lawful(tmp_path: Path) -> None:
    contracts = chain(write_bars(tmp_path, session_of_minutes()))
    assert len(contracts) == 3 * 11 * 2
    assert len({contract.name for contract in contracts}) == len(contracts)
    assert min(c.strike for c in contracts) < 103.9 < max(c.strike for c in contracts)
    for contract in contracts:
        assert 0 <= contract.bid < contract.ask
        assert contract.name == f"AAPL{contract.expiry:%y%m%d}{contract.right}{round(contract.strike * 1000):08d}"
        assert (contract.last_at is None) == (contract.last == 0) == (contract.volume == 0)
    assert {contract.last_at is None for contract in contracts} == {True, False}


def test_the_same_moment_has_the_same_chain_and_another_seed_another(tmp_path: Path) -> None:
    data = write_bars(tmp_path, session_of_minutes())
    assert chain(data) == chain(data)
    assert chain(data, seed=8) != chain(data)


def test_a_symbol_that_has_not_traded_has_no_contracts(tmp_path: Path) -> None:
    assert chain(write_bars(tmp_path, session_of_minutes()), now=minute(0)) == []


def test_a_file_is_served_as_it_is_until_its_contracts_expire(tmp_path: Path) -> None:
    data = write_bars(tmp_path, session_of_minutes())
    (data / "options").mkdir()
    records = [
        {"option": "AAPL241206C00100000", "bid": 4.0, "ask": 4.2, "iv": 0.3, "last_trade_time": "2024-12-02T10:00:00"},
        {"option": "AAPL241129P00100000", "bid": 1.0},
    ]
    (data / "options" / "AAPL.json").write_bytes(orjson.dumps({"data": {"options": records}}))
    (found,) = chain(data)
    assert (found.name, found.bid, found.ask, found.iv, found.delta) == ("AAPL241206C00100000", 4.0, 4.2, 0.3, 0.0)
    assert found.last_at == int(datetime(2024, 12, 2, 15, tzinfo=UTC).timestamp())
    assert chain(data, now=CLOSE + timedelta(days=5)) == []


@pytest.mark.parametrize("text", [b"nonsense", b"{}", b'{"data":{"options":[{}]}}', b'{"data":{"options":[{"option":"AAPL"}]}}'])
def test_a_file_that_is_no_chain_says_which_it_is(tmp_path: Path, text: bytes) -> None:
    data = write_bars(tmp_path, session_of_minutes())
    (data / "options").mkdir()
    (data / "options" / "AAPL.json").write_bytes(text)
    with pytest.raises(InvalidInputError, match=r"options/AAPL\.json"):
        chain(data)
