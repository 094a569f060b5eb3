"""What comes over the wire: each line of the cases that a serious system must get right, through the real path.

A simulator goes wrong in the way of the line; the adapter, the judge, the store and the ledger do what the line demands. Where a
second provider is named, it must fill what the first spoilt, and the result must be the one without any fault. What each rule does,
and with which class, is the table in docs/concepts.md; the wording of the lines is in the comments.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from market_data_pipeline.domain.agreement import Comparison
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline.domain.quality import BarFlag
from market_data_pipeline.ingest.second_opinion import Subject, ask_second_opinions
from market_data_pipeline.simulator.client import RunningSimulator, running_simulator
from market_data_pipeline_tests.world import FRIDAY, MONDAY, SATURDAY, UNLIMITED, World, Worlds, expected_opens

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.report import StretchReport

    Bars = dict[int, tuple[float, ...]]

FIELDS = ("open", "high", "low", "close", "volume")
TUESDAY, HALF_DAY = date(2024, 12, 3), date(2024, 11, 29)
WEEK, MONDAYS = expected_opens(), expected_opens(last=MONDAY)
# Monday's second hour: some minutes in the middle of a session.
SOME = MONDAYS[60:80]


def instants(stamps: Sequence[int]) -> list[str]:
    """As a fault is told its minutes."""
    return [datetime.fromtimestamp(at, UTC).isoformat() for at in stamps]


def yahoo(action: str, **settings: Any) -> dict[str, Any]:  # noqa: ANN401 - as many types as settings
    """A fault of Yahoo's minutes alone."""
    return {"match": {"provider": "yahoo", "capability": "bars_1m"}, "action": action, **settings}


# --- the world ---------------------------------------------------------------------------------------------------------


def truth(place: int, level: float) -> tuple[float, float, float, float, float]:
    close = level + (place % 30) / 100
    return close - 0.01, close + 0.02, close - 0.03, close, 1000.0 + place


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulator]:
    """A week of minutes of AAPL at a hundred dollars, with a half day and its leak; TINY at a thousandth of a cent; and SPLT."""
    data = tmp_path_factory.mktemp("data")
    (data / "1m").mkdir()
    half_day = [at + 60 * n for at in expected_opens(first=HALF_DAY, last=HALF_DAY)[:1] for n in range(390)]
    for symbol, level in (("AAPL", 100.0), ("SPLT", 50.0)):
        _write(data / "1m" / f"{symbol}.csv", [(at, truth(place, level)) for place, at in enumerate(half_day + WEEK)])
    tiny = (1e-5, 1.2e-5, 0.9e-5, 1.1e-5, 3.618093)
    _write(data / "1m" / "TINY.csv", [(at, tiny) for at in WEEK])
    (data / "actions.csv").write_text("symbol,kind,session_date,value\nSPLT,split,2024-12-05,10\n")
    with running_simulator(data=data, now=SATURDAY, limits=UNLIMITED) as running:
        yield running


