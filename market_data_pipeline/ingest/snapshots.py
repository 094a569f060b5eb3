"""Quotes, option chains and economic series: asked of whoever can answer, judged, stored and reported. Bars are candles.py's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar, cast

from market_data_pipeline.domain.capabilities import HISTORY, MACRO, OPTIONS_CHAIN, QUOTES_L1, Lane, Priority
from market_data_pipeline.domain.errors import (
    BarrenError,
    NoProviderAvailableError,
    PayloadError,
    ProviderError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.snapshots import judge_chain, judge_quotes
from market_data_pipeline.domain.tracing import in_its_own_context
from market_data_pipeline.observability.logs import bound
from market_data_pipeline.storage.fetches import FetchStore
from market_data_pipeline.storage.macro import MacroStore
from market_data_pipeline.storage.options import OptionStore
from market_data_pipeline.storage.quotes import QuoteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import date, datetime

    from market_data_pipeline.domain.capabilities import Capability
    from market_data_pipeline.domain.ports import (
        ChainProvider,
        Fetch,
        MacroAnswer,
        MacroProvider,
        Provider,
        QuotesAnswer,
        QuotesProvider,
    )
    from market_data_pipeline.domain.snapshots import JudgedChain, JudgedQuotes
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.ingest.routing import Answered
    from market_data_pipeline.storage.macro import MacroWritten
    from market_data_pipeline.storage.options import ChainWritten
    from market_data_pipeline.storage.quotes import QuotesWritten

    A = TypeVar("A", bound=Answered)


@dataclass(frozen=True, slots=True)
class QuotesReport:
    """What came of a few symbols that were asked for together, by our names of them.

    ``providers``: who quoted each symbol, whether or not that was news. ``failures``: why the others have no quote, in the words of
    those who were asked. ``refused`` counts records that were kept in refused_records.
    """

    symbols: Sequence[str]
    providers: Mapping[str, str]
    failures: Mapping[str, str]
    inserted: int = 0
    unchanged: int = 0
    refused: int = 0
    requests: int = 0


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What came of one chain."""

    symbol: str
    provider: str
    taken_at: datetime
    is_complete: bool
    written: ChainWritten
    requests: int


@dataclass(frozen=True, slots=True)
class MacroReport:
    """What came of one series. ``has_vintages`` False: only its current values came, whatever was asked for."""

    series: str
    provider: str
    has_vintages: bool
    observations: int
    written: MacroWritten
    requests: int


@in_its_own_context
def fetch_quotes(
    instruments: Sequence[Instrument], *, pipeline: Pipeline, hint: str | None = None, run_id: str | None = None
) -> Iterator[QuotesReport]:
    """Quote the instruments, T0 first, and report each batch once it is stored; batches are as large as the first provider takes.

    What one provider does not know or what is refused of its answer is asked of the next. A batch that nobody answers is a report
    of failures. Raises NoProviderAvailableError where nobody can be asked for quotes at all.
    """
    batches = list(_batches(instruments, pipeline, hint))
    with (
        bound(run_id=run_id),
        pipeline.tracer.span("quotes", symbols=len(instruments), run_id=run_id or ""),
        ThreadPoolExecutor(pipeline.settings.requests_in_flight, thread_name_prefix="quotes") as pool,
    ):
        around = copy_context()
        # Asked in threads, stored here: a slow provider holds no connection of the database.
        somebody = False
        for heard in pool.map(lambda batch: around.copy().run(_hear_quotes, batch, pipeline, hint, run_id), batches):
            somebody = somebody or heard.nobody is None
            if heard.nobody is not None and not somebody:
                raise heard.nobody
            yield _store_quotes(heard, pipeline, run_id)


