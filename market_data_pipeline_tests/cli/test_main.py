from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest

from market_data_pipeline.cli.main import COMMANDS, mdp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from market_data_pipeline_tests.cli.conftest import Mdp

# Each of these costs a tenth of a second or more, and `mdp status` is typed often.
HEAVY = ("pandas", "dagster", "pyarrow", "exchange_calendars", "dagster_graphql")


def commands(group: click.Group = mdp, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command a user can type, groups walked into."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def imported_by(*arguments: str) -> set[str]:
    """The top-level modules that a fresh process has after `mdp` with these arguments."""
    script = (
        "import sys\n"
        "from market_data_pipeline.cli.main import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit:\n"
        "    print('modules:', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [("--help",), ("status", "--help"), ("up", "--help"), ("status",)], ids=" ".join)
def test_help_and_status_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert imported_by(*arguments) & set(HEAVY) == set()


def test_every_command_has_help_with_an_example() -> None:
    texts = {name: f"{command.help}{command.epilog}" for name, command in commands()}
    assert [name for name, text in texts.items() if not re.search(rf"Examples?:[^`]*mdp {name}", text)] == []


def test_every_command_that_prints_rows_prints_json_too() -> None:
    # `down` and `exec` say a line or what their command says, `simulate` and `sample` serve and write, the demo shows the others.
    without = [name for name, command in commands() if "as_json" not in {parameter.name for parameter in command.params}]
    assert set(without) <= {"down", "exec", "simulate", "sample", "demo"}


def test_every_option_says_what_it_does() -> None:
    silent = [
        f"{name} {parameter.opts[0]}"
        for name, command in commands()
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert silent == []


def test_help_lists_every_command(offline_mdp: Mdp) -> None:
    listed = offline_mdp("--help")
    assert listed.code == 0
    assert [name for name in COMMANDS if f"  {name} " not in listed.out] == []


def test_the_version_is_the_packages(offline_mdp: Mdp) -> None:
    assert offline_mdp("--version").out.startswith("mdp, version 0.")


TEXT = "from market_data_pipeline.cli.main import main; main(['--help'])"
# rich would end the process itself, with 1, before `main` has a say.
TABLE = """
import os, sys
from market_data_pipeline.cli.output import print_table
try:
    print_table([{'a': 1}], columns=['a'])
except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
"""


@pytest.mark.parametrize("script", [TEXT, TABLE], ids=["text", "table"])
def test_a_reader_that_closes_the_pipe_is_not_an_error(script: str) -> None:
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_setting_that_cannot_be_used_is_named_and_its_value_is_not_repeated(offline_mdp: Mdp) -> None:
    refused = offline_mdp("coverage", http_attempts="none-at-all")
    assert refused.code == 2
    assert "MDP_HTTP_ATTEMPTS" in refused.err
