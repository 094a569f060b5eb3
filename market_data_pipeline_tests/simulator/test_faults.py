"""Rules strike the requests they name, as often as they say, and each action spoils an answer in its own way and no other."""

from __future__ import annotations

import gzip
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.simulator.clock import VirtualClock
from market_data_pipeline.simulator.faults import SETTINGS, FaultScript, parse_rules, read_rules
from market_data_pipeline.simulator.market import Market
from market_data_pipeline.simulator.rules import Asked, Dice
from market_data_pipeline.simulator.server import Simulator
from market_data_pipeline.simulator.vendor import Received, Reply
from market_data_pipeline_tests.simulator.directories import (
    CLOSE,
    LATER,
    OPEN,
    epochs,
    minute,
    parameters,
    session_of_minutes,
    write_bars,
)

if TYPE_CHECKING:
    from pathlib import Path

ASKED = Asked(
    path="/v8/finance/chart/AAPL",
    query="interval=1m",
    symbol="AAPL",
    interval="1m",
    start=int(OPEN.timestamp()),
    end=int(CLOSE.timestamp()),
    accepts_gzip=True,
    now_us=int(LATER.timestamp()) * 1_000_000,
)


class Provider:
    """A simulator without sockets, its clock standing still."""

    def __init__(self, directory: Path, *rules: dict[str, Any], seed: int = 7) -> None:
        clock = VirtualClock(LATER, 0.0, lambda: 0.0)
        self.simulator = Simulator(Market(directory), clock, seed, parse_rules(list(rules)))

    def reply(self, symbol: str = "AAPL", interval: str = "1m", **more: str) -> Reply:
        query = "&".join(f"{k}={v}" for k, v in (parameters(OPEN, CLOSE, interval) | more).items())
        return self.simulator.answer(Received("GET", f"/v8/finance/chart/{symbol}", query, {"accept-encoding": "gzip"}, b""))

    def chart(self, symbol: str = "AAPL", interval: str = "1m", **more: str) -> dict[str, Any]:
        result: dict[str, Any] = orjson.loads(self.reply(symbol, interval, **more).body)["chart"]["result"][0]
        return result


@pytest.fixture
def session(tmp_path: Path) -> Path:
    write_bars(tmp_path, session_of_minutes(), symbol="MSFT")
    return write_bars(tmp_path, session_of_minutes())


def header(reply: Reply, name: str) -> str | None:
    return dict(reply.headers).get(name)


def struck(*matches: dict[str, Any], asked: Asked = ASKED, times: int = 6) -> list[int]:
    """Which of ``times`` equal requests the first rule strikes, from 1."""
    script = FaultScript(parse_rules([{"match": match, "action": "empty"} for match in matches]), seed=7)
    return [n for n in range(1, times + 1) if script.hits(asked)]


# --- which requests


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"nth": 2}, [2]),
        ({"every": 3}, [3, 6]),
        ({"first": 2}, [1, 2]),
        ({"symbol": "MSFT"}, []),
        ({"symbol": "AA*", "nth": 1}, [1]),
        ({"interval": "1h"}, []),
        ({"path": "/v8/*", "first": 1}, [1]),
        ({"path": "/v7/*"}, []),
        ({"provider": "finnhub"}, []),
        ({"until": "2024-12-03T12:00:00Z"}, []),
        ({"until": "2024-12-03T12:00:01Z", "nth": 1}, [1]),
        ({"after": "2024-12-03T12:00:01Z"}, []),
        ({"after": "2024-12-03T12:00:00Z", "nth": 1}, [1]),
        ({"window": ["2024-12-02T21:00:00Z", "2024-12-02T22:00:00Z"]}, []),
        ({"window": ["2024-12-02T20:59:00Z", "2024-12-02T22:00:00Z"], "nth": 1}, [1]),
    ],
)
def test_a_rule_strikes_the_requests_it_names(match: dict[str, Any], expected: list[int]) -> None:
    assert struck(match) == expected


def test_counts_per_symbol_are_apart() -> None:
    script = FaultScript(parse_rules([{"match": {"first": 1, "per": "symbol"}, "action": "empty"}]), seed=7)
    other = replace(ASKED, symbol="MSFT")

    assert [bool(script.hits(asked)) for asked in (ASKED, other, ASKED, other)] == [True, True, False, False]


def test_counts_per_request_are_apart() -> None:
    script = FaultScript(parse_rules([{"match": {"first": 1, "per": "request"}, "action": "empty"}]), seed=7)
    other = replace(ASKED, query="interval=1h")

    assert [bool(script.hits(asked)) for asked in (ASKED, other, ASKED, other)] == [True, True, False, False]