def fetch_chain(
    instrument: Instrument, *, expiry: date | None = None, pipeline: Pipeline, hint: str | None = None, run_id: str | None = None
) -> ChainReport:
    """Fetch and store the chain of one underlying; ``expiry`` None: every expiry.

    A chain without contracts is stored as such, unless the last one had some: then it is barren, and the next provider is asked.
    Raises the last ProviderError where nobody had an answer and NoProviderAvailableError where nobody could be asked.
    """
    now = pipeline.clock.now()
    store = OptionStore(pipeline.engine)
    before = store.latest(instrument.symbol_id, expiry=expiry)
    stale_after = pipeline.settings.quote_stale_seconds

    def call(provider: Provider) -> JudgedChain:
        name = instrument.name_at(provider.name)
        answer = cast("ChainProvider", provider).fetch_chain(
            name, expiry=expiry, priority=Priority(Lane.LIVE, instrument.tier), now=now
        )
        delay = timedelta(seconds=stale_after + _served(provider, OPTIONS_CHAIN).delay_seconds)
        try:
            judged = judge_chain(answer, asked=name, expiry=expiry, now=now, stale_after=delay)
            if not judged.contracts and before is not None and before.contracts:
                had = len(before.contracts)
                raise BarrenError(f"{name}: no contract; the snapshot before had {had:,}", provider=provider.name)  # noqa: TRY301
        except (PayloadError, BarrenError) as refused:
            refused.fetch = replace(answer.fetch, outcome=refused.kind, error=str(refused))
            raise
        return judged

    judged = _asked(OPTIONS_CHAIN, call, pipeline, now=now, hint=hint, run_id=run_id, symbol_id=instrument.symbol_id)
    written = store.record(judged, instrument.symbol_id, known_at=pipeline.known_at(now), run_id=run_id)
    return ChainReport(
        symbol=instrument.symbol,
        provider=judged.fetch.provider,
        taken_at=judged.taken_at,
        is_complete=judged.is_complete,
        written=written,
        requests=judged.fetch.attempts,
    )


def fetch_macro(
    series: str,
    *,
    first: date | None = None,
    last: date | None = None,
    vintages: bool = False,
    pipeline: Pipeline,
    hint: str | None = None,
    run_id: str | None = None,
) -> MacroReport:
    """Fetch and store the observations of one series from ``first`` to ``last``; ``vintages``: everything ever published of them.

    Raises as ``fetch_chain`` does.
    """
    now = pipeline.clock.now()

    def call(provider: Provider) -> MacroAnswer:
        answer = cast("MacroProvider", provider).fetch_observations(
            series, first=first, last=last, vintages=vintages, priority=HISTORY, now=now
        )
        if answer.series != series:
            wrong = PayloadError(f"asked for {series}, answered with {answer.series!r}", provider=provider.name)
            wrong.fetch = replace(answer.fetch, outcome=wrong.kind, error=str(wrong))
            raise wrong
        return answer

    answer = _asked(MACRO, call, pipeline, now=now, hint=hint, run_id=run_id)
    written = MacroStore(pipeline.engine).record(answer, known_at=pipeline.known_at(now), run_id=run_id)
    return MacroReport(
        series=series,
        provider=answer.fetch.provider,
        has_vintages=answer.has_vintages,
        observations=len(answer.observations),
        written=written,
        requests=answer.fetch.attempts,
    )


def _asked(
    capability: str,
    call: Callable[[Provider], A],
    pipeline: Pipeline,
    *,
    now: datetime,
    hint: str | None,
    run_id: str | None,
    symbol_id: int | None = None,
) -> A:
    """The router's answer; the fetches of those who failed on the way are recorded, whatever comes after them."""
    failed: list[Fetch] = []

    def noting(provider: Provider) -> A:
        try:
            return call(provider)
        except ProviderError as error:
            if error.fetch is not None:
                failed.append(error.fetch)
            raise

    try:
        return pipeline.router.ask(capability, noting, now=now, hint=hint, run_id=run_id)
    finally:
        if failed:
            FetchStore(pipeline.engine).record([(symbol_id, fetch) for fetch in failed], run_id=run_id)


def _served(provider: Provider, capability: str) -> Capability:
    return next(served for served in provider.capabilities if served.name == capability)


# --- quotes ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Heard:
    """What was said of one batch. ``waiting``: the instruments that nobody has quoted yet, by symbol; ``words``: why not."""

    instruments: Sequence[Instrument]
    now: datetime
    waiting: dict[str, Instrument]
    answers: list[tuple[JudgedQuotes, Capability, Mapping[str, Instrument]]] = field(default_factory=list)
    failed: list[Fetch] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    nobody: NoProviderAvailableError | None = None