def _write(path: Path, bars: list[tuple[int, tuple[float, ...]]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["opened_at", *FIELDS])
        writer.writerows([datetime.fromtimestamp(at, UTC).isoformat(), *map(repr, values)] for at, values in bars)


@dataclass(frozen=True, slots=True)
class Case:
    """One world in which a provider goes wrong, and questions about what came of it."""

    worlds: Worlds

    def goes_wrong(self, *faults: dict[str, Any]) -> None:
        self.worlds.simulator.set_faults(list(faults))

    def now(self, instant: datetime) -> None:
        self.worlds.simulator.set_now(instant)


@pytest.fixture
def case(simulator: RunningSimulator, database_url: str, tmp_path: Path) -> Case:
    """Nothing is wrong yet; it is Saturday, and a fresh database."""
    simulator.reset()
    return Case(Worlds(simulator, database_url, tmp_path))


def ingested(world: World, symbol: str = "AAPL", first: date = MONDAY, last: date = MONDAY) -> tuple[Instrument, StretchReport]:
    [instrument] = world.load(symbol)
    [report] = world.ingest([instrument], first=first, last=last)
    return instrument, report


def stored(world: World, instrument: Instrument, *, as_of: datetime | None = None) -> Bars:
    read = world.pipeline.reader.read([instrument.symbol_id], Interval.M1, 0, 1 << 33, as_of=as_of)
    columns = zip(*(getattr(read.columns, name).tolist() for name in FIELDS), strict=True)
    return dict(zip(read.columns.opened_at.tolist(), columns, strict=True))


def flags(world: World, instrument: Instrument) -> dict[int, int]:
    read = world.pipeline.reader.read([instrument.symbol_id], Interval.M1, 0, 1 << 33)
    return {at: flag for at, flag in zip(read.columns.opened_at.tolist(), read.flags.tolist(), strict=True) if flag}


def true_bars(opens: Sequence[int] = MONDAYS, level: float = 100.0) -> Bars:
    place_of = {at: place + 390 for place, at in enumerate(WEEK)}
    return {at: truth(place_of[at], level) for at in opens}


def close_to(bars: Bars) -> dict[int, Any]:
    """Yahoo's prices are float32 on the wire."""
    return {at: pytest.approx(values, rel=1e-6) for at, values in bars.items()}


def is_true(world: World, instrument: Instrument, opens: Sequence[int] = MONDAYS) -> bool:
    """Stored is what it would be without a fault, bar by bar."""
    return stored(world, instrument) == close_to(true_bars(opens))


def rows(world: World, query: str) -> list[tuple[Any, ...]]:
    with world.pipeline.engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


def outcomes(world: World, provider: str = "yahoo") -> list[tuple[str, int]]:
    """(outcome, HTTP requests) of every fetch from a provider, in order."""
    return [
        (outcome, attempts)
        for name, outcome, attempts in rows(world, "select provider, outcome, attempts from fetches order by fetch_id")
        if name == provider
    ]


def refused(world: World) -> list[str]:
    """Why each refused bar was refused."""
    return [reason for (reason,) in rows(world, "select reason from refused_bars order by opened_at")]


def dropped(world: World, reason: str) -> int:
    return sum(count for (count,) in rows(world, f"select coalesce((dropped->>'{reason}')::int, 0) from fetches"))  # noqa: S608


def requests_to_yahoo(case: Case) -> int:
    return sum(r["path"].startswith(("/v8/finance/chart/", "/redirected")) for r in case.worlds.simulator.requests())


# --- "Incomplete current bar: drop while bar_end + settle > now by exchange time" -----------------------------------------


@pytest.mark.parametrize("symbol", ["AAPL", "SPLT"], ids=["one form of it", "the other"])
def test_the_bar_in_progress_is_not_stored_before_it_has_ended(case: Case, symbol: str) -> None:
    case.now(datetime.fromtimestamp(MONDAYS[100] + 30, UTC))
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world, symbol)
        # 90 seconds to settle: the bar before the one before the running one is the newest.
        assert max(stored(world, instrument)) == MONDAYS[98]
        case.now(SATURDAY)
        world.ingest([instrument], last=MONDAY)
        level = 100.0 if symbol == "AAPL" else 50.0
        assert stored(world, instrument) == close_to(true_bars(level=level))
        assert world.count("candle_revisions") == 0


def test_the_last_bar_of_a_range_of_the_past_is_not_lost(case: Case) -> None:
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world)
        assert max(stored(world, instrument)) == MONDAYS[-1]


# --- "Live row appended with an odd stamp: merge into or drop from the last bar" ------------------------------------------


def test_a_live_row_with_an_odd_stamp_is_left_out_and_counted(case: Case) -> None:
    case.goes_wrong(yahoo("live_tick", seconds=84))
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world)
        assert is_true(world, instrument)
        assert dropped(world, "outside_window") + dropped(world, "unaligned") == 1


# --- "Null rows; nulls in part of OHLC; volume only: null-all is no information; partial null is malformed -> other provider" -


