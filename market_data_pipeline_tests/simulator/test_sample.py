"""The sample looks like a market: right sessions, prices that obey the laws, and troubles that are really in it."""

from __future__ import annotations

import csv
import hashlib
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from market_data_pipeline.cli.simulate import sample
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.simulator.clock import microseconds
from market_data_pipeline.simulator.faults import read_rules
from market_data_pipeline.simulator.market import Bars, Market
from market_data_pipeline.simulator.sample import CAST, write_sample

if TYPE_CHECKING:
    from pathlib import Path

AFTERWARDS = microseconds(datetime(2024, 12, 7, 12, tzinfo=UTC))
# NYSE: nine sessions from 2024-11-25 to 12-06 without Thanksgiving (11-28); 11-29 closed at 13:00.
NYSE_MINUTES = 8 * 390 + 210
# HKEX: ten sessions of 330 minutes; round the clock: twelve days.
HKEX_MINUTES, CRYPTO_MINUTES = 10 * 330, 12 * 1440


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sample") / "data"
    write_sample(directory, seed=7)
    return directory


@pytest.fixture(scope="module")
def market(written: Path) -> Market:
    return Market(written)


def minutes_of(market: Market, symbol: str) -> Bars:
    return market.seen(symbol, "1m", AFTERWARDS).finished


def digest(directory: Path) -> str:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


@pytest.mark.parametrize(
    ("symbol", "expected"), [("NOVA", NYSE_MINUTES), ("INDX", NYSE_MINUTES), ("9801.HK", HKEX_MINUTES), ("ZED-USD", CRYPTO_MINUTES)]
)
def test_a_liquid_symbol_has_every_minute_of_its_sessions(market: Market, symbol: str, expected: int) -> None:
    assert minutes_of(market, symbol).regular.sum() == expected


def test_four_in_ten_minutes_of_the_illiquid_symbol_are_empty(market: Market) -> None:
    share = 1 - len(minutes_of(market, "SLOW")) / NYSE_MINUTES

    assert 0.36 < share < 0.44


def test_the_illiquid_symbol_trades_in_both_auctions(market: Market) -> None:
    stamps = {datetime.fromtimestamp(at, UTC).strftime("%dT%H:%M") for at in minutes_of(market, "SLOW").opened_at.tolist()}

    assert {"25T14:30", "25T20:59", "29T14:30", "29T17:59", "06T20:59"} <= stamps


@pytest.mark.parametrize("symbol", [member.symbol for member in CAST])
def test_prices_obey_the_laws_and_lie_on_ticks(market: Market, symbol: str) -> None:
    open_, high, low, close, volume = minutes_of(market, symbol).ohlcv
    tick = next(member.tick for member in CAST if member.symbol == symbol)

    assert (low <= np.minimum(open_, close)).all()
    assert (high >= np.maximum(open_, close)).all()
    assert (low > 0).all()
    assert (volume >= 1).all()
    assert np.allclose(np.stack([open_, high, low, close]) / tick, np.round(np.stack([open_, high, low, close]) / tick), atol=1e-6)


def test_volume_is_higher_near_open_and_close(market: Market) -> None:
    bars = minutes_of(market, "ORBT")
    full = bars.ohlcv[4][:390]

    assert full[:30].mean() > 2 * full[180:210].mean()
    assert full[-30:].mean() > 2 * full[180:210].mean()


def test_hours_and_days_agree_with_the_minutes(market: Market) -> None:
    minutes = minutes_of(market, "HELX")
    for interval, count in (("1h", 8 * 7 + 4), ("1d", 9)):
        bars = market.seen("HELX", interval, AFTERWARDS).finished
        assert len(bars) == count
        assert bars.ohlcv[4].sum() == minutes.ohlcv[4].sum()
        assert bars.ohlcv[1].max() == minutes.ohlcv[1].max()
        assert bars.ohlcv[3, -1] == minutes.ohlcv[3, -1]


