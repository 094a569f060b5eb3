"""When a provider is asked "has it changed?", what is kept for that, and what never is. A real file, a real server."""

from __future__ import annotations

import gzip
import hashlib
import random
import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.errors import PayloadError, TransientError
from market_data_pipeline.providers.answer_cache import AnswerCache
from market_data_pipeline.providers.http import Attempt, HttpAnswer, HttpClient, HttpPolicy
from market_data_pipeline.settings import Settings
from market_data_pipeline_tests.providers.loopback import Loopback, Reply

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CANARY = "s3cr3t-canary-0123456789"
ETAG = {"ETag": '"v1"', "Content-Type": "application/json"}
SINCE = "Mon, 01 Jul 2024 12:00:00 GMT"
UNCHANGED = Reply(status=304, headers={"ETag": '"v1"'})


@contextmanager
def client_at(home: Path, **limits: int) -> Iterator[HttpClient]:
    """A client with its cache in ``home``, that never sleeps."""
    cache = AnswerCache(home / "cache" / "answers.db", **limits)
    with HttpClient(HttpPolicy(timeout_seconds=5), cache=cache, sleep=lambda _: None, rng=random.Random(7)) as http:
        yield http


def conditions(server: Loopback) -> list[tuple[str | None, str | None]]:
    """If-None-Match and If-Modified-Since of every request."""
    return [(r.headers.get("if-none-match"), r.headers.get("if-modified-since")) for r in server.requests]


def test_an_answer_that_still_stands_is_given_again_without_its_body_being_sent(tmp_path: Path) -> None:
    attempts: list[Attempt] = []
    with Loopback(Reply(body=b'{"a":1}', headers=ETAG), UNCHANGED) as server, client_at(tmp_path) as http:
        first, second = (http.get(server.url, {"d": 5}, provider="p", attempts=attempts, cached=True) for _ in range(2))
        assert conditions(server) == [(None, None), ('"v1"', None)]
    assert (second.status, second.body, second.content_type) == (200, b'{"a":1}', "application/json")
    assert (first.is_unchanged, second.is_unchanged) == (False, True)
    sha256 = hashlib.sha256(b'{"a":1}').hexdigest()
    assert [(a.status, a.payload_bytes, a.payload_sha256) for a in attempts] == [(200, 7, sha256), (304, 7, sha256)]


def test_another_process_asks_about_what_this_one_kept(tmp_path: Path) -> None:
    with Loopback(Reply(body=b"kept", headers=ETAG), UNCHANGED) as server:
        for _ in range(2):
            with client_at(tmp_path) as http:
                assert http.get(server.url, provider="p", cached=True).body == b"kept"
        assert len(server.requests) == 2


def test_two_processes_share_the_file_at_the_same_time(tmp_path: Path) -> None:
    with Loopback(Reply(body=b"kept", headers=ETAG), UNCHANGED) as server, client_at(tmp_path) as one, client_at(tmp_path) as other:
        assert [http.get(server.url, provider="p", cached=True).body for http in (one, other, one)] == [b"kept"] * 3
        assert conditions(server)[1:] == [('"v1"', None)] * 2


def test_a_last_modified_is_asked_about_too(tmp_path: Path) -> None:
    replies = [Reply(body=b"kept", headers={"Last-Modified": SINCE}), Reply(status=304)]
    with Loopback(*replies) as server, client_at(tmp_path) as http:
        assert [http.get(server.url, provider="p", cached=True).body for _ in range(2)] == [b"kept"] * 2
        assert conditions(server)[1] == (None, SINCE)


def test_a_changed_answer_takes_the_place_of_the_old(tmp_path: Path) -> None:
    replies = [Reply(body=b"one", headers={"ETag": '"1"'}), Reply(body=b"two", headers={"ETag": '"2"'}), Reply(status=304)]
    with Loopback(*replies) as server, client_at(tmp_path) as http:
        assert [http.get(server.url, provider="p", cached=True).body for _ in range(3)] == [b"one", b"two", b"two"]
        assert [etag for etag, _ in conditions(server)] == [None, '"1"', '"2"']


def test_a_packed_answer_is_kept_unpacked(tmp_path: Path) -> None:
    packed = Reply(body=gzip.compress(b"hello" * 100), headers={**ETAG, "Content-Encoding": "gzip"})
    with Loopback(packed, UNCHANGED) as server, client_at(tmp_path) as http:
        assert [http.get(server.url, provider="p", cached=True).body for _ in range(2)] == [b"hello" * 100] * 2


