"""Start the simulator as the process it is, and talk to its control plane: for the demo, the tests and the benchmarks."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import orjson

from market_data_pipeline.domain.errors import InvalidInputError, UnavailableError
from market_data_pipeline.simulator.vendor import PREMIUM
from market_data_pipeline.simulator.vendors import VENDORS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

STOP_SECONDS = 10.0


def variables(urls: Mapping[str, str], control: str, *, plan: str) -> dict[str, str]:
    """The MDP_* variables that make the pipeline live on the simulator at these URLs, with made-up keys of ``plan``."""
    told = {"MDP_CLOCK": control}
    for vendor in VENDORS:
        told |= vendor.variables(urls[vendor.name], plan)
    return told


@dataclass(frozen=True, slots=True)
class RunningSimulator:
    """A simulator that answers. ``urls``: the base URL of each vendor; methods speak to the control plane."""

    urls: Mapping[str, str]
    control: str
    process: subprocess.Popen[bytes]
    _http: httpx.Client

    @property
    def yahoo(self) -> str:
        """Yahoo's base URL."""
        return self.urls["yahoo"]

    def environment(self, *, plan: str = PREMIUM) -> dict[str, str]:
        """The MDP_* variables of a pipeline that lives here: the clock, every base URL, made-up keys of accounts with ``plan``."""
        return variables(self.urls, self.control, plan=plan)

    def limits(self) -> list[dict[str, Any]]:
        """What each account has used: ``{provider, account, requests, refused, limits: [{limit, allowed, most}]}``."""
        report: list[dict[str, Any]] = self._call("GET", "/__sim/limits")
        return report

    def set_limits(self, text: str) -> None:
        """Other limits, as MDP_LIMITS spells them; counts begin anew."""
        self._call("POST", "/__sim/limits", text)

    def over_limit(self) -> int:
        """How many requests were refused because their account had asked too often."""
        return sum(account["refused"] for account in self.limits())

    def requests(self, *, since: int = 0) -> list[dict[str, Any]]:
        """The data plane's requests so far, oldest first; after the one numbered ``since``."""
        log: list[dict[str, Any]] = self._call("GET", f"/__sim/requests?since={since}")
        return log

    def forget_requests(self) -> None:
        """Empty the log and leave everything else alone."""
        self._call("DELETE", "/__sim/requests")

    def now(self) -> datetime:
        """The virtual time."""
        return datetime.fromisoformat(self._call("GET", "/__sim/clock")["now"])

    def set_now(self, now: datetime, *, speed: float | None = None) -> None:
        """Move the virtual clock; its speed stays unless given."""
        self._call("POST", "/__sim/clock", {"now": now.isoformat()} | ({} if speed is None else {"speed": speed}))

    def set_faults(self, rules: Sequence[Mapping[str, Any]]) -> None:
        """Replace the fault rules; their counts begin anew."""
        self._call("POST", "/__sim/faults", list(rules))

    def reset(self) -> None:
        """As it was started: clock, faults, counts; the log is empty."""
        self._call("POST", "/__sim/reset")

    def _call(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
        reply = self._http.request(method, path, content=None if body is None else orjson.dumps(body))
        answer = orjson.loads(reply.content)
        if reply.status_code == 400:
            raise InvalidInputError(answer["error"])
        reply.raise_for_status()
        return answer


@contextlib.contextmanager
def running_simulator(
    *,
    data: Path,
    now: datetime,
    seed: int = 7,
    speed: float = 0.0,
    faults: Path | Sequence[Mapping[str, Any]] | None = None,
    limits: str = "",
    port: int = 0,
    control_port: int = 0,
) -> Iterator[RunningSimulator]:
    """`mdp simulate` in a process of its own, ready to answer, ended with the block.

    By default its clock stands still at ``now``. ``faults``: a file, or the rules themselves. ``limits``: in place of the
    documented ones, as MDP_LIMITS spells them. Where it does not start, UnavailableError or InvalidInputError says what it said.
    """
    with tempfile.TemporaryDirectory(prefix="mdp-simulator-") as folder:
        if faults is not None and not isinstance(faults, Path):
            faults = _written(Path(folder) / "faults.json", list(faults))
        arguments = ["--data", str(data), "--now", now.isoformat(), "--seed", str(seed), "--speed", str(speed)]
        arguments += ["--port", str(port), "--control-port", str(control_port)]
        arguments += ["--limits", limits] if limits else []
        arguments += [] if faults is None else ["--faults", str(faults)]
        complaints = Path(folder) / "stderr"
        with complaints.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "market_data_pipeline.cli.main", "simulate", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        try:
            urls = _ready_line(process, complaints)
            with httpx.Client(base_url=urls["control"], timeout=30.0, trust_env=False) as http:
                control = urls.pop("control")
                yield RunningSimulator(urls=urls, control=control, process=process, _http=http)
        finally:
            _stop(process)


def _written(path: Path, value: object) -> Path:
    path.write_bytes(orjson.dumps(value, default=str))
    return path


def _ready_line(process: subprocess.Popen[bytes], complaints: Path) -> dict[str, str]:
    """The line of URLs that it prints once it answers: reading a pipe waits for exactly that, or for its end."""
    line = b"" if process.stdout is None else process.stdout.readline()
    if line:
        urls: dict[str, str] = orjson.loads(line)
        return urls
    code = process.wait()
    said = complaints.read_text(encoding="utf-8", errors="replace").strip()
    error = InvalidInputError if code == 2 else UnavailableError
    raise error(f"the simulator did not start (exit code {code}): {said}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
