"""Log lines: their facts and ids, what is hidden in them, who is heard, and that they cost nothing before the first."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.tracing import in_its_own_context
from market_data_pipeline.observability.logs import LONGEST_TEXT, bound, configure, discreet
from market_data_pipeline.settings import Settings, secrets_of
from market_data_pipeline_tests.world import a_world, expected_opens, write_bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

CANARY = "canary7f3a91"
OURS = logging.getLogger("market_data_pipeline.tests")


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What was logged since the last look, as JSON, from debug on."""
    undo = configure(Settings(log_format="json", log_level="debug", finnhub_key=SecretStr(CANARY)))
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    undo()


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    told = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60, env=told)


def fail(message: str) -> None:
    raise ValueError(message)


def test_a_line_says_when_what_and_about_what(lines: Callable[[], list[dict[str, Any]]]) -> None:
    with bound(run_id="r1", symbol=None), bound(job_id="j1"):
        OURS.info("%d bars", 3, extra={"symbol": "ALFA", "bars": 3})
    (line,) = lines()
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "market_data_pipeline.tests",
        "message": "3 bars",
        "run_id": "r1",
        "job_id": "j1",
        "symbol": "ALFA",
        "bars": 3,
    }


def test_what_is_bound_ends_with_its_block(lines: Callable[[], list[dict[str, Any]]]) -> None:
    with pytest.raises(ValueError, match="x"), bound(symbol="ALFA"):
        raise ValueError("x")
    OURS.info("after")
    assert "symbol" not in lines()[0]


def test_a_thread_with_the_context_says_what_is_bound_around_it(lines: Callable[[], list[dict[str, Any]]]) -> None:
    with bound(symbol="ALFA"):
        thread = threading.Thread(target=copy_context().run, args=(OURS.info, "from a thread"))
        thread.start()
        thread.join()
    assert lines()[0]["symbol"] == "ALFA"


def test_what_a_generator_binds_is_not_seen_by_its_reader(lines: Callable[[], list[dict[str, Any]]]) -> None:
    @in_its_own_context
    def numbers() -> Iterator[int]:
        with bound(symbol="ALFA"):
            yield 1
            OURS.info("inside")
            yield 2

    reading = numbers()
    next(reading)
    OURS.info("outside")
    next(reading)
    assert [line.get("symbol") for line in lines()] == [None, "ALFA"]


def test_a_generator_that_is_given_up_undoes_what_it_bound_where_it_did(lines: Callable[[], list[dict[str, Any]]]) -> None:
    ended = []

    @in_its_own_context
    def numbers() -> Iterator[int]:
        try:
            with bound(symbol="ALFA"):
                yield from range(10)
        finally:
            ended.append(True)

    reading = numbers()
    next(reading)
    copy_context().run(reading.close)  # type: ignore[attr-defined]
    OURS.info("outside")
    assert (ended, "symbol" in lines()[0]) == ([True], False)


@pytest.mark.parametrize(
    "say",
    [
        lambda: OURS.info("key is %s", CANARY),
        lambda: OURS.info("GET https://x.test/a?symbol=A&api_key=other-%s", CANARY.upper()),
        lambda: OURS.info("said", extra={"request": f"https://user:{CANARY}@host/"}),
        lambda: OURS.info("x" * (4 * LONGEST_TEXT) + CANARY),
        lambda: OURS.info("x" * (2 * LONGEST_TEXT - 6) + CANARY),
        lambda: logging.getLogger("somebody.else").warning("their %s", CANARY),
    ],
    ids=["value", "parameter", "extra", "long", "cut", "theirs"],
)
def test_a_secret_is_hidden_wherever_it_stands(capsys: pytest.CaptureFixture[str], say: Callable[[], None]) -> None:
    for shape in ("json", "text"):
        undo = configure(Settings(log_format=shape, finnhub_key=SecretStr(CANARY)))
        say()
        undo()
        said = capsys.readouterr().err
        assert said
        assert CANARY[:6] not in said.lower()


def test_of_an_exception_its_message_is_redacted_and_what_it_came_from_is_not_told(
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    try:
        try:
            fail(f"GET https://x.test/?q=hidden-cause&token={CANARY}")
        except ValueError as cause:
            raise LookupError(f"nothing for {CANARY}") from cause
    except LookupError:
        OURS.exception("it broke")
    (line,) = lines()
    assert line["message"] == "it broke: LookupError: nothing for ***"
    assert "LookupError: nothing for ***" in line["exception"]
    assert "test_logs.py" in line["exception"]
    assert CANARY not in str(line)
    assert "hidden-cause" not in str(line)


def test_a_line_whose_arguments_do_not_fit_is_a_line_and_no_error(lines: Callable[[], list[dict[str, Any]]]) -> None:
    OURS.warning("%d bars", "three")
    assert lines()[0]["message"] == "%d bars (this line's arguments do not fit it)"


def test_no_handler_of_anybody_sees_more_than_is_shown(lines: Callable[[], list[dict[str, Any]]]) -> None:
    # Dagster puts a handler of its own on our loggers, and keeps what it gets in its database.
    seen: list[logging.LogRecord] = []

    class Theirs(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    handler = Theirs()
    OURS.addHandler(handler)
    try:
        fail(CANARY)
    except ValueError:
        OURS.warning("with %s", CANARY, exc_info=True)
    finally:
        OURS.removeHandler(handler)
    assert [(record.getMessage(), record.exc_info) for record in seen] == [("with ***: ValueError: ***", None)]
    assert CANARY not in str(vars(seen[0]))
    assert lines()


def test_what_dagster_has_renamed_is_told_in_our_words(lines: Callable[[], list[dict[str, Any]]]) -> None:
    record = OURS.makeRecord(OURS.name, logging.INFO, __file__, 1, "candles_1m_job - r1 - step - 3 bars", (), None)
    record.dagster_meta = {"orig_message": "3 bars", "run_id": "r1", "step_key": "step"}
    OURS.handle(record)
    (line,) = lines()
    assert (line["message"], line["run_id"], "dagster_meta" in line) == ("3 bars", "r1", False)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="utf-8")), secret=st.text(st.sampled_from("abcXYZ019-_"), min_size=8, max_size=40))
