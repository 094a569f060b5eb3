from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.cli.schema import schema_files
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.jobs import (
    LONGEST_BACKFILL,
    LONGEST_FETCH,
    MOST_BYTES,
    MOST_SYMBOLS,
    BackfillJob,
    BarsFetchJob,
    Job,
    QuotesFetchJob,
    as_new_job,
    dedupe_key,
    job_of,
    json_schema,
    parse_job,
    payload_of,
)
from market_data_pipeline.domain.queue import JobKind, Lease
from market_data_pipeline.domain.universe import Tier

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
NOON = datetime(2024, 12, 2, 12, tzinfo=UTC)

BARS: dict[str, Any] = {
    "type": "bars_fetch",
    "job_id": "rlc-000017",
    "priority": "T0",
    "interval": "1m",
    "start": "2024-12-02T14:30:00Z",
    "end": "2024-12-02T15:30:00Z",
    "symbols": ["AAPL", "BRK.B", "^GSPC"],
    "provider_hint": "yahoo",
}
QUOTES: dict[str, Any] = {"type": "quotes_fetch", "job_id": "q:1", "priority": "T1", "symbols": ["BTC/USD"], "provider_hint": None}
BACKFILL: dict[str, Any] = {
    "type": "backfill",
    "job_id": "b-1",
    "priority": "T2",
    "interval": "1d",
    "start": "2020-01-01T00:00:00Z",
    "end": "2024-12-02T00:00:00Z",
    "symbol": "AAPL",
    "provider_hint": None,
}
VALID = (BARS, QUOTES, BACKFILL)


def said(data: str | bytes | Mapping[str, Any], **arguments: Any) -> str:  # noqa: ANN401 - handed on
    with pytest.raises(InvalidInputError) as refused:
        parse_job(data, **arguments)
    message = str(refused.value)
    # Whatever was sent, the message can be printed, logged and stored.
    assert message.isprintable()
    assert len(message) < 2_500
    return message


def outcome(data: str) -> tuple[Job | None, str]:
    """The job, or None with what was said."""
    try:
        return parse_job(data), ""
    except InvalidInputError as refused:
        return None, str(refused)


