"""Alerts and their outbox as several processes share them: nothing lost, nothing out of order, whoever is killed when."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import orjson
import pytest
from sqlalchemy.exc import IntegrityError

from market_data_pipeline.domain.alert_messages import Message, NewNotice
from market_data_pipeline.domain.alerts import EventKind, Finding, Folded, Look, Rule, Severity, fold_looks
from market_data_pipeline.storage.alerts import AlertBook, Outbox, wait_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Engine

    from market_data_pipeline.domain.alerts import Alert, Event, Silence

START = datetime(2024, 12, 2, 15, tzinfo=UTC)
SLOW = Rule("Slow", Severity.WARNING, "It is slow.", "slow", clear_seconds=0.0)
ROUNDS, KILLS, SEED = 30, 5, 20261123


def found(*keys: str, value: float = 1.0, text: str = "slow") -> Look:
    return Look(("Slow",), [Finding("Slow", value, text, key, {"tier": "T0"}, ("A", "B")) for key in keys])


def fold(book: AlertBook, look: Look, *, at: datetime | None) -> tuple[tuple[Event, ...], int]:
    def decide(open_alerts: Sequence[Alert], silences: Sequence[Silence], now: datetime) -> Folded:
        return fold_looks(open_alerts, [look], {"Slow": SLOW}, silences=silences, now=now)

    def post(events: Sequence[Event], _: object) -> list[NewNotice]:
        return [notice(event.alert.alert_id, event.kind) for event in events]

    return book.fold(decide, post, at=at)


def notice(
    alert_id: int | None = None, kind: EventKind = EventKind.FIRING, *, channel: str = "ops", title: str = "slow"
) -> NewNotice:
    return NewNotice(alert_id, channel, Message(title, "body", kind, Severity.WARNING))


def test_what_is_stored_is_what_was_decided(engine: Engine) -> None:
    book = AlertBook(engine)
    fold(book, found("x", value=float("inf"), text="it \0 is \ud800 slow"), at=START)
    (alert,) = book.open()
    assert (alert.alert_id, alert.key, alert.value) == (1, "x", float("inf"))
    assert (alert.labels, alert.members, alert.text) == ({"tier": "T0"}, ("A", "B"), "it \ufffd is ? slow")
    assert (alert.began_at, alert.fired_at, alert.told_at, alert.told_severity) == (START, START, START, Severity.WARNING)
    fold(book, found(), at=START + timedelta(seconds=30))
    fold(book, found(), at=START + timedelta(seconds=60))
    stored = book.alert(1)
    assert stored is not None
    assert (stored.state, stored.clear_since, book.open()) == ("resolved", START + timedelta(seconds=30), [])


def test_without_a_virtual_clock_the_databases_own_is_used(engine: Engine) -> None:
    book = AlertBook(engine)
    with engine.connect() as connection:
        before = connection.exec_driver_sql("select clock_timestamp()").scalar_one()
        fold(book, found("x"), at=None)
        after = connection.exec_driver_sql("select clock_timestamp()").scalar_one()
    assert before <= book.open()[0].began_at <= after


def test_an_alert_and_its_messages_are_one_transaction(engine: Engine) -> None:
    book, outbox = AlertBook(engine), Outbox(engine)

    def decide(open_alerts: Sequence[Alert], silences: Sequence[Silence], now: datetime) -> Folded:
        return fold_looks(open_alerts, [found("x")], {"Slow": SLOW}, silences=silences, now=now)

    def post(_: object, __: object) -> list[NewNotice]:
        return [notice(1), notice(4711)]

    with pytest.raises(Exception, match="foreign key"):
        book.fold(decide, post, at=START)
    assert (book.open(), outbox.notices()) == ([], [])


def test_of_watchers_that_race_one_begins_the_alert(engine: Engine) -> None:
    book = AlertBook(engine)
    barrier = threading.Barrier(4)

    def watch(number: int) -> int:
        barrier.wait(20)
        return sum(fold(book, found("x", "y"), at=START + timedelta(seconds=number))[1] for _ in range(5))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(watch, range(4))) == 2
    assert [alert.key for alert in book.open()] == ["x", "y"]


def test_the_database_holds_that_one_alert_of_a_name_is_open(engine: Engine) -> None:
    fold(AlertBook(engine), found("x"), at=START)
    with pytest.raises(IntegrityError, match="alerts_open"), engine.begin() as connection:
        connection.exec_driver_sql(
            "insert into alerts (rule, key, severity, state, value, text, began_at, seen_at)"
            " values ('Slow', 'x', 'info', 'pending', 1, '', now(), now())"
        )


def test_two_who_deliver_never_have_the_same_message(engine: Engine) -> None:
    outbox = Outbox(engine)
    for number in range(60):
        fold(AlertBook(engine), found(*(str(n) for n in range(number + 1))), at=START)
    barrier = threading.Barrier(4)

    def take(_: int) -> list[int]:
        barrier.wait(20)
        return [one.notice_id for one in outbox.take("ops", at=START)]

    with ThreadPoolExecutor(4) as pool:
        taken = [notice_id for ids in pool.map(take, range(4)) for notice_id in ids]
    assert sorted(taken) == list(range(1, 61))


def test_a_later_message_about_an_alert_waits_for_an_earlier_one_that_is_with_somebody(engine: Engine) -> None:
    book, outbox = AlertBook(engine), Outbox(engine)
    fold(book, found("x"), at=START)
    (first,) = outbox.take("ops", at=START)
    fold(book, found("y"), at=START)
    later = START + timedelta(seconds=1)
    assert [one.message.kind for one in outbox.take("ops", at=later)] == ["firing"]
    assert outbox.take("ops", at=later) == []
    outbox.sent([first], at=later)
    assert [(one.alert_id, one.message.kind) for one in outbox.take("ops", at=later)] == [(1, "resolved")]


def test_waits_double_and_have_an_end() -> None:
    assert [wait_seconds(n) for n in (1, 2, 3, 8, 9, 10_000)] == [5.0, 10.0, 20.0, 640.0, 900.0, 900.0]


# --- whoever is killed

_DELIVER = """
import sys, threading, orjson
from datetime import UTC, datetime
from pydantic import SecretStr
from market_data_pipeline.domain.alert_config import AlertsConfig, Channel
from market_data_pipeline.ingest.alerting import deliver_due
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage import alerts
from market_data_pipeline.wiring import open_pipeline
url, port, home = sys.argv[1:]
channels = {f"c{n}": Channel(f"c{n}", SecretStr(f"json://127.0.0.1:{port}/c{n}")) for n in range(4)}
with open_pipeline(Settings(home=home, database_url=SecretStr(url))) as pipeline:
    while True:
        deliver_due(pipeline, AlertsConfig(channels=channels), now=datetime.now(UTC))
        threading.Event().wait(0.01)
