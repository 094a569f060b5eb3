"""`mdp prune`: counted first, then deleted, and in the log who did it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from market_data_pipeline.storage.quotes import QuoteStore
from market_data_pipeline_tests.cli.builders import pipeline_of
from market_data_pipeline_tests.storage.test_quotes import APPLE, said

if TYPE_CHECKING:
    from market_data_pipeline_tests.cli.conftest import Mdp

# The clock of these commands.
NOW = datetime(2024, 12, 7, 12, tzinfo=UTC)


def hear_quotes(mdp: Mdp, *ages: timedelta) -> None:
    """Store a quote of AAPL for each age."""
    mdp("universe", "load", universe_file(mdp))
    with pipeline_of(mdp) as pipeline:
        (apple,) = pipeline.universe.instruments(symbols=["AAPL"])
        for number, age in enumerate(ages):
            quotes = said(replace(APPLE, bid=100.0 + number))
            QuoteStore(pipeline.engine).record(quotes, {"AAPL": apple.symbol_id}, known_at=NOW - age)


def universe_file(mdp: Mdp) -> str:
    path = mdp.home / "universe.csv"
    path.write_text("symbol,exchange,tier\nAAPL,XNAS,T0\n", encoding="utf-8")
    return str(path)


def test_old_quotes_are_counted_deleted_and_the_deletion_is_audited(mdp: Mdp) -> None:
    hear_quotes(mdp, *(timedelta(days=days) for days in (30, 20, 15, 1)))
    counted = mdp("prune", "--dry-run", "--json")
    assert (counted.code, counted.json["dry_run"]) == (0, True)
    assert {one["what"]: one["rows"] for one in counted.json["pruned"] if one["rows"]} == {"quotes_l1": 2}
    done = mdp("prune")
    assert (done.code, "quotes_l1: 2 rows" in done.err) == (0, True)
    assert [one["rows"] for one in mdp("prune", "--only", "quotes_l1", "--json").json["pruned"]] == [0]
    with pipeline_of(mdp) as pipeline, pipeline.engine.connect() as connection:
        told = connection.exec_driver_sql("select detail->>'quotes_l1' from audit_log where action = 'prune' order by audit_id")
        assert told.scalars().all() == ["2", "0"]


def test_how_long_quotes_are_kept_is_a_setting(mdp: Mdp) -> None:
    hear_quotes(mdp, *(timedelta(days=days) for days in (30, 20, 15, 1)))
    counted = mdp("prune", "--dry-run", "--only", "quotes_l1", "--json", quotes_retention_days="25").json
    assert [one["rows"] for one in counted["pruned"]] == [0]


def test_what_is_not_pruned_is_refused_by_name(mdp: Mdp) -> None:
    refused = mdp("prune", "--only", "candles")
    assert (refused.code, "'candles'" in refused.err, "quotes_l1" in refused.err) == (2, True, True)