def test_the_half_day_has_post_market_minutes_that_leak(market: Market) -> None:
    assert minutes_of(market, "NOVA").leaked.sum() == 45


def test_some_volumes_are_corrected_the_next_morning(market: Market) -> None:
    opening = datetime(2024, 12, 2, 14, 30, tzinfo=UTC)
    place = np.searchsorted(minutes_of(market, "NOVA").opened_at, opening.timestamp())
    at_night = market.seen("NOVA", "1m", microseconds(datetime(2024, 12, 3, tzinfo=UTC))).finished.ohlcv[4, place]

    assert minutes_of(market, "NOVA").ohlcv[4, place] == at_night // 2


def test_there_is_a_split_and_a_dividend(market: Market) -> None:
    assert [(a.kind, a.value) for a in market.actions_of("NOVA", AFTERWARDS)] == [("split", 4.0)]
    assert [(a.kind, a.value) for a in market.actions_of("INDX", AFTERWARDS)] == [("dividend", 1.45)]


def test_the_universe_file_lists_every_symbol(written: Path) -> None:
    with (written / "universe.csv").open(encoding="ascii") as file:
        rows = list(csv.DictReader(file))

    assert [row["symbol"] for row in rows] == [member.symbol for member in CAST]
    assert set(rows[0]) == {"symbol", "exchange", "tier", "asset_type"}
    assert {row["exchange"] for row in rows} == {"XNYS", "XNAS", "ARCX", "XHKG", "CRYPTO"}


def test_every_fault_of_the_demo_strikes_a_bounded_number_of_times(written: Path) -> None:
    rules = read_rules(written / "faults.yaml")

    assert {rule.action for rule in rules} >= {"status", "html", "truncate", "stall", "missing_minutes", "null_minutes"}
    assert all(rule.match.nth or rule.match.first for rule in rules)


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path, written: Path) -> None:
    write_sample(tmp_path / "again", seed=7)
    write_sample(tmp_path / "other", seed=8)

    assert digest(tmp_path / "again") == digest(written)
    assert digest(tmp_path / "other") != digest(written)


def test_a_symbol_keeps_its_history_in_a_larger_sample(tmp_path: Path, written: Path) -> None:
    write_sample(tmp_path / "more", seed=7, symbols=12)

    assert (tmp_path / "more" / "1m" / "VELA.csv").read_bytes() == (written / "1m" / "VELA.csv").read_bytes()
    assert sorted(path.stem for path in (tmp_path / "more" / "1m").glob("S0*.csv")) == ["S0000", "S0001"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"symbols": 0}, "--symbols 0: expected 1 to"),
        ({"start": date(2024, 12, 6), "end": date(2024, 12, 2)}, "--start 2024-12-06 is after --end 2024-12-02"),
        ({"start": date(2024, 11, 30), "end": date(2024, 12, 1)}, "no session of XNAS from 2024-11-30 to 2024-12-01"),
    ],
)
def test_a_sample_that_cannot_be_meant_is_refused_and_nothing_written(
    tmp_path: Path, arguments: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InvalidInputError, match=complaint):
        write_sample(tmp_path / "data", seed=7, **arguments)  # type: ignore[arg-type]

    assert not (tmp_path / "data").exists()


def test_two_samples_are_never_mixed(written: Path) -> None:
    with pytest.raises(InvalidInputError, match="not an empty directory"):
        write_sample(written, seed=8)


def test_the_command_says_what_to_do_next(tmp_path: Path) -> None:
    done = CliRunner().invoke(sample, [str(tmp_path / "data"), "--symbols", "2"])

    assert done.exit_code == 0
    assert "minutes of 2 symbols, 2024-11-25 to 2024-12-06" in done.output
    assert "mdp simulate --data" in done.output


def test_a_date_that_is_none_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(sample, [str(tmp_path / "data"), "--start", "monday"])

    assert isinstance(done.exception, InvalidInputError)
    assert "--start 'monday' is not a date" in str(done.exception)
