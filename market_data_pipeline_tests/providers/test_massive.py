"""What Massive's aggregates are asked and what their answers mean: one test a fact of the wire."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import (
    BudgetSpentError,
    EntitlementError,
    OutOfReachError,
    PayloadError,
    ProviderError,
    RateLimitedError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.ports import BarsAnswer, BarsRequest
from market_data_pipeline.providers.http import HttpClient, HttpPolicy
from market_data_pipeline.providers.massive import PLANS, MassiveProvider, parse_grouped, parse_page, parse_pages
from market_data_pipeline.testing import loopback
from market_data_pipeline_tests.providers.loopback import Loopback, Reply
from market_data_pipeline_tests.providers.wire_cases import DAYS, JSON, MINUTES, NOW, OPEN, at, client, encoded, failure_of, ok

if TYPE_CHECKING:
    from market_data_pipeline.domain.capabilities import Priority
    from market_data_pipeline.testing.loopback import Asked

KEY = "the-massive-key-1"
RANGE = f"/v2/aggs/ticker/MSFT/range/1/minute/{OPEN * 1000}/{MINUTES.end * 1000 - 1}"
BASE = "http://127.0.0.1:1"


def row(opened_at: int, price: float = 10.0, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    values = {"o": price, "h": price + 2, "l": price - 1, "c": price + 1, "v": 100.5, "vw": price + 0.5, "n": 7}
    return {"t": opened_at * 1000, **values, **more}


def aggregates(*rows: Any, next_url: str | None = None, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    said = {"ticker": "MSFT", "queryCount": len(rows), "resultsCount": len(rows), "adjusted": True, "status": "OK"}
    return {**said, **({"results": list(rows)} if rows else {}), **({"next_url": next_url} if next_url else {}), **changes}


def massive(url: str, http: HttpClient, *, plan: str = "advanced") -> MassiveProvider:
    return MassiveProvider(http, base_url=url, key=SecretStr(KEY), plan=plan)


def cursor(url: str, after: str, path: str = RANGE) -> str:
    return f"{url}{path}?cursor={after}&limit=50000"


# --- what is asked -----------------------------------------------------------------------------------------------------


def test_a_range_of_minutes_is_asked_for_in_milliseconds_with_the_key_in_a_header() -> None:
    with Loopback(ok(aggregates(row(OPEN)))) as server, client() as http:
        massive(server.url, http).fetch_bars(MINUTES, now=NOW)
        received = server.requests[0]
    assert received.path == RANGE
    assert received.query == {"adjusted": "true", "sort": "asc", "limit": "50000"}
    assert received.headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in received.target


def test_days_are_asked_for_by_their_dates() -> None:
    with Loopback(ok(aggregates())) as server, client() as http:
        massive(server.url, http).fetch_bars(DAYS, now=NOW)
    assert server.requests[0].path == "/v2/aggs/ticker/MSFT/range/1/day/2024-06-28/2024-07-01"


def test_a_month_of_minutes_is_the_longest_request() -> None:
    """``limit`` counts base aggregates: a longer window would come back with holes."""
    with client() as http:
        declared = {c.interval: c.span_seconds for c in massive(BASE, http).capabilities}
    assert declared == {Interval.M1: 31 * 86_400, Interval.D1: None}


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_is_declared_with_its_reach_delay_and_limit(plan: str) -> None:
    with client() as http:
        provider = massive(BASE, http, plan=plan)
    assert {(c.reach_seconds, c.delay_seconds) for c in provider.capabilities} == {
        (PLANS[plan].reach_seconds, PLANS[plan].delay_seconds)
    }
    assert provider.limits == PLANS[plan].limits


# --- pages -------------------------------------------------------------------------------------------------------------


def test_a_cursor_is_followed_on_our_own_host_and_shows_no_key() -> None:
    later = RANGE.replace(str(OPEN), str(OPEN + 60))

    def respond(asked: Asked) -> loopback.Reply:
        following = cursor(server.url, "two", later) + "&apiKey=somebody-elses"
        page = aggregates(row(OPEN + 60)) if asked.path == later else aggregates(row(OPEN), next_url=following)
        return loopback.Reply(encoded(page))

    with loopback.Loopback(respond) as server, client() as http:
        answer = massive(server.url, http).fetch_bars(MINUTES, now=NOW)
        second = server.requests[1]
    assert answer.columns.opened_at.tolist() == [OPEN, OPEN + 60]
    assert (second.path, second.query) == (later, {"cursor": "two", "limit": "50000"})
    assert second.headers["authorization"] == f"Bearer {KEY}"
    assert answer.fetch.attempts == 2


@pytest.mark.parametrize(
    "url",
    [
        cursor("http://evil.example", "x"),
        cursor("https://api.polygon.io", "x"),
        cursor(BASE, "x", "/v2/aggs/ticker/TSLA/range/1/minute/1/2"),
        cursor(BASE, "x", "/v2/aggs/ticker/MSFT/range/1/day/1/2"),
        cursor(BASE, "x", "/v2/aggs/ticker/MSFT/range/1/minute/../../../../../admin"),
        cursor("http://user:pw@127.0.0.1:1", "x"),
        cursor(BASE, ""),
        "//127.0.0.1:1" + RANGE,
        7,
    ],
)
def test_a_cursor_that_leads_elsewhere_is_refused(url: object) -> None:
    with pytest.raises(PayloadError, match="next_url"):
        parse_page(encoded({**aggregates(row(OPEN)), "next_url": url}), MINUTES, base_url=BASE)


@pytest.mark.parametrize("told", ["https://api.polygon.io", "https://api.massive.com"])
def test_the_vendors_two_names_are_one_host(told: str) -> None:
    found = parse_page(encoded(aggregates(row(OPEN), next_url=cursor(told, "x"))), MINUTES, base_url="https://api.massive.com")
    assert found.next_page is not None
    assert found.next_page.path == RANGE


def test_a_base_url_with_a_path_keeps_it() -> None:
    base = f"{BASE}/massive"
    found = parse_page(encoded(aggregates(row(OPEN), next_url=cursor(base, "x"))), MINUTES, base_url=base)
    assert found.next_page is not None
    assert found.next_page.path == RANGE


def test_a_full_page_without_a_cursor_is_refused() -> None:
    with pytest.raises(PayloadError, match="without a cursor"):
        parse_page(encoded(aggregates(row(OPEN), row(OPEN + 60))), MINUTES, base_url=BASE, rows_per_page=2)


def test_a_page_sent_twice_is_refused() -> None:
    pages = [parse_page(encoded(aggregates(row(OPEN), row(OPEN + 60))), MINUTES, base_url=BASE)] * 2
    with pytest.raises(PayloadError, match="repeats rows"):
        parse_pages(pages, MINUTES)


# --- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        (aggregates(row(OPEN), ticker="TSLA"), PayloadError),
        (aggregates(row(OPEN), resultsCount=2), PayloadError),
        (aggregates(row(OPEN), adjusted=False), PayloadError),
        (aggregates(row(OPEN), status="SOMETHING"), PayloadError),
        (aggregates(7), PayloadError),
        (aggregates(row(OPEN, t="x")), PayloadError),
        (aggregates(row(OPEN, t=None)), PayloadError),
        ({"status": "ERROR", "error": "You've exceeded the maximum requests per minute"}, RateLimitedError),
        ({"status": "ERROR", "error": "Bad things"}, PayloadError),
        ({"status": "NOT_AUTHORIZED", "message": "You are not entitled to this data."}, EntitlementError),
        ({"status": "NOT_AUTHORIZED", "message": "Your plan doesn't include this data timeframe."}, OutOfReachError),
    ],
)
def test_a_body_with_status_200_is_classed_by_what_it_says(document: dict[str, Any], kind: type[ProviderError]) -> None:
    error, sent = failure_of(massive, ok(document))
    assert (type(error), sent) == (kind, 1)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("You are not entitled to this data.", EntitlementError),
        ("Your plan doesn't include this data timeframe. Please upgrade", OutOfReachError),
        ("Attempted to request today's data before end of day. Please upgrade", OutOfReachError),
    ],
)
def test_a_403_about_the_time_frame_says_nothing_about_the_key(words: str, kind: type[ProviderError]) -> None:
    reply = Reply(status=403, body=encoded({"status": "NOT_AUTHORIZED", "message": words}), headers=JSON)
    error, sent = failure_of(massive, reply)
    assert (type(error), sent) == (kind, 1)
    assert error.fetch is not None
    assert (error.fetch.outcome, error.fetch.status) == (kind.kind, 403)


def test_a_404_is_an_unknown_symbol() -> None:
    error, _ = failure_of(massive, Reply(status=404, body=encoded({"status": "NOT_FOUND"}), headers=JSON))
    assert isinstance(error, UnknownSymbolError)


# --- what the bars say -------------------------------------------------------------------------------------------------


def test_bars_carry_vwap_trades_and_fractional_volume() -> None:
    with Loopback(ok(aggregates(row(OPEN), status="DELAYED"))) as server, client() as http:
        columns = massive(server.url, http).fetch_bars(MINUTES, now=NOW).columns
    assert (columns.vwap.tolist(), columns.trades.tolist(), columns.volume.tolist()) == ([10.5], [7.0], [100.5])


def test_a_stamp_between_the_minutes_is_left_out_and_counted() -> None:
    found = parse_pages([parse_page(encoded(aggregates(row(OPEN), row(OPEN, t=OPEN * 1000 + 1))), MINUTES, base_url=BASE)], MINUTES)
    assert (len(found.columns), found.dropped) == (1, {"unaligned": 1})


def test_a_day_is_stamped_with_midnight_in_new_york() -> None:
    found = parse_pages([parse_page(encoded(aggregates(row(at("2024-06-28T04:00Z")))), DAYS, base_url=BASE)], DAYS)
    assert found.columns.opened_at.tolist() == [at("2024-06-28T00:00Z")]


# --- the whole market in one request -----------------------------------------------------------------------------------


def of_day(day: str, *symbols: str, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    rows = [row(at(f"{day}T20:00Z"), T=symbol) for symbol in symbols]
    return {**aggregates(*rows), **changes}


def days_of(*symbols: str, sessions: int = 2) -> list[BarsRequest]:
    return [replace(DAYS, symbol=symbol, start=DAYS.end - sessions * 86_400) for symbol in symbols]


def test_few_dates_of_many_symbols_are_one_request_a_date() -> None:
    """Friday 06-28 and Monday 07-01; the weekend between them is not asked for."""
    replies = ok(of_day("2024-06-28", "MSFT", "AAPL", "TSLA")), ok(of_day("2024-07-01", "MSFT"))
    with Loopback(*replies) as server, client() as http:
        answers = massive(server.url, http).fetch_bars_of_many(days_of("MSFT", "AAPL", "NOPE", sessions=3), now=NOW)
        paths = [received.path for received in server.requests]
    assert paths == [f"/v2/aggs/grouped/locale/us/market/stocks/{day}" for day in ("2024-06-28", "2024-07-01")]
    bars = [answer for answer in answers if isinstance(answer, BarsAnswer)]
    assert [answer.columns.opened_at.tolist() for answer in bars] == [
        [at("2024-06-28T00:00Z"), at("2024-07-01T00:00Z")],
        [at("2024-06-28T00:00Z")],
        [],
    ]
    assert [(answer.fetch.symbol, answer.fetch.attempts, answer.fetch.rows) for answer in bars] == [
        ("MSFT", 2, 2),
        ("AAPL", 0, 1),
        ("NOPE", 0, 0),
    ]


def test_a_long_range_is_asked_for_symbol_by_symbol() -> None:
    with Loopback(ok(aggregates()), ok(aggregates(ticker="AAPL"))) as server, client() as http:
        massive(server.url, http).fetch_bars_of_many(days_of("MSFT", "AAPL", sessions=30), now=NOW)
        assert [received.path.split("/")[4] for received in server.requests] == ["MSFT", "AAPL"]


def test_a_grouped_answer_of_another_day_is_refused() -> None:
    with pytest.raises(PayloadError, match="another day"):
        parse_grouped(encoded(of_day("2024-06-27", "MSFT")), date(2024, 6, 28), {"MSFT"})


def test_one_bad_date_refuses_them_all() -> None:
    replies = ok(of_day("2024-06-28", "MSFT")), ok(of_day("2024-07-01", "MSFT", resultsCount=9))
    with Loopback(*replies) as server, client() as http, pytest.raises(PayloadError):
        massive(server.url, http).fetch_bars_of_many(days_of("MSFT", "AAPL", "TSLA", sessions=3), now=NOW)


class OnceADay:
    """A budget of one request."""

    def __init__(self) -> None:
        self.left = 1

    def take(self, provider: str, account: str, priority: Priority, *, patience_seconds: float) -> None:  # noqa: ARG002
        if not self.left:
            raise BudgetSpentError("tomorrow", provider=provider, wait_seconds=86_400.0)
        self.left -= 1

    def refused(self, provider: str, account: str, *, retry_after_seconds: float | None) -> None:
        raise AssertionError(provider, account, retry_after_seconds)


def test_what_was_answered_before_the_budget_was_spent_is_kept() -> None:
    """Five requests a minute, a thousand symbols: what comes must be stored, or the run would begin anew for ever."""
    with Loopback(ok(aggregates(row(at("2024-06-28T04:00Z"))))) as server:
        with HttpClient(HttpPolicy(), budget=OnceADay()) as http:
            answers = massive(server.url, http).fetch_bars_of_many(days_of("MSFT", "AAPL", "TSLA", sessions=30), now=NOW)
        assert len(server.requests) == 1
    assert [type(answer) for answer in answers] == [BarsAnswer, BudgetSpentError, BudgetSpentError]
    last = answers[-1]
    assert isinstance(last, BudgetSpentError)
    assert last.wait_seconds == 86_400.0
    assert last.fetch is not None
    assert last.fetch.attempts == 0


def test_a_closed_day_has_no_results_and_is_empty() -> None:
    body = {"status": "OK", "adjusted": True, "queryCount": 0, "resultsCount": 0}
    assert parse_grouped(encoded(body), datetime(2024, 7, 4, tzinfo=UTC).date(), {"MSFT"}) == {}
