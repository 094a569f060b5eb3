"""Every mistake of the issue's list: its exit code, the value and the expectation in the message, and nothing half done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from market_data_pipeline_tests.cli.builders import MONDAY, UNIVERSE, pipeline_of, store, universe_file

if TYPE_CHECKING:
    from market_data_pipeline_tests.cli.conftest import Mdp

_COUNTS = """
select (select count(*) from symbol_universe), (select count(*) from universe_versions), (select count(*) from symbol_aliases),
       (select count(*) from candles_intraday), (select count(*) from candles_daily), (select count(*) from candle_revisions),
       (select count(*) from coverage), (select count(*) from fetches),
       (select sum(next_attempt_at - last_attempt_at) from coverage)
"""


@pytest.fixture
def stocked(mdp: Mdp) -> Mdp:
    """A universe and a Monday with holes, so that there is something to spoil."""
    mdp("universe", "load", universe_file(mdp.home))
    with pipeline_of(mdp) as pipeline:
        store(pipeline, "AAPL", MONDAY, lacking=[1, 2])
    return mdp


def state(mdp: Mdp) -> tuple[object, ...]:
    """Everything that a command which was refused must leave as it was."""
    with pipeline_of(mdp) as pipeline, pipeline.engine.connect() as connection:
        counts = tuple(connection.exec_driver_sql(_COUNTS).one())
    return *counts, (mdp.home / "home" / "partitions.json").read_bytes()


def backfill(symbols: str = "AAPL", interval: str = "1m", start: str = "2024-12-02", end: str = "2024-12-06") -> tuple[str, ...]:
    return ("backfill", "--symbols", symbols, "--interval", interval, "--start", start, "--end", end)


def candles(symbol: str = "AAPL", interval: str = "1m", start: str = "2024-12-02", end: str = "2024-12-02") -> tuple[str, ...]:
    return ("candles", symbol, "--interval", interval, "--start", start, "--end", end)


MISTAKES = {
    "an unknown symbol": (backfill(symbols="AAPL,APPL"), ["'APPL'", "did you mean AAPL"]),
    "an unknown symbol to read": (candles(symbol="MSFT"), ["'MSFT'", "expected symbols of the universe"]),
    "an unknown symbol to cover": (("coverage", "--symbols", "MSFT"), ["'MSFT'", "expected symbols of the universe"]),
    "a hostile symbol": (backfill(symbols="'; drop table"), ["drop table", "is not a symbol", "expected 1-32 capital letters"]),
    "a hostile symbol to read": (candles(symbol="'; drop table"), ["drop table", "is not a symbol"]),
    "an unknown interval": (backfill(interval="7m"), ["'7m'", "expected one of 1m, 5m, 15m, 30m, 1h, 1d"]),
    "an unknown interval to read": (candles(interval="2h"), ["'2h'", "expected one of 1m"]),
    "start after end": (backfill(start="2024-12-06", end="2024-12-02"), ["2024-12-06 is after --end 2024-12-02", "expected start"]),
    "start after end to read": (candles(start="2024-12-06"), ["2024-12-06 is after --end 2024-12-02"]),
    "start after end to cover": (("coverage", "--start", "2024-12-06", "--end", "2024-12-02"), ["is after --end 2024-12-02"]),
    "start after end for gaps": (("gaps", "--start", "2024-12-06", "--end", "2024-12-02"), ["is after --end 2024-12-02"]),
    "a holiday": (
        backfill(start="2024-11-28", end="2024-11-28"),
        ["2024-11-28 is no session of XNYS", "the one before is 2024-11-27, the next 2024-11-29"],
    ),
    "a weekend to read": (candles(start="2024-11-30", end="2024-12-01"), ["from 2024-11-30 to 2024-12-01", "the next 2024-12-02"]),
    "a naive time": (candles(start="2024-12-02T14:30"), ["'2024-12-02T14:30' has no time zone", "add Z or an offset"]),
    "a naive knowledge time": ((*candles(), "--as-of", "2024-12-02T14:30"), ["has no time zone", "add Z or an offset"]),
    "an instant for a session": (backfill(start="2024-12-02T14:30Z"), ["'2024-12-02T14:30Z' is an instant", "expected a session"]),
    "a day that does not exist": (backfill(start="2024-02-30"), ["'2024-02-30' is not a date", "expected one like"]),
    "the future": (backfill(end="2024-12-09"), ["--end 2024-12-09 is in the future", "up to today, 2024-12-07"]),
    "before the partitions": (backfill(interval="1d", start="2019-01-02", end="2019-01-04"), ["2019-01-02 is before 2021-01-04"]),
    "no symbols": (("backfill", "--interval", "1m", "--start", "2024-12-02", "--end", "2024-12-02"), ["expected --symbols A,B"]),
    "no interval": (
        ("backfill", "--all", "--start", "2024-12-02", "--end", "2024-12-02"),
        ["no --interval", "expected one or more"],
    ),
    "no start": (("backfill", "--all", "--interval", "1m", "--end", "2024-12-02"), ["expected --start and --end, or --last N"]),
    "symbols and all": ((*backfill(), "--all"), ["--all was given with --symbols", "expected one of them"]),
    "symbols and tier": (("coverage", "--symbols", "AAPL", "--tier", "T0"), ["were both given", "expected one of them"]),
    "an unknown tier": (("universe", "list", "--tier", "T9"), ["'T9'", "'T0', 'T1', 'T2'"]),
    "a tier without symbols": (("coverage", "--tier", "T2"), ["no active symbol has tier T2"]),
    "an unknown command": (("backfil",), ["'backfil'"]),
    "an unknown option": ((*backfill(), "--adjusted"), ["--adjusted"]),
}

FILES = {
    "a duplicate": (UNIVERSE + "AAPL,XNYS,T1,equity,USD,\n", ["line 5", "'AAPL' stands on line 2 already", "expected once"]),
    "an unknown exchange": (UNIVERSE + "X,MOON,T1,equity,USD,\n", ["line 5", "unknown exchange 'MOON'", "expected one of XNYS"]),
    "a missing column": ("symbol,exchange\nAAPL,XNAS\n", ["column 'tier' is missing", "expected symbol, exchange, tier"]),
    "a hostile symbol": (UNIVERSE + "'; drop table,XNAS,T1,equity,USD,\n", ["line 5", "drop table", "is not a symbol"]),
    "an unknown tier": (UNIVERSE + "MSFT,XNAS,T7,equity,USD,\n", ["line 5", "'T7'", "expected one of T0, T1, T2"]),
    "nothing": ("", ["expected"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_what_was_expected_and_changes_nothing(stocked: Mdp, mistake: str) -> None:
    arguments, said = MISTAKES[mistake]
    before = state(stocked)
    refused = stocked(*arguments)
    assert refused.code == 2
    assert refused.out == ""
    assert [text for text in said if text not in refused.err] == []
    assert "Traceback" not in refused.err
    assert state(stocked) == before


@pytest.mark.parametrize("mistake", FILES)
def test_a_universe_file_with_a_mistake_is_refused_whole(stocked: Mdp, mistake: str) -> None:
    text, said = FILES[mistake]
    before = state(stocked)
    refused = stocked("universe", "load", universe_file(stocked.home, text, name="wrong.csv"))
    assert refused.code == 2
    assert [part for part in said if part not in refused.err] == []
    assert state(stocked) == before


def test_a_universe_file_that_is_not_there_is_named(stocked: Mdp) -> None:
    refused = stocked("universe", "load", "/nowhere/universe.csv")
    assert refused.code == 2
    assert "'/nowhere/universe.csv'" in refused.err


@pytest.mark.parametrize(
    "arguments",
    [backfill(), candles(), ("revisions", *candles()[1:]), ("coverage",), ("gaps",), ("universe", "list"), ("reconcile",)],
    ids=lambda arguments: arguments[0],
)
def test_an_unreachable_database_is_exit_code_3_and_its_password_is_not_printed(
    offline_mdp: Mdp, arguments: tuple[str, ...]
) -> None:
    down = offline_mdp(*arguments)
    assert down.code == 3
    assert "127.0.0.1" in down.err
    assert "secret-word" not in down.out + down.err
    assert "Traceback" not in down.err
