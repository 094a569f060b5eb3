"""`mdp serve`: /health and /metrics over HTTP, and the watch."""

from __future__ import annotations

from typing import Any

import click

from market_data_pipeline.cli.output import json_option, note, print_json

DONE = 0


@click.command(epilog="Example: mdp serve --port 8600")
@click.option("--host", help="Address to listen on instead of MDP_SERVE_HOST. There is no password: keep it on loopback.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port instead of MDP_SERVE_PORT; 0: any that is free.")
@click.option("--no-watch", is_flag=True, help="Only serve; whoever else runs looks at SLOs and alert rules.")
@json_option
def serve(*, host: str | None, port: int | None, no_watch: bool, as_json: bool) -> int:
    """Serve /health and /metrics (Prometheus, OpenMetrics), and watch SLOs and alert rules, until SIGTERM or Ctrl-C.

    Prints its URL once it answers. The database need not be there: /health and /metrics then answer 503, and 200 when it is back.
    Exit code 2 for settings or an alerts file that cannot be used, 3 where it cannot listen.
    """
    from market_data_pipeline.observability.logs import configure  # noqa: PLC0415 - `mdp --help` must not wait
    from market_data_pipeline.serving.process import serve as answer  # noqa: PLC0415
    from market_data_pipeline.settings import Settings  # noqa: PLC0415

    settings = Settings.from_environment()
    given: dict[str, Any] = {"serve_host": host, "serve_port": port}
    settings = settings.model_copy(update={name: value for name, value in given.items() if value is not None})
    configure(settings)

    def tell(url: str) -> None:
        if as_json:
            print_json({"url": url, "watches": not no_watch})
        else:
            click.echo(f"{url}/health and {url}/metrics answer")

    answer(settings, watches=not no_watch, tell=tell)
    note("stopped")
    return DONE