def test_null_bars_are_no_information_however_often_they_come(case: Case) -> None:
    case.goes_wrong(yahoo("null_minutes", minutes=instants(SOME)))
    with case.worlds.of("yahoo", heal_backoff_seconds=0.0) as world:
        instrument, _ = ingested(world)
        for _ in range(world.settings.confirm_after + 1):
            [report] = world.ingest([instrument], last=MONDAY)
        assert report.verdicts[Verdict.MISSING] == len(SOME)
        assert report.verdicts[Verdict.CONFIRMED_EMPTY] == 0
        assert dropped(world, "null") > 0


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (yahoo("partial_nulls", field="high", minutes=instants(SOME)), "a value is null, NaN or infinite"),
        (yahoo("volume_only", minutes=instants(SOME)), "a value is null, NaN or infinite"),
        # The line: all-zero OHLC with volume; reject.
        (yahoo("zero_prices", minutes=instants(SOME)), "all prices are zero"),
        # The line: OHLC invariants; quarantine with reason, never silently fix.
        (yahoo("crossed", minutes=instants(SOME)), "low and high do not enclose open and close"),
        # The line: 100x currency; only with explanation by neighbours.
        (yahoo("unit", factor=100.0, minutes=instants(SOME)), "the prices are a hundred times those around them"),
        (yahoo("unit", factor=0.01, minutes=instants(SOME)), "the prices are a hundredth of those around them"),
    ],
    ids=lambda value: value["action"] if isinstance(value, dict) else "",
)
def test_a_broken_bar_is_quarantined_with_its_reason_and_no_silence(case: Case, fault: dict[str, Any], reason: str) -> None:
    case.goes_wrong(fault)
    with case.worlds.of("yahoo", heal_backoff_seconds=0.0) as world:
        instrument, report = ingested(world)
        assert stored(world, instrument) == close_to(true_bars([at for at in MONDAYS if at not in SOME]))
        assert refused(world) == [reason] * len(SOME)
        assert report.refused == len(SOME)
        for _ in range(world.settings.confirm_after):
            [report] = world.ingest([instrument], last=MONDAY)
        assert report.verdicts[Verdict.CONFIRMED_EMPTY] == 0
        # The same bar refused again is the same refusal.
        assert world.count("refused_bars") == len(SOME)


@pytest.mark.parametrize("action", ["partial_nulls", "zero_prices", "unit"])
def test_what_the_first_provider_broke_the_second_fills(case: Case, action: str) -> None:
    # More than a tenth of the session: short enough to ask at once.
    case.goes_wrong(yahoo(action, minutes=instants(MONDAYS[100:160])))
    with case.worlds.of("yahoo", "massive") as world:
        instrument, report = ingested(world)
        assert is_true(world, instrument)
        assert (report.failure, report.providers) == (None, ("massive", "yahoo"))
        assert outcomes(world, "massive") == [("ok", 1)]


# --- "Ragged arrays: reject whole answer" and everything else that fails an answer as a whole ------------------------------

