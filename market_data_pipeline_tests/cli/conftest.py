"""The real command line in this process: its own environment, a real database, captured output and exit code."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from click.testing import CliRunner

from market_data_pipeline.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# A Saturday: every session before it is over and due.
NOW = "2024-12-07T12:00:00Z"
# Port 9 is "discard": nothing listens there, and a connection is refused at once.
NO_WEBSERVER = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Answer:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever the command printed
        return orjson.loads(self.out)


@dataclass(frozen=True)
class Mdp:
    """Runs `mdp` commands in one environment."""

    environment: Mapping[str, str]
    home: Path

    def __call__(self, *arguments: str, **variables: str) -> Answer:
        """Run one command; ``variables`` are further MDP_ variables, by their name in lower case without the prefix."""
        ours = {name: None for name in os.environ if name.startswith("MDP_")}
        given = {f"MDP_{name.upper()}": value for name, value in variables.items()}
        with CliRunner().isolation(env={**ours, **self.environment, **given}) as (out, err, _):
            code = _exit_code(arguments)
            return Answer(code, out.getvalue().decode(), err.getvalue().decode())


def _exit_code(arguments: tuple[str, ...]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def mdp(database_url: str, tmp_path: Path) -> Mdp:
    """`mdp` on a fresh database, at noon of Saturday 2024-12-07, with no Dagster webserver."""
    environment = {
        "MDP_HOME": str(tmp_path / "home"),
        "MDP_DATABASE_URL": database_url,
        "MDP_DAGSTER_URL": NO_WEBSERVER,
        "MDP_CLOCK": NOW,
    }
    return Mdp(environment, tmp_path)


@pytest.fixture
def offline_mdp(tmp_path: Path) -> Mdp:
    """`mdp` where nothing runs at all."""
    environment = {
        "MDP_HOME": str(tmp_path / "home"),
        "MDP_DATABASE_URL": "postgresql://nobody:secret-word@127.0.0.1:9/nothing",
        "MDP_DAGSTER_URL": NO_WEBSERVER,
        "MDP_CLOCK": NOW,
    }
    return Mdp(environment, tmp_path)