@pytest.mark.parametrize("control", ["max-age=86400", "public, s-maxage=600", "max-age=600, stale-while-revalidate=600"])
def test_the_provider_is_asked_again_however_fresh_the_answer_is(tmp_path: Path, control: str) -> None:
    # A copy of its last answer is no evidence that it still has no bar.
    with Loopback(Reply(body=b"1", headers={**ETAG, "Cache-Control": control}), UNCHANGED) as server, client_at(tmp_path) as http:
        for _ in range(3):
            http.get(server.url, provider="p", cached=True)
        assert [etag for etag, _ in conditions(server)] == [None, '"v1"', '"v1"']
        assert "cache-control" not in server.requests[1].headers


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=b"x", headers={**ETAG, "Cache-Control": "no-store"}),
        Reply(body=b"x", headers={**ETAG, "Cache-Control": "private"}),
        Reply(body=b"x", headers={"Content-Type": "text/plain"}),
        Reply(status=404, body=b"x", headers=ETAG),
        Reply(status=400, body=b"x", headers={**ETAG, "Cache-Control": "max-age=600"}),
    ],
    ids=["no-store", "private", "no validator", "404", "400"],
)
def test_what_the_provider_does_not_allow_and_errors_are_not_kept(tmp_path: Path, reply: Reply) -> None:
    with Loopback(reply) as server, client_at(tmp_path) as http:
        for _ in range(2):
            http.get(server.url, provider="p", cached=True)
        assert conditions(server) == [(None, None)] * 2


def test_an_answer_that_fails_its_check_is_not_kept(tmp_path: Path) -> None:
    def check(answer: HttpAnswer) -> None:
        if answer.body == b"Will be right back":
            raise TransientError("an outage page", provider="p")

    outage = Reply(body=b"Will be right back", headers=ETAG)
    with Loopback(outage, Reply(body=b"good", headers=ETAG), UNCHANGED) as server, client_at(tmp_path) as http:
        assert [http.get(server.url, provider="p", check=check, cached=True).body for _ in range(2)] == [b"good"] * 2
        assert [etag for etag, _ in conditions(server)] == [None, None, '"v1"']


def test_a_kept_answer_that_fails_its_check_now_is_forgotten(tmp_path: Path) -> None:
    def check(answer: HttpAnswer) -> None:
        raise PayloadError(f"we read it otherwise by now: {answer.excerpt()}", provider="p")

    with Loopback(Reply(body=b"old", headers=ETAG), UNCHANGED, Reply(body=b"new")) as server, client_at(tmp_path) as http:
        http.get(server.url, provider="p", cached=True)
        with pytest.raises(PayloadError):
            http.get(server.url, provider="p", check=check, cached=True)
        assert http.get(server.url, provider="p", cached=True).body == b"new"
        assert [etag for etag, _ in conditions(server)] == [None, '"v1"', None]


def test_a_304_for_something_else_than_we_hold_is_asked_again_in_full(tmp_path: Path) -> None:
    other = Reply(status=304, headers={"ETag": '"v9"'})
    with Loopback(Reply(body=b"old", headers=ETAG), other, Reply(body=b"new")) as server, client_at(tmp_path) as http:
        assert [http.get(server.url, provider="p", cached=True).body for _ in range(2)] == [b"old", b"new"]
        assert [etag for etag, _ in conditions(server)] == [None, '"v1"', None]


def test_a_304_that_nobody_asked_for_is_the_adapters_to_judge(tmp_path: Path) -> None:
    with Loopback(UNCHANGED) as server, client_at(tmp_path) as http:
        assert http.get(server.url, provider="p", cached=True).status == 304


def test_other_parameters_are_another_answer(tmp_path: Path) -> None:
    with Loopback(Reply(body=b"1", headers=ETAG)) as server, client_at(tmp_path) as http:
        for symbol in ("A", "B"):
            http.get(server.url, {"symbol": symbol}, provider="p", cached=True)
        assert conditions(server) == [(None, None)] * 2


def test_an_answer_in_another_form_is_not_taken_for_the_one_asked_for(tmp_path: Path) -> None:
    varies = Reply(body=b"1", headers={**ETAG, "Vary": "Accept", "Cache-Control": "max-age=600"})
    with Loopback(varies, Reply(body=b"a;b")) as server, client_at(tmp_path) as http:
        http.get(server.url, headers={"accept": "application/json"}, provider="p", cached=True)
        assert http.get(server.url, headers={"accept": "text/csv"}, provider="p", cached=True).body == b"a;b"