# fault -> (kind, HTTP requests spent on it): a malformed answer is not asked for again, an outage is, four times.
WHOLE_ANSWERS: dict[str, tuple[dict[str, Any], str, int]] = {
    # The line: ragged arrays; reject whole answer.
    "ragged arrays": (yahoo("ragged"), "malformed", 1),
    "a column with another name": (yahoo("renamed"), "malformed", 1),
    # The line: nulls in part of OHLC; here in every bar, so that nothing is left to choose from.
    "a null in every bar": (yahoo("partial_nulls", fraction=1.0), "malformed", 1),
    # The line: 30m asked, 60m given, other symbol given; verify spacing and echoed symbol.
    "another interval": (yahoo("coarser"), "malformed", 1),
    "another symbol": (yahoo("other_symbol", symbol="MSFT"), "malformed", 1),
    # The line, of time: open-stamp against close-stamp.
    "bars named by their close": (yahoo("close_labelled"), "malformed", 1),
    "bars an hour late": (yahoo("shifted", seconds=3600), "malformed", 1),
    "bars half a minute late": (yahoo("shifted", seconds=30), "malformed", 1),
    # The line: price jump, here by a split that only half of a session is adjusted for.
    "half a session on another split basis": (
        yahoo("split_basis", factor=10.0, minutes=instants(MONDAYS[:195])),
        "mixed_basis",
        1,
    ),
    # The line: 200 with error JSON; class by body, not by status.
    "an error in a 200": (yahoo("error_json"), "transient", 4),
    # The line: partial JSON; reject, do not store the prefix as complete.
    "a body cut short": (yahoo("truncate"), "transient", 4),
    "a gzip stream cut short": (yahoo("truncated_gzip"), "transient", 4),
    "an empty body": (yahoo("empty"), "transient", 4),
    # The line: HTML, captive page, consent wall, Cloudflare.
    "an outage page": (yahoo("html", page="outage"), "transient", 4),
    "a consent wall": (yahoo("html", page="consent"), "transient", 4),
    "a challenge": (yahoo("html", page="challenge"), "transient", 4),
    # Nothing secret goes to Yahoo, so it may send us elsewhere: each attempt is two requests.
    "a captive portal": (yahoo("redirect"), "transient", 8),
    # The line: 429 with and without Retry-After, in seconds or as a date, or absurd; honour, cap.
    "429 without a time": (yahoo("status", code=429), "rate_limited", 1),
    "429 for an absurd time": (yahoo("status", code=429, retry_after=10_000_000), "rate_limited", 1),
    "429 until a date": (yahoo("status", code=429, retry_after=7200, retry_after_as="http-date"), "rate_limited", 1),
    # The line: 401 and 403, 402; permanent for that capability, no retry.
    "401": (yahoo("status", code=401), "entitlement", 1),
    "402": (yahoo("status", code=402), "entitlement", 1),
    "403": (yahoo("status", code=403), "entitlement", 1),
    # The line: 5xx, time-outs, resets; transient.
    "500": (yahoo("status", code=500), "transient", 4),
    "502": (yahoo("status", code=502), "transient", 4),
    "503": (yahoo("status", code=503), "transient", 4),
    "504": (yahoo("status", code=504), "transient", 4),
    "a reset before the headers": (yahoo("reset", at="before"), "transient", 4),
    "a reset after the headers": (yahoo("reset", at="headers"), "transient", 4),
    "a reset in the body": (yahoo("reset", at="body"), "transient", 4),
    # The line: gzip bombs, huge bodies; byte limits on read.
    "a gzip bomb": (yahoo("gzip_bomb", megabytes=8), "malformed", 1),
    "a huge body": (yahoo("huge", megabytes=8), "malformed", 1),
    # A well-formed answer with nothing in it
    "nothing where bars were due": (yahoo("barren"), "barren", 1),
}
# The line: slow drip; time limits on read. Each costs its time, so they are tried twice and not four times.
SLOW_ANSWERS = {
    "a stall before the headers": yahoo("stall", seconds=5.0),
    "a stall after the headers": yahoo("stall", seconds=5.0, at="headers"),
    "a slow drip": yahoo("drip", bytes_per_second=500),
    "dripping headers": yahoo("header_drip", bytes_per_second=5),
}


@pytest.mark.parametrize("name", WHOLE_ANSWERS)
def test_an_answer_that_cannot_be_used_has_its_class_and_the_next_provider_is_asked(case: Case, name: str) -> None:
    fault, kind, attempts = WHOLE_ANSWERS[name]
    case.goes_wrong(fault)
    with case.worlds.of("yahoo", "massive", http_max_body_bytes=1 << 20) as world:
        instrument, report = ingested(world)
        assert outcomes(world) == [(kind, attempts)]
        assert requests_to_yahoo(case) == attempts
        assert is_true(world, instrument)
        assert (report.failure, report.verdicts[Verdict.PRESENT]) == (None, 390)
        assert rows(world, "select distinct p.name from candles_intraday join providers p using (provider)") == [("massive",)]


