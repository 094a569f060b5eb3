"""What the CLI asks of a Dagster webserver, over GraphQL as the UI does: launches, watches and reads. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

import httpx
import tenacity

from market_data_pipeline.domain.errors import MarketDataError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

# Launching writes a planned event for each partition before it answers: seconds for thousands on stock storage.
LAUNCH_TIMEOUT_SECONDS = 180.0
TIMEOUT_SECONDS = 30.0
# One alias a key: a request of some 40 kB, far below any limit, and one round trip for a small universe.
KEYS_PER_REQUEST = 200
RUNS_PER_PAGE = 200

# Set by Dagster on a failed run of which it will launch a retry, a run with the same tags otherwise.
WILL_RETRY = "dagster/will_retry"

# The webserver keeps a connection for each of Dagster's three storages; one request finds out about each dead one.
MOST_DEAD_CONNECTIONS = 3


class WebserverUnreachableError(UnavailableError):
    """No Dagster webserver answers at the address we were given."""


class DagsterRefusedError(MarketDataError):
    """The webserver answered, and its answer is an error. The message is Dagster's own."""


class DagsterLostDatabaseError(DagsterRefusedError):
    """Dagster's database did not answer the webserver: after a restart of Postgres its old connections are dead."""


class RunStatus(StrEnum):
    """Where a run is, in Dagster's words."""

    QUEUED = "QUEUED"
    NOT_STARTED = "NOT_STARTED"
    MANAGED = "MANAGED"
    STARTING = "STARTING"
    STARTED = "STARTED"
    SUSPENDED = "SUSPENDED"
    CANCELING = "CANCELING"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    CANCELED = "CANCELED"

    @property
    def has_ended(self) -> bool:
        """Nothing more will come of this run."""
        return self in {RunStatus.SUCCESS, RunStatus.FAILURE, RunStatus.CANCELED}


@dataclass(frozen=True, slots=True)
class CodeLocation:
    """Where a job lives: what GraphQL calls a repository of a location."""

    location: str
    repository: str

    @property
    def selector(self) -> dict[str, str]:
        """The GraphQL input that names it."""
        return {"repositoryLocationName": self.location, "repositoryName": self.repository}


@dataclass(frozen=True, slots=True)
class Run:
    """A run as last seen. ``materialized`` counts the partitions it has reported so far; ``created_at`` is epoch seconds."""

    run_id: str
    job: str
    status: RunStatus
    tags: Mapping[str, str]
    created_at: float
    materialized: int

    @property
    def is_over(self) -> bool:
        """Nothing more will come of it. A run whose process died may be failed and about to be retried by Dagster itself."""
        will_retry = self.status is RunStatus.FAILURE and self.tags.get(WILL_RETRY) == "true"
        return self.status.has_ended and not will_retry


@dataclass(frozen=True, slots=True)
class PartitionKeys:
    """The keys an asset has now, in the order Dagster gives them: a range over symbols follows it, not the alphabet."""

    periods: tuple[str, ...]
    symbols: tuple[str, ...]


def _refusal(said: str) -> DagsterRefusedError:
    lost = "OperationalError" in said or "InterfaceError" in said
    return (DagsterLostDatabaseError if lost else DagsterRefusedError)(said)


# For what may be repeated: not for launching.
_past_dead_connections = tenacity.retry(
    retry=tenacity.retry_if_exception_type(DagsterLostDatabaseError),
    stop=tenacity.stop_after_attempt(MOST_DEAD_CONNECTIONS + 1),
    reraise=True,
)


