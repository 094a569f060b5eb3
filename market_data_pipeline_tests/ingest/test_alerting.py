"""From looks to messages, on a real database and a clock that the test moves: what is told, to whom, how often."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from market_data_pipeline.domain.alert_config import AlertsConfig, Channel, Route
from market_data_pipeline.domain.alerts import EventKind, Finding, Look, Rule, Severity
from market_data_pipeline.domain.errors import InvalidInputError, UndeliverableError
from market_data_pipeline.ingest.alerting import (
    DeliveryReport,
    acknowledge,
    deliver_due,
    fold,
    open_alerts,
    send_test,
    silence,
    unsilence,
)
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.alerts import LEASE_SECONDS, AlertBook, Outbox
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.alert_messages import Message
    from market_data_pipeline.ingest.alerting import FoldReport
    from market_data_pipeline.ingest.pipeline import Pipeline

START = datetime(2024, 12, 2, 15, tzinfo=UTC)
STALE = Rule("SymbolStale", Severity.WARNING, "A symbol is late.", "symbol-stale", clear_seconds=60.0)
SPIKE = Rule("ErrorSpike", Severity.WARNING, "Errors.", "error-spike", explained_by=("BreakerOpen",), clear_seconds=60.0)
BREAKER = Rule("BreakerOpen", Severity.CRITICAL, "A breaker is open.", "breaker-open", for_seconds=60.0, clear_seconds=60.0)
PAGING = Rule("Paging", Severity.CRITICAL, "Wake up.", "paging", escalate_seconds=600.0)
RULES = {rule.name: rule for rule in (STALE, SPIKE, BREAKER, PAGING)}
CANARY = "canary-4711-secret"


def channels(*names: str) -> dict[str, Channel]:
    return {name: Channel(name, SecretStr(f"json://127.0.0.1:9/{CANARY}/{name}")) for name in names}


@dataclass
class Phone:
    """Takes messages, unless it is told to fail."""

    heard: list[tuple[str, Message]] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    refuses: str = "\0"

    def send(self, channel: Channel, message: Message) -> None:
        if channel.name in self.broken or self.refuses in message.title:
            raise UndeliverableError(f"{channel.name}: refused {channel.url.get_secret_value()}")
        self.heard.append((channel.name, message))

    def titles(self, channel: str | None = None) -> list[str]:
        return [message.title for name, message in self.heard if channel in {None, name}]


@dataclass
class Watch:
    """A watcher: looks, folds and delivers, and time passes."""

    pipeline: Pipeline
    phone: Phone
    config: AlertsConfig = field(default_factory=lambda: AlertsConfig(channels=channels("ops")))
    now: datetime = START

    def see(self, *found: Finding, after: float = 30.0, blind: str | None = None) -> FoldReport:
        self.now += timedelta(seconds=after)
        look = Look(tuple(RULES), () if blind else found, blind)
        return fold(self.pipeline, [look], RULES, self.config, now=self.now)

    def deliver(self, *, after: float = 0.0) -> DeliveryReport:
        self.now += timedelta(seconds=after)
        return deliver_due(self.pipeline, self.config, now=self.now, send=self.phone.send)

    def notices(self, *states: str) -> Sequence[str]:
        return [notice.message.title for notice in reversed(Outbox(self.pipeline.engine).notices(states=states or None))]


@pytest.fixture
def pipeline(database_url: str, tmp_path: Path) -> Iterator[Pipeline]:
    told = Settings(home=tmp_path, database_url=SecretStr(database_url), clock=START.isoformat())
    with open_pipeline(told) as opened:
        yield opened


@pytest.fixture
def watch(pipeline: Pipeline) -> Watch:
    return Watch(pipeline, Phone())


def stale(key: str = "AAPL", **values: object) -> Finding:
    return Finding("SymbolStale", 3.0, f"{key} is 3 bars late", key, **values)  # type: ignore[arg-type]


def test_an_alert_is_told_once_and_its_end_is_told_once(watch: Watch) -> None:
    assert [alert.key for alert in watch.see(stale()).told(EventKind.FIRING)] == ["AAPL"]
    for _ in range(3):
        watch.see(stale())
        watch.see()
    watch.see()
    assert open_alerts(watch.pipeline) != []
    watch.see(after=31.0)
    assert open_alerts(watch.pipeline) == []
    watch.see()
    assert watch.deliver().sent == 2
    assert watch.phone.titles() == ["WARNING SymbolStale AAPL", "RESOLVED SymbolStale AAPL"]
    body = watch.phone.heard[0][1].body
    assert "AAPL is 3 bars late" in body
    assert "docs/operations/symbol-stale.md" in body
    assert "mdp alerts ack 1" in body
    assert watch.deliver().sent == 0


def test_what_is_found_again_after_its_end_is_another_alert(watch: Watch) -> None:
    for found in ([stale()], [], []):
        watch.see(*found, after=61.0)
    watch.see(stale())
    (alert,) = open_alerts(watch.pipeline)
    assert alert.alert_id == 2
    assert watch.notices() == ["WARNING SymbolStale AAPL", "RESOLVED SymbolStale AAPL", "WARNING SymbolStale AAPL"]


def test_blindness_ends_nothing_and_begins_nothing(watch: Watch) -> None:
    watch.see(stale())
    before = open_alerts(watch.pipeline)
    for _ in range(5):
        assert watch.see(after=600.0, blind="the database did not answer").events == ()
    assert open_alerts(watch.pipeline) == before


def test_a_pending_alert_that_goes_away_leaves_nothing(watch: Watch) -> None:
    watch.see(Finding("BreakerOpen", 1.0, "yahoo is open", "yahoo"))
    assert [alert.state for alert in open_alerts(watch.pipeline)] == ["pending"]
    watch.see()
    assert AlertBook(watch.pipeline.engine).alerts(since=None, limit=10) == []
    assert watch.notices() == []


def test_one_outage_is_one_message_though_the_symptom_is_seen_first(watch: Watch) -> None:
    open_, errors = (
        Finding("BreakerOpen", 1.0, "yahoo is open", "yahoo", {"provider": "yahoo"}),
        Finding("ErrorSpike", 9.0, "9 errors a second", "yahoo", {"provider": "yahoo"}),
    )
    for _ in range(4):
        watch.see(open_, errors)
    elsewhere = Finding("ErrorSpike", 9.0, "9 errors a second", "cboe", {"provider": "cboe"})
    watch.see(open_, errors, elsewhere)
    assert watch.notices() == ["CRITICAL BreakerOpen yahoo", "WARNING ErrorSpike cboe"]
    cause, symptom, other = open_alerts(watch.pipeline)
    assert (symptom.explained_by, symptom.told_at, other.explained_by) == (cause.alert_id, None, None)


def test_a_symptom_that_outlives_its_cause_is_told_after_its_own_time_to_clear(watch: Watch) -> None:
    open_, errors = Finding("BreakerOpen", 1.0, "open", "yahoo"), Finding("ErrorSpike", 9.0, "errors", "yahoo")
    for found in ([open_, errors], [open_, errors], [open_, errors], [errors], [errors], [errors]):
        watch.see(*found)
    assert watch.notices() == ["CRITICAL BreakerOpen yahoo", "RESOLVED BreakerOpen yahoo"]
    watch.see(errors)
    assert watch.notices()[2:] == ["WARNING ErrorSpike yahoo"]


def test_a_symptom_whose_cause_went_away_before_it_fired_is_told(watch: Watch) -> None:
    open_, errors = Finding("BreakerOpen", 1.0, "open", "yahoo"), Finding("ErrorSpike", 9.0, "errors", "yahoo")
    for found in ([open_, errors], [errors], [errors]):
        watch.see(*found)
    assert watch.notices() == ["WARNING ErrorSpike yahoo"]


def test_a_silence_keeps_messages_back_and_alerts_going(watch: Watch) -> None:
    made = silence(
        watch.pipeline, "Symbol*", {"tier": "T0"}, lasting=timedelta(hours=1), reason="moving", actor="anna", now=watch.now
    )
    watch.see(stale(labels={"tier": "T0"}), stale("IBM", labels={"tier": "T1"}))
    assert watch.notices() == ["WARNING SymbolStale IBM"]
    assert [alert.state for alert in open_alerts(watch.pipeline)] == ["firing", "firing"]
    watch.now += timedelta(minutes=10)
    assert made.silence_id is not None
    unsilence(watch.pipeline, made.silence_id, actor="anna", now=watch.now)
    watch.see(stale(labels={"tier": "T0"}), stale("IBM", labels={"tier": "T1"}))
    watch.see(stale(labels={"tier": "T0"}), stale("IBM", labels={"tier": "T1"}))
    assert watch.notices() == ["WARNING SymbolStale IBM", "WARNING SymbolStale AAPL"]
    with pytest.raises(InvalidInputError, match="no silence 1 is in force"):
        unsilence(watch.pipeline, 1, actor="anna", now=watch.now)


def test_an_end_that_falls_into_a_silence_is_told_to_whoever_heard_of_the_beginning(watch: Watch) -> None:
    watch.see(stale())
    silence(watch.pipeline, "*", {}, lasting=timedelta(hours=1), reason="quiet", actor="anna", now=watch.now)
    watch.config = AlertsConfig(channels=channels("ops", "more"))
    watch.see(after=61.0)
    watch.see(after=61.0)
    watch.deliver()
    assert [(name, message.kind) for name, message in watch.phone.heard] == [("ops", "firing"), ("ops", "resolved")]


def test_nobody_escalates_what_was_acknowledged_and_once_is_enough(watch: Watch) -> None:
    watch.config = AlertsConfig(channels=channels("ops", "boss"), routes=(Route(("ops",), escalate_to=("boss",)),))
    first, second = Finding("Paging", 1.0, "x", "first"), Finding("Paging", 1.0, "x", "second")
    watch.see(first, second)
    assert acknowledge(watch.pipeline, 1, actor="anna", now=watch.now)
    assert not acknowledge(watch.pipeline, 1, actor="boris", now=watch.now)
    for _ in range(5):
        watch.see(first, second, after=300.0)
    watch.deliver()
    assert watch.phone.titles("boss") == ["NOT ACKNOWLEDGED CRITICAL Paging second"]
    assert open_alerts(watch.pipeline)[0].acknowledged_by == "anna"
    with pytest.raises(InvalidInputError, match="there is no alert 77"):
        acknowledge(watch.pipeline, 77, actor="anna", now=watch.now)


def test_what_becomes_critical_is_told_again_and_what_grows_is_not(watch: Watch) -> None:
    watch.see(stale(members=("AAPL",)))
    watch.see(stale(members=("AAPL", "MSFT", "IBM")))
    watch.see(stale(severity=Severity.CRITICAL))
    watch.see(stale())
    watch.see(stale(severity=Severity.CRITICAL))
    assert watch.notices() == ["WARNING SymbolStale AAPL", "NOW CRITICAL SymbolStale AAPL"]


def test_routes_decide_in_order_and_what_none_matches_goes_to_all(watch: Watch) -> None:
    watch.config = AlertsConfig(
        channels=channels("desk", "pager", "mail"),
        routes=(
            Route(("pager",), rules=("Pag*",), severities=(Severity.CRITICAL,)),
            Route(("desk", "mail"), labels={"tier": "T[01]"}),
        ),
    )
    watch.see(Finding("Paging", 1.0, "x"), stale("A", labels={"tier": "T1"}), stale("B", labels={"tier": "T2"}))
    watch.deliver()
    assert watch.phone.titles("pager") == ["CRITICAL Paging", "WARNING SymbolStale B"]
    assert watch.phone.titles("desk") == watch.phone.titles("mail") == ["WARNING SymbolStale A", "WARNING SymbolStale B"]


def test_alerts_are_kept_where_no_channel_is(watch: Watch) -> None:
    watch.config = AlertsConfig()
    report = watch.see(stale())
    assert (len(report.events), report.notices) == (1, 0)
    assert watch.deliver() == DeliveryReport()
    assert [alert.key for alert in open_alerts(watch.pipeline)] == ["AAPL"]


def test_many_messages_for_one_channel_are_one_digest(watch: Watch) -> None:
    watch.see(*(stale(f"S{n}") for n in range(7)))
    assert watch.deliver().sent == 7
    ((_, message),) = watch.phone.heard
    assert message.title == "7 alerts"
    assert message.body.splitlines()[0] == "WARNING SymbolStale S0: S0 is 3 bars late"
    watch.see(after=61.0)
    watch.see(after=61.0)
    watch.deliver()
    assert watch.phone.titles() == ["7 alerts", "7 alerts are over"]


def test_a_channel_that_does_not_answer_is_tried_again_later_and_keeps_nobody_else_waiting(watch: Watch) -> None:
    watch.config = AlertsConfig(channels=channels("good", "bad"))
    watch.phone.broken = {"bad"}
    watch.see(stale(), stale("IBM"))
    report = watch.deliver()
    assert (report.sent, report.failed, report.dead) == (2, 1, 0)
    assert CANARY not in str(report)
    assert watch.deliver(after=4.9).failed == 0
    assert watch.deliver(after=0.2).failed == 1
    watch.phone.broken = set()
    assert watch.deliver(after=10.1).sent == 2
    assert sorted(watch.phone.titles("bad")) == ["WARNING SymbolStale AAPL", "WARNING SymbolStale IBM"]


def test_the_waits_double_to_a_quarter_of_an_hour_and_end_after_two_days(watch: Watch) -> None:
    watch.phone.broken = {"ops"}
    watch.see(stale())
    outbox, begun, waits = Outbox(watch.pipeline.engine), watch.now, []
    while queued := outbox.notices(states=["queued"]):
        wait = queued[0].ready_at - watch.now
        waits.append(wait.total_seconds())
        watch.now += wait - timedelta(seconds=0.1)
        assert watch.deliver() == DeliveryReport()
        watch.deliver(after=0.1)
    assert waits[:9] == [0, 5, 10, 20, 40, 80, 160, 320, 640]
    assert set(waits[9:]) == {900.0}
    assert timedelta(hours=48) <= watch.now - begun < timedelta(hours=48, minutes=15)
    assert watch.notices("dead") == ["WARNING SymbolStale AAPL"]
    watch.phone.broken = set()
    assert watch.deliver(after=3600.0).sent == 0
    assert outbox.retry(None, actor="anna", at=watch.now) == [1]
    assert watch.deliver().sent == 1


def test_an_end_is_never_told_before_the_beginning(watch: Watch) -> None:
    watch.phone.refuses = "WARNING"
    watch.see(stale(), stale("IBM"))
    watch.deliver()
    watch.see(after=61.0)
    watch.see(after=61.0)
    for _ in range(3):
        watch.deliver(after=40.0)
    assert watch.phone.titles() == []
    watch.phone.refuses = "\0"
    watch.deliver(after=900.0)
    for key in ("AAPL", "IBM"):
        told = [title for title in watch.phone.titles() if key in title]
        assert told == [f"WARNING SymbolStale {key}", f"RESOLVED SymbolStale {key}"]


def test_a_message_that_is_never_taken_holds_up_no_other(watch: Watch) -> None:
    watch.phone.refuses = "POISON"
    watch.see(stale("POISON"), stale("IBM"), stale("MSFT"))
    watch.deliver()
    watch.deliver(after=6.0)
    assert watch.phone.titles() == ["WARNING SymbolStale IBM", "WARNING SymbolStale MSFT"]


def test_what_a_dead_watcher_had_taken_is_anothers_when_its_lease_is_over(watch: Watch) -> None:
    watch.see(stale())
    outbox = Outbox(watch.pipeline.engine)
    (taken,) = outbox.take("ops", at=watch.now)
    assert watch.deliver(after=LEASE_SECONDS - 1).sent == 0
    assert watch.deliver(after=1.0).sent == 1
    # He comes back from the dead: what he says of it changes nothing.
    outbox.failed([taken], "too late", at=watch.now)
    assert watch.notices("sent") == ["WARNING SymbolStale AAPL"]


def test_a_channel_that_is_gone_from_the_file_keeps_its_messages(watch: Watch) -> None:
    watch.see(stale())
    given, watch.config = watch.config, AlertsConfig(channels=channels("other"))
    assert watch.deliver().errors == (("ops", "ops: no channel is called so in the alerts file"),)
    watch.config = given
    assert watch.deliver(after=6.0).sent == 1


def test_a_test_goes_the_way_of_alerts_and_says_why_it_did_not_arrive(watch: Watch) -> None:
    def attempt(channel: str) -> str | None:
        return send_test(watch.pipeline, watch.config, channel, actor="anna", now=watch.now, send=watch.phone.send)

    assert attempt("ops") is None
    assert watch.phone.titles() == ["TEST ops"]
    watch.phone.broken = {"ops"}
    error = attempt("ops")
    assert error is not None
    assert "refused" in error
    assert CANARY not in error
    assert watch.notices() == ["TEST ops"]
    with pytest.raises(InvalidInputError, match=r"no channel is called 'nobody'.*ops"):
        attempt("nobody")


def test_no_secret_reaches_the_tables(watch: Watch) -> None:
    watch.phone.broken = {"ops"}
    url = watch.config.channels["ops"].url.get_secret_value()
    watch.see(Finding("SymbolStale", 1.0, f"GET https://x.test/?token={CANARY} said 401; {url}", "AAPL"))
    watch.deliver()
    with watch.pipeline.engine.connect() as connection:
        for table in ("alerts", "alert_notices", "audit_log"):
            rows = connection.exec_driver_sql(f"select t::text from {table} t").scalars().all()  # noqa: S608 - names of ours
            assert CANARY not in "\n".join(rows)


def test_a_key_that_postgres_cannot_hold_is_still_one_alert(watch: Watch) -> None:
    for _ in range(3):
        watch.see(stale("x\0y\ud800"))
    assert len(open_alerts(watch.pipeline)) == 1
    watch.see(after=61.0)
    watch.see(after=61.0)
    assert open_alerts(watch.pipeline) == []


def test_what_steers_a_terminal_is_not_kept_as_it_is(watch: Watch) -> None:
    watch.see(Finding("SymbolStale", 1.0, "\x1b[2Jgone\nsecond line", "AAPL"))
    assert open_alerts(watch.pipeline)[0].text == "\N{REPLACEMENT CHARACTER}[2Jgone\nsecond line"


def test_alerts_of_a_rule_that_is_gone_end_where_the_caller_knows_all_rules(watch: Watch) -> None:
    watch.see(stale())
    others = {name: rule for name, rule in RULES.items() if name != "SymbolStale"}
    fold(watch.pipeline, [], others, watch.config, now=watch.now)
    assert len(open_alerts(watch.pipeline)) == 1
    fold(watch.pipeline, [], others, watch.config, now=watch.now, known=others)
    assert open_alerts(watch.pipeline) == []
    assert watch.notices()[-1] == "RESOLVED SymbolStale AAPL"