"""


class Receiver(ThreadingHTTPServer):
    """Keeps the texts of messages by channel, and now and then fails, or takes one and does not say so."""

    daemon_threads = True

    def __init__(self) -> None:
        self.heard: dict[str, list[str]] = defaultdict(list)
        rng, lock, receiver = random.Random(SEED), threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                posted = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    chance = rng.random()
                    if chance > 0.1:
                        receiver.heard[self.path].append(f"{posted['title']}\n{posted['message']}")
                self.send_response(200 if chance > 0.2 else 500)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
                """Nothing."""

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_no_message_is_lost_though_those_who_deliver_are_killed(
    engine: Engine, database_url: str, receiver: Receiver, tmp_path: object
) -> None:
    book, outbox, rng = AlertBook(engine), Outbox(engine), random.Random(SEED)
    command = [sys.executable, "-W", "ignore", "-c", _DELIVER, database_url, str(receiver.server_port), str(tmp_path)]
    crew = [start(command) for _ in range(2)]
    killed = 0

    def is_done() -> bool:
        hurry(engine)
        return not outbox.notices(states=["queued"])

    def is_at_work() -> bool:
        return any(one.attempts for one in outbox.notices(states=["queued"])) or is_done()

    try:
        for number in range(ROUNDS):
            fold_for(book, number)
            hurry(engine)
            if number % (ROUNDS // KILLS) == 0:
                victim = rng.randrange(2)
                wait_for(is_at_work)
                os.kill(crew[victim].pid, signal.SIGKILL)
                crew[victim].wait(20)
                killed += 1
                crew[victim] = start(command)
        wait_for(is_done)
    finally:
        for process in crew:
            process.kill()
            process.wait(20)
    assert killed == KILLS
    posted = outbox.notices()
    assert len(posted) == ROUNDS * 4
    assert {one.state for one in posted} == {"sent"}
    assert max(one.attempts for one in posted) > 1, "nothing was ever tried twice: the test shows nothing"
    for channel in {one.channel for one in posted}:
        texts = receiver.heard[f"/{channel}"]
        for alert_id in {one.alert_id for one in posted if one.channel == channel}:
            begun, over = (first(f"{kind} {alert_id}.", texts) for kind in ("firing", "resolved"))
            assert begun <= over


def first(title: str, texts: Sequence[str]) -> int:
    """Where it was heard first; of two in one digest both are in the same place."""
    return next(place for place, text in enumerate(texts) if title in text)


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def fold_for(book: AlertBook, number: int) -> None:
    """Two alerts begin at even numbers and end at odd ones; each is told to two of the four channels."""

    def decide(open_alerts: Sequence[Alert], silences: Sequence[Silence], now: datetime) -> Folded:
        look = found(*(f"{number // 2}-{n}" for n in range(2))) if number % 2 == 0 else found()
        return fold_looks(open_alerts, [look], {"Slow": SLOW}, silences=silences, now=now)

    def post(events: Sequence[Event], _: object) -> list[NewNotice]:
        return [
            notice(alert_id, event.kind, channel=f"c{2 * alert_id % 4 + n}", title=f"{event.kind} {alert_id}.")
            for event in events
            for n in range(2)
            if (alert_id := event.alert.alert_id) is not None
        ]

    book.fold(decide, post, at=None)


def hurry(engine: Engine) -> None:
    """Time passes for what waits: leases of the dead are over at once, and so are waits after failures.

    A lease of somebody who lives may be over, too: then a message comes twice, which is allowed.
    """
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "update alert_notices set ready_at = least(ready_at, clock_timestamp() + interval '0.5 seconds') where state = 'queued'"
        )


def wait_for(condition: Callable[[], bool]) -> None:
    over = threading.Event()
    for _ in range(1_000):
        if condition():
            return
        over.wait(0.04)
    pytest.fail("it did not happen within forty seconds")
