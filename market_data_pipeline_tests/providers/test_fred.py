"""What FRED is asked and what its answers mean: one test a fact of the wire."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from market_data_pipeline.domain.capabilities import HISTORY
from market_data_pipeline.domain.errors import (
    EntitlementError,
    PayloadError,
    ProviderError,
    RateLimitedError,
    TransientError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.ports import MacroAnswer, MacroProvider, Observation
from market_data_pipeline.providers.fred import FredProvider, parse_observations, parse_series, refusal
from market_data_pipeline.providers.http import HttpClient, HttpPolicy
from market_data_pipeline.simulator.client import running_simulator
from market_data_pipeline.simulator.fred import key_of
from market_data_pipeline_tests.economy import ONGOING, daily_series, write_series
from market_data_pipeline_tests.providers.loopback import Loopback, Reply

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from market_data_pipeline.simulator.client import RunningSimulator

KEY = "abcdefghijklmnopqrstuvwxyz012345"
NOW = datetime(2024, 7, 2, 21, tzinfo=UTC)
JSON = {"Content-Type": "application/json; charset=UTF-8"}

# Texts as FRED sends them: recorded, else PROVIDERS.md §3.
UNKNOWN = b'{"error_code":400,"error_message":"Bad Request.  The series does not exist."}'
NOT_IN_ALFRED = b'{"error_code":400,"error_message":"Bad Request.  The series does not exist in ALFRED but may exist in FRED."}'
BAD_KEY = (
    b'{"error_code":400,"error_message":"Bad Request.  The value for variable api_key is not registered.  '
    b'Read https:\\/\\/fred.stlouisfed.org\\/docs\\/api\\/api_key.html for more information."}'
)
NO_KEY = b'{"error_code":400,"error_message":"Bad Request.  Variable api_key is not set.  Read more."}'


def described(series: str = "GDP") -> Reply:
    info = {"id": series, "title": "Gross Domestic Product", "units": "Billions of Dollars", "frequency_short": "Q"}
    return Reply(200, json.dumps({"seriess": [info]}).encode(), JSON)


VALUE_OF_TODAY = ("2024-01-01", "1.5", "2024-07-02", "2024-07-02")


def page(rows: Sequence[tuple[str, str, str, str]] = (VALUE_OF_TODAY,), **changes: Any) -> bytes:  # noqa: ANN401 - JSON
    """A page of observations: (date, value, realtime_start, realtime_end); valid except for what is given."""
    observations = [{"realtime_start": start, "realtime_end": end, "date": day, "value": value} for day, value, start, end in rows]
    told = {
        "realtime_start": "2024-07-02",
        "realtime_end": "2024-07-02",
        "observation_start": "1600-01-01",
        "observation_end": "9999-12-31",
        "units": "lin",
        "output_type": 1,
        "file_type": "json",
        "order_by": "observation_date",
        "sort_order": "asc",
        "count": len(rows),
        "offset": 0,
        "limit": 100_000,
        "observations": observations,
    }
    return json.dumps({**told, **changes}).encode()


def row(value: float | None, day: str = "2024-01-01", start: str = "2024-07-02", end: str = "2024-07-02") -> Observation:
    return Observation(date.fromisoformat(day), value, date.fromisoformat(start), date.fromisoformat(end))


def client() -> HttpClient:
    return HttpClient(HttpPolicy(timeout_seconds=5.0, attempts=2), sleep=lambda _: None)


def provider_at(url: str, http: HttpClient, *, key: str | None = KEY, rows_per_page: int = 100_000) -> FredProvider:
    return FredProvider(http, base_url=url, key=None if key is None else SecretStr(key), rows_per_page=rows_per_page)


def ask(
    fred: FredProvider, series: str = "GDP", *, first: date | None = None, last: date | None = None, vintages: bool = False
) -> MacroAnswer:
    return fred.fetch_observations(series, first=first, last=last, vintages=vintages, priority=HISTORY, now=NOW)


def answer_to(*replies: Reply, vintages: bool = False, rows_per_page: int = 100_000) -> tuple[MacroAnswer, list[dict[str, str]]]:
    """What the adapter makes of these replies after it was told what GDP is, and the queries it sent."""
    with Loopback(described(), *replies) as server, client() as http:
        answer = ask(provider_at(server.url, http, rows_per_page=rows_per_page), vintages=vintages)
        return answer, [request.query for request in server.requests[1:]]


def failure_of(*replies: Reply, vintages: bool = False) -> tuple[ProviderError, int]:
    """The error that these replies end in, and how many requests were sent."""
    with Loopback(*replies) as server, client() as http:
        with pytest.raises(ProviderError) as raised:
            ask(provider_at(server.url, http), vintages=vintages)
        return raised.value, len(server.requests)


# --- asking ------------------------------------------------------------------------------------------------------------


def test_it_serves_macro_to_those_who_have_a_key() -> None:
    with client() as http:
        fred = provider_at("http://127.0.0.1:1", http)
        assert isinstance(fred, MacroProvider)
        assert [(c.name, str(c.access), c.rows_per_request) for c in fred.capabilities] == [("macro", "key", 100_000)]
        assert fred.lacking is None


def test_without_a_key_it_says_what_it_lacks_and_sends_nothing() -> None:
    with Loopback(Reply()) as server, client() as http:
        fred = provider_at(server.url, http, key=None)
        assert (fred.lacking, fred.account) == ("MDP_FRED_KEY is not set", "")
        with pytest.raises(EntitlementError, match="MDP_FRED_KEY is not set"):
            ask(fred)
        assert server.requests == []


def test_the_account_is_a_fingerprint_of_the_key() -> None:
    with client() as http:
        one, other = provider_at("http://h", http), provider_at("http://h", http, key=KEY[::-1])
        assert one.account
        assert one.account != other.account
        assert KEY not in one.account


def test_the_query_names_series_and_bounds() -> None:
    with Loopback(described(), Reply(200, page(), JSON)) as server, client() as http:
        ask(provider_at(server.url, http), first=date(2024, 1, 1), last=date(2024, 3, 31))
        assert server.requests[1].path == "/fred/series/observations"
        assert server.requests[1].query == {
            "series_id": "GDP",
            "observation_start": "2024-01-01",
            "observation_end": "2024-03-31",
            "limit": "100000",
            "offset": "0",
            "file_type": "json",
            "api_key": KEY,
        }


def test_what_a_series_is_is_asked_once() -> None:
    with Loopback(described(), Reply(200, page(), JSON)) as server, client() as http:
        fred = provider_at(server.url, http)
        answers = [ask(fred), ask(fred)]
        assert [request.path for request in server.requests] == [
            "/fred/series",
            "/fred/series/observations",
            "/fred/series/observations",
        ]
        assert {(a.units, a.frequency, a.title) for a in answers} == {("Billions of Dollars", "Q", "Gross Domestic Product")}


def test_another_series_than_asked_for_is_refused() -> None:
    error, sent = failure_of(described("GNP"))
    assert isinstance(error, PayloadError)
    assert "asked for GDP, answered with 'GNP'" in str(error)
    assert sent == 1


# --- answers -----------------------------------------------------------------------------------------------------------


def test_values_are_text_and_a_dot_is_an_absence_that_is_kept() -> None:
    rows = [("2024-01-01", "1.5", "2024-07-02", "2024-07-02"), ("2024-02-01", ".", "2024-07-02", "2024-07-02")]
    answer, _ = answer_to(Reply(200, page(rows), JSON))
    assert list(answer.observations) == [row(1.5), row(None, "2024-02-01")]
    assert (answer.series, answer.has_vintages, answer.fetch.rows, answer.fetch.outcome) == ("GDP", False, 2, "ok")
    assert (answer.fetch.capability, answer.fetch.interval, answer.fetch.attempts) == ("macro", None, 2)


def test_rows_come_sorted_and_a_repeat_is_counted() -> None:
    today = ("2024-07-02", "2024-07-02")
    answer, _ = answer_to(Reply(200, page([("2024-02-01", "2", *today), ("2024-01-01", "1", *today), ("2024-02-01", "2", *today)])))
    assert list(answer.observations) == [row(1.0), row(2.0, "2024-02-01")]
    assert answer.fetch.dropped == {"duplicate": 1}


def test_a_repeat_that_says_something_else_is_refused() -> None:
    today = ("2024-07-02", "2024-07-02")
    answer, _ = answer_to(Reply(200, page([("2024-01-01", "1", *today), ("2024-01-01", "2", *today)])))
    assert list(answer.observations) == [row(1.0)]
    assert [(json.loads(r.record)["value"], r.reason) for r in answer.refused] == [("2.0", "conflicting_duplicate")]


def test_what_was_not_asked_for_is_left_out_and_counted() -> None:
    with Loopback(described(), Reply(200, page())) as server, client() as http:
        answer = ask(provider_at(server.url, http), last=date(2023, 12, 31))
        assert (list(answer.observations), answer.fetch.dropped) == ([], {"outside_window": 1})


def test_the_period_in_which_the_first_day_lies_is_kept() -> None:
    """Asked for 2024-06-30 and later, FRED sends June, named 2024-06-01 (recorded)."""
    with Loopback(described(), Reply(200, page())) as server, client() as http:
        answer = ask(provider_at(server.url, http), first=date(2024, 3, 31))
        assert [str(o.observed_on) for o in answer.observations] == ["2024-01-01"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"value": "n/a"}, "value_not_a_number"),
        ({"value": ""}, "value_not_a_number"),
        ({"value": None}, "value_not_a_number"),
        ({"value": "1_000"}, "value_not_a_number"),
        ({"value": "NaN"}, "value_not_a_number"),
        ({"value": "1e999"}, "value_not_a_number"),
        ({"value": True}, "value_not_a_number"),
        ({"date": "2024-02-30"}, "date_unreadable"),
        ({"date": "20240201"}, "date_unreadable"),
        ({"date": 20240201}, "no_date"),
        ({"realtime_start": "2024-07-03"}, "realtime_backwards"),
        ({"realtime_end": ""}, "realtime_end_unreadable"),
    ],
)
def test_a_row_that_cannot_be_read_is_refused_with_its_reason(changed: dict[str, Any], reason: str) -> None:
    good = {"realtime_start": "2024-07-02", "realtime_end": "2024-07-02", "date": "2024-01-01", "value": "1"}
    bad = {**good, "date": "2024-02-01", **changed}
    parsed = parse_observations(page(observations=[good, bad], count=2))
    assert list(parsed.observations) == [row(1.0)]
    assert [(json.loads(r.record), r.reason) for r in parsed.refused] == [(bad, reason)]


def test_a_row_that_is_no_object_is_refused() -> None:
    assert [r.reason for r in parse_observations(page(observations=["x", None], count=2)).refused] == ["not_an_object"] * 2


@given(st.lists(st.one_of(st.none(), st.text(), st.integers(), st.dictionaries(st.text(), st.text())), max_size=5))
def test_every_row_is_an_observation_or_refused_whatever_it_is(rows: list[Any]) -> None:
    parsed = parse_observations(page(observations=rows, count=len(rows)))
    assert parsed.received == len(rows) == len(parsed.observations) + len(parsed.refused)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_read_as_it_was_written(value: float) -> None:
    (observation,) = parse_observations(page([("2024-01-01", repr(value), "2024-07-02", "2024-07-02")])).observations
    assert observation.value == value


@pytest.mark.parametrize("changes", [{"units": "pch"}, {"output_type": 2}])
def test_transformed_values_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PayloadError, match="values as they are"):
        parse_observations(page(**changes))


@pytest.mark.parametrize("changes", [{"count": None}, {"count": -1}, {"offset": "0"}, {"limit": True}, {"observations": None}])
def test_a_page_without_its_counts_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PayloadError):
        parse_observations(page(**changes))


def test_a_narrower_realtime_window_than_asked_for_is_refused() -> None:
    with pytest.raises(PayloadError, match="asked for the vintages from 1776-07-04"):
        parse_observations(page(), window=(date(1776, 7, 4), date(9999, 12, 31)))


def test_series_without_a_description_are_refused() -> None:
    with pytest.raises(PayloadError, match="without its id, title, units or frequency"):
        parse_series(b'{"seriess": [{"id": "GDP"}]}')


# --- paging ------------------------------------------------------------------------------------------------------------

TODAY = ("2024-07-02", "2024-07-02")


def test_pages_follow_each_other_until_everything_promised_is_here() -> None:
    days = [f"2024-01-{day:02}" for day in range(1, 6)]
    pages = [
        Reply(200, page([(day, "1", *TODAY) for day in days[at : at + 2]], count=5, offset=at, limit=2), JSON) for at in (0, 2, 4)
    ]
    answer, queries = answer_to(*pages, rows_per_page=2)
    assert [o.observed_on.isoformat() for o in answer.observations] == days
    assert [(query["limit"], query["offset"]) for query in queries] == [("2", "0"), ("2", "2"), ("2", "4")]


@pytest.mark.parametrize(
    "second",
    [
        {"rows": [], "offset": 2},
        {"rows": [("2024-01-03", "1", *TODAY)], "offset": 2},
        {"rows": [("2024-01-01", "1", *TODAY), ("2024-01-02", "1", *TODAY)], "offset": 0},
    ],
    ids=["empty", "a row lost", "the first page again"],
)
def test_a_page_that_lacks_rows_fails_the_whole(second: dict[str, Any]) -> None:
    rows = [("2024-01-01", "1", *TODAY), ("2024-01-02", "1", *TODAY)]
    first = Reply(200, page(rows, count=4, limit=2), JSON)
    lost = Reply(200, page(second["rows"], count=4, offset=second["offset"], limit=2), JSON)
    with pytest.raises(PayloadError, match="of 4 rows from 2 were due"):
        answer_to(first, lost, rows_per_page=2)


def test_a_series_that_changes_while_we_page_is_to_be_asked_again() -> None:
    rows = [("2024-01-01", "1", *TODAY)]
    with pytest.raises(TransientError, match="2 rows became 3 while we paged"):
        answer_to(Reply(200, page(rows, count=2, limit=1)), Reply(200, page(rows, count=3, offset=1, limit=1)), rows_per_page=1)


def test_a_page_that_may_hold_nothing_does_not_keep_us_asking() -> None:
    with pytest.raises(PayloadError):
        answer_to(Reply(200, page([], count=3, limit=0), JSON))


# --- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "kind", "sent"),
    [
        (Reply(400, UNKNOWN, JSON), UnknownSymbolError, 1),
        (Reply(400, BAD_KEY, JSON), EntitlementError, 1),
        (Reply(400, NO_KEY, JSON), EntitlementError, 1),
        (Reply(400, b'{"error_code":400,"error_message":"Bad Request.  Something else."}', JSON), PayloadError, 1),
        (Reply(200, UNKNOWN, JSON), UnknownSymbolError, 1),
        (Reply(429, b'{"error_code":429,"error_message":"Too Many Requests.  Exceeded Rate Limit"}', JSON), RateLimitedError, 1),
        (Reply(200, b'{"error_code":429,"error_message":"Too Many Requests.  Exceeded Rate Limit"}', JSON), RateLimitedError, 1),
        (Reply(423, b'{"error_code":423,"error_message":"Locked"}', JSON), TransientError, 2),
        (Reply(500, b'{"error_code":500,"error_message":"Internal Server Error"}', JSON), TransientError, 2),
        (Reply(200, b"<html>Will be right back</html>", {"Content-Type": "text/html"}), TransientError, 2),
        (Reply(200, b"", JSON), TransientError, 2),
        (Reply(200, b'{"observations": [', JSON), TransientError, 2),
        (Reply(200, b"[1, 2]", JSON), PayloadError, 1),
        (Reply(404, b'{"code": "Not Found"}', JSON), PayloadError, 1),
    ],
    ids=lambda value: value.body[:40].decode() or "empty" if isinstance(value, Reply) else None,
)
def test_each_refusal_has_its_class_and_is_repeated_only_where_that_may_help(
    reply: Reply, kind: type[ProviderError], sent: int
) -> None:
    error, requests = failure_of(reply)
    assert (type(error), requests) == (kind, sent)
    assert error.fetch is not None
    assert (error.fetch.outcome, error.fetch.capability, error.fetch.attempts) == (kind.kind, "macro", sent)


def test_no_error_and_no_provenance_shows_the_key() -> None:
    # A server that repeats what it was told, in its words.
    told = json.dumps({"error_code": 400, "error_message": f"Bad Request.  api_key={KEY} or {KEY} is not registered."}).encode()
    error, _ = failure_of(Reply(400, told, JSON))
    assert isinstance(error, EntitlementError)
    assert error.fetch is not None
    for text in (str(error), repr(error), repr(error.fetch), repr(error.__cause__), repr(error.__context__)):
        assert KEY not in text


def test_the_text_decides_whatever_the_code() -> None:
    told = {"error_code": 400, "error_message": "Bad Request.  The series does not exist in ALFRED but may exist in FRED."}
    assert refusal(told, said="x").kind == "unknown_symbol"


# --- vintages ----------------------------------------------------------------------------------------------------------


def test_vintages_are_asked_for_since_ever_and_until_further_notice() -> None:
    rows = [("2024-01-01", "1.5", "2024-02-01", "2024-02-29"), ("2024-01-01", "1.6", "2024-03-01", ONGOING)]
    reply = Reply(200, page(rows, realtime_start="1776-07-04", realtime_end=ONGOING), JSON)
    answer, queries = answer_to(reply, vintages=True)
    assert [(q["realtime_start"], q["realtime_end"]) for q in queries] == [("1776-07-04", "9999-12-31")]
    assert answer.has_vintages
    assert list(answer.observations) == [row(1.5, start="2024-02-01", end="2024-02-29"), row(1.6, start="2024-03-01", end=ONGOING)]


def test_a_series_that_alfred_does_not_have_is_answered_as_it_is_today() -> None:
    answer, queries = answer_to(Reply(400, NOT_IN_ALFRED, JSON), Reply(200, page(), JSON), vintages=True)
    assert (answer.has_vintages, list(answer.observations)) == (False, [row(1.5)])
    assert "realtime_start" not in queries[1]
    # Nothing that happened on the way is hidden.
    assert "does not exist in ALFRED" in str(answer.fetch.error)


FIRST = date(2010, 1, 1)
MANY = daily_series(FIRST, 4_500)


@pytest.fixture(scope="module")
def alfred(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulator]:
    """Series with 4,500 vintage dates, with exactly 2,000 and with 2,001."""
    data = tmp_path_factory.mktemp("alfred")
    write_series(data, "DMANY", MANY)
    write_series(data, "DEXACT", daily_series(FIRST, 2_000, revised_every=10_000))
    write_series(data, "DOVER", daily_series(FIRST, 2_001, revised_every=10_000))
    with running_simulator(data=data, now=datetime(2024, 7, 2, 21, tzinfo=UTC), limits="fred=none") as simulator:
        yield simulator


def expected(lines: Sequence[tuple[str, str, str, str]]) -> list[Observation]:
    return [row(None if value == "." else float(value), day, start, end) for day, value, start, end in lines]


def test_a_series_with_too_many_vintages_for_a_request_is_read_in_parts_and_is_whole(alfred: RunningSimulator) -> None:
    alfred.forget_requests()
    with client() as http:
        answer = ask(provider_at(alfred.urls["fred"], http, key=key_of("free")), "DMANY", vintages=True)
    assert list(answer.observations) == expected(MANY)
    sent = [(entry["path"].rpartition("/")[2], entry["status"]) for entry in alfred.requests()]
    # What it is, one refusal, the dates, and as many parts as 4,501 dates need.
    assert sent == [("series", 200), ("observations", 400), ("vintagedates", 200), *[("observations", 200)] * 3]
    assert answer.fetch.attempts == len(sent)


def test_two_thousand_vintages_are_one_request_and_one_more_is_two(alfred: RunningSimulator) -> None:
    sent = {}
    with client() as http:
        fred = provider_at(alfred.urls["fred"], http, key=key_of("free"))
        for series in ("DEXACT", "DOVER"):
            alfred.forget_requests()
            assert ask(fred, series, vintages=True).has_vintages
            sent[series] = [entry["status"] for entry in alfred.requests() if entry["path"].endswith("observations")]
    assert sent == {"DEXACT": [200], "DOVER": [400, 200, 200]}


def test_parts_and_pages_together_are_the_whole(alfred: RunningSimulator) -> None:
    with client() as http:
        fred = provider_at(alfred.urls["fred"], http, key=key_of("free"), rows_per_page=997)
        assert list(ask(fred, "DMANY", vintages=True).observations) == expected(MANY)


def test_a_part_that_has_grown_too_large_since_is_halved() -> None:
    """The dates were listed before a release: FRED refuses the first part, and its halves are asked for."""
    dates = [(FIRST + timedelta(days=n)).isoformat() for n in range(3)]
    listed = Reply(200, json.dumps({"count": 3, "offset": 0, "limit": 10_000, "vintage_dates": dates}).encode(), JSON)
    refused = Reply(400, b'{"error_code":400,"error_message":"Bad Request.  There are 2001 vintage dates in the period"}', JSON)

    def part(start: str, end: str, rows: Sequence[tuple[str, str, str, str]]) -> Reply:
        return Reply(200, page(rows, realtime_start=start, realtime_end=end), JSON)

    value = ("2009-12-01", "1.5")
    replies = [
        refused,
        listed,
        part("1776-07-04", "2010-01-01", [(*value, "2010-01-01", "2010-01-01")]),
        refused,
        part("2010-01-02", "2010-01-02", [(*value, "2010-01-02", "2010-01-02")]),
        part("2010-01-03", ONGOING, [(*value, "2010-01-03", "2010-01-03"), ("2009-12-01", "1.6", "2010-01-04", ONGOING)]),
    ]
    answer, _ = answer_to(*replies, vintages=True)
    whole = [row(1.5, "2009-12-01", "2010-01-01", "2010-01-03"), row(1.6, "2009-12-01", "2010-01-04", ONGOING)]
    assert list(answer.observations) == whole


def test_a_single_vintage_that_is_refused_as_too_many_is_no_answer() -> None:
    refused = Reply(400, b'{"error_code":400,"error_message":"Bad Request.  There are 2001 vintage dates in the period"}', JSON)
    listed = Reply(200, b'{"count": 1, "offset": 0, "limit": 10000, "vintage_dates": ["2010-01-01"]}', JSON)
    error, sent = failure_of(described(), refused, listed, vintages=True)
    assert isinstance(error, PayloadError)
    assert sent == 3