def test_a_rule_behind_a_replaced_answer_is_not_used_up() -> None:
    rules = [{"match": {"nth": 1}, "action": "status", "code": 503}, {"match": {"first": 1}, "action": "missing_minutes"}]
    script = FaultScript(parse_rules(rules), seed=7)

    assert [[rule.action for rule in script.hits(ASKED)] for _ in range(3)] == [["status"], ["missing_minutes"], []]


def test_chance_does_not_depend_on_what_else_was_asked() -> None:
    rules = parse_rules([{"probability": 0.5, "action": "empty"}])
    other = replace(ASKED, query="interval=1h")
    alone, mixed = FaultScript(rules, seed=7), FaultScript(rules, seed=7)

    of_alone = [bool(alone.hits(ASKED)) for _ in range(40)]
    of_mixed = [(bool(mixed.hits(other)), bool(mixed.hits(ASKED)))[1] for _ in range(40)]

    assert of_alone == of_mixed
    assert 0 < sum(of_alone) < 40


@given(fraction=st.floats(0, 1), seed=st.integers(0, 2**32), cut=st.integers(0, 400))
def test_the_same_minutes_are_chosen_in_every_window(fraction: float, seed: int, cut: int) -> None:
    stamps = np.arange(400, dtype=np.int64) * 60 + 1_733_149_800
    dice = Dice(seed, 1)

    assert np.array_equal(dice.chosen(stamps, fraction, "AAPL")[cut:], dice.chosen(stamps[cut:], fraction, "AAPL"))


def test_the_chosen_share_is_near_the_fraction() -> None:
    stamps = np.arange(100_000, dtype=np.int64) * 60

    assert abs(Dice(7, 1).chosen(stamps, 0.05).mean() - 0.05) < 0.005


# --- how answers are bent


def test_missing_minutes_are_absent_and_come_later(session: Path) -> None:
    provider = Provider(session, {"match": {"first": 1}, "action": "missing_minutes", "fraction": 0.1})

    first, second = provider.chart(), provider.chart()

    assert 330 < len(first["timestamp"]) < 375
    assert len(second["timestamp"]) == 390


def test_listed_minutes_are_missing(session: Path) -> None:
    gone = [minute(3).isoformat(), minute(7).isoformat()]
    provider = Provider(session, {"action": "missing_minutes", "minutes": gone})

    absent = set(epochs(*(minute(n) for n in range(390)))) - set(provider.chart()["timestamp"])

    assert absent == set(epochs(minute(3), minute(7)))


def test_a_window_keeps_the_fault_inside_it(session: Path) -> None:
    window = [minute(100).isoformat(), minute(200).isoformat()]
    stamps = Provider(session, {"match": {"window": window}, "action": "missing_minutes", "fraction": 1.0}).chart()["timestamp"]

    assert stamps == epochs(*(minute(n) for n in range(390) if not 100 <= n < 200))


def test_null_minutes_are_null_in_every_column(session: Path) -> None:
    answer = Provider(session, {"action": "null_minutes", "minutes": [minute(5).isoformat()]}).chart()

    assert len(answer["timestamp"]) == 390
    assert [column[5] for column in answer["indicators"]["quote"][0].values()] == [None] * 5
    assert all(None not in column[:5] + column[6:] for column in answer["indicators"]["quote"][0].values())


def test_a_live_tick_is_appended_unaligned(session: Path) -> None:
    answer = Provider(session, {"action": "live_tick"}).chart()

    assert answer["timestamp"][-1] == int(minute(389).timestamp()) + 84
    assert answer["indicators"]["quote"][0]["volume"][-1] == 0


def test_shifted_stamps_are_the_closes(session: Path) -> None:
    assert Provider(session, {"action": "shifted"}).chart()["timestamp"][0] == int(minute(1).timestamp())


def test_duplicates_repeat_a_bar(session: Path) -> None:
    stamps = Provider(session, {"action": "duplicate", "minutes": [minute(4).isoformat()]}).chart()["timestamp"]

    assert stamps.count(int(minute(4).timestamp())) == 2
    assert len(stamps) == 391


def test_out_of_order_keeps_every_bar(session: Path) -> None:
    stamps = Provider(session, {"action": "out_of_order"}).chart()["timestamp"]

    assert stamps != sorted(stamps)
    assert sorted(stamps) == epochs(*(minute(n) for n in range(390)))


def test_ragged_arrays_have_unequal_lengths(session: Path) -> None:
    quote = Provider(session, {"action": "ragged", "field": "low", "rows": 2}).chart()["indicators"]["quote"][0]

    assert {name: len(column) for name, column in quote.items()} == {
        "open": 390,
        "high": 390,
        "low": 388,
        "close": 390,
        "volume": 390,
    }