@pytest.mark.parametrize("name", SLOW_ANSWERS)
def test_an_answer_that_takes_for_ever_is_left_and_the_next_provider_is_asked(case: Case, name: str) -> None:
    case.goes_wrong(SLOW_ANSWERS[name])
    with case.worlds.of("yahoo", "massive", http_timeout_seconds=0.3, http_attempts=2) as world:
        instrument, _ = ingested(world)
        assert outcomes(world) == [("transient", 2)]
        assert is_true(world, instrument)


REFUSED_WHOLE = ("ragged arrays", "a null in every bar", "bars named by their close", "half a session on another split basis")


@pytest.mark.parametrize("name", REFUSED_WHOLE)
def test_nothing_of_an_answer_that_is_malformed_is_stored_and_every_row_is_accounted_for(case: Case, name: str) -> None:
    case.goes_wrong(WHOLE_ANSWERS[name][0])
    with case.worlds.of("yahoo") as world:
        instrument, report = ingested(world)
        assert stored(world, instrument) == {}
        assert report.failure is not None
        # Where the rows could be told apart, each is kept with the reason, or counted.
        in_table = world.count("refused_bars")
        [(counted,)] = rows(world, "select sum(n::int) from fetches, jsonb_each_text(dropped) as d (why, n)")
        assert name == "ragged arrays" or in_table + (counted or 0) == 390
        [(attempts, failures, next_attempt_at)] = rows(world, "select attempts, failures, next_attempt_at from coverage")
        # A failure is not an attempt: silence needs an answer.
        assert (attempts, failures) == (0, 1)
        assert next_attempt_at > SATURDAY
        case.goes_wrong()
        world.ingest([instrument], last=MONDAY)
        assert is_true(world, instrument)


# None of these says of what interval its bars are: their spacing does.
@pytest.mark.parametrize("vendor", ["alpaca", "massive", "finnhub"])
def test_hours_for_minutes_are_malformed_from_a_vendor_that_does_not_say_so(case: Case, vendor: str) -> None:
    case.goes_wrong({"match": {"provider": vendor}, "action": "coarser"})
    with case.worlds.of(vendor, "yahoo") as world:
        instrument, _ = ingested(world)
        assert outcomes(world, vendor)[0][0] == "malformed"
        assert is_true(world, instrument)


def test_a_refused_connection_is_transient(case: Case) -> None:
    with case.worlds.of("yahoo", "massive", yahoo_base_url="http://127.0.0.1:9") as world:
        instrument, _ = ingested(world)
        assert outcomes(world) == [("transient", 4)]
        assert is_true(world, instrument)


def test_one_bad_answer_of_several_costs_only_its_retry(case: Case) -> None:
    case.goes_wrong(yahoo("status", code=503) | {"match": {"provider": "yahoo", "first": 2}})
    with case.worlds.of("yahoo") as world:
        instrument, report = ingested(world)
        assert outcomes(world) == [("ok", 3)]
        assert (report.failure, is_true(world, instrument)) == (None, True)


# --- prices: jumps, units, bases ----------------------------------------------------------------------------------------


def test_an_answer_in_another_unit_than_what_is_stored_overwrites_nothing(case: Case) -> None:
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world)
        case.goes_wrong(yahoo("unit", factor=100.0))
        world.ingest([instrument], first=TUESDAY, last=TUESDAY)
        world.ingest([instrument], last=MONDAY, refetch=True)
        assert is_true(world, instrument)
        assert world.count("candle_revisions") == 0
        assert {kind for kind, _ in outcomes(world)[1:]} == {"malformed"}
        assert set(refused(world)) == {
            "every price is a hundred times the stored close of 2024-12-02",
            "closes are 100 times those stored for the same bars: another unit",
        }


def test_a_split_that_adjusts_half_the_range_is_a_mixed_basis_and_overwrites_nothing(case: Case) -> None:
    """Ten for one, of Thursday: the provider has adjusted Monday and Tuesday so far, and not Wednesday."""
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world, "SPLT", last=FRIDAY)
        before = stored(world, instrument)
        assert len(before) == 1950
        case.goes_wrong(yahoo("split_basis", factor=0.1, minutes=instants(expected_opens(last=TUESDAY))))
        [report] = world.ingest([instrument], refetch=True)
        assert outcomes(world)[-1] == ("mixed_basis", 1)
        assert "the 10:1 split of 2024-12-05" in str(report.failure)
        assert stored(world, instrument) == before
        assert world.count("candle_revisions") == 0
        assert world.count("refused_bars") == 1950


