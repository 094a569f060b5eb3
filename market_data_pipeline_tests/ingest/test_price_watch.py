"""Rules over prices on a real database: stored candles and quotes in, alerts out, and nothing lost where a process dies between."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pytest
from pydantic import SecretStr

from market_data_pipeline.domain.alert_config import NO_CONFIG, AlertsConfig, PriceRule, PriceRuleKind, PriceSource
from market_data_pipeline.domain.alerts import AlertState, Severity
from market_data_pipeline.domain.candles import CandleColumns, Interval
from market_data_pipeline.domain.ports import AnsweredSession, CandleBatch, CorporateAction, Fetch, Quote
from market_data_pipeline.domain.quality import BarFlag
from market_data_pipeline.domain.snapshots import Flag, JudgedQuotes
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.ingest.alert_file import AlertsFile
from market_data_pipeline.ingest.alerting import fold, open_alerts
from market_data_pipeline.ingest.grid import Grid
from market_data_pipeline.ingest.price_watch import PriceReport, look_at_prices, price_looks, price_notes
from market_data_pipeline.ingest.watch import watch
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.alerts import AlertBook
from market_data_pipeline.storage.quotes import QuoteStore
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from market_data_pipeline.domain.alert_messages import Message
    from market_data_pipeline.domain.alerts import Finding
    from market_data_pipeline.ingest.pipeline import Pipeline

MONDAY, TUESDAY = date(2024, 12, 2), date(2024, 12, 3)
OPEN = datetime(2024, 12, 2, 14, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ABOVE_250 = PriceRule("AaplAbove250", PriceRuleKind.THRESHOLD, PriceSource.CANDLE, ("AAPL",), above=250.0, hysteresis=0.002)
T0_MOVES = PriceRule("T0Moves", PriceRuleKind.MOVE, PriceSource.CANDLE, tier="T0", by=0.03, window_seconds=600)
CROSSES = PriceRule("Crosses", PriceRuleKind.CROSS, PriceSource.CANDLE, ("AAPL",), direction="up", window_seconds=300)
QUOTED = PriceRule("Quoted", PriceRuleKind.THRESHOLD, PriceSource.QUOTE, ("AAPL", "MSFT"), above=250.0)
CENTER = datetime(2024, 12, 2, 15, tzinfo=UTC)


@pytest.fixture
def pipeline(database_url: str, tmp_path: Path) -> Iterator[Pipeline]:
    with open_at(OPEN, database_url, tmp_path) as opened:
        entries = [UniverseEntry(symbol, "XNAS", Tier.T0, currency="USD") for symbol in ("AAPL", "MSFT")]
        opened.universe.load(entries, version_tag="v", source="t", source_sha256="s", loaded_by="t")
        yield opened


class Watched(Protocol):
    """Looks and folds at an instant, as the watch does; the titles of what somebody is told."""

    def __call__(self, now: datetime, *rules: PriceRule) -> list[str]: ...


@pytest.fixture
def watched(database_url: str, tmp_path: Path) -> Watched:
    def look_and_fold(now: datetime, *rules: PriceRule) -> list[str]:
        config = AlertsConfig(price_rules=rules)
        with open_at(now, database_url, tmp_path) as then:
            looks, built = price_looks(then, config, now=now)
            events = fold(then, looks, built, config, now=now, known=set(built)).events
        return [f"{event.kind} {event.alert.rule} {event.alert.key}" for event in events]

    return look_and_fold


@contextmanager
def open_at(now: datetime, database_url: str, home: Path) -> Iterator[Pipeline]:
    """A pipeline whose clock stands still."""
    with open_pipeline(Settings(home=home, database_url=SecretStr(database_url), clock=now.isoformat())) as opened:
        yield opened


def opened(minutes: float) -> datetime:
    """So many minutes after the open."""
    return OPEN + minutes * MINUTE


def store(
    pipeline: Pipeline,
    closes: Mapping[int, float],
    *,
    symbol: str = "AAPL",
    session: date = MONDAY,
    interval: Interval = Interval.M1,
    flags: Mapping[int, BarFlag] | None = None,
    known_at: datetime | None = None,
    split: float | None = None,
) -> None:
    """Store bars by slot; the last one has just ended when they are learned, unless said otherwise."""
    instrument = pipeline.universe.instrument(symbol)
    grid = Grid.of(pipeline.calendars(instrument.calendar), interval, session, session)
    slots = np.array(sorted(closes), np.intp)
    there = np.zeros(len(grid.opened_at), bool)
    there[slots] = True
    close = np.array([closes[slot] for slot in slots.tolist()])
    learned = known_at or datetime.fromtimestamp(int(grid.opened_at[slots[-1]]) + interval.seconds, UTC)
    answered = AnsweredSession(
        symbol_id=instrument.symbol_id,
        session=session,
        opens_at=int(grid.opens_at[0]),
        closes_at=int(grid.closes_at[0]),
        bars=there,
        silent=np.zeros(len(there), bool),
        due=there,
    )
    batch = CandleBatch(
        interval=interval,
        symbol_id=np.full(len(slots), instrument.symbol_id, np.int32),
        columns=CandleColumns.of(grid.opened_at[slots], close, close, close, close, np.full(len(slots), 100.0)),
        session_index=np.zeros(len(slots), np.int32),
        fetch_index=np.zeros(len(slots), np.int32),
        flags=np.array([int((flags or {}).get(slot, 0)) for slot in slots.tolist()], np.int16),
        sessions=[answered],
        fetches=[Fetch("yahoo", symbol, interval, "GET /", learned, 0.1, "ok", rows=len(slots))],
        actions=[(instrument.symbol_id, 0, CorporateAction("split", session, split))] if split else (),
    )
    pipeline.writer.write(batch, now=learned, policy=pipeline.settings.healing_policy, known_at=learned)


def quote(pipeline: Pipeline, at: datetime, *, symbol: str = "AAPL", flags: Flag = Flag(0), **said: Any) -> None:  # noqa: ANN401, B008
    """Store a quote that was learned at ``at``."""
    valid = Quote(symbol, None, None, None, None, None, None, at)
    judged = JudgedQuotes(Fetch("yahoo", symbol, None, "GET /", at, 0.1, "ok", rows=1), [(replace(valid, **said), flags)], (), ())
    ids = {one.symbol: one.symbol_id for one in pipeline.universe.instruments()}
    QuoteStore(pipeline.engine).record(judged, ids, known_at=at)


def look(pipeline: Pipeline, now: datetime, *rules: PriceRule) -> PriceReport:
    return look_at_prices(pipeline, AlertsConfig(price_rules=rules), now=now)


def found(pipeline: Pipeline, now: datetime, *rules: PriceRule) -> dict[str, bool]:
    """The keys of all findings, and whether each only keeps an alert open."""
    return {finding.key: finding.holds_only for finding in findings(look(pipeline, now, *rules))}


def findings(report: PriceReport) -> list[Finding]:
    return [finding for one in report.looks for finding in one.findings]


def rows(pipeline: Pipeline) -> int:
    with pipeline.engine.connect() as connection:
        return int(connection.exec_driver_sql("select count(*) from price_rule_state").scalar_one())


# --- candles -----------------------------------------------------------------------------------------------------------


def test_a_close_above_the_threshold_is_found_with_its_numbers(pipeline: Pipeline) -> None:
    store(pipeline, {0: 249.0, 1: 251.5})
    report = look(pipeline, opened(2.5), replace(ABOVE_250, severity=Severity.CRITICAL, escalate_seconds=600))
    (finding,) = findings(report)
    assert finding.text == "AAPL at 251.5 USD is above 250 (close of the 1m bar, 2024-12-02 14:32:00 UTC)"
    assert (finding.key, finding.value, finding.holds_only) == ("AAPL above", 251.5, False)
    assert dict(finding.labels) == {"symbol": "AAPL", "tier": "T0", "kind": "threshold", "side": "above"}
    rule = report.rules["AaplAbove250"]
    assert (rule.severity, rule.runbook, rule.escalate_seconds) == (Severity.CRITICAL, "price-rule", 600)
    assert (rule.for_seconds, rule.clear_seconds) == (0.0, 0.0)


def test_a_quiet_market_writes_nothing(pipeline: Pipeline) -> None:
    store(pipeline, dict.fromkeys(range(30), 240.0))
    assert found(pipeline, opened(30), ABOVE_250, T0_MOVES, CROSSES) == {}
    assert rows(pipeline) == 0


def test_a_session_that_is_filled_in_later_begins_nothing(pipeline: Pipeline) -> None:
    store(pipeline, {0: 249.0, 1: 300.0}, known_at=opened(60))
    assert found(pipeline, opened(60), ABOVE_250, T0_MOVES) == {}
    store(pipeline, {0: 300.0}, session=TUESDAY, known_at=opened(5 * 1440))
    assert found(pipeline, opened(5 * 1440), ABOVE_250, T0_MOVES) == {}


def test_a_bar_that_is_corrected_is_judged_anew_either_way(pipeline: Pipeline, watched: Watched) -> None:
    store(pipeline, {0: 249.0, 1: 251.0})
    assert watched(opened(2), ABOVE_250) == ["firing AaplAbove250 AAPL above"]
    store(pipeline, {0: 249.0, 1: 249.4, 2: 249.0}, known_at=opened(3))
    assert watched(opened(3), ABOVE_250) == ["resolved AaplAbove250 AAPL above"]
    store(pipeline, {2: 252.0}, known_at=opened(4))
    assert watched(opened(4), ABOVE_250) == ["firing AaplAbove250 AAPL above"]


def test_a_move_is_found_for_each_symbol_of_a_tier(pipeline: Pipeline) -> None:
    store(pipeline, {0: 100.0, 5: 104.0})
    store(pipeline, {0: 100.0, 5: 96.0}, symbol="MSFT")
    assert found(pipeline, opened(6), T0_MOVES) == {"AAPL up": False, "MSFT down": False}


def test_a_split_is_no_move_and_a_jump_that_nothing_explains_is_none(pipeline: Pipeline) -> None:
    store(pipeline, {6: 100.0}, session=date(2024, 11, 27), interval=Interval.H1)
    store(pipeline, {0: 10.0}, interval=Interval.H1, split=10.0, known_at=opened(61))
    assert found(pipeline, opened(61), replace(T0_MOVES, window_seconds=6 * 86_400, interval="1h")) == {}
    store(pipeline, {0: 100.0, 1: 100.0, 2: 10.0, 3: 10.1}, symbol="MSFT", flags={2: BarFlag.UNEXPLAINED_JUMP})
    assert found(pipeline, opened(4), T0_MOVES) == {}


def test_a_bad_print_is_no_price(pipeline: Pipeline) -> None:
    store(pipeline, {0: 249.0, 1: 24900.0, 2: 249.0}, flags=dict.fromkeys((1, 2), BarFlag.UNEXPLAINED_JUMP))
    assert found(pipeline, opened(3), ABOVE_250) == {}


def test_an_average_reaches_over_the_night_and_says_where_it_is_too_short(pipeline: Pipeline) -> None:
    store(pipeline, dict.fromkeys(range(386, 390), 100.0))
    tuesday = datetime(2024, 12, 3, 14, 32, tzinfo=UTC)
    store(pipeline, {0: 100.0}, session=TUESDAY, known_at=tuesday)
    report = look(pipeline, tuesday, replace(CROSSES, window_seconds=360))
    assert findings(report) == []
    assert report.notes == ["Crosses: fewer than 6 bars of AAPL to take an average of"]
    store(pipeline, {0: 100.0, 1: 101.0}, session=TUESDAY, known_at=tuesday)
    (finding,) = findings(look(pipeline, tuesday, CROSSES))
    assert finding.text.startswith("AAPL at 101 USD went above its 5m average of 100.2 (")


def test_a_daily_close_counts_until_the_next_day(pipeline: Pipeline) -> None:
    daily = replace(ABOVE_250, interval="1d")
    store(pipeline, {0: 251.0}, interval=Interval.D1, known_at=datetime(2024, 12, 2, 22, tzinfo=UTC))
    assert found(pipeline, datetime(2024, 12, 3, 1, tzinfo=UTC), daily) == {"AAPL above": False}


def test_a_symbol_that_is_not_in_the_universe_is_told_and_stops_nobody(pipeline: Pipeline) -> None:
    store(pipeline, {0: 251.0})
    report = look(pipeline, opened(1), replace(ABOVE_250, symbols=("AAPL", "GOOGL")))
    assert report.notes == ["AaplAbove250: GOOGL is not active in the universe"]
    assert [finding.key for finding in findings(report)] == ["AAPL above"]


def test_a_rule_about_prices_that_come_after_the_close_is_told_of(pipeline: Pipeline) -> None:
    entries = [UniverseEntry("THIN", "XNAS", Tier.T2)]
    pipeline.universe.load(entries, version_tag="w", source="t", source_sha256="x", loaded_by="t")
    thin = replace(ABOVE_250, symbols=("AAPL", "THIN"))
    others = replace(thin, name="Old", max_age_seconds=36_000), replace(thin, name="Daily", interval="1d")
    notes = price_notes(
        pipeline, AlertsConfig(price_rules=(thin, replace(QUOTED, name="Quotes", symbols=("THIN",)), *others)), now=OPEN
    )
    assert notes == [
        "AaplAbove250: nobody asks for prices of T2 while markets are open (MDP_BARS_EVERY_SECONDS): set max_age",
        "Quotes: nobody asks for prices of T2 while markets are open (MDP_QUOTES_EVERY_SECONDS): set max_age",
    ]


# --- alerts ------------------------------------------------------------------------------------------------------------


def test_an_alert_begins_once_holds_while_nothing_is_known_and_ends_with_a_price(pipeline: Pipeline, watched: Watched) -> None:
    told = {}
    closes = {0: 251.0, 1: 249.8, 2: 251.0, 3: 252.0}
    for minute in range(4):
        store(pipeline, {slot: closes[slot] for slot in range(minute + 1)})
        told[minute] = watched(opened(minute + 1), ABOVE_250)
    assert told == {0: ["firing AaplAbove250 AAPL above"], 1: [], 2: [], 3: []}
    # The night is silent: nobody knows a price, and nothing is over.
    assert watched(opened(900), ABOVE_250) == []
    assert [alert.state for alert in open_alerts(pipeline)] == [AlertState.FIRING]
    morning = datetime(2024, 12, 3, 14, 31, tzinfo=UTC)
    store(pipeline, {0: 249.0}, session=TUESDAY, known_at=morning)
    assert watched(morning, ABOVE_250) == ["resolved AaplAbove250 AAPL above"]
    watched(morning + 30 * MINUTE, ABOVE_250)
    assert rows(pipeline) == 0


def test_a_spike_is_told_although_the_process_died_before_its_alert_was_stored(
    pipeline: Pipeline, watched: Watched, tmp_path: Path, database_url: str
) -> None:
    store(pipeline, {0: 249.0, 1: 260.0, 2: 249.0})
    with open_at(opened(3), database_url, tmp_path) as died:
        price_looks(died, AlertsConfig(price_rules=(ABOVE_250,)), now=opened(3))
    # An hour later no price of then is live any more.
    late = opened(63)
    assert watched(late, ABOVE_250) == ["firing AaplAbove250 AAPL above"]
    (alert,) = open_alerts(pipeline)
    assert alert.text.endswith("14:32:00 UTC); it is over already")
    assert watched(late + MINUTE, ABOVE_250) == ["resolved AaplAbove250 AAPL above"]
    assert rows(pipeline) == 0


def test_a_look_that_fails_in_its_midst_remembers_nothing(pipeline: Pipeline) -> None:
    store(pipeline, {0: 251.0})
    far = replace(T0_MOVES, name="Broken", interval="no interval")
    with pytest.raises(ValueError, match="no interval"):
        look(pipeline, opened(1), ABOVE_250, far)
    assert rows(pipeline) == 0
    assert found(pipeline, opened(1), ABOVE_250) == {"AAPL above": False}


def test_a_rule_that_says_something_else_now_begins_anew_and_one_that_is_gone_is_forgotten(pipeline: Pipeline) -> None:
    store(pipeline, {0: 251.0})
    assert found(pipeline, opened(1), ABOVE_250) == {"AAPL above": False}
    assert found(pipeline, opened(1), replace(ABOVE_250, severity=Severity.INFO)) == {"AAPL above": False}
    assert found(pipeline, opened(1), replace(ABOVE_250, above=260.0)) == {}
    assert found(pipeline, opened(1), ABOVE_250) == {"AAPL above": False}
    assert look_at_prices(pipeline, NO_CONFIG, now=opened(1)) == PriceReport()
    assert rows(pipeline) == 0


def test_an_alert_of_a_rule_that_is_no_longer_in_the_file_is_over(pipeline: Pipeline, watched: Watched) -> None:
    store(pipeline, {0: 251.0})
    watched(opened(1), ABOVE_250)
    assert watched(opened(2)) == ["resolved AaplAbove250 AAPL above"]
    assert AlertBook(pipeline.engine).open() == []


def test_whoever_wrote_the_rule_hears_of_it_by_name_with_the_page(pipeline: Pipeline, tmp_path: Path, database_url: str) -> None:
    path = tmp_path / "alerts.yaml"
    path.write_text(
        "channels: {desk: log://}\nprice_rules: {Mine: {kind: threshold, symbols: AAPL, above: 250, severity: critical}}"
    )
    store(pipeline, {0: 251.0})
    sent: list[Message] = []
    with open_at(opened(1), database_url, tmp_path) as then:
        report = watch(then, by="a test", force=True, alerts=AlertsFile(path), send=lambda _, message: sent.append(message))
    assert report.blind.keys().isdisjoint({"Mine"})
    (message,) = [message for message in sent if "Mine" in message.title]
    assert message.title == "CRITICAL Mine AAPL above"
    assert message.body.startswith("AAPL at 251 USD is above 250 (close of the 1m bar, 2024-12-02 14:31:00 UTC)\n")
    assert "docs/operations/price-rule.md" in message.body


# --- quotes ------------------------------------------------------------------------------------------------------------


def test_a_quote_is_looked_at_by_its_last_trade_or_its_middle(pipeline: Pipeline) -> None:
    quote(pipeline, CENTER, last=251.0, last_at=CENTER, bid=249.0, ask=249.2)
    quote(pipeline, CENTER, symbol="MSFT", bid=250.0, ask=251.0)
    assert found(pipeline, CENTER + MINUTE, QUOTED) == {"AAPL above": False, "MSFT above": False}


@pytest.mark.parametrize(
    ("said", "flags"),
    [
        ({"last": 251.0, "last_at": CENTER - timedelta(hours=2)}, Flag(0)),
        ({"bid": 252.0}, Flag(0)),
        ({"bid": 252.0, "ask": 251.0}, Flag.CROSSED),
        ({"last": 251.0}, Flag.STALE),
        ({"last": 251.0}, Flag.EARLY),
        ({"last": 251.0, "last_at": CENTER + timedelta(hours=2)}, Flag(0)),
    ],
    ids=["traded hours ago", "one side", "crossed", "stale", "early", "traded later than now"],
)
def test_what_is_no_fair_price_of_now_begins_nothing(pipeline: Pipeline, said: Mapping[str, Any], flags: Flag) -> None:
    quote(pipeline, CENTER, flags=flags, **said)
    assert found(pipeline, CENTER + MINUTE, QUOTED) == {}


def test_a_provider_that_is_late_by_declaration_is_live_all_the_same(pipeline: Pipeline) -> None:
    stamp = CENTER - timedelta(minutes=16)
    quote(pipeline, CENTER, last=251.0, last_at=stamp, quoted_at=stamp, delay_seconds=900)
    assert found(pipeline, CENTER + MINUTE, QUOTED) == {"AAPL above": False}


def test_between_the_last_trade_and_the_middle_nothing_moves(pipeline: Pipeline) -> None:
    moved = replace(T0_MOVES, source=PriceSource.QUOTE)
    quote(pipeline, CENTER, last=100.0, last_at=CENTER)
    quote(pipeline, CENTER + MINUTE, bid=80.0, ask=130.0)
    assert found(pipeline, CENTER + 2 * MINUTE, moved) == {}
    quote(pipeline, CENTER + 2 * MINUTE, last=105.0, last_at=CENTER + 2 * MINUTE)
    assert found(pipeline, CENTER + 3 * MINUTE, moved) == {"AAPL up": False}