def test_a_unit_slip_multiplies_prices_and_not_volumes(session: Path) -> None:
    quote = Provider(session, {"action": "unit"}).chart()["indicators"]["quote"][0]

    assert quote["open"][0] == 10_000.0
    assert quote["volume"][0] == 1000


def test_strings_replace_numbers(session: Path) -> None:
    quote = Provider(session, {"action": "strings"}).chart()["indicators"]["quote"][0]

    assert (quote["open"][0], quote["volume"][0]) == ("100.0", "1000.0")


def test_another_symbol_may_answer(session: Path) -> None:
    assert Provider(session, {"action": "other_symbol", "symbol": "MSFT"}).chart()["meta"]["symbol"] == "MSFT"


def test_a_field_may_be_renamed(session: Path) -> None:
    quote = Provider(session, {"action": "renamed"}).chart()["indicators"]["quote"][0]

    assert set(quote) == {"open", "high", "low", "close", "vol"}


def test_coarser_bars_come_with_their_true_granularity(session: Path) -> None:
    answer = Provider(session, {"action": "coarser"}).chart()

    assert len(answer["timestamp"]) == 7
    assert answer["meta"]["dataGranularity"] in {"60m", "1h"}


def test_a_stale_answer_knows_less(session: Path) -> None:
    hours = (LATER - minute(10)) / timedelta(seconds=1)
    stamps = Provider(session, {"action": "stale", "seconds": hours}).chart()["timestamp"]

    assert stamps[:10] == epochs(*(minute(n) for n in range(10)))
    assert len(stamps) <= 12


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
def test_literals_that_json_does_not_have(session: Path, literal: str) -> None:
    body = Provider(session, {"action": "nan", "literal": literal}).reply().body

    assert body.count(literal.encode()) >= 4
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(body)


# --- how replies are replaced or sent


def test_a_rate_limit_is_plain_text_without_retry_after(session: Path) -> None:
    reply = Provider(session, {"action": "status", "code": 429}).reply()

    assert (reply.status, reply.body) == (429, b"Too Many Requests\r\n")
    assert header(reply, "retry-after") is None


def test_retry_after_in_seconds(session: Path) -> None:
    assert header(Provider(session, {"action": "status", "code": 429, "retry_after": 3}).reply(), "retry-after") == "3"


def test_retry_after_as_a_date_is_on_the_virtual_clock(session: Path) -> None:
    rule = {"action": "status", "code": 503, "retry_after": 90, "retry_after_as": "http-date"}
    reply = Provider(session, rule).reply()

    assert header(reply, "date") == "Tue, 03 Dec 2024 12:00:00 GMT"
    assert header(reply, "retry-after") == "Tue, 03 Dec 2024 12:01:30 GMT"


@pytest.mark.parametrize(("page", "says"), [("outage", b"Will be right back"), ("consent", b"consent.yahoo.com")])
def test_a_page_of_html_comes_with_200(session: Path, page: str, says: bytes) -> None:
    reply = Provider(session, {"action": "html", "page": page}).reply()

    assert (reply.status, header(reply, "content-type")) == (200, "text/html; charset=utf-8")
    assert says in reply.body


def test_an_empty_body_comes_with_200(session: Path) -> None:
    reply = Provider(session, {"action": "empty"}).reply()

    assert (reply.status, reply.body) == (200, b"")


def test_an_error_in_json_comes_with_200(session: Path) -> None:
    reply = Provider(session, {"action": "error_json", "description": "oops"}).reply()

    assert reply.status == 200
    assert orjson.loads(reply.body) == {
        "chart": {"result": None, "error": {"code": "Internal Server Error", "description": "oops"}}
    }


def test_half_a_gzip_stream_does_not_decompress(session: Path) -> None:
    reply = Provider(session, {"action": "truncated_gzip"}).reply()

    assert header(reply, "content-encoding") == "gzip"
    with pytest.raises(EOFError):
        gzip.decompress(reply.body)


def test_a_byte_order_mark_comes_first(session: Path) -> None:
    assert Provider(session, {"action": "bom"}).reply().body.startswith(b"\xef\xbb\xbf{")


def test_a_wrong_content_type_leaves_the_body_alone(session: Path) -> None:
    reply = Provider(session, {"action": "content_type"}).reply()

    assert header(reply, "content-type") == "text/plain"
    assert orjson.loads(reply.body)["chart"]["error"] is None


