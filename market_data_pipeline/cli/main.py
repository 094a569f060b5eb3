"""The `mdp` command: finds each subcommand when it is asked for, and turns our errors into messages and exit codes."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from market_data_pipeline import __version__
from market_data_pipeline.domain.errors import InvalidInputError, MarketDataError, UnavailableError
from market_data_pipeline.observability.logs import configure_when_needed

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a command is, "module:attribute" below market_data_pipeline.cli, and what `mdp --help` says of it.

    Both are written here so that help imports no command, and `mdp status` need not import pandas.
    """

    target: str
    help: str


COMMANDS = {
    "up": _Entry("stack:up", "Start Postgres, migrate it, and start Dagster's daemon and webserver."),
    "down": _Entry("stack:down", "Stop what `mdp up` started."),
    "status": _Entry("stack:status", "Say what runs, where, and in which version."),
    "migrate": _Entry("stack:migrate", "Bring the database's schema up to date."),
    "exec": _Entry("stack:exec_", "Run a command in the environment of the stack."),
    "universe": _Entry("universe:universe", "Load, list and show the symbols that are followed; assign tiers."),
    "backfill": _Entry("backfill:backfill", "Fetch candles of past sessions through Dagster runs, and watch them."),
    "fetch": _Entry("fetch:fetch", "Fetch quotes, option chains and economic series, or print stored ones."),
    "collect": _Entry("collect:collect", "Collect quotes and the newest minutes while markets are open."),
    "candles": _Entry("candles:candles", "Print stored bars, as they are or as they were known at a time."),
    "revisions": _Entry("candles:revisions", "Print the values that were replaced, and what they became."),
    "coverage": _Entry("coverage:coverage", "Count every expected bar under its verdict."),
    "gaps": _Entry("coverage:gaps", "List the bars that should be there and are not."),
    "condition": _Entry("condition:condition", "Say what can be expected of one session, and why."),
    "prune": _Entry("prune:prune", "Delete rows that are older than they are kept."),
    "slo": _Entry("slo:slo", "Say how fresh each tier is, and how much of its error budget is left."),
    "reconcile": _Entry("reconcile:reconcile", "Compare ledger and bars, and Dagster with the ledger; repair."),
    "halts": _Entry("halts:halts", "Load and list suspensions of trading."),
    "agreement": _Entry("agreement:agreement", "Show where second providers agree with what is stored; ask them."),
    "jobs": _Entry("jobs:jobs", "Put typed jobs into the queue, and look at those in it."),
    "dlq": _Entry("dlq:dlq", "Look at dead letters, try them again, forget them."),
    "alerts": _Entry("alerts:alerts", "Show alerts, silence them, acknowledge them, and try channels."),
    "providers": _Entry("providers:providers", "Show, probe and reset the providers."),
    "consume": _Entry("consume:consume", "Take the jobs of a Rate-Limit Coordinator from Redis into the queue."),
    "serve": _Entry("serve:serve", "Serve /health and /metrics, and watch SLOs and alert rules."),
    "simulate": _Entry("simulate:simulate", "Serve recorded or generated bars as a provider would."),
    "sample": _Entry("simulate:sample", "Generate realistic sample data for the simulator."),
    "drill": _Entry("drill:drill", "Let simulated providers fail and show what becomes of a backfill."),
    "situations": _Entry("situations:situations", "Play what can go wrong and show who is told of it, and when."),
    "week": _Entry("week:week", "Live through a simulated week with faults, an outage and corrections."),
    "demo": _Entry("demo:demo", "Fetch, lose, find and heal candles of ten simulated symbols."),
}

DONE, FOUND_SOMETHING, BAD_USAGE, UNAVAILABLE = 0, 1, 2, 3


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name].target.split(":")
        command: click.Command = getattr(importlib.import_module(f"market_data_pipeline.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mdp")
def mdp() -> None:
    """Keep market candles complete, correct and fresh.

    Exit codes: 0 done, 1 found something wrong, 2 bad usage, 3 could not reach what it needs.

    Example: mdp up && mdp universe load universe.csv && mdp backfill --all --interval 1m --start 2026-11-16 --end 2026-11-20
    """


def exit_code_of(error: MarketDataError) -> int:
    """What a shell is told about ``error``."""
    if isinstance(error, InvalidInputError):
        return BAD_USAGE
    return UNAVAILABLE if isinstance(error, UnavailableError) else FOUND_SOMETHING


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `mdp` and leave the process with one of the four exit codes."""
    stdout = sys.stdout
    undo = configure_when_needed()
    try:
        code = mdp.main(args=arguments, prog_name="mdp", standalone_mode=False)
    except click.ClickException as wrong:
        wrong.show()
        sys.exit(wrong.exit_code)
    except click.Abort:
        click.echo("mdp: interrupted", err=True)
        sys.exit(130)
    except MarketDataError as error:
        click.echo(f"mdp: {error}", err=True)
        sys.exit(exit_code_of(error))
    except SystemExit:
        # click ends a command whose reader (`head`) has gone with 1, our "found something wrong", and puts a quiet stream in place
        # of standard output: that is how to tell.
        if sys.stdout is not stdout:
            sys.exit(DONE)
        raise
    finally:
        undo()
    sys.exit(code if isinstance(code, int) else DONE)


if __name__ == "__main__":
    main()
