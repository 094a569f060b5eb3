"""The simulated FRED: what has been published by the virtual now, what it refuses, and its bodies against recorded ones."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import orjson
import pytest

from market_data_pipeline.simulator.clock import VirtualClock
from market_data_pipeline.simulator.fred import FRED, key_of
from market_data_pipeline.simulator.market import Market
from market_data_pipeline.simulator.server import Simulator
from market_data_pipeline.simulator.vendor import Received
from market_data_pipeline_tests.economy import ONGOING, daily_series, write_series
from market_data_pipeline_tests.recorded import RECORDED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

GDP = [
    ("2024-01-01", "1.5", "2024-02-01", "2024-02-29"),
    ("2024-01-01", "1.6", "2024-03-01", ONGOING),
    ("2024-02-01", ".", "2024-03-01", ONGOING),
    ("2024-03-01", "1.7", "2024-04-02", ONGOING),
]


def simulator_on(data: Path, now: datetime) -> Simulator:
    return Simulator(
        Market(data), VirtualClock(now, speed=0.0, monotonic=lambda: 0.0), seed=7, limits={"fred": ()}, vendors=(FRED,)
    )


def asked(simulator: Simulator, path: str, **query: Any) -> tuple[int, dict[str, Any]]:  # noqa: ANN401 - query parameters
    """Status and body of one request with a good key, unless told otherwise."""
    told = {"series_id": "GDP", "api_key": key_of("free"), "file_type": "json", **query}
    text = urlencode({name: value for name, value in told.items() if value is not None})
    reply = simulator.answer(Received("GET", f"/fred/fred/{path}", text, {}))
    return reply.status, orjson.loads(reply.body)


def said(simulator: Simulator, path: str = "series/observations", **query: Any) -> str:  # noqa: ANN401
    """The words of a refusal."""
    status, body = asked(simulator, path, **query)
    assert (status, body["error_code"]) == (400, 400)
    return str(body["error_message"])


@pytest.fixture
def economy(tmp_path: Path) -> Path:
    write_series(tmp_path, "GDP", GDP)
    write_series(tmp_path, "RATE", [("2024-01-01", "5.1", "", "")])
    return tmp_path


def values(simulator: Simulator, **query: Any) -> list[tuple[str, str, str, str]]:  # noqa: ANN401
    status, body = asked(simulator, "series/observations", **query)
    assert status == 200
    return [(row["date"], row["value"], row["realtime_start"], row["realtime_end"]) for row in body["observations"]]


def test_today_is_told_as_a_vintage_of_one_day_in_st_louis(economy: Path) -> None:
    # Three in the morning in London: still the second of March at the publisher.
    simulator = simulator_on(economy, datetime(2024, 3, 3, 3, tzinfo=UTC))
    assert values(simulator) == [
        ("2024-01-01", "1.6", "2024-03-02", "2024-03-02"),
        ("2024-02-01", ".", "2024-03-02", "2024-03-02"),
    ]


def test_nobody_knows_of_a_revision_before_it_is_made(economy: Path) -> None:
    simulator = simulator_on(economy, datetime(2024, 2, 20, tzinfo=UTC))
    assert values(simulator, realtime_start="1776-07-04", realtime_end=ONGOING) == [("2024-01-01", "1.5", "2024-02-01", ONGOING)]
    assert "does not exist" in said(simulator_on(economy, datetime(2024, 1, 31, tzinfo=UTC)))


def test_a_realtime_window_cuts_the_days_of_a_value(economy: Path) -> None:
    simulator = simulator_on(economy, datetime(2024, 5, 1, tzinfo=UTC))
    assert values(simulator, realtime_start="2024-02-10", realtime_end="2024-03-10") == [
        ("2024-01-01", "1.5", "2024-02-10", "2024-02-29"),
        ("2024-01-01", "1.6", "2024-03-01", "2024-03-10"),
        ("2024-02-01", ".", "2024-03-01", "2024-03-10"),
    ]


def test_observations_can_be_bounded_paged_and_turned_round(economy: Path) -> None:
    simulator = simulator_on(economy, datetime(2024, 5, 1, tzinfo=UTC))
    assert [row[0] for row in values(simulator, observation_start="2024-02-01", observation_end="2024-02-28")] == ["2024-02-01"]
    assert [row[0] for row in values(simulator, limit=1, offset=1)] == ["2024-02-01"]
    assert [row[0] for row in values(simulator, sort_order="desc")] == ["2024-03-01", "2024-02-01", "2024-01-01"]
    _, body = asked(simulator, "series/observations", limit=1, offset=1)
    assert (body["count"], body["limit"], body["offset"]) == (3, 1, 1)


def test_it_begins_with_the_period_in_which_the_first_day_lies(economy: Path) -> None:
    """As recorded in 2025: monthly values from 2024-06-30 begin with 2024-06-01."""
    simulator = simulator_on(economy, datetime(2024, 5, 1, tzinfo=UTC))
    assert [row[0] for row in values(simulator, observation_start="2024-02-28")] == ["2024-02-01", "2024-03-01"]


def test_vintage_dates_are_the_days_on_which_something_was_published(economy: Path) -> None:
    simulator = simulator_on(economy, datetime(2024, 3, 15, tzinfo=UTC))
    _, body = asked(simulator, "series/vintagedates")
    assert (body["vintage_dates"], body["count"]) == (["2024-02-01", "2024-03-01"], 2)


def test_more_than_two_thousand_vintages_are_refused_with_their_number(tmp_path: Path) -> None:
    write_series(tmp_path, "GDP", daily_series(datetime(2010, 1, 1, tzinfo=UTC).date(), 2_001, revised_every=10_000))
    simulator = simulator_on(tmp_path, datetime(2024, 3, 15, tzinfo=UTC))
    window = {"realtime_start": "1776-07-04", "realtime_end": ONGOING}
    assert said(simulator, **window) == (
        "Bad Request.  There are 2001 vintage dates in the specified real-time period: 1776-07-04 to 9999-12-31.  "
        "This exceeds the maximum number of vintage dates allowed for this file type (2000)."
    )
    assert len(values(simulator, realtime_start="2010-01-03", realtime_end=ONGOING)) == 2_001


def test_a_series_without_realtime_dates_is_not_in_alfred(economy: Path) -> None:
    simulator = simulator_on(economy, datetime(2024, 3, 15, tzinfo=UTC))
    words = said(simulator, series_id="RATE", realtime_start="1776-07-04", realtime_end=ONGOING)
    assert words == "Bad Request.  The series does not exist in ALFRED but may exist in FRED."
    assert values(simulator, series_id="RATE") == [("2024-01-01", "5.1", "2024-03-14", "2024-03-14")]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"api_key": None}, "Variable api_key is not set."),
        ({"api_key": "X" * 32}, "The value for variable api_key is not a 32 character alpha-numeric lower-case string."),
        ({"api_key": "0" * 32}, "The value for variable api_key is not registered."),
        ({"series_id": "NOPE"}, "The series does not exist."),
        ({"series_id": "../GDP"}, "The value for variable series_id is not valid."),
        ({"observation_start": "yesterday"}, "Variable observation_start is not a date"),
        ({"limit": 100_001}, "Variable limit is not between 1 and 100000."),
        ({"realtime_start": "2024-02-01", "realtime_end": "2024-01-01"}, "can not be after"),
    ],
)
def test_what_is_wrong_is_said_as_fred_says_it(economy: Path, query: Mapping[str, Any], words: str) -> None:
    message = said(simulator_on(economy, datetime(2024, 3, 15, tzinfo=UTC)), **query)
    assert message.startswith("Bad Request.  ")
    assert words in message


def test_the_log_shows_no_key(economy: Path) -> None:
    simulator = simulator_on(economy, datetime(2024, 3, 15, tzinfo=UTC))
    asked(simulator, "series")
    assert key_of("free") not in repr(list(simulator.log))
    assert simulator.log[0]["capability"] == "macro"


def test_an_account_may_ask_twice_a_second(economy: Path) -> None:
    clock = VirtualClock(datetime(2024, 3, 15, tzinfo=UTC), speed=0.0, monotonic=lambda: 0.0)
    simulator = Simulator(Market(economy), clock, seed=7, vendors=(FRED,))
    answers = [asked(simulator, "series") for _ in range(3)]
    assert [status for status, _ in answers] == [200, 200, 429]
    assert answers[2][1] == {"error_code": 429, "error_message": "Too Many Requests.  Exceeded Rate Limit"}


# --- against what FRED really sent -------------------------------------------------------------------------------------

WIRE = RECORDED / "fred_openbb_vcr"


def recordings() -> list[dict[str, Any]]:
    """The recorded answers of the endpoints that are simulated."""
    if not WIRE.is_dir():
        return []
    entries = [json.loads(line) for line in (WIRE / "INDEX.jsonl").read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if urlsplit(entry["uri"]).path in {"/fred/series", "/fred/series/observations"}]


def body_of(entry: dict[str, Any]) -> dict[str, Any]:
    raw = (WIRE / entry["file"]).read_bytes()
    body: dict[str, Any] = json.loads(gzip.decompress(raw) if entry["file"].endswith(".gz") else raw)
    return body


def shape(value: object) -> object:
    """Keys in their order, and types; not values. Of a list, the shapes that occur in it."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return sorted({json.dumps(shape(inner)) for inner in value})
    return "dot" if value == "." else type(value).__name__