def but(job: Mapping[str, Any], **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any field
    return {**job, **changes}


# --- valid jobs --------------------------------------------------------------------------------------------------------

symbols = st.from_regex(re.compile(r"\^?[A-Z0-9][A-Z0-9=/_-]{0,20}", re.ASCII), fullmatch=True)
instants = st.datetimes(datetime(1950, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - the zone is given beside
hints = st.none() | st.from_regex(re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII), fullmatch=True)


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Any valid job."""
    kind = draw(st.sampled_from(list(JobKind)))
    job_id = draw(st.from_regex(re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII), fullmatch=True))
    shared: dict[str, Any] = {"job_id": job_id, "priority": draw(st.sampled_from(list(Tier))), "provider_hint": draw(hints)}
    several = tuple(draw(st.lists(symbols, min_size=1, max_size=20, unique=True)))
    if kind is JobKind.QUOTES_FETCH:
        return QuotesFetchJob(symbols=several, **shared)
    interval = draw(st.sampled_from([Interval.M1, Interval.M5, Interval.M15, Interval.H1, Interval.D1]))
    longest = (LONGEST_BACKFILL if kind is JobKind.BACKFILL else LONGEST_FETCH)[interval.is_daily]
    start = draw(instants)
    length = draw(st.timedeltas(timedelta(microseconds=1), min(longest, datetime(2099, 12, 31, tzinfo=UTC) - start)))
    if interval.is_daily:
        start = start.replace(hour=0, minute=0, second=0, microsecond=0)
        length = timedelta(days=max(length.days, 1))
    window: dict[str, Any] = {"interval": interval, "start": start, "end": start + length}
    if kind is JobKind.BACKFILL:
        return BackfillJob(symbol=several[0], **window, **shared)
    return BarsFetchJob(symbols=several, **window, **shared)


@given(jobs())
def test_every_valid_job_is_the_same_after_it_was_written_and_read(job: Job) -> None:
    written = payload_of(job)
    assert parse_job(written) == job
    assert parse_job(json.dumps(written)) == job
    assert parse_job(json.dumps(written, indent=2).encode()) == job
    assert payload_of(parse_job(written)) == written


@given(jobs())
def test_the_queue_gives_back_the_job_that_it_was_given(job: Job) -> None:
    new = as_new_job(job, source="test")
    lease = Lease(new.job_id, 1, new.kind, new.tier, json.loads(json.dumps(dict(new.payload))), 1, NOON)
    assert job_of(lease) == job
    assert (new.job_id, new.tier) == (job.job_id, job.priority)


@given(jobs(), st.randoms(use_true_random=False))
def test_the_key_says_what_a_job_does_and_not_who_asks_nor_how_urgently(job: Job, random: Any) -> None:  # noqa: ANN401 - hypothesis' own
    shuffled = list(job.symbols)
    random.shuffle(shuffled)
    changes = {} if isinstance(job, BackfillJob) else {"symbols": shuffled}
    same = parse_job(but(payload_of(job), job_id="another", priority="T2", **changes))
    assert dedupe_key(same) == dedupe_key(job)


@pytest.mark.parametrize(
    "changes",
    [
        {"symbols": ["AAPL"]},
        {"interval": "5m"},
        {"start": "2024-12-02T14:31:00Z"},
        {"end": "2024-12-02T15:31:00Z"},
        {"provider_hint": "alpaca"},
        {"provider_hint": None},
    ],
    ids=str,
)
def test_jobs_that_do_different_things_have_different_keys(changes: dict[str, Any]) -> None:
    assert dedupe_key(parse_job(but(BARS, **changes))) != dedupe_key(parse_job(BARS))


def test_a_backfill_and_a_fetch_of_the_same_bars_have_different_keys() -> None:
    fetch = but(BARS, symbols=["AAPL"], provider_hint=None)
    backfill = {**{name: value for name, value in fetch.items() if name != "symbols"}, "type": "backfill", "symbol": "AAPL"}
    assert dedupe_key(parse_job(fetch)) != dedupe_key(parse_job(backfill))


def test_fresh_data_goes_before_history() -> None:
    quotes, bars, backfill = (as_new_job(parse_job(job), source="test").priority for job in (QUOTES, BARS, BACKFILL))
    assert quotes > bars > backfill


@pytest.mark.parametrize(
    "text", ["2024-12-02T14:30Z", "2024-12-02T14:30:00.000000+00:00", "2024-12-02T09:30:00-05:00", "2024-12-03T04:30+14:00"]
)
def test_an_instant_may_be_written_in_any_zone(text: str) -> None:
    job = parse_job(but(BARS, start=text))
    assert isinstance(job, BarsFetchJob)
    assert payload_of(job)["start"] == "2024-12-02T14:30:00Z"
    assert dedupe_key(job) == dedupe_key(parse_job(BARS))


def test_instants_may_be_aware_datetimes() -> None:
    eastern = timezone(timedelta(hours=-5))
    job = parse_job(but(BARS, start=datetime(2024, 12, 2, 9, 30, tzinfo=eastern)))
    assert payload_of(job)["start"] == "2024-12-02T14:30:00Z"


def test_a_thousand_symbols_are_taken() -> None:
    job = parse_job(but(QUOTES, symbols=[f"S{n}" for n in range(MOST_SYMBOLS)]))
    assert len(job.symbols) == MOST_SYMBOLS


def test_the_hint_may_be_left_out() -> None:
    for job in VALID:
        assert parse_job({name: value for name, value in job.items() if name != "provider_hint"}).provider_hint is None


def test_the_longest_windows_are_taken() -> None:
    parse_job(but(BARS, start="2024-11-01T15:30:00Z"))
    parse_job(but(BACKFILL, interval="1m", start="2023-12-02T00:00:00Z"))


# --- every mutation is refused by the name of its field ----------------------------------------------------------------

# What each field never takes, whatever the others are.
NEVER: dict[str, list[Any]] = {
    "type": ["", "bars", "BARS", 1, None, ["bars_fetch"], {}, "options_fetch"],
    "job_id": ["", "a b", "a\n", "x" * 129, "ü", "a/b", 7, None, [], True, "'; drop table jobs; --", "\x00", "\ud800"],
    "priority": ["", "t0", "T3", "T0 ", 0, None, True, ["T0"], "high"],
    "interval": ["", "1min", "1M", "30m", "2m", "1d ", 60, None, ["1m"], "60"],
    "start": [
        *("", "today", "2024-12-02", "2024-12-02T14:30:00", "2024-12-02 14:30:00Z", "2024-13-02T14:30:00Z", "2024-02-30T00:00:00Z"),
        *(
            "2024-W49-1T14:30:00Z",
            "20241202T143000Z",
            "0001-01-01T00:00:00+14:00",
            "9999-12-31T23:59:59-14:00",
            "1899-12-31T00:00:00Z",
        ),
        *(
            "2024-12-02T24:30:00Z",
            "2024-12-02T14:30:00+25:00",
            "٢٠٢٤-12-02T14:30:00Z",
            1733148000,
            1733148000.5,
            None,
            True,
            [],
            {},
        ),
        *(datetime(2024, 12, 2, 14, 30), "2024-12-02T14:30:00Z\n", "+2024-12-02T14:30:00Z", "2024-12-02T14:30:60Z"),  # noqa: DTZ001 - that is what is wrong with it
    ],
    "symbols": [
        *(
            [],
            "AAPL",
            None,
            {"AAPL": 1},
            3,
            [3],
            [None],
            [["AAPL"]],
            ["aapl"],
            ["AAPL", "AAPL"],
            ["AAPL "],
            [""],
            ["A..B"],
            ["A,B"],
        ),
        *(
            [f"S{n}" for n in range(MOST_SYMBOLS + 1)],
            ["A" * 33],
            ["../../etc/passwd"],
            ["AAPL\n"],
            ["ÄPFEL"],
            [True],
            ["AAPL", None],
        ),
        *(["A|B"], ["{}"], ["\x00"], ["\ud800"], ["A" * 100_000]),
    ],
    "symbol": ["", "aapl", ["AAPL"], None, 3, True, "A B", "A" * 33, "A..B", "AAPL,MSFT", "\ud800"],
    "provider_hint": ["", "Yahoo", "yahoo finance", 1, True, ["yahoo"], "x" * 33, "yahoo;", "1yahoo"],
}
NEVER["end"] = NEVER["start"]
MUTATIONS = [(job, field, value) for job in VALID for field in job for value in NEVER[field]]


@pytest.mark.parametrize(
    ("job", "field", "value"),
    MUTATIONS,
    ids=[f"{job['type']}-{field}-{number}" for number, (job, field, _) in enumerate(MUTATIONS)],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(job: dict[str, Any], field: str, value: object) -> None:
    assert re.search(rf"(^|[ ;:]){field}:? ", said(but(job, **{field: value})))


@pytest.mark.parametrize(
    ("job", "field"), [(job, field) for job in VALID for field in job if field != "provider_hint"], ids=lambda v: str(v)[:24]
)
def test_a_field_that_is_missing_is_named(job: dict[str, Any], field: str) -> None:
    assert f"{field} is missing" in said({name: value for name, value in job.items() if name != field})


@given(st.sampled_from(VALID), st.data())
def test_a_field_under_another_name_is_refused_by_both_names(job: dict[str, Any], data: st.DataObject) -> None:
    field = data.draw(st.sampled_from([name for name in job if name != "provider_hint"]))
    renamed = data.draw(st.text(min_size=1, max_size=40).filter(lambda name: name not in job))
    message = said({renamed if name == field else name: value for name, value in job.items()})
    assert f"{field} is missing" in message


@given(st.sampled_from(VALID), st.text(min_size=0, max_size=200), st.none() | st.integers() | st.text())
def test_a_field_that_nobody_knows_is_refused(job: dict[str, Any], name: str, value: object) -> None:
    if name not in job:
        assert "is not a field of it" in said(but(job, **{name: value}))


@pytest.mark.parametrize(
    ("wrong", "meant"), [("symbol", "symbols"), ("Interval", "interval"), ("jobid", "job_id"), ("start_", "start")]
)
def test_a_misspelt_field_is_told_what_was_meant(wrong: str, meant: str) -> None:
    assert f"{wrong!r} is not a field of it: did you mean '{meant}'?" in said(but(BARS, **{wrong: 1}))


def test_a_field_of_another_kind_is_refused() -> None:
    assert "'interval' is not a field" in said(but(QUOTES, interval="1m"))
    assert "'symbols' is not a field" in said(but(BACKFILL, symbols=["AAPL"]))


@given(st.sampled_from(VALID), st.data())
def test_any_json_in_a_field_is_refused_by_name_or_was_valid(job: dict[str, Any], data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(list(job)))
    scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    anything = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
    value = data.draw(anything)
    changed = but(job, **{field: value})
    taken, told = outcome(json.dumps(changed))
    assert field in told if taken is None else payload_of(taken) == changed


# --- the window --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"end": "2024-12-02T14:30:00Z"}, "start 2024-12-02T14:30:00Z is not before end 2024-12-02T14:30:00Z"),
        ({"end": "2024-12-01T14:30:00Z"}, "is not before end"),
        ({"start": "2024-10-01T00:00:00Z"}, "are 63 days: expected at most 31 for 1m; cut it into several jobs"),
        ({"interval": "1d"}, "start 2024-12-02T14:30:00Z: bars of 1d are named by session, expected midnight UTC"),
        ({"interval": "1d", "start": "2024-12-02T00:00:00Z"}, "end 2024-12-02T15:30:00Z: bars of 1d"),
    ],
    ids=str,
)
def test_a_window_that_cannot_be_meant_is_refused(changes: dict[str, Any], told: str) -> None:
    assert told in said(but(BARS, **changes))


def test_history_may_be_longer_but_not_absurdly() -> None:
    assert "expected at most 366 for 1h" in said(but(BACKFILL, interval="1h"))
    assert "expected at most 36,600 for 1d" in said(but(BACKFILL, start="1900-01-01T00:00:00Z", end="2100-01-01T00:00:00Z"))


def test_a_window_far_ahead_of_the_clock_is_refused_where_there_is_a_clock() -> None:
    parse_job(BARS, now=NOON - timedelta(days=7))
    assert "more than 8 days after now, 2024-11-20T12:00:00Z" in said(BARS, now=NOON - timedelta(days=12))
    parse_job(QUOTES, now=datetime(1990, 1, 1, tzinfo=UTC))


# --- what is no job at all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("", "is not JSON"),
        (b"", "is not JSON"),
        ("nonsense", "is not JSON"),
        ("{'type': 'backfill'}", "is not JSON"),
        (json.dumps(BARS)[:-1], "is not JSON"),
        (json.dumps(BARS) + json.dumps(BARS), "is not JSON"),
        ("[]", "is not a job: expected a JSON object"),
        ("null", "is not a job"),
        ("17", "is not a job"),
        (json.dumps([BARS]), "is not a job"),
        (json.dumps(json.dumps(BARS)), "is not a job"),
        (b"\xff\xfe{}", "is not UTF-8 (invalid start byte at byte 0)"),
        (json.dumps(BARS).encode("utf-16"), "is not UTF-8"),
        ("\ufeff{}", "is not JSON"),
        ('{"type": NaN}', "NaN is no JSON"),
        ('{"type": -Infinity}', "-Infinity is no JSON"),
        ('{"type": "backfill", "type": "backfill"}', "the field 'type' occurs more than once"),
        ('{"type": {"a": 1, "a": 2}}', "the field 'a' occurs more than once"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"type":' * 100_000, "is nested too deeply"),
        ("9" * 10_000, "is not JSON"),
        ("{}", "type is missing: expected one of bars_fetch, quotes_fetch, backfill"),
        ('{"kind": "backfill"}', "type is missing"),
        ('{"typ": "backfill"}', "'typ' is not known"),
        ('{"type": "bars_fetsch"}', "type: 'bars_fetsch' is no kind of job"),
        ('{"type": "Quotes-Fetch"}', "did you mean 'quotes_fetch'?"),
        ({}, "type is missing"),
        ({1: 2}, "type is missing"),
        ({**BARS, "symbols": 10**5000}, "symbols: a int is not a list"),
    ],
    ids=lambda v: repr(v)[:30] if not isinstance(v, dict) else "mapping",
)
def test_what_is_no_job_is_refused_with_what_was_expected(data: Any, told: str) -> None:  # noqa: ANN401 - anything at all
    assert told in said(data)


def test_a_payload_beyond_all_bounds_is_not_even_read() -> None:
    assert "1,048,577 bytes" in said(b" " * (MOST_BYTES + 1))
    assert "1,048,577 bytes" in said(" " * (MOST_BYTES + 1))


@given(st.binary(max_size=300))
def test_no_bytes_at_all_break_the_parser(data: bytes) -> None:
    said(data)


@given(st.text(max_size=300))
def test_no_text_at_all_breaks_the_parser(data: str) -> None:
    said(data)


def test_every_problem_is_told_at_once() -> None:
    message = said({"type": "backfill", "symbol": "aapl", "interval": "1min", "start": 1, "end": None, "provider_hint": "?"})
    for field in ("job_id is missing", "priority is missing", "symbol:", "interval:", "start:", "end:", "provider_hint:"):
        assert field in message
    assert "did you mean 'AAPL'?" in message


def test_a_job_cannot_be_changed() -> None:
    job = parse_job(BARS)
    with pytest.raises(ValueError, match="frozen"):
        job.job_id = "another"


# --- what is published -------------------------------------------------------------------------------------------------


def test_the_published_schemas_are_what_the_models_say() -> None:
    """Written by `mdp jobs schema --directory docs/schemas`."""
    published = {path.name: path.read_bytes() for path in (ROOT / "docs" / "schemas").glob("*.json")}
    assert published == schema_files()


@pytest.mark.parametrize("kind", list(JobKind))
def test_the_schema_knows_the_fields_and_no_others(kind: JobKind) -> None:
    schema, job = json_schema(kind), next(job for job in VALID if job["type"] == kind)
    assert set(schema["properties"]) == set(job)
    assert set(schema["required"]) == set(job) - {"provider_hint"}
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("job", VALID, ids=lambda job: str(job["type"]))
def test_the_schemas_patterns_say_what_the_parser_says(job: dict[str, Any]) -> None:
    properties = json_schema(JobKind(job["type"]))["properties"]
    for field, told in properties.items():
        text = told.get("items", told)
        if "pattern" not in text:
            continue
        for value in NEVER[field]:
            for one in value if isinstance(value, list) else [value]:
                # What the pattern refuses is refused; what it takes may still be (a date that does not exist).
                if isinstance(one, str) and not re.search(text["pattern"], one, re.ASCII):
                    said(but(job, **{field: [one] if "items" in told else one}))
        assert all(re.search(text["pattern"], example) for example in text["examples"])


@pytest.mark.parametrize("document", ["jobs.md"])
def test_every_example_in_the_documentation_is_a_valid_job(document: str) -> None:
    page = (ROOT / "docs" / document).read_text(encoding="utf-8")
    examples = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    assert {parse_job(example).kind for example in examples} == set(JobKind)
