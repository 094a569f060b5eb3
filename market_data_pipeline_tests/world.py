"""A small real world for tests: a data directory, a simulator process on it, a database, and the pipeline wired to both."""

from __future__ import annotations

import csv
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.sessions import trading_calendar
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.ingest.candles import ingest_candles
from market_data_pipeline.ingest.report import Stretch, StretchReport
from market_data_pipeline.settings import Settings
from market_data_pipeline.simulator.client import RunningSimulator, running_simulator
from market_data_pipeline.simulator.vendor import PREMIUM
from market_data_pipeline.simulator.vendors import VENDORS
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline

UNLIMITED = ";".join(f"{vendor.name}=none" for vendor in VENDORS)
MONDAY, FRIDAY = date(2024, 12, 2), date(2024, 12, 6)
SATURDAY = datetime(2024, 12, 7, 12, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class World:
    """Everything a test touches. ``settings`` are those of any process that should live in this world."""

    settings: Settings
    simulator: RunningSimulator
    pipeline: Pipeline

    def load(self, *symbols: str, exchange: str = "XNAS", **values: Any) -> list[Instrument]:  # noqa: ANN401 - entry fields
        """Put symbols into the universe."""
        entries = [UniverseEntry(symbol, exchange, Tier.T0, **values) for symbol in symbols]
        tag = f"test-{'-'.join(symbols)}"
        self.pipeline.universe.load(entries, version_tag=tag, source="test", source_sha256="0" * 64, loaded_by="test")
        return self.pipeline.universe.instruments(symbols=symbols)

    def ingest(
        self,
        instruments: Sequence[Instrument],
        interval: Interval = Interval.M1,
        first: date = MONDAY,
        last: date = FRIDAY,
        *,
        refetch: bool = False,
    ) -> list[StretchReport]:
        """Run the use-case over whole ranges."""
        stretches = [Stretch(instrument, first, last) for instrument in instruments]
        return list(ingest_candles(stretches, interval, pipeline=self.pipeline, refetch=refetch))

    def stored(
        self, instrument: Instrument, interval: Interval = Interval.M1, *, as_of: datetime | None = None
    ) -> dict[int, float]:
        """Close by opened_at of everything stored (known at ``as_of``)."""
        read = self.pipeline.reader.read([instrument.symbol_id], interval, 0, 1 << 33, as_of=as_of)
        return dict(zip(read.columns.opened_at.tolist(), read.columns.close.tolist(), strict=True))

    def count(self, table: str) -> int:
        """Rows in a table of ours."""
        with self.pipeline.engine.connect() as connection:
            return int(connection.exec_driver_sql(f"select count(*) from {table}").scalar_one())  # noqa: S608 - names from tests


@contextmanager
def a_world(
    data: Path,
    database_url: str,
    home: Path,
    *,
    now: datetime = SATURDAY,
    faults: Sequence[Mapping[str, Any]] = (),
    vendors: Sequence[str] = ("yahoo",),
    plan: str = PREMIUM,
    simulated_limits: str = UNLIMITED,
    **settings: Any,  # noqa: ANN401
) -> Iterator[World]:
    """Start a simulator on ``data`` and wire a pipeline to it. HTTP retries do not wait, nobody limits anybody.

    ``vendors``: who has a key (of an account with ``plan``) and stands in the policies, in this order; nobody else is asked.
    Limits where a test is about them: ``limits`` are ours, ``simulated_limits`` theirs, "" for the documented ones.
    """
    with running_simulator(data=data, now=now, faults=list(faults), limits=simulated_limits) as simulator:
        told = settings_in(simulator, vendors=vendors, plan=plan, home=home, database_url=SecretStr(database_url), **settings)
        with open_pipeline(told) as pipeline:
            yield World(told, simulator, pipeline)


@dataclass(frozen=True, slots=True)
class Worlds:
    """Pipelines on one running simulator and one database: what a module with many tests opens, each with the vendors it names."""

    simulator: RunningSimulator
    database_url: str
    home: Path

    @contextmanager
    def of(self, *vendors: str, **settings: Any) -> Iterator[World]:  # noqa: ANN401 - fields of Settings
        """A pipeline with these vendors, in this order; ``settings`` as in ``a_world``."""
        told = settings_in(self.simulator, vendors=vendors, home=self.home, database_url=SecretStr(self.database_url), **settings)
        with open_pipeline(told) as pipeline:
            yield World(told, self.simulator, pipeline)

    def asked(self) -> Counter[str]:
        """HTTP requests by provider since the last look."""
        counted = Counter(request["provider"] for request in self.simulator.requests())
        self.simulator.forget_requests()
        return counted


def settings_in(
    simulator: RunningSimulator,
    *,
    vendors: Sequence[str] = ("yahoo",),
    plan: str = PREMIUM,
    **settings: Any,  # noqa: ANN401 - fields of Settings
) -> Settings:
    """The settings of a pipeline that lives on ``simulator``, as ``a_world`` describes them; ``settings`` have the last word."""
    told: dict[str, Any] = {
        "clock": simulator.control,
        "limits": UNLIMITED,
        "http_backoff_seconds": 0.0,
        "http_timeout_seconds": 3.0,
    }
    for vendor in VENDORS:
        variables = vendor.variables(simulator.urls[vendor.name], plan)
        known = vendor.name in vendors
        told |= {name.removeprefix("MDP_").lower(): value for name, value in variables.items() if known or name.endswith("_URL")}
    for name, field in Settings.model_fields.items():
        if name.startswith("policy_"):
            serving = set(str(field.default).split(","))
            told[name] = ",".join(vendor for vendor in vendors if vendor in serving) or field.default
    return Settings(**{**told, **settings})


def write_bars(
    data: Path,
    symbol: str,
    interval: Interval,
    opened_at: Sequence[int],
    *,
    close: float = 11.0,
    known_from: datetime | None = None,
) -> None:
    """Add lawful bars to a data file; the close of bar n is ``close`` + n / 100. ``known_from``: when the provider learned them."""
    folder = data / interval
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{symbol}.csv"
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            label = "session_date" if interval.is_daily else "opened_at"
            writer.writerow([label, "open", "high", "low", "close", "volume", "known_from"])
        since = "" if known_from is None else known_from.isoformat()
        for place, at in enumerate(opened_at):
            price = close + place / 100
            stamp = datetime.fromtimestamp(at, UTC)
            named = stamp.date().isoformat() if interval.is_daily else stamp.isoformat()
            writer.writerow([named, price - 0.5, price + 1, price - 1, price, 100 + place, since])


def withdraw_bar(data: Path, symbol: str, interval: Interval, opened_at: int, *, known_from: datetime) -> None:
    """From ``known_from`` on the provider no longer has this bar."""
    with (data / interval / f"{symbol}.csv").open("a", newline="") as file:
        csv.writer(file).writerow([datetime.fromtimestamp(opened_at, UTC).isoformat(), "", "", "", "", "", known_from.isoformat()])


def expected_opens(
    interval: Interval = Interval.M1, first: date = MONDAY, last: date = FRIDAY, calendar: str = "XNYS"
) -> list[int]:
    """The grid, as epoch seconds."""
    opens: list[int] = trading_calendar(calendar).expected_opens(interval, first, last).opened_at.tolist()
    return opens