def test_a_provider_that_adjusts_before_the_first_day_of_a_split_overwrites_nothing(case: Case) -> None:
    """The other order: Monday's bars are stored as they traded, and Tuesday comes divided by a split that is two days away."""
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world, "SPLT", last=FRIDAY)
        [before, splits] = stored(world, instrument), rows(world, "select value from corporate_actions where kind = 'split'")
        assert splits == [(10.0,)]
        with world.pipeline.engine.begin() as connection:
            connection.exec_driver_sql("delete from candles_intraday where opened_at >= '2024-12-03' and opened_at < '2024-12-04'")
            connection.exec_driver_sql(
                "update coverage set present = (~ (present | ~present))::varbit, digest = null, next_attempt_at = now() "
                "where session = '2024-12-03'"
            )
        case.goes_wrong(yahoo("split_basis", factor=0.1))
        world.ingest([instrument], first=TUESDAY, last=TUESDAY)
        assert outcomes(world)[-1] == ("mixed_basis", 1)
        tuesdays = set(expected_opens(first=TUESDAY, last=TUESDAY))
        assert stored(world, instrument) == {at: values for at, values in before.items() if at not in tuesdays}


def test_a_crash_that_nothing_explains_is_stored_and_flagged(case: Case) -> None:
    """From Tuesday on a quarter of Monday's price: it may be true."""
    case.goes_wrong(yahoo("unit", factor=0.25, minutes=instants(expected_opens(first=TUESDAY))))
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world, last=FRIDAY)
        assert len(stored(world, instrument)) == 1950
        first_of_tuesday = expected_opens(first=TUESDAY)[0]
        assert flags(world, instrument) == {first_of_tuesday: BarFlag.UNEXPLAINED_JUMP}
        assert world.count("refused_bars") == 0


def test_volumes_in_lots_show_when_a_second_provider_is_asked(case: Case) -> None:
    case.goes_wrong(yahoo("unit", factor=0.01, of="volume"))
    with case.worlds.of("yahoo", "massive") as world:
        instrument, _ = ingested(world)
        [opinion] = ask_second_opinions([Subject(instrument, MONDAY)], Interval.M1, pipeline=world.pipeline).opinions
        assert (opinion.verdict, opinion.is_open) == (Comparison.DISAGREE, True)
        assert opinion.reason.startswith("volume is 100 times")


# --- "Duplicated stamps: same payload: deterministic rule + counter; different fetches: revision" --------------------------


def test_a_stamp_that_comes_twice_with_the_same_values_is_counted(case: Case) -> None:
    case.goes_wrong(yahoo("duplicate", minutes=instants(SOME)))
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world)
        assert is_true(world, instrument)
        assert dropped(world, "duplicate") == len(SOME)


def test_of_two_values_for_one_stamp_the_first_is_kept_flagged_and_counted(case: Case) -> None:
    case.goes_wrong(yahoo("duplicate", minutes=instants(SOME), conflicting=True))
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world)
        assert is_true(world, instrument)
        assert flags(world, instrument) == dict.fromkeys(SOME, BarFlag.DUPLICATE_RESOLVED)
        assert dropped(world, "conflicting_duplicate") == len(SOME)


def test_another_value_in_a_later_answer_is_a_revision(case: Case) -> None:
    case.goes_wrong(yahoo("late_correction", minutes=instants(SOME), seconds=3600))
    early = datetime.fromtimestamp(MONDAYS[120], UTC)
    case.now(early)
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world)
        provisional = {at: stored(world, instrument)[at] for at in SOME}
        case.now(SATURDAY)
        world.ingest([instrument], last=MONDAY, refetch=True)
        assert is_true(world, instrument)
        assert world.count("candle_revisions") == len(SOME)
        then = stored(world, instrument, as_of=early + timedelta(seconds=1))
        assert {at: then[at] for at in SOME} == provisional