@pytest.mark.skipif(not WIRE.is_dir(), reason=f"recorded data not here: {WIRE}")
def test_bodies_have_the_structure_of_recorded_ones(tmp_path: Path) -> None:
    """What a recorded answer holds goes in, the recorded question is asked: keys, order, types and observations are the same."""
    compared = {200: 0, 400: 0}
    for entry in recordings():
        body = body_of(entry)
        query = dict(parse_qsl(urlsplit(entry["uri"]).query)) | {"api_key": key_of("free")}
        now = datetime.fromisoformat(body.get("realtime_start", "2024-06-27")).replace(hour=18, tzinfo=UTC)
        told = [(row["date"], row["value"], "1990-01-01", ONGOING) for row in body.get("observations", [])]
        if entry["status"] == 200:
            write_series(tmp_path, query["series_id"], told or [("2024-01-01", "1", "1990-01-01", ONGOING)])
        path = urlsplit(entry["uri"]).path.removeprefix("/fred/")
        status, generated = asked(simulator_on(tmp_path, now), path, **query)
        assert status == entry["status"]
        assert shape(generated) == shape(body), entry["file"]
        if path == "series/observations":
            assert generated == body, entry["file"]
        compared[status] += 1
    # Monthly means of a daily series are asked for once: a transformation, which is not simulated and not asked for by us.
    assert compared == {200: 138, 400: 26}