class DagsterClient:
    """The webserver at ``url``. Methods raise WebserverUnreachableError or DagsterRefusedError; reads may be repeated."""

    def __init__(self, url: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        # trust_env=False: a proxy meant for the internet must not be asked for the webserver next door.
        self._http = httpx.Client(base_url=self.url, transport=transport, timeout=TIMEOUT_SECONDS, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    @_past_dead_connections
    def find_job(self, job: str) -> CodeLocation:
        """The code location that defines ``job``; where it failed to load, the message says why."""
        listed = self._ask(_REPOSITORIES)
        for node in listed["repositoriesOrError"].get("nodes", ()):
            if job in {defined["name"] for defined in node["jobs"]}:
                return CodeLocation(location=node["location"]["name"], repository=node["name"])
        broken = [
            f"{entry['name']}: {entry['locationOrLoadError']['message'].strip()}"
            for entry in listed["workspaceOrError"].get("locationEntries", ())
            if (entry["locationOrLoadError"] or {}).get("__typename") == "PythonError"
        ]
        reason = f"; its code did not load: {'; '.join(broken)}" if broken else ""
        raise DagsterRefusedError(f"the webserver at {self.url} has no job {job!r}{reason}")

    def reload(self, location: str) -> None:
        """Make the webserver import the code location again, so that it sees a new partition plan."""
        answer = self._ask(_RELOAD, {"name": location}, seconds=LAUNCH_TIMEOUT_SECONDS)["reloadRepositoryLocation"]
        _expect(answer, "WorkspaceLocationEntry")

    @_past_dead_connections
    def partition_keys(self, asset: Sequence[str], *, period: str = "period", symbol: str = "symbol") -> PartitionKeys:
        """The keys of both dimensions of ``asset``, named by its path."""
        answer = self._ask(_PARTITION_KEYS, {"path": list(asset)}, seconds=LAUNCH_TIMEOUT_SECONDS)["assetNodeOrError"]
        _expect(answer, "AssetNode")
        keys = {dimension["name"]: tuple(dimension["partitionKeys"]) for dimension in answer["partitionKeysByDimension"]}
        return PartitionKeys(periods=keys.get(period, ()), symbols=keys.get(symbol, ()))

    @_past_dead_connections
    def add_dynamic_partitions(self, where: CodeLocation, definition: str, keys: Sequence[str]) -> None:
        """Make sure that every key exists. A key that is there already is fine, so repeating it is safe."""
        for first in range(0, len(keys), KEYS_PER_REQUEST):
            part = keys[first : first + KEYS_PER_REQUEST]
            declared = ", ".join(f"$k{n}: String!" for n in range(len(part)))
            calls = "\n".join(
                f"k{n}: addDynamicPartition(repositorySelector: $where, partitionsDefName: $definition, partitionKey: $k{n})"
                " { __typename ... on Error { message } ... on UnauthorizedError { message } }"
                for n in range(len(part))
            )
            query = f"mutation Add($where: RepositorySelector!, $definition: String!, {declared}) {{ {calls} }}"
            variables = {"where": where.selector, "definition": definition} | {f"k{n}": key for n, key in enumerate(part)}
            for answer in self._ask(query, variables).values():
                _expect(answer, "AddDynamicPartitionSuccess", "DuplicateDynamicPartitionError")

    def launch(self, where: CodeLocation, job: str, *, tags: Mapping[str, str], config: Mapping[str, Any] | None = None) -> str:
        """Launch one run and return its id. Not safe to repeat after a time-out: look for the run by its tags first."""
        execution = {
            "selector": {"jobName": job, **where.selector},
            "runConfigData": dict(config or {}),
            "executionMetadata": {"tags": _as_tags(tags)},
        }
        answer = self._ask(_LAUNCH, {"execution": execution}, seconds=LAUNCH_TIMEOUT_SECONDS)["launchRun"]
        _expect(answer, "LaunchRunSuccess")
        return str(answer["run"]["runId"])

    def runs(self, *, tags: Mapping[str, str]) -> list[Run]:
        """Every run that carries all of ``tags``, oldest first."""
        return self._runs({"tags": _as_tags(tags)})

    def run(self, run_id: str) -> Run:
        """One run as it is now; DagsterRefusedError where it was deleted."""
        found = self._runs({"runIds": [run_id]})
        if not found:
            raise DagsterRefusedError(f"the run {run_id} does not exist any more")
        return found[0]

    @_past_dead_connections
    def _runs(self, wanted: Mapping[str, Any]) -> list[Run]:
        found: list[Run] = []
        cursor = None
        while True:
            answer = self._ask(_RUNS, {"filter": wanted, "limit": RUNS_PER_PAGE, "cursor": cursor})["runsOrError"]
            _expect(answer, "Runs")
            page = [_run(result) for result in answer["results"]]
            found += page
            if len(page) < RUNS_PER_PAGE:
                return sorted(found, key=lambda run: (run.created_at, run.run_id))
            cursor = page[-1].run_id

    @_past_dead_connections
    def failure(self, run_id: str) -> str:
        """Why the run failed, in a line or a few: the first step's own error, or what Dagster says of the run."""
        said = ""
        cursor = None
        while True:
            answer = self._ask(_FAILURE, {"run": run_id, "cursor": cursor})["logsForRun"]
            _expect(answer, "EventConnection")
            for event in answer["events"]:
                if event["__typename"] == "ExecutionStepFailureEvent":
                    return _step_error(event)
                if event["__typename"] == "RunFailureEvent":
                    said = event["message"]
            if not answer["hasMore"]:
                return said or "it ended without saying why"
            cursor = answer["cursor"]

    @_past_dead_connections
    def daemon_is_running(self) -> bool:
        """Whether the daemon that takes runs off the queue has reported lately. True where runs need no queue."""
        instance = self._ask(_DAEMONS)["instance"]
        taking = [
            d["healthy"] for d in instance["daemonHealth"]["allDaemonStatuses"] if d["daemonType"] == "QUEUED_RUN_COORDINATOR"
        ]
        return not instance["runQueuingSupported"] or any(taking)

    def report_asset_event(self, asset: Sequence[str], description: str, *, is_new_data: bool = True, seconds: float = 5.0) -> None:
        """Tell Dagster something about an asset without a run: a materialisation, or an observation where nothing of it is new.

        The mutation takes a description and no metadata. Repeating it makes a second event, so nothing does.
        """
        event = {
            "eventType": "ASSET_MATERIALIZATION" if is_new_data else "ASSET_OBSERVATION",
            "assetKey": {"path": list(asset)},
            "description": description,
        }
        answer = self._ask(_REPORT_EVENT, {"event": event}, seconds=seconds)["reportRunlessAssetEvents"]
        _expect(answer, "ReportRunlessAssetEventsSuccess")

    def run_url(self, run_id: str) -> str:
        """Where a person looks at the run."""
        return f"{self.url}/runs/{run_id}"

    def _ask(self, query: str, variables: Mapping[str, Any] | None = None, *, seconds: float = TIMEOUT_SECONDS) -> dict[str, Any]:
        try:
            response = self._http.post("/graphql", json={"query": query, "variables": variables or {}}, timeout=seconds)
        except httpx.TimeoutException:
            raise WebserverUnreachableError(f"the Dagster webserver at {self.url} did not answer in {seconds:g} s") from None
        except httpx.TransportError as down:
            reason = str(down) or type(down).__name__
            raise WebserverUnreachableError(
                f"no Dagster webserver answers at {self.url} ({reason}): start it with `mdp up`, or set MDP_DAGSTER_URL"
            ) from None
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict) or ("data" not in body and "errors" not in body):
            raise WebserverUnreachableError(
                f"what answers at {self.url} is no Dagster webserver (HTTP {response.status_code}): check MDP_DAGSTER_URL"
            )
        if body.get("errors"):
            said = body["errors"][0].get("message", "an error without a message")
            raise _refusal(f"the webserver at {self.url}: {said}")
        data: dict[str, Any] = body["data"]
        return data


def _as_tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def _expect(answer: Mapping[str, Any], *names: str) -> None:
    """Raise what Dagster said where its answer is none of ``names``: each of its errors is another GraphQL type."""
    if answer["__typename"] in names:
        return
    said = answer.get("message") or "; ".join(error["message"] for error in answer.get("errors", ()))
    raise _refusal(f"Dagster refused: {said or answer['__typename']}")


def _run(result: Mapping[str, Any]) -> Run:
    return Run(
        run_id=result["runId"],
        job=result["jobName"],
        status=RunStatus(result["status"]),
        tags={tag["key"]: tag["value"] for tag in result["tags"]},
        created_at=result["creationTime"],
        materialized=result["stats"].get("materializations", 0),
    )


def _step_error(event: Mapping[str, Any]) -> str:
    """The deepest cause: Dagster wraps what our code raised in an error of its own."""
    if event["failureMetadata"] and event["failureMetadata"]["description"]:
        return str(event["failureMetadata"]["description"])
    error = event["error"] or {"message": "step failed", "causes": ()}
    causes = [error, *error["causes"]]
    return str(causes[-1]["message"]).strip()


_REPOSITORIES = """
query Repositories {
  repositoriesOrError { __typename ... on RepositoryConnection { nodes { name location { name } jobs { name } } } }
  workspaceOrError {
    ... on Workspace { locationEntries { name locationOrLoadError { __typename ... on PythonError { message } } } }
  }
}"""

_RELOAD = """
mutation Reload($name: String!) {
  reloadRepositoryLocation(repositoryLocationName: $name) {
    __typename
    ... on Error { message }
    ... on UnauthorizedError { message }
  }
}"""

_PARTITION_KEYS = """
query PartitionKeys($path: [String!]!) {
  assetNodeOrError(assetKey: {path: $path}) {
    __typename
    ... on AssetNode { partitionKeysByDimension { name partitionKeys } }
    ... on AssetNotFoundError { message }
  }
}"""

_LAUNCH = """
mutation Launch($execution: ExecutionParams!) {
  launchRun(executionParams: $execution) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on Error { message }
  }
}"""

_RUNS = """
query Runs($filter: RunsFilter!, $limit: Int!, $cursor: String) {
  runsOrError(filter: $filter, limit: $limit, cursor: $cursor) {
    __typename
    ... on Runs {
      results {
        runId jobName status creationTime
        tags { key value }
        stats { ... on RunStatsSnapshot { materializations } }
      }
    }
    ... on Error { message }
  }
}"""

_FAILURE = """
query Failure($run: ID!, $cursor: String) {
  logsForRun(runId: $run, afterCursor: $cursor) {
    __typename
    ... on Error { message }
    ... on EventConnection {
      cursor hasMore
      events {
        __typename
        ... on RunFailureEvent { message }
        ... on ExecutionStepFailureEvent {
          error { message causes { message } }
          failureMetadata { description }
        }
      }
    }
  }
}"""

_REPORT_EVENT = """
mutation Report($event: ReportRunlessAssetEventsParams!) {
  reportRunlessAssetEvents(eventParams: $event) {
    __typename
    ... on Error { message }
    ... on UnauthorizedError { message }
  }
}"""

_DAEMONS = """
query Daemons {
  instance { runQueuingSupported daemonHealth { allDaemonStatuses { daemonType healthy } } }
}"""