def test_no_text_with_a_secret_in_it_shows_it_or_begins_a_line(text: str, secret: str) -> None:
    shown = discreet(f"{text}{secret}{text}", [secret])
    # A text may hold the secret's own letters by itself; what was put in is gone.
    assert secret in text or secret not in shown
    assert "\n" not in shown
    assert "\x1b" not in shown


def test_text_for_people_is_one_line_however_the_message_tries(capsys: pytest.CaptureFixture[str]) -> None:
    undo = configure(Settings(log_level="info"))
    with bound(run_id="r1"):
        OURS.info("one\n2026-01-01 [error] forged\x1b[31m", extra={"symbol": "ALFA"})
    undo()
    (line,) = capsys.readouterr().err.splitlines()
    assert "run_id=r1" in line
    assert "symbol=ALFA" in line
    assert "\x1b" not in line


def test_other_peoples_libraries_are_heard_from_warnings_on(lines: Callable[[], list[dict[str, Any]]]) -> None:
    # Not apprise and what it sends with: their lines hold URLs, and observability/delivery.py lets none of them through.
    for name in ("httpx", "hishel", "h2"):
        logging.getLogger(name).info("chatter of %s", name)
        logging.getLogger(name).warning("trouble of %s", name)
    assert [line["message"] for line in lines()] == [f"trouble of {name}" for name in ("httpx", "hishel", "h2")]


@pytest.mark.parametrize(
    ("told", "heard"),
    [({}, ["trouble"]), ({"MDP_LOG_LEVEL": "info"}, ["fact", "trouble"]), ({"MDP_LOG_LEVEL": "error"}, [])],
    ids=["nothing", "info", "error"],
)
def test_a_command_shows_warnings_unless_it_is_told_a_level(told: Mapping[str, str], heard: list[str]) -> None:
    script = (
        "import logging\n"
        "from market_data_pipeline.observability.logs import configure_when_needed\n"
        "configure_when_needed()\n"
        "log = logging.getLogger('market_data_pipeline.x')\n"
        "log.info('fact'); log.warning('trouble')\n"
    )
    done = run(script, MDP_LOG_FORMAT="json", **told)
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == heard


def test_settings_that_cannot_be_read_do_not_silence_a_warning() -> None:
    script = (
        "import logging\n"
        "from market_data_pipeline.observability.logs import configure_when_needed\n"
        "configure_when_needed()\n"
        "logging.getLogger('market_data_pipeline.x').warning('trouble')\n"
    )
    assert "trouble" in run(script, MDP_LOG_FORMAT="neither").stderr


def test_configuring_costs_no_import_before_the_first_line() -> None:
    script = (
        "import sys\n"
        "from market_data_pipeline.observability.logs import configure_when_needed\n"
        "configure_when_needed()\n"
        "print([name for name in ('structlog', 'pydantic', 'rich') if name in sys.modules])\n"
    )
    assert run(script).stdout.strip() == "[]"


def test_configuring_again_replaces_what_was_there(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Settings(log_format="json"))
    undo = configure(Settings(log_format="json"))
    OURS.info("once")
    undo()
    OURS.warning("not ours to show any more")
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == ["once"]


def test_an_ingest_says_a_line_at_info_and_each_request_at_debug(
    tmp_path: Path, database_url: str, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    symbols = [f"SYM{number}" for number in range(8)]
    for symbol in symbols:
        write_bars(tmp_path / "data", symbol, Interval.M1, expected_opens())
    faults = [{"match": {"symbol": "SYM7"}, "action": "status", "code": 503}]
    with a_world(tmp_path / "data", database_url, tmp_path / "home", faults=faults, http_attempts=1) as world:
        instruments = world.load(*symbols)
        lines()
        world.ingest(instruments)
        said = lines()
    aloud = [line for line in said if line["level"] != "debug"]
    # The request that failed, and the end of the pass.
    assert [line["level"] for line in aloud] == ["warning", "warning"]
    assert (aloud[0]["symbol"], aloud[0]["provider"], aloud[0]["lane"]) == ("SYM7", "yahoo", "backfill")
    assert "8 stretches, 1 without an answer; 13,650 bars came" in aloud[1]["message"]
    requests = [line for line in said if line["logger"].endswith("providers.http") and line.get("provider") == "yahoo"]
    assert {line["symbol"] for line in requests} == set(symbols)
    assert all("HTTP 200" in line["message"] for line in requests if line["symbol"] != "SYM7")


def test_a_databases_password_is_a_secret_by_itself_and_the_address_of_a_vendor_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDP_YAHOO_COOKIE_URL", "https://cookies.test")
    monkeypatch.setenv("MDP_OTHER_VENDOR_KEY", "key-of-another-package")
    told = secrets_of(Settings(database_url=SecretStr("postgresql://me:p%40ssw0rd-1@db.test/x"), finnhub_key=SecretStr(CANARY)))
    assert told >= {"p@ssw0rd-1", "key-of-another-package", CANARY}
    assert "https://cookies.test" not in told
