"""Requests to several providers at once."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future

import pytest

from market_data_pipeline.ingest.dispatch import Dispatcher


class Desk:
    """Answers with what it was asked, as soon as it may; the most that were under way at once, by provider."""

    def __init__(self) -> None:
        self.gates: dict[str, threading.Event] = {}
        self.requests: list[list[str]] = []
        self.most: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def send(self, errands: list[str]) -> str:
        provider = errands[0].split()[0]
        with self._lock:
            self.requests.append(errands)
            self._open[provider] += 1
            self.most[provider] = max(self.most[provider], self._open[provider])
        gate = self.gates.get(provider)
        assert gate is None or gate.wait(10)
        with self._lock:
            self._open[provider] -= 1
        return f"answer of {provider}"


def test_nothing_to_send_is_finished_at_once() -> None:
    with Dispatcher(Desk().send, at_a_time=2) as dispatcher:
        assert dispatcher.finished() == []


def test_every_errand_comes_back_once_and_no_provider_has_more_than_its_share_under_way() -> None:
    desk, back = Desk(), Counter[str]()
    with Dispatcher(desk.send, at_a_time=3) as dispatcher:
        for number in range(40):
            dispatcher.put(f"{'ab'[number % 2]} {number}", provider="ab"[number % 2], group=None, most=1)
        while finished := dispatcher.finished():
            back.update(errand for errands, _ in finished for errand in errands)
    assert sorted(back.values()) == [1] * 40
    assert max(desk.most.values()) <= 3


def test_a_slow_provider_keeps_nobody_waiting_but_its_own() -> None:
    desk = Desk()
    desk.gates["slow"] = threading.Event()
    with Dispatcher(desk.send, at_a_time=2) as dispatcher:
        for number in range(10):
            dispatcher.put(f"slow {number}", provider="slow", group=None, most=1)
            dispatcher.put(f"fast {number}", provider="fast", group=None, most=1)
        back: list[str] = []
        while len(back) < 10:
            back += [errand for errands, _ in dispatcher.finished() for errand in errands]
        assert all(errand.startswith("fast") for errand in back)
        desk.gates["slow"].set()
        while dispatcher.finished():
            pass


def test_errands_of_a_group_share_requests_up_to_the_most() -> None:
    desk = Desk()
    with Dispatcher(desk.send, at_a_time=2) as dispatcher:
        for number in range(25):
            dispatcher.put(f"many {number}", provider="many", group="monday" if number < 23 else "tuesday", most=10)
        while dispatcher.finished():
            pass
    assert sorted(len(request) for request in desk.requests) == [2, 3, 10, 10]


def test_a_request_that_is_not_full_waits_for_what_answers_under_way_may_add_to_it() -> None:
    desk = Desk()
    desk.gates["one"] = threading.Event()
    with Dispatcher(desk.send, at_a_time=1, clock=lambda: 0.0) as dispatcher:
        dispatcher.put("one 1", provider="one", group=None, most=1)
        dispatcher.put("many 1", provider="many", group="monday", most=10)
        threading.Timer(0.05, desk.gates["one"].set).start()
        assert [errands for errands, _ in dispatcher.finished()] == [["one 1"]]
        dispatcher.put("many 2", provider="many", group="monday", most=10)
        assert [errands for errands, _ in dispatcher.finished()] == [["many 1", "many 2"]]


def test_who_stops_reading_early_leaves_nothing_to_be_sent() -> None:
    desk = Desk()
    desk.gates["a"] = threading.Event()
    with Dispatcher(desk.send, at_a_time=1) as dispatcher:
        for number in range(10):
            dispatcher.put(f"a {number}", provider="a", group=None, most=1)
        desk.gates["b"] = threading.Event()
        desk.gates["b"].set()
        dispatcher.put("b 0", provider="b", group=None, most=1)
        dispatcher.finished()
        threading.Timer(0.05, desk.gates["a"].set).start()
    assert len([request for request in desk.requests if request[0].startswith("a")]) <= 1


def test_waiting_ends_early_where_something_else_is_done() -> None:
    desk, store = Desk(), Future[None]()
    desk.gates["a"] = threading.Event()
    with Dispatcher(desk.send, at_a_time=1) as dispatcher:
        assert dispatcher.is_idle
        dispatcher.put("a", provider="a", group=None, most=1)
        store.set_result(None)
        assert dispatcher.finished(store) == []
        desk.gates["a"].set()
        assert dispatcher.finished() == [(["a"], "answer of a")]
    assert dispatcher.is_idle


def test_a_bug_in_sending_is_not_swallowed() -> None:
    def broken(_: list[str]) -> str:
        raise KeyError("a bug")

    with Dispatcher(broken, at_a_time=1) as dispatcher:
        dispatcher.put("a", provider="a", group=None, most=1)
        with pytest.raises(KeyError, match="a bug"):
            dispatcher.finished()