@pytest.mark.parametrize(
    ("rule", "name", "value"),
    [
        ({"action": "reset"}, "reset", "before"),
        ({"action": "reset", "at": "body"}, "reset", "body"),
        ({"action": "stall", "seconds": 3}, "stall_before_seconds", 3),
        ({"action": "stall", "seconds": 3, "at": "headers"}, "stall_after_headers_seconds", 3),
        ({"action": "drip", "bytes_per_second": 100}, "bytes_per_second", 100),
        ({"action": "truncate", "keep": 0.25}, "cut_to", 0.25),
    ],
)
def test_delivery_faults_say_how_the_bytes_leave(session: Path, rule: dict[str, Any], name: str, value: object) -> None:
    assert getattr(Provider(session, rule).reply().delivery, name) == value


def test_a_stall_and_missing_minutes_come_together(session: Path) -> None:
    provider = Provider(session, {"action": "stall"}, {"action": "missing_minutes", "fraction": 1.0})

    reply = provider.reply()

    assert reply.delivery.stall_before_seconds == 5.0
    assert "timestamp" not in orjson.loads(reply.body)["chart"]["result"][0]
    assert provider.simulator.log[-1]["actions"] == ["stall", "missing_minutes"]


@pytest.mark.parametrize("action", sorted(set(SETTINGS)))
def test_the_same_script_twice_is_the_same_byte_for_byte(session: Path, action: str) -> None:
    needed: dict[str, dict[str, Any]] = {"status": {"code": 500}, "other_symbol": {"symbol": "X"}}
    rule = {"action": action, "probability": 0.5, **needed.get(action, {})}
    first, second = Provider(session, rule), Provider(session, rule)

    requests = [(symbol, interval) for _ in range(4) for symbol in ("AAPL", "MSFT") for interval in ("1m", "1h", "1d")]

    assert [first.reply(*r) for r in requests] == [second.reply(*r) for r in requests]


def test_another_seed_chooses_other_minutes(session: Path) -> None:
    rule = {"action": "missing_minutes", "fraction": 0.2}

    assert Provider(session, rule, seed=1).chart()["timestamp"] != Provider(session, rule, seed=2).chart()["timestamp"]


# --- bad input


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ({"action": "html"}, "expected a list"),
        (["html"], "rule 1: 'html': expected a mapping with an action"),
        ([{"match": {}}], "expected a mapping with an action"),
        ([{"action": "html"}, {"action": "explode"}], "rule 2: unknown action 'explode': expected one of coarser, "),
        ([{"action": "html", "pages": 2}], "html does not take 'pages': expected some of match, probability, page"),
        ([{"action": "html", "page": "welcome"}], "page 'welcome': expected one of outage, consent"),
        ([{"action": "status"}], "rule 1: code is missing"),
        ([{"action": "status", "code": 99}], "code 99: expected a number from 200 to 599"),
        ([{"action": "missing_minutes", "fraction": 1.5}], "fraction 1.5: expected a number from 0 to 1"),
        ([{"action": "missing_minutes", "minutes": ["2024-12-02T14:30:00"]}], "has no time zone"),
        ([{"action": "empty", "probability": "often"}], "probability 'often': expected a number from 0 to 1"),
        ([{"action": "empty", "match": {"sybmol": "A"}}], "match {'sybmol': 'A'}: expected a mapping with some of"),
        ([{"action": "empty", "match": {"nth": 0}}], "match nth 0: expected a whole number from 1"),
        ([{"action": "empty", "match": {"per": "day"}}], "match per 'day': expected one of rule, symbol, request"),
        ([{"action": "empty", "match": {"window": "today"}}], "match window 'today': expected [from, to]"),
        ([{"action": "empty", "match": {"until": "noon"}}], "match until: 'noon' is not a time"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_named_with_what_was_expected(rules: object, complaint: str) -> None:
    with pytest.raises(InvalidInputError) as wrong:
        parse_rules(rules)

    assert complaint in str(wrong.value)


def test_a_fault_file_that_is_absent_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"nowhere\.yaml' cannot be read"):
        read_rules(tmp_path / "nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("- {action: [", encoding="ascii")
    with pytest.raises(InvalidInputError, match=r"broken\.yaml: not YAML"):
        read_rules(broken)


def test_a_fault_file_may_be_yaml_or_json(tmp_path: Path) -> None:
    yaml_file, json_file = tmp_path / "a.yaml", tmp_path / "a.json"
    yaml_file.write_text("- match: {window: [2024-12-02T14:30:00Z, 2024-12-02T15:00:00Z]}\n  action: html\n", encoding="ascii")
    json_file.write_text(
        '[{"match": {"window": ["2024-12-02T14:30:00Z", "2024-12-02T15:00:00Z"]}, "action": "html"}]', encoding="ascii"
    )

    assert read_rules(yaml_file)[0].match == read_rules(json_file)[0].match
