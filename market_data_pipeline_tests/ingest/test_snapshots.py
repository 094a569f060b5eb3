"""Quotes, chains and series on their way in: who is asked next, what is stored of whom, and what is said where nobody answers."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from market_data_pipeline.domain.capabilities import MACRO, OPTIONS_CHAIN, QUOTES_L1, Capability, Feed, Lane, Priority
from market_data_pipeline.domain.errors import (
    BarrenError,
    InvalidInputError,
    NoProviderAvailableError,
    PayloadError,
    ProviderError,
    TransientError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.ports import ChainAnswer, Fetch, MacroAnswer, Observation, OptionQuote, Quote, QuotesAnswer
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.ingest.routing import Router
from market_data_pipeline.ingest.snapshots import QuotesReport, fetch_chain, fetch_macro, fetch_quotes
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.macro import MacroStore
from market_data_pipeline.storage.options import OptionStore
from market_data_pipeline.storage.quotes import QuoteStore
from market_data_pipeline.wiring import open_pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.capabilities import RateLimit
    from market_data_pipeline.domain.ports import Provider
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline

NOW = datetime(2024, 12, 2, 18, tzinfo=UTC)
FRIDAY = date(2024, 12, 6)
CALL = OptionQuote("C1", "AAPL", FRIDAY, 240.0, "C", 1.5, 1.6, 1.55, NOW, 10.0, 100.0)


@dataclass
class Vendor:
    """A vendor that answers from memory. ``failing``: what it raises instead; ``batch``: symbols it takes in one request."""

    name: str
    bids: Mapping[str, float] = field(default_factory=dict)
    chain: Sequence[OptionQuote] = ()
    values: Mapping[date, float] = field(default_factory=dict)
    failing: ProviderError | None = None
    batch: int = 50
    feed: Feed = Feed.CONSOLIDATED
    account: str = ""
    lacking: str | None = None
    probe_symbol: str = "AAPL"
    asked: list[tuple[object, ...]] = field(default_factory=list)
    limits: Sequence[RateLimit] = ()

    @property
    def capabilities(self) -> Sequence[Capability]:
        quotes = Capability(name=QUOTES_L1, symbols_per_request=self.batch, feed=self.feed)
        return (quotes, Capability(name=OPTIONS_CHAIN), Capability(name=MACRO))

    def _fetch(self, capability: str, symbol: str, rows: int) -> Fetch:
        fetch = Fetch(self.name, symbol, None, f"GET {symbol}", NOW, 0.01, "ok", rows=rows, capability=capability)
        if self.failing is not None:
            self.failing.fetch = replace(fetch, outcome=self.failing.kind, error=str(self.failing))
            raise self.failing
        return fetch

    def fetch_quotes(self, symbols: Sequence[str], *, priority: Priority, now: datetime) -> QuotesAnswer:
        self.asked.append((tuple(symbols), priority))
        quotes = [Quote(s, self.bids[s], None, None, None, None, None, now) for s in symbols if s in self.bids]
        return QuotesAnswer(self._fetch(QUOTES_L1, ",".join(symbols), len(quotes)), quotes)

    def fetch_chain(self, symbol: str, *, expiry: date | None, priority: Priority, now: datetime) -> ChainAnswer:
        self.asked.append((symbol, expiry, priority))
        return ChainAnswer(self._fetch(OPTIONS_CHAIN, symbol, len(self.chain)), symbol, now, 239.5, self.chain, complete=True)

    def fetch_observations(
        self,
        series: str,
        *,
        first: date | None,  # noqa: ARG002 - the signature of the port
        last: date | None,  # noqa: ARG002
        vintages: bool,
        priority: Priority,
        now: datetime,
    ) -> MacroAnswer:
        self.asked.append((series, vintages, priority))
        observations = [Observation(day, value, now.date(), now.date()) for day, value in self.values.items()]
        return MacroAnswer(self._fetch(MACRO, series, len(observations)), series, observations, units="Percent")


@dataclass(frozen=True)
class Desk:
    """A pipeline with vendors of our own, asked in the order given."""

    pipeline: Pipeline

    def load(self, *symbols: str, tier: Tier = Tier.T0, **aliases: str) -> list[Instrument]:
        entries = [UniverseEntry(symbol, "XNAS", tier, aliases=aliases) for symbol in symbols]
        tag = "-".join(symbols)
        self.pipeline.universe.load(entries, version_tag=tag, source="t", source_sha256="0" * 64, loaded_by="t")
        return self.pipeline.universe.instruments(symbols=symbols)

    def quotes(self, instruments: Sequence[Instrument], hint: str | None = None) -> list[QuotesReport]:
        return list(fetch_quotes(instruments, pipeline=self.pipeline, hint=hint, run_id="run-1"))

    def stored(self, instruments: Sequence[Instrument]) -> dict[str, tuple[str, float | None]]:
        found = QuoteStore(self.pipeline.engine).latest([i.symbol_id for i in instruments])
        return {s.quote.symbol: (s.provider, s.quote.bid) for s in found}

    def outcomes(self) -> list[tuple[str, str, str]]:
        """(provider, outcome, run) of every fetch recorded, oldest first."""
        with self.pipeline.engine.connect() as connection:
            rows = connection.exec_driver_sql("select provider, outcome, run_id from fetches order by fetch_id")
            return [(row.provider, row.outcome, row.run_id) for row in rows]


@contextmanager
def desk(database_url: str, home: Path, *vendors: Vendor) -> Iterator[Desk]:
    names = ",".join(vendor.name for vendor in vendors)
    policies = {"policy_quotes_l1": names, "policy_options_chain": names, "policy_macro": names}
    settings = Settings(home=home, database_url=SecretStr(database_url), clock=NOW.isoformat())
    with open_pipeline(settings) as pipeline:
        told = settings.model_copy(update=policies)
        by_name: dict[str, Provider] = {vendor.name: vendor for vendor in vendors}
        router = Router(told, by_name, pipeline.health)
        yield Desk(replace(pipeline, settings=told, providers=by_name, router=router))


def transient(name: str) -> TransientError:
    return TransientError("the line was busy", provider=name)


# --- quotes ------------------------------------------------------------------------------------------------------------


def test_quotes_are_stored_with_who_said_them(database_url: str, tmp_path: Path) -> None:
    with desk(database_url, tmp_path, Vendor("a", {"AAPL": 1.0, "MSFT": 2.0}, feed=Feed.IEX)) as at:
        both = at.load("AAPL", "MSFT")
        (report,) = at.quotes(both)
        assert at.stored(both) == {"AAPL": ("a", 1.0), "MSFT": ("a", 2.0)}
        assert (report.providers, report.failures, report.inserted, report.unchanged) == ({"AAPL": "a", "MSFT": "a"}, {}, 2, 0)
        assert at.outcomes() == [("a", "ok", "run-1")]
        assert QuoteStore(at.pipeline.engine).latest([both[0].symbol_id])[0].feed is Feed.IEX
        assert [r.unchanged for r in at.quotes(both)] == [2]


def test_what_one_provider_does_not_know_the_next_is_asked(database_url: str, tmp_path: Path) -> None:
    first, second = Vendor("a", {"AAPL": 1.0}), Vendor("b", {"AAPL": 9.0, "MSFT": 2.0})
    with desk(database_url, tmp_path, first, second) as at:
        both = at.load("AAPL", "MSFT")
        (report,) = at.quotes(both)
        assert at.stored(both) == {"AAPL": ("a", 1.0), "MSFT": ("b", 2.0)}
        assert report.providers == {"AAPL": "a", "MSFT": "b"}
        assert [symbols for symbols, _ in second.asked] == [("MSFT",)]
        # Both answers, each once.
        assert at.outcomes() == [("a", "ok", "run-1"), ("b", "ok", "run-1")]


def test_what_is_refused_of_one_answer_is_asked_of_the_next_and_kept(database_url: str, tmp_path: Path) -> None:
    with desk(database_url, tmp_path, Vendor("a", {"AAPL": -1.0}), Vendor("b", {"AAPL": 2.0})) as at:
        apple = at.load("AAPL")
        (report,) = at.quotes(apple)
        assert (at.stored(apple), report.refused) == ({"AAPL": ("b", 2.0)}, 1)


def test_a_failure_is_recorded_and_the_next_is_asked(database_url: str, tmp_path: Path) -> None:
    with desk(database_url, tmp_path, Vendor("a", failing=transient("a")), Vendor("b", {"AAPL": 2.0})) as at:
        apple = at.load("AAPL")
        (report,) = at.quotes(apple)
        assert at.stored(apple) == {"AAPL": ("b", 2.0)}
        assert report.requests == 2
        assert sorted(at.outcomes()) == [("a", "transient", "run-1"), ("b", "ok", "run-1")]


def test_where_nobody_answers_the_report_says_who_said_what(database_url: str, tmp_path: Path) -> None:
    with desk(database_url, tmp_path, Vendor("a", failing=transient("a")), Vendor("b")) as at:
        (report,) = at.quotes(at.load("AAPL"))
        assert report.failures == {"AAPL": "a: the line was busy; b: no quote of AAPL"}
        assert report.providers == {}


def test_providers_are_asked_by_their_own_names(database_url: str, tmp_path: Path) -> None:
    vendor = Vendor("a", {"BRK-B": 480.0})
    with desk(database_url, tmp_path, vendor) as at:
        berkshire = at.load("BRK.B", a="BRK-B")
        (report,) = at.quotes(berkshire)
        assert (at.stored(berkshire), report.providers) == ({"BRK.B": ("a", 480.0)}, {"BRK.B": "a"})


def test_batches_are_as_large_as_the_provider_takes_and_t0_comes_first(database_url: str, tmp_path: Path) -> None:
    vendor = Vendor("a", {f"S{n}": 1.0 for n in range(5)}, batch=2)
    with desk(database_url, tmp_path, vendor) as at:
        second = at.load("S0", "S1", tier=Tier.T1)
        first = at.load("S2", "S3", "S4")
        reports = at.quotes([*second, *first])
        assert [r.symbols for r in reports] == [["S2", "S3"], ["S4"], ["S0", "S1"]]
        assert {p for _, p in vendor.asked} == {Priority(Lane.LIVE, "T0"), Priority(Lane.LIVE, "T1")}


def test_a_provider_that_takes_fewer_is_asked_in_parts(database_url: str, tmp_path: Path) -> None:
    narrow = Vendor("b", {"AAPL": 1.0, "MSFT": 2.0}, batch=1)
    with desk(database_url, tmp_path, Vendor("a", failing=transient("a")), narrow) as at:
        both = at.load("AAPL", "MSFT")
        (report,) = at.quotes(both)
        assert report.inserted == 2
        assert [symbols for symbols, _ in narrow.asked] == [("AAPL",), ("MSFT",)]


def test_the_provider_hinted_at_is_asked_first(database_url: str, tmp_path: Path) -> None:
    with desk(database_url, tmp_path, Vendor("a", {"AAPL": 1.0}), Vendor("b", {"AAPL": 2.0})) as at:
        apple = at.load("AAPL")
        at.quotes(apple, hint="b")
        assert at.stored(apple) == {"AAPL": ("b", 2.0)}
        with pytest.raises(InvalidInputError, match="no provider is called 'c'"):
            at.quotes(apple, hint="c")


def test_where_nobody_can_be_asked_that_is_an_error(database_url: str, tmp_path: Path) -> None:
    with desk(database_url, tmp_path, Vendor("a", lacking="MDP_A_KEY is not set")) as at:
        apple = at.load("AAPL")
        with pytest.raises(NoProviderAvailableError, match="a: MDP_A_KEY is not set"):
            at.quotes(apple)


# --- chains ------------------------------------------------------------------------------------------------------------


def test_a_chain_is_stored_as_one_snapshot(database_url: str, tmp_path: Path) -> None:
    vendor = Vendor("a", chain=[CALL, replace(CALL, contract="C2", right="X")])
    with desk(database_url, tmp_path, vendor) as at:
        (apple,) = at.load("AAPL", tier=Tier.T1)
        report = fetch_chain(apple, expiry=FRIDAY, pipeline=at.pipeline, run_id="run-1")
        stored = OptionStore(at.pipeline.engine).snapshot(report.written.snapshot_id)
        assert [contract for contract, _ in stored.contracts] == [CALL]
        assert (report.provider, report.written.contracts, report.written.refused, report.is_complete) == ("a", 1, 1, True)
        assert vendor.asked == [("AAPL", FRIDAY, Priority(Lane.LIVE, "T1"))]


def test_an_empty_chain_is_believed_unless_there_were_contracts_before(database_url: str, tmp_path: Path) -> None:
    vendor = Vendor("a")
    with desk(database_url, tmp_path, vendor) as at:
        (apple,) = at.load("AAPL")
        assert fetch_chain(apple, pipeline=at.pipeline).written.contracts == 0
        vendor.chain = [CALL]
        assert fetch_chain(apple, pipeline=at.pipeline).written.contracts == 1
        vendor.chain = []
        with pytest.raises(BarrenError, match="no contract; the snapshot before had 1"):
            fetch_chain(apple, pipeline=at.pipeline)
        assert [outcome for _, outcome, _ in at.outcomes()] == ["ok", "ok", "barren"]


def test_another_providers_chain_is_taken_where_the_first_is_of_another_underlying(database_url: str, tmp_path: Path) -> None:
    class Confused(Vendor):
        def fetch_chain(self, symbol: str, *, expiry: date | None, priority: Priority, now: datetime) -> ChainAnswer:
            return replace(super().fetch_chain(symbol, expiry=expiry, priority=priority, now=now), symbol="MSFT")

    with desk(database_url, tmp_path, Confused("a", chain=[CALL]), Vendor("b", chain=[CALL])) as at:
        (apple,) = at.load("AAPL")
        assert fetch_chain(apple, pipeline=at.pipeline).provider == "b"
        assert [(name, outcome) for name, outcome, _ in at.outcomes()] == [("a", "malformed"), ("b", "ok")]


def test_the_last_error_is_raised_where_nobody_has_a_chain(database_url: str, tmp_path: Path) -> None:
    unknown = UnknownSymbolError("never heard of it", provider="b")
    with desk(database_url, tmp_path, Vendor("a", failing=transient("a")), Vendor("b", failing=unknown)) as at:
        (apple,) = at.load("AAPL")
        with pytest.raises(UnknownSymbolError, match="never heard of it"):
            fetch_chain(apple, pipeline=at.pipeline)


# --- economic series ---------------------------------------------------------------------------------------------------


def test_a_series_is_stored_and_described(database_url: str, tmp_path: Path) -> None:
    vendor = Vendor("a", values={date(2024, 10, 1): 4.1, date(2024, 11, 1): 4.2})
    with desk(database_url, tmp_path, vendor) as at:
        report = fetch_macro("UNRATE", pipeline=at.pipeline)
        store = MacroStore(at.pipeline.engine)
        assert [s.observation.value for s in store.read("UNRATE")] == [4.1, 4.2]
        assert [d.units for d in store.described("UNRATE")] == ["Percent"]
        assert (report.observations, report.written.changed, report.has_vintages) == (2, 2, False)
        again = fetch_macro("UNRATE", vintages=True, pipeline=at.pipeline)
        assert (again.written.changed, again.written.unchanged) == (0, 2)
        assert [asked[:2] for asked in vendor.asked] == [("UNRATE", False), ("UNRATE", True)]


def test_another_series_than_asked_for_is_malformed(database_url: str, tmp_path: Path) -> None:
    class Confused(Vendor):
        def fetch_observations(
            self, series: str, *, first: date | None, last: date | None, vintages: bool, priority: Priority, now: datetime
        ) -> MacroAnswer:
            answer = super().fetch_observations(series, first=first, last=last, vintages=vintages, priority=priority, now=now)
            return replace(answer, series="GDP")

    with desk(database_url, tmp_path, Confused("a")) as at:
        with pytest.raises(PayloadError, match="asked for UNRATE, answered with 'GDP'"):
            fetch_macro("UNRATE", pipeline=at.pipeline)
        assert [outcome for _, outcome, _ in at.outcomes()] == ["malformed"]
        assert MacroStore(at.pipeline.engine).read("UNRATE") == []