def test_nothing_is_kept_unless_the_adapter_says_so(tmp_path: Path) -> None:
    with Loopback(Reply(body=b"1", headers=ETAG)) as server, client_at(tmp_path) as http:
        for cached in (False, False, True):
            http.get(server.url, provider="p", cached=cached)
        assert conditions(server) == [(None, None)] * 3


@pytest.mark.parametrize(
    ("params", "headers"),
    [
        ({"apikey": CANARY}, {}),
        ({"crumb": CANARY}, {}),
        ({}, {"x-finnhub-token": CANARY}),
        ({}, {"authorization": f"Bearer {CANARY}"}),
        ({}, {"cookie": f"A3={CANARY}"}),
    ],
)
def test_what_was_asked_for_with_a_secret_is_never_kept(
    tmp_path: Path, params: dict[str, str | int], headers: dict[str, str]
) -> None:
    echo = Reply(body=CANARY.encode(), headers={**ETAG, "Cache-Control": "public, max-age=600", "Set-Cookie": f"A3={CANARY}"})
    with Loopback(echo) as server, client_at(tmp_path) as http:
        for _ in range(2):
            http.get(server.url, params, headers, provider="p", cached=True)
        http.get(f"{server.url}/x?token={CANARY}", provider="p", cached=True)
        http.get(server.url.replace("//", f"//me:{CANARY}@"), provider="p", cached=True)
        assert conditions(server) == [(None, None)] * 4
    assert CANARY.encode() not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_cookie_that_comes_with_an_answer_is_never_kept(tmp_path: Path) -> None:
    with_cookie = Reply(body=b"open to all", headers={**ETAG, "Set-Cookie": f"A3={CANARY}"})
    with Loopback(with_cookie, Reply(status=304, headers={"Set-Cookie": f"A3={CANARY}"})) as server, client_at(tmp_path) as http:
        assert [http.get(server.url, provider="p", cached=True).body for _ in range(2)] == [b"open to all"] * 2
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"open to all" in content for content in files)
    assert not any(CANARY.encode() in content for content in files)


def test_the_file_does_not_grow_beyond_its_bound(tmp_path: Path) -> None:
    body = random.Random(1).randbytes(200_000)
    with Loopback(Reply(body=body, headers=ETAG)) as server, client_at(tmp_path, max_bytes=1 << 20) as http:
        for number in range(20):
            assert http.get(server.url, {"n": number}, provider="p", cached=True).body == body
    # One entry more than the bound may be in it, and SQLite's pages around them.
    assert (tmp_path / "cache" / "answers.db").stat().st_size < 1.5 * (1 << 20)


def test_a_body_over_the_bound_is_given_and_not_kept(tmp_path: Path) -> None:
    with Loopback(Reply(body=bytes(2000), headers=ETAG)) as server, client_at(tmp_path, max_body_bytes=1000) as http:
        assert [len(http.get(server.url, provider="p", cached=True).body) for _ in range(2)] == [2000] * 2
        assert conditions(server) == [(None, None)] * 2


@pytest.mark.parametrize("is_folder_free", [True, False], ids=["a file of something else", "a file where the folder should be"])
def test_a_cache_that_cannot_be_used_costs_nothing_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, is_folder_free: bool
) -> None:
    if is_folder_free:
        (tmp_path / "cache").mkdir()
    in_the_way = tmp_path / "cache" / "answers.db" if is_folder_free else tmp_path / "cache"
    in_the_way.write_bytes(b"no database" * 1000)
    with Loopback(Reply(body=b"1", headers=ETAG)) as server, client_at(tmp_path) as http:
        assert [http.get(server.url, provider="p", cached=True).body for _ in range(2)] == [b"1"] * 2
    assert "hishel" in caplog.text
    assert in_the_way.read_bytes() == b"no database" * 1000


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    with closing(sqlite3.connect(tmp_path / "cache" / "answers.db")) as theirs:
        theirs.execute("create table entries (name text)")
        with Loopback(Reply(body=b"1", headers=ETAG)) as server, client_at(tmp_path) as http:
            assert [http.get(server.url, provider="p", cached=True).body for _ in range(2)] == [b"1"] * 2
        assert theirs.execute("select count(*) from entries").fetchone() == (0,)


def test_the_cache_of_a_process_is_in_its_home_and_made_when_first_needed(tmp_path: Path) -> None:
    with Loopback(Reply(body=b"1", headers=ETAG)) as server, HttpClient.open(Settings(home=tmp_path)) as http:
        http.get(server.url, provider="p")
        assert list(tmp_path.iterdir()) == []
        http.get(server.url, provider="p", cached=True)
        assert (tmp_path / "http-cache" / "answers.db").is_file()