# --- "Unsorted / out of the asked range: sort; drop outside [from,to) and count" -------------------------------------------


def test_unsorted_bars_are_sorted(case: Case) -> None:
    case.goes_wrong(yahoo("out_of_order"))
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world)
        assert is_true(world, instrument)


def test_bars_outside_of_what_was_asked_for_are_left_out_and_counted(case: Case) -> None:
    case.goes_wrong(yahoo("outside_window", bars=3))
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world, first=TUESDAY, last=TUESDAY)
        assert sorted(stored(world, instrument)) == expected_opens(first=TUESDAY, last=TUESDAY)
        assert dropped(world, "outside_window") > 0


def test_bars_after_an_early_close_are_left_out_and_counted(case: Case) -> None:
    with case.worlds.of("yahoo") as world:
        instrument, report = ingested(world, first=HALF_DAY, last=MONDAY)
        assert report.verdicts[Verdict.PRESENT] == 210 + 390
        assert dropped(world, "outside_session") == 180
        assert min(at for at in stored(world, instrument) if at >= MONDAYS[0]) == MONDAYS[0]


def test_a_bar_of_the_future_is_quarantined(case: Case) -> None:
    case.now(datetime.fromtimestamp(MONDAYS[100], UTC))
    case.goes_wrong(yahoo("future_bar", seconds=7200))
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world)
        assert max(stored(world, instrument)) == MONDAYS[97]
        left_out = dropped(world, "outside_window") + dropped(world, "not_asked") + len(refused(world))
        assert left_out == 1


# --- "{"s":"no_data"}; ask again before believing" -------------------------------------------------------------------------


# Finnhub says no_data of what it has in the first seconds of a minute: there, once more at once.
@pytest.mark.parametrize(("vendor", "requests"), [("yahoo", 1), ("finnhub", 2)])
def test_no_data_where_bars_are_due_is_asked_for_again_before_it_is_believed(case: Case, vendor: str, requests: int) -> None:
    case.goes_wrong({"match": {"provider": vendor}, "action": "barren"})
    with case.worlds.of(vendor) as world:
        instrument, report = ingested(world)
        assert outcomes(world, vendor) == [("barren", requests)]
        assert report.verdicts[Verdict.CONFIRMED_EMPTY] == 0
        [(next_attempt_at,)] = rows(world, "select next_attempt_at from coverage")
        assert next_attempt_at > SATURDAY
        case.goes_wrong()
        case.now(next_attempt_at + timedelta(seconds=1))
        world.ingest([instrument], last=MONDAY)
        assert len(stored(world, instrument)) == 390


# --- "Truncated page; page token lost: declared count; reject, do not store the prefix as complete" ------------------------


@pytest.mark.parametrize("vendor", ["massive", "alpaca"])
@pytest.mark.parametrize("action", ["truncated_page", "lost_page_token", "repeated_page"])
def test_a_page_that_is_not_whole_is_never_taken_for_the_end(case: Case, vendor: str, action: str) -> None:
    with case.worlds.of(vendor, "yahoo") as world:
        case.goes_wrong({"match": {"provider": vendor}, "action": action})
        instrument, report = ingested(world, last=FRIDAY)
        assert report.verdicts[Verdict.PRESENT] == 1950
        assert report.verdicts[Verdict.CONFIRMED_EMPTY] == 0
        assert {at: values[3] for at, values in stored(world, instrument).items()} == {
            at: pytest.approx(values[3], rel=1e-6) for at, values in true_bars(WEEK).items()
        }


# --- "401/403: permanent for that capability, one alert" -------------------------------------------------------------------