def _batches(instruments: Sequence[Instrument], pipeline: Pipeline, hint: str | None) -> Iterator[list[Instrument]]:
    """The instruments by tier, T0 first, as many at a time as the provider that will be asked first takes."""
    route = pipeline.router.candidates(QUOTES_L1, hint=hint, now=pipeline.clock.now())
    size = route.order[0][1].symbols_per_request if route.order else max(len(instruments), 1)
    ordered = sorted(instruments, key=lambda i: i.tier)
    for _, group in groupby(ordered, key=lambda i: i.tier):
        of_tier = list(group)
        for at in range(0, len(of_tier), size):
            yield of_tier[at : at + size]


def _hear_quotes(batch: Sequence[Instrument], pipeline: Pipeline, hint: str | None, run_id: str | None) -> _Heard:
    """Ask one provider after the other until every instrument of the batch has a quote. Nothing is stored yet."""
    now = pipeline.clock.now()
    heard = _Heard(batch, now, {i.symbol: i for i in batch})

    def call(provider: Provider) -> QuotesAnswer:
        try:
            return _quoted_by(provider, heard, pipeline)
        except ProviderError as error:
            heard.words.append(str(error))
            # The answers of this provider that were kept have their own fetch.
            if error.fetch is not None and all(error.fetch is not judged.fetch for judged, _, _ in heard.answers):
                heard.failed.append(error.fetch)
            raise

    try:
        pipeline.router.ask(QUOTES_L1, call, now=now, hint=hint, run_id=run_id, expected=len(batch))
    except NoProviderAvailableError as nobody:
        heard.nobody = nobody
        heard.words.append(str(nobody))
    except ProviderError:
        # Each has said why in ``words``, and the symbols that are still waiting are reported as failures.
        return heard
    return heard


def _quoted_by(provider: Provider, heard: _Heard, pipeline: Pipeline) -> QuotesAnswer:
    """Everything ``provider`` can say of what is still waiting; UnknownSymbolError where some of it is waiting afterwards."""
    served = _served(provider, QUOTES_L1)
    stale_after = timedelta(seconds=pipeline.settings.quote_stale_seconds)
    asked = list(heard.waiting.values())
    answer: QuotesAnswer | None = None
    for at in range(0, len(asked), served.symbols_per_request):
        names = {i.name_at(provider.name): i for i in asked[at : at + served.symbols_per_request]}
        priority = Priority(Lane.LIVE, asked[at].tier)
        answer = cast("QuotesProvider", provider).fetch_quotes(list(names), priority=priority, now=heard.now)
        judged = judge_quotes(answer, asked=names, now=heard.now, stale_after=stale_after)
        heard.answers.append((judged, served, names))
        for quote, _ in judged.quotes:
            heard.waiting.pop(names[quote.symbol].symbol, None)
    if answer is None or heard.waiting:
        missing = ", ".join(heard.waiting)
        unknown = UnknownSymbolError(f"no quote of {missing}", provider=provider.name)
        unknown.fetch = heard.answers[-1][0].fetch if heard.answers else None
        raise unknown
    return answer


def _store_quotes(heard: _Heard, pipeline: Pipeline, run_id: str | None) -> QuotesReport:
    written: list[QuotesWritten] = []
    providers: dict[str, str] = {}
    store = QuoteStore(pipeline.engine)
    for judged, served, names in heard.answers:
        ids = {name: instrument.symbol_id for name, instrument in names.items()}
        known_at = pipeline.known_at(heard.now)
        written.append(store.record(judged, ids, feed=served.feed, known_at=known_at, run_id=run_id))
        providers |= {names[quote.symbol].symbol: judged.fetch.provider for quote, _ in judged.quotes}
    if heard.failed:
        FetchStore(pipeline.engine).record([(None, fetch) for fetch in heard.failed], run_id=run_id)
    why = "; ".join(heard.words)
    return QuotesReport(
        symbols=[i.symbol for i in heard.instruments],
        providers=providers,
        failures=dict.fromkeys(heard.waiting, why),
        inserted=sum(one.inserted for one in written),
        unchanged=sum(one.unchanged for one in written),
        refused=sum(one.refused for one in written),
        requests=sum(judged.fetch.attempts for judged, _, _ in heard.answers) + sum(fetch.attempts for fetch in heard.failed),
    )
