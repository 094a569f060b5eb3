"""Limits are enforced per account over any window on real time, refused in each vendor's words, and reported to tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.capabilities import RateLimit
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.simulator.limits import LimitBook
from market_data_pipeline.simulator.vendor import FREE, Received
from market_data_pipeline_tests.simulator.directories import session_of_minutes, write_bars
from market_data_pipeline_tests.simulator.vendors import Vendors

if TYPE_CHECKING:
    from pathlib import Path

QUOTE = ("finnhub", "/finnhub/api/v1/quote", "symbol=AAPL")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_bars(tmp_path, session_of_minutes(3))


@given(
    waits=st.lists(st.floats(0, 3), min_size=1, max_size=80),
    requests=st.integers(1, 6),
    seconds=st.floats(0.5, 5),
)
def test_no_window_ever_holds_more_granted_requests_than_allowed(waits: list[float], requests: int, seconds: float) -> None:
    now = 0.0
    book = LimitBook(lambda: now)
    granted = []
    for wait in waits:
        now += wait
        if not book.arrive("v", "a", [RateLimit(requests, seconds)]).is_refused:
            granted.append(now)

    assert all(sum(start < at <= start + seconds for at in granted) <= requests for start in (at - seconds for at in granted))
    assert granted[0] == waits[0]


@given(waits=st.lists(st.floats(0.001, 3), min_size=1, max_size=80), requests=st.integers(1, 6))
def test_whoever_keeps_to_the_limit_is_never_refused(waits: list[float], requests: int) -> None:
    now = 0.0
    book = LimitBook(lambda: now)
    sent: list[float] = []
    for wait in waits:
        now += wait
        if sum(at > now - 1.0 for at in sent) < requests:
            sent.append(now)
            assert not book.arrive("v", "a", [RateLimit(requests, 1.0)]).is_refused
    assert all(limit["most"] <= limit["allowed"] for account in book.report() for limit in account["limits"])


def test_the_report_says_what_was_seen_and_refused(directory: Path) -> None:
    vendors = Vendors(directory, limits="finnhub=2/s,3/m")
    for at in (0.0, 0.1, 0.2, 5.0, 6.0):
        vendors.seconds = at
        vendors.get(*QUOTE)

    (account,) = vendors.simulator.book.report()

    assert (account["provider"], account["requests"], account["refused"]) == ("finnhub", 5, 2)
    assert account["limits"] == [
        {"limit": "2/s", "allowed": 2, "most": 3},
        {"limit": "3/m", "allowed": 3, "most": 5},
    ]


def test_accounts_are_counted_apart(directory: Path) -> None:
    vendors = Vendors(directory, limits="finnhub=1/m")

    statuses = [vendors.get(*QUOTE, plan=plan).status for plan in (FREE, "premium", FREE)]

    assert statuses == [200, 200, 429]


def test_the_documented_limits_hold_unless_others_are_told(directory: Path) -> None:
    vendors = Vendors(directory, limits="")
    path = "/massive/v2/aggs/ticker/AAPL/range/1/day/2024-12-02/2024-12-02"

    statuses = [vendors.get("massive", path, plan=FREE).status for _ in range(6)]

    assert statuses == [200] * 5 + [429]


@pytest.mark.parametrize(
    ("vendor", "path", "query", "status", "words"),
    [
        (*QUOTE, 429, '{"error":"API limit reached. Please try again later. Remaining Limit: 0"}'),
        ("alpaca", "/alpaca/v2/stocks/quotes/latest", "symbols=AAPL", 429, '{"message":"too many requests."}'),
        ("massive", "/massive/v2/aggs/ticker/AAPL/range/1/day/2024-12-02/2024-12-02", "", 429, "exceeded the maximum requests"),
        ("alphavantage", "/alphavantage/query", "function=TIME_SERIES_DAILY&symbol=AAPL", 200, "requests per day"),
        ("yahoo", "/v8/finance/chart/AAPL", "range=1d", 429, "Too Many Requests\r\n"),
    ],
)
def test_each_vendor_refuses_in_its_own_words(directory: Path, vendor: str, path: str, query: str, status: int, words: str) -> None:
    vendors = Vendors(directory, limits=f"{vendor}=1/m")
    vendors.get(vendor, path, query)

    refused = vendors.get(vendor, path, query)

    assert (refused.status, words in refused.body.decode()) == (status, True)
    assert vendors.simulator.log[-1]["limited"]


def test_a_refused_request_uses_up_no_fault(directory: Path) -> None:
    vendors = Vendors(directory, {"match": {"nth": 2}, "action": "status", "code": 503}, limits="finnhub=1/s")
    vendors.get(*QUOTE)

    assert vendors.get(*QUOTE).status == 429
    vendors.seconds = 2.0
    assert vendors.get(*QUOTE).status == 503


def test_the_log_says_what_was_left_and_never_the_key(directory: Path) -> None:
    vendors = Vendors(directory, limits="finnhub=5/m")
    vendors.get(*QUOTE)

    entry = vendors.simulator.log[-1]

    assert (entry["provider"], entry["capability"], entry["limit"]) == ("finnhub", "quotes_l1", {"limit": "5/m", "remaining": 4})
    assert entry["account"]
    assert "simulated-finnhub" not in str(vendors.simulator.log)


def _control(vendors: Vendors, method: str, body: object = None) -> Any:  # noqa: ANN401
    reply = vendors.simulator.control(Received(method, "/__sim/limits", "", {}, orjson.dumps(body)))
    return reply.status, orjson.loads(reply.body)


def test_limits_are_changed_over_the_control_plane_and_reset_to_those_of_the_start(directory: Path) -> None:
    vendors = Vendors(directory, limits="finnhub=1/m")
    vendors.get(*QUOTE)

    assert _control(vendors, "POST", "finnhub=none") == (200, [])
    assert [vendors.get(*QUOTE).status for _ in range(3)] == [200, 200, 200]
    vendors.simulator.reset()
    assert [vendors.get(*QUOTE).status for _ in range(2)] == [200, 429]
    assert _control(vendors, "GET")[1][0]["refused"] == 1


@pytest.mark.parametrize("given", ["nasdaq=1/m", "finnhub=often", {"finnhub": "1/m"}])
def test_limits_that_cannot_be_meant_are_refused(directory: Path, given: object) -> None:
    status, said = _control(Vendors(directory), "POST", given)

    assert status == 400
    assert "expected" in said["error"]


def test_limits_of_a_vendor_that_there_is_not_are_refused_at_the_start(directory: Path) -> None:
    with pytest.raises(InvalidInputError, match="limits for nasdaq: expected some of yahoo"):
        Vendors(directory, limits="nasdaq=1/m")
