"""What other providers say of the candles, as Dagster shows it: a promise that fails, passes, and says what to do."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from market_data_pipeline.defs.build import build_definitions
from market_data_pipeline.domain.agreement import Comparison
from market_data_pipeline.domain.candles import DERIVED_INTERVALS, FETCHED_INTERVALS, Interval
from market_data_pipeline.domain.partitions import default_plan
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.opinions import Opinion
from market_data_pipeline_tests.defs.fakes import FakeWorkbench

if TYPE_CHECKING:
    from collections.abc import Iterator

MINUTES = dg.AssetCheckKey(dg.AssetKey(["candles", "1m"]), "providers_agree")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


def an_opinion(verdict: Comparison = Comparison.AGREE, **other: Any) -> Opinion:  # noqa: ANN401 - fields of an opinion
    """Massive's about a Monday of AAPL that is stored from Yahoo; believed is Yahoo, by the policy where they disagree."""
    given: dict[str, Any] = {
        "symbol_id": 1,
        "symbol": "AAPL",
        "interval": Interval.M1,
        "session": date(2024, 3, 4),
        "stored_provider": "yahoo",
        "second_provider": "massive",
        "third_provider": None,
        "verdict": verdict,
        "reason": "closes are 100 times the stored ones",
        "compared": 390,
        "only_stored": 0,
        "only_second": 0,
        "off": 0 if verdict.is_agreement else 390,
        "fields": {},
        "volume_ratio": 1.0,
        "winner": "yahoo",
        "decided_by": "agreement" if verdict.is_agreement else "policy",
        "asked_at": datetime(2024, 3, 8, 22, tzinfo=UTC),
    }
    return Opinion(**{**given, **other})


def definitions_of(workbench: FakeWorkbench) -> dg.Definitions:
    return build_definitions(Settings(second_opinion_share=0.25), default_plan(), workbenches=workbench)


def checked(instance: dg.DagsterInstance, *held: Opinion) -> dg.AssetCheckEvaluation:
    """The check of the minutes, run as it is from the asset's page."""
    definitions = definitions_of(FakeWorkbench(opinions_held=list(held)))
    job = dg.define_asset_job("only_the_check", selection=dg.AssetSelection.checks(MINUTES))
    [evaluation] = (
        dg.Definitions.merge(definitions, dg.Definitions(jobs=[job]))
        .resolve_job_def("only_the_check")
        .execute_in_process(instance=instance)
        .get_asset_check_evaluations()
    )
    return evaluation


def test_every_fetched_interval_has_the_check_and_no_derived_one() -> None:
    checks = [check for checks in definitions_of(FakeWorkbench()).asset_checks or () for check in checks.check_keys]
    keys = {check for check in checks if check.name == MINUTES.name}
    assert {key.asset_key.path[-1] for key in keys} == {interval.value for interval in FETCHED_INTERVALS}
    assert not {interval.value for interval in DERIVED_INTERVALS} & {key.asset_key.path[-1] for key in keys}


def test_providers_that_agree_pass_and_a_difference_of_feeds_does_too(instance: dg.DagsterInstance) -> None:
    evaluation = checked(instance, an_opinion(), an_opinion(Comparison.FEED_DIFFERENCE, session=date(2024, 3, 5)))
    assert evaluation.passed
    assert evaluation.metadata["sessions with a second opinion"].value == 2
    assert evaluation.metadata["feed_difference"].value == 1


def test_prices_of_another_unit_are_an_error_that_says_what_to_do(instance: dg.DagsterInstance) -> None:
    evaluation = checked(instance, an_opinion(), an_opinion(Comparison.UNIT_SLIP, session=date(2024, 3, 5)))
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert evaluation.description == "1 of 2 sessions are told differently by two providers"
    assert "mdp agreement --ask --symbols AAPL --interval 1m --start 2024-03-05" in str(evaluation.metadata["what to do"].value)
    table = evaluation.metadata["sessions"]
    assert isinstance(table, dg.TableMetadataValue)
    [told] = [record.data for record in table.records]
    assert (told["session"], told["stored"], told["second"]) == ("2024-03-05", "yahoo", "massive")


def test_prices_that_differ_a_little_are_a_warning(instance: dg.DagsterInstance) -> None:
    evaluation = checked(instance, an_opinion(Comparison.DISAGREE))
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.WARN)


def test_what_a_third_provider_settled_passes(instance: dg.DagsterInstance) -> None:
    kept = an_opinion(Comparison.DISAGREE, third_provider="alpaca", decided_by="majority")
    revised = an_opinion(Comparison.UNIT_SLIP, third_provider="alpaca", decided_by="majority", winner="massive", revised=390)
    evaluation = checked(instance, kept, revised)
    assert evaluation.passed
    assert evaluation.metadata["revised bars"].value == 390


def test_a_majority_that_could_not_be_carried_out_fails(instance: dg.DagsterInstance) -> None:
    """The second's feed counts other trades: what is stored stands against two."""
    assert not checked(instance, an_opinion(Comparison.DISAGREE, decided_by="majority", winner="massive", revised=0)).passed


def test_without_a_second_provider_the_check_passes_and_says_what_is_missing(instance: dg.DagsterInstance) -> None:
    evaluation = checked(instance)
    assert evaluation.passed
    assert "MDP_POLICY_BARS_1M" in str(evaluation.metadata["what to do"].value)


def test_the_nightly_job_asks_about_the_share_and_tells_every_check(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench(opinions_to_come=[an_opinion(Comparison.DISAGREE)])
    job = definitions_of(workbench).resolve_job_def("second_opinions")
    assert job.execute_in_process(instance=instance).success
    assert workbench.shares_asked == [(interval, 0.25) for interval in FETCHED_INTERVALS]
    passed = {
        key.asset_key.path[-1]: record.status.value
        for key in (dg.AssetCheckKey(dg.AssetKey(["candles", i.value]), "providers_agree") for i in FETCHED_INTERVALS)
        for record in instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    }
    assert passed == {"1m": "FAILED", "1h": "SUCCEEDED", "1d": "SUCCEEDED"}


def test_a_run_of_the_job_may_ask_about_more(instance: dg.DagsterInstance) -> None:
    workbench = FakeWorkbench()
    job = definitions_of(workbench).resolve_job_def("second_opinions")
    job.execute_in_process(instance=instance, run_config={"ops": {"ask_second_opinions": {"config": {"share": 1.0}}}})
    assert {share for _, share in workbench.shares_asked} == {1.0}


def test_a_run_of_candles_does_not_run_the_check() -> None:
    job = definitions_of(FakeWorkbench()).resolve_job_def("candles_1m")
    assert list(job.graph.node_dict) == ["fetch_candles_1m"]