def test_a_403_disables_that_capability_alone_and_says_so_once(case: Case) -> None:
    case.goes_wrong(yahoo("status", code=403))
    with case.worlds.of("yahoo", "massive") as world:
        instrument, _ = ingested(world)
        world.ingest([instrument], first=TUESDAY, last=TUESDAY)
        assert requests_to_yahoo(case) == 1
        [hours] = world.ingest([instrument], Interval.H1)
        assert hours.failure is None
        world.pipeline.health.flush()
        told = rows(world, "select provider, capability, kind from provider_events where not is_recovery")
        assert told == [("yahoo", "bars_1m", "entitlement_lost")]


# --- "429: hold the shared budget" ------------------------------------------------------------------------------------------


def test_after_a_429_nobody_is_sent_there_again_in_that_run(case: Case) -> None:
    case.goes_wrong(yahoo("status", code=429, retry_after=3600))
    with case.worlds.of("yahoo") as world:
        instruments = world.load("AAPL", "SPLT", "TINY")
        reports = world.ingest(instruments, last=MONDAY)
        assert all(report.failure for report in reports)
        # Those that were on their way already; no retry of any.
        assert requests_to_yahoo(case) <= world.settings.requests_in_flight
        assert rows(world, "select max(failures), max(attempts) from coverage") == [(1, 0)]


# --- "Numbers: floats with noise, strings, 1e-5, fractional volume" -------------------------------------------------------


def test_noise_in_the_last_digits_is_no_revision(case: Case) -> None:
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world)
        case.goes_wrong(yahoo("noise", relative=1e-9))
        world.ingest([instrument], last=MONDAY, refetch=True)
        assert world.count("candle_revisions") == 0
        assert is_true(world, instrument)


def test_numbers_that_come_as_text_are_read_and_flagged(case: Case) -> None:
    case.goes_wrong(yahoo("strings"))
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world)
        assert is_true(world, instrument)
        assert set(flags(world, instrument).values()) == {BarFlag.STRING_NUMBERS}
        assert len(flags(world, instrument)) == 390


def test_prices_of_a_thousandth_of_a_cent_and_fractions_of_a_share_are_stored_as_they_are(case: Case) -> None:
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world, "TINY")
        prices = tuple(float(np.float32(price)) for price in (1e-5, 1.2e-5, 0.9e-5, 1.1e-5))
        assert set(stored(world, instrument).values()) == {(*prices, 3.618093)}


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
def test_a_literal_that_json_does_not_have_costs_its_row_alone(case: Case, literal: str) -> None:
    case.goes_wrong(yahoo("nan", literal=literal))
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world)
        assert stored(world, instrument) == close_to(true_bars(MONDAYS[1:]))
        assert refused(world) == ["a value is null, NaN or infinite"]


@pytest.mark.parametrize("action", ["bom", "content_type", "added"])
def test_what_changes_no_value_changes_nothing(case: Case, action: str) -> None:
    case.goes_wrong(yahoo(action))
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world)
        assert is_true(world, instrument)


# --- answers from the past, and from another server -------------------------------------------------------------------------


def test_an_answer_from_the_past_is_kept_is_no_attempt_and_the_next_provider_has_the_rest(case: Case) -> None:
    case.now(datetime.fromtimestamp(MONDAYS[-1] + 3600, UTC))
    case.goes_wrong(yahoo("stale", seconds=3 * 3600))
    with case.worlds.of("yahoo", "massive") as world:
        instrument, _ = ingested(world)
        assert outcomes(world)[0] == ("stale", 1)
        assert is_true(world, instrument)
        by_provider = dict(
            rows(world, "select p.name, count(*) from candles_intraday join providers p using (provider) group by p.name")
        )
        assert 200 < by_provider["yahoo"] < 390
        assert by_provider["massive"] == 390 - by_provider["yahoo"]


def test_servers_that_differ_make_no_bar_disappear(case: Case) -> None:
    case.goes_wrong(yahoo("other_backend", lacks=0.1, differs=0.1) | {"match": {"provider": "yahoo", "every": 2}})
    with case.worlds.of("yahoo") as world:
        instrument, _ = ingested(world)
        for _ in range(4):
            world.ingest([instrument], last=MONDAY, refetch=True)
            assert sorted(stored(world, instrument)) == MONDAYS
