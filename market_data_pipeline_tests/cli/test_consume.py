"""`mdp consume` and `mdp jobs schema` as a person runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import orjson
import pytest
from redis import Redis

from market_data_pipeline.cli.consume import default_name
from market_data_pipeline.domain.jobs import json_schema
from market_data_pipeline.domain.queue import JobKind
from market_data_pipeline.ingest.rlc import valid_name
from market_data_pipeline.testing.redis_server import NO_SERVER, RedisServer, redis_server, server_binary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from market_data_pipeline_tests.cli.conftest import Mdp

needs_a_server = pytest.mark.skipif(server_binary() is None, reason=NO_SERVER)
JOB = {"type": "quotes_fetch", "job_id": "q-1", "priority": "T0", "symbols": ["AAPL"]}


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


def test_without_an_address_it_says_which_setting_has_it(offline_mdp: Mdp) -> None:
    refused = offline_mdp("consume")
    assert refused.code == 2
    assert "MDP_REDIS_URL is not set" in refused.err


def test_an_address_that_cannot_be_used_is_not_repeated(offline_mdp: Mdp) -> None:
    refused = offline_mdp("consume", redis_url="redis://:hunter2@host:hunter2")
    assert refused.code == 2
    assert "MDP_REDIS_URL cannot be read" in refused.err
    assert "hunter2" not in refused.err


def test_without_the_package_it_says_how_to_install_it() -> None:
    # None in sys.modules is how Python itself marks what cannot be imported.
    script = "import sys; sys.modules['redis'] = None\nfrom market_data_pipeline.cli.main import main\nmain(['consume'])"
    environment = {"MDP_REDIS_URL": "redis://127.0.0.1:9/0", "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_does_not_answer_is_exit_code_3_with_once(mdp: Mdp) -> None:
    gone = mdp("consume", "--once", redis_url="redis://:hunter2@127.0.0.1:9/0")
    assert gone.code == 3
    assert "Redis at 127.0.0.1:9/0" in gone.err
    assert "hunter2" not in gone.err


@needs_a_server
def test_what_it_took_is_told_and_nothing_of_it_is_exit_code_0(mdp: Mdp, server: RedisServer) -> None:
    server.client.lpush("market:jobs", json.dumps(JOB))
    done = mdp("consume", "--once", redis_url=server.url, use_rlc="true")
    assert done.code == 0
    assert "1 jobs in 1 batches: 1 new, 0 known, 0 refused, 0 put back" in done.out
    assert "sweeper" not in done.err
    assert mdp("consume", "--once", "--json", redis_url=server.url).json["taken"] == 0


@needs_a_server
def test_what_is_refused_is_exit_code_1_and_says_where_it_is_kept(mdp: Mdp, server: RedisServer) -> None:
    server.client.lpush("market:jobs", "nonsense")
    done = mdp("consume", "--once", redis_url=server.url)
    assert done.code == 1
    assert "`mdp dlq list`" in done.err
    assert "MDP_USE_RLC is false" in done.err


@needs_a_server
def test_a_full_queue_is_exit_code_1_with_once(mdp: Mdp, server: RedisServer) -> None:
    server.client.lpush("market:jobs", json.dumps(JOB))
    done = mdp("consume", "--once", redis_url=server.url, queue_caps="T0=0,T1=1,T2=1")
    assert done.code == 1
    assert "1 put back" in done.out
    assert server.client.lrange("market:backfills:T0", 0, -1) == [json.dumps(JOB).encode()]


@needs_a_server
def test_a_wrong_password_is_told_at_once_and_never_repeated(mdp: Mdp, server: RedisServer) -> None:
    server.client.config_set("requirepass", "correct horse")
    refused = mdp("consume", redis_url=f"unix://:hunter2@{server.socket}")
    assert refused.code == 3
    assert "expected user and password in MDP_REDIS_URL" in refused.err
    assert "hunter2" not in refused.err
    taken = mdp("consume", "--once", redis_url=f"unix://:correct%20horse@{server.socket}")
    assert taken.code == 0, taken.err
    assert "horse" not in taken.err + taken.out
    with Redis.from_url(server.url, password="correct horse") as client:  # noqa: S106 - a test's own
        client.config_set("requirepass", "")


@needs_a_server
def test_a_server_that_keeps_nothing_on_disk_is_told(mdp: Mdp, server: RedisServer) -> None:
    server.client.config_set("appendonly", "no")
    assert "keeps no append-only file" in mdp("consume", "--once", redis_url=server.url).err


def test_a_name_is_chosen_that_no_other_process_has() -> None:
    assert valid_name(default_name()) != default_name()


@pytest.mark.parametrize("kind", list(JobKind))
def test_a_schema_is_a_table_for_people_and_json_for_machines(offline_mdp: Mdp, kind: JobKind) -> None:
    table = offline_mdp("jobs", "schema", str(kind))
    assert table.code == 0
    assert [name for name in json_schema(kind)["properties"] if name not in table.out] == []
    assert offline_mdp("jobs", "schema", str(kind), "--json").json == json_schema(kind)


def test_the_schemas_are_written_where_one_says(offline_mdp: Mdp, tmp_path: Path) -> None:
    assert offline_mdp("jobs", "schema", "--directory", str(tmp_path / "schemas")).code == 0
    written = {path.name for path in (tmp_path / "schemas").iterdir()}
    assert written == {"job.json", *(f"{kind}.json" for kind in JobKind)}
    assert orjson.loads((tmp_path / "schemas" / "job.json").read_bytes()) == json_schema()
