"""`mdp jobs`: what goes in from a file, what is kept with its reason, and what is shown of it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from market_data_pipeline.ingest.job_file import payloads_in

if TYPE_CHECKING:
    from pathlib import Path

    from market_data_pipeline_tests.cli.conftest import Mdp

GOOD = {"type": "quotes_fetch", "job_id": "q-1", "priority": "T0", "symbols": ["AAPL", "MSFT"]}
BACKFILL = {
    "type": "backfill",
    "job_id": "b-1",
    "priority": "T1",
    "symbol": "AAPL",
    "interval": "1m",
    "start": "2024-12-02T00:00:00Z",
    "end": "2024-12-03T00:00:00Z",
}


def file_of(tmp_path: Path, *payloads: object, lines: bool = True) -> str:
    """A file of JSON lines, or of one array."""
    path = tmp_path / "jobs.json"
    texts = [payload if isinstance(payload, bytes) else orjson.dumps(payload) for payload in payloads]
    path.write_bytes(b"\n".join(texts) if lines else b"[" + b",".join(texts) + b"]")
    return str(path)


@pytest.mark.parametrize("lines", [True, False])
def test_the_jobs_of_a_file_are_queued_once(mdp: Mdp, tmp_path: Path, *, lines: bool) -> None:
    path = file_of(tmp_path, GOOD, BACKFILL, lines=lines)
    first, again = mdp("jobs", "submit", path), mdp("jobs", "submit", path)
    assert (first.code, first.out) == (0, "2 queued\n")
    assert (again.code, again.out) == (0, "0 queued, 2 known already\n")
    listed = mdp("jobs", "list", "--state", "queued", "--json").json
    assert {job["job_id"]: job["symbols"] for job in listed["jobs"]} == {"q-1": "AAPL +1", "b-1": "AAPL"}
    assert {(one["tier"], one["state"], one["jobs"]) for one in listed["depth"]} == {("T0", "queued", 1), ("T1", "queued", 1)}


def test_what_is_no_job_is_told_and_kept_and_the_rest_goes_in(mdp: Mdp, tmp_path: Path) -> None:
    answer = mdp("jobs", "submit", file_of(tmp_path, GOOD, b"{not json", {**BACKFILL, "interval": "2m"}, b"", BACKFILL))
    assert answer.code == 1
    assert answer.out == "2 queued, 2 refused\n"
    assert "refused/1: no job, kept as a dead letter" in answer.err
    assert "'2m' is not an interval" in answer.err
    assert {row["id"] for row in mdp("dlq", "list", "--kind", "refused", "--json").json} == {"refused/1", "refused/2"}


def test_what_a_full_queue_turns_away_is_told(mdp: Mdp, tmp_path: Path) -> None:
    path = file_of(tmp_path, GOOD, {**GOOD, "job_id": "q-2", "symbols": ["TSLA"]})
    answer = mdp("jobs", "submit", path, queue_caps="T0=1,T1=1,T2=1")
    assert answer.code == 1
    assert answer.out == "1 queued, 1 turned away\n"
    assert "q-2: turned away: the queue of T0 is full" in answer.err


def test_a_job_from_standard_input_is_shown_with_all_that_is_known_of_it(mdp: Mdp) -> None:
    command = [sys.executable, "-m", "market_data_pipeline.cli.main", "jobs", "submit", "-"]
    text = orjson.dumps(BACKFILL, option=orjson.OPT_INDENT_2)
    submitted = subprocess.run(command, input=text, env={**os.environ, **mdp.environment}, check=False, capture_output=True)
    assert (submitted.returncode, submitted.stdout) == (0, b"1 queued\n")
    shown = mdp("jobs", "show", "b-1", "--json").json
    assert (shown["state"], shown["attempts"], shown["payload"]["symbol"]) == ("queued", 0, "AAPL")
    assert shown["dedupe_key"].startswith("backfill:AAPL:1m:")
    assert "backfill" in mdp("jobs", "show", "b-1").out
    assert mdp("jobs", "show", "nobody").code == 2
    assert "b-1" in mdp("jobs", "list").out


@pytest.mark.parametrize("content", [b"", b" \n\n", b"[]", b" [ ] "])
def test_a_file_without_a_job_is_refused(mdp: Mdp, tmp_path: Path, content: bytes) -> None:
    answer = mdp("jobs", "submit", file_of(tmp_path, content))
    assert answer.code == 2
    assert "holds no job" in answer.err
    assert mdp("jobs", "submit", str(tmp_path / "none")).code == 2


@pytest.mark.parametrize(
    ("data", "payloads"),
    [
        (b'{"a": 1}\n{"b": 2}\n', ['{"a": 1}', '{"b": 2}']),
        (b'{"a": 1}\r\n\r\n{"b": ', ['{"a": 1}', '{"b":']),
        (b'{\n "a": 1\n}', ['{\n "a": 1\n}']),
        (b'\xef\xbb\xbf[{"a": 1}, {"b": [1, 2]}\n,3]', ['{"a": 1}', '{"b": [1, 2]}', "3"]),
        (b'[{"a": 1}, {"b": oops}, {"c": 3}]', ['{"a": 1}', '{"b": oops}, {"c": 3}]']),
        (b'[{"a": 1}', ['{"a": 1}']),
        (b'[{"a": 1}] trailing', ['{"a": 1}] trailing']),
        (b'[{"a": 1},]', ['{"a": 1}', "]"]),
        ('{"a": "\u2028"}\n{"b": 1}'.encode(), ['{"a": "\u2028"}', '{"b": 1}']),
        (b'{"a": 1}\n\xff\xfe\n', [b'{"a": 1}', b"\xff\xfe"]),
        (b"[" * 100_000, ["[" * 99_999]),
    ],
)
def test_a_file_falls_into_its_payloads_as_they_are_written(data: bytes, payloads: list[Any]) -> None:
    assert list(payloads_in(data)) == payloads
