"""What every provider has to keep, as checks that run against an adapter on a loopback server. Needs no test framework.

    @pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
    def test_my_vendor_keeps_the_contract(check):
        check(MY_VENDOR)

A check returns where the adapter keeps it and raises ContractBrokenError where it does not, with what was expected.
"""

from __future__ import annotations

import json
import logging
import random
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import MACRO, OPTIONS_CHAIN, QUOTES_L1, Access, Lane, Priority, Stamp, bars
from market_data_pipeline.domain.errors import (
    BudgetSpentError,
    EntitlementError,
    OutOfReachError,
    PayloadError,
    ProviderError,
    RateLimitedError,
    TransientError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.ports import (
    BarsAnswer,
    BarsProvider,
    BarsRequest,
    ChainProvider,
    MacroProvider,
    ManyBarsProvider,
    QuotesProvider,
)
from market_data_pipeline.providers.http import HttpClient, HttpPolicy
from market_data_pipeline.testing.loopback import Loopback, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from market_data_pipeline.domain.capabilities import Capability
    from market_data_pipeline.domain.ports import Fetch, Provider
    from market_data_pipeline.testing.loopback import Asked

DAY = 86_400
ATTEMPTS = 3
LIVE = Priority(Lane.LIVE, "T1")
_MOST_MUTATIONS = 120
_PROTOCOLS: Mapping[str, type] = {QUOTES_L1: QuotesProvider, OPTIONS_CHAIN: ChainProvider, MACRO: MacroProvider}


class ContractBrokenError(AssertionError):
    """The adapter does not keep what the check's name says."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar that the vendor is to serve. ``opened_at``: epoch seconds; for 1d midnight UTC of the session date."""

    symbol: str
    interval: Interval
    opened_at: int
    open: float
    high: float
    low: float
    close: float
    volume: float

    @property
    def at(self) -> datetime:
        """The open, UTC."""
        return datetime.fromtimestamp(self.opened_at, UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """An adapter and the little that the contract must know of its vendor.

    ``open``: the provider, from a client and a base URL, with ``secrets`` as its keys. ``bars``: the reply in the vendor's wire
    format to one request, given bars of all symbols and intervals; it need not cut the window out, only pick symbol and interval.
    ``answers``: the same for capabilities other than bars, by name; without one here a capability is not looked at.
    ``keyless``: the provider without a key, where it takes one. ``key_in_url``: the vendor takes it nowhere else. ``symbols``: as
    the vendor spells them. ``now``: a Tuesday evening in New York; windows lie in the days before.
    """

    open: Callable[[HttpClient, str], Provider]
    bars: Callable[[Asked, Sequence[Bar]], Reply]
    answers: Mapping[str, Callable[[Asked], Reply]] = field(default_factory=dict)
    keyless: Callable[[HttpClient, str], Provider] | None = None
    secrets: Sequence[str] = ()
    key_in_url: bool = False
    symbols: Sequence[str] = ("AAPL", "MSFT", "SPY", "IBM")
    now: datetime = datetime(2024, 7, 2, 21, tzinfo=UTC)


# --- the bench ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _RecordedBudget:
    """Notes who was asked for a request; ``spent``: allows none."""

    spent: bool = False
    taken: list[tuple[str, str, Priority]] = field(default_factory=list)
    refusals: list[tuple[str, str]] = field(default_factory=list)

    def take(self, provider: str, account: str, priority: Priority, *, patience_seconds: float) -> None:
        if self.spent:
            raise BudgetSpentError(f"none in {patience_seconds:g} s", provider=provider, wait_seconds=3600.0)
        self.taken.append((provider, account, priority))

    def refused(self, provider: str, account: str, *, retry_after_seconds: float | None) -> None:
        self.refusals.append((f"{provider} {retry_after_seconds}", account))


@dataclass(eq=False)
class _Bench:
    """A provider on a server that answers as a check wants."""

    vendor: Vendor
    provider: Provider
    server: Loopback
    budget: _RecordedBudget

    def serve(self, respond: Callable[[Asked], Reply]) -> None:
        """Answer so from now on, and forget what was before."""
        self.server.respond = respond
        self.server.requests.clear()
        self.budget.taken.clear()
        self.budget.refusals.clear()


@contextmanager
def _bench(
    vendor: Vendor, *, spent: bool = False, open_provider: Callable[[HttpClient, str], Provider] | None = None
) -> Iterator[_Bench]:
    budget = _RecordedBudget(spent=spent)
    policy = HttpPolicy(timeout_seconds=5.0, deadline_seconds=20.0, attempts=ATTEMPTS, backoff_seconds=0.0)
    with Loopback(lambda _: Reply(b"{}")) as server, HttpClient(policy, budget=budget, sleep=lambda _: None) as http:
        yield _Bench(vendor, (open_provider or vendor.open)(http, server.url), server, budget)


@dataclass(frozen=True, eq=False)
class _Question:
    """One way to ask the provider: a capability, the call, and how its vendor answers it well."""

    capability: Capability
    ask: Callable[[], Any]
    answer: Callable[[Asked], Reply]

    def __str__(self) -> str:
        return self.capability.name


def _questions(bench: _Bench) -> list[_Question]:
    vendor, provider, symbol = bench.vendor, bench.provider, bench.vendor.symbols[0]
    found: list[_Question] = []
    for capability in provider.capabilities:
        if capability.interval is not None and isinstance(provider, BarsProvider):
            ask = _asking_bars(provider, _request(vendor, capability), vendor)
            found.append(_Question(capability, ask, _serving(vendor, _served(vendor, capability))))
        elif capability.name in vendor.answers:
            ask_other = _asking(provider, capability.name, symbol, vendor)
            found.append(_Question(capability, ask_other, vendor.answers[capability.name]))
    return found


def _serving(vendor: Vendor, served: Sequence[Bar]) -> Callable[[Asked], Reply]:
    return lambda asked: vendor.bars(asked, served)


def _asking_bars(provider: BarsProvider, request: BarsRequest, vendor: Vendor) -> Callable[[], BarsAnswer]:
    return lambda: provider.fetch_bars(request, now=vendor.now)


def _asking(provider: Provider, capability: str, symbol: str, vendor: Vendor) -> Callable[[], Any]:
    if isinstance(provider, QuotesProvider) and capability == QUOTES_L1:
        return lambda: provider.fetch_quotes([symbol], priority=LIVE, now=vendor.now)
    if isinstance(provider, ChainProvider) and capability == OPTIONS_CHAIN:
        return lambda: provider.fetch_chain(symbol, expiry=None, priority=LIVE, now=vendor.now)
    if isinstance(provider, MacroProvider) and capability == MACRO:
        return lambda: provider.fetch_observations(symbol, first=None, last=None, vintages=False, priority=LIVE, now=vendor.now)
    raise ContractBrokenError(f"{capability} is declared, and the provider has no method for it")


def _request(vendor: Vendor, capability: Capability, symbol: str | None = None) -> BarsRequest:
    """A window inside reach and span: for 1d the two days before the last, else the first four hours of the day before."""
    interval = capability.interval or Interval.M1
    opens = _opens(vendor)
    symbol = vendor.symbols[0] if symbol is None else symbol
    if interval.is_daily:
        return BarsRequest(symbol, interval, opens - 4 * DAY, opens - 3 * DAY + 390 * 60, LIVE)
    return BarsRequest(symbol, interval, opens, opens + 4 * 3600, LIVE)


def _opens(vendor: Vendor) -> int:
    """When New York opened on the day before ``now``."""
    day = (vendor.now - timedelta(days=1)).replace(hour=13, minute=30, second=0, microsecond=0)
    return int(day.timestamp())


def _served(vendor: Vendor, capability: Capability, symbols: Sequence[str] | None = None) -> list[Bar]:
    """Three bars of each symbol in the window of ``_request`` (two for 1d) and one on each side of it."""
    interval = capability.interval or Interval.M1
    request = _request(vendor, capability)
    if interval.is_daily:
        # Wednesday to Friday and Monday of a week in summer: the window is Thursday and Friday.
        midnight = request.start // DAY * DAY
        stamps = [midnight - DAY, midnight, midnight + DAY, midnight + 4 * DAY]
    else:
        step = interval.seconds
        stamps = [request.start - step, request.start, request.start + step, request.end - step, request.end]
    return [
        Bar(symbol, interval, at, 10.0 + n, 12.0 + n, 9.0 + n, 11.0 + n + place / 100, 100.0 * (place + 1))
        for place, symbol in enumerate(symbols or vendor.symbols)
        for n, at in enumerate(stamps)
    ]


def _within(served: Sequence[Bar], symbol: str) -> list[Bar]:
    """Those that the window of ``_request`` holds."""
    return [bar for bar in served if bar.symbol == symbol][1:-1]


def _expect(condition: bool, message: str) -> None:  # noqa: FBT001 - reads like assert
    if not condition:
        raise ContractBrokenError(message)


def _error_of(ask: Callable[[], Any], what: str) -> ProviderError:
    """The ProviderError that a call ends in; ContractBrokenError for an answer or for any other exception."""
    try:
        answer = ask()
    except ProviderError as error:
        return error
    except Exception as other:
        raise ContractBrokenError(f"{what}: {type(other).__name__} instead of a ProviderError: {other}") from other
    raise ContractBrokenError(f"{what}: answered with {answer!r:.200} instead of failing")


@contextmanager
def _asked(vendor: Vendor) -> Iterator[tuple[_Bench, Sequence[_Question]]]:
    with _bench(vendor) as bench:
        questions = _questions(bench)
        _expect(bool(questions), "no capability can be asked for: give the vendor's answers to the contract")
        yield bench, questions


# --- what is declared --------------------------------------------------------------------------------------------------


def declares_what_it_can_do(vendor: Vendor) -> None:
    """Capabilities have their own names, limits that make sense, a method each, and an account where they need a key."""
    with _bench(vendor) as bench:
        provider = bench.provider
        declared = list(provider.capabilities)
        names = [capability.name for capability in declared]
        _expect(bool(names) and len(set(names)) == len(names), f"capabilities {names}: at least one, and each once")
        for capability in declared:
            _check_declaration(provider, capability)
        if any(capability.access is not Access.OPEN for capability in declared):
            _expect(bool(provider.account), "a key is needed, and account is empty: wire.fingerprint(key) tells keys apart")
            _expect(not any(secret in provider.account for secret in vendor.secrets), "account holds the key itself")
        _expect(provider.lacking is None, f"opened with its keys, and still lacking: {provider.lacking}")
        _expect(bool(provider.name) and bool(provider.probe_symbol), "a name, and a probe_symbol that the vendor surely knows")
        _expect(all(limit.requests > 0 and limit.seconds > 0 for limit in provider.limits), f"limits {provider.limits}")
        _expect(bench.server.requests == [], "opening a provider sends nothing")


def _check_declaration(provider: Provider, capability: Capability) -> None:
    name = capability.name
    if capability.interval is not None:
        _expect(name == bars(capability.interval), f"{name}: bars of {capability.interval} are called {bars(capability.interval)}")
        _expect(capability.interval.source is None, f"{name}: {capability.interval} is derived from 1m and never fetched")
        _expect(isinstance(provider, BarsProvider), f"{name}: no method fetch_bars")
        is_date = capability.stamp is Stamp.DATE
        _expect(is_date == capability.interval.is_daily, f"{name}: stamp {capability.stamp} for {capability.interval}")
        several = capability.symbols_per_request > 1
        _expect(not several or isinstance(provider, ManyBarsProvider), f"{name}: several symbols, and no fetch_bars_of_many")
    elif name in _PROTOCOLS:
        _expect(isinstance(provider, _PROTOCOLS[name]), f"{name}: not a {_PROTOCOLS[name].__name__}")
    for limit in (capability.reach_seconds, capability.span_seconds, capability.rows_per_request):
        _expect(limit is None or limit > 0, f"{name}: a limit of {limit}")
    _expect(capability.symbols_per_request >= 1 and capability.delay_seconds >= 0, f"{name}: symbols or delay")


def sends_nothing_without_its_key(vendor: Vendor) -> None:
    """Without a key it can be opened, lists its capabilities, says what to set, and asks nobody."""
    if vendor.keyless is None:
        return
    with _bench(vendor, open_provider=vendor.keyless) as bench:
        lacking = bench.provider.lacking
        _expect(lacking is not None and "not set" in lacking, f"lacking is {lacking!r}: which variable is not set?")
        _expect(bool(bench.provider.capabilities), "no capabilities without a key")
        for question in _questions(bench):
            error = _error_of(question.ask, f"{question} without a key")
            _expect(isinstance(error, EntitlementError), f"{question} without a key: {error!r}")
        _expect(bench.server.requests == [], "asked without a key")


def refuses_what_it_does_not_declare(vendor: Vendor) -> None:
    """Other intervals, windows longer than the span, before the reach, or empty: OutOfReachError, and nothing is sent."""
    with _bench(vendor) as bench:
        provider = bench.provider
        if not isinstance(provider, BarsProvider):
            return
        declared = {capability.interval: capability for capability in provider.capabilities if capability.interval}
        beyond = [BarsRequest(vendor.symbols[0], i, _opens(vendor), _opens(vendor) + 3600) for i in Interval if i not in declared]
        for interval, capability in declared.items():
            fits = _request(vendor, capability)
            beyond.append(BarsRequest(fits.symbol, interval, fits.end, fits.start))
            beyond.append(BarsRequest(fits.symbol, interval, fits.start, fits.start))
            if capability.span_seconds is not None:
                beyond.append(BarsRequest(fits.symbol, interval, fits.end - capability.span_seconds - 1, fits.end))
            if capability.reach_seconds is not None:
                oldest = int(vendor.now.timestamp()) - capability.reach_seconds
                beyond.append(BarsRequest(fits.symbol, interval, oldest - 1, oldest + 60))
        for request in beyond:
            error = _error_of(lambda request=request: provider.fetch_bars(request, now=vendor.now), f"{request}")  # type: ignore[misc] # a lambda with a default
            _expect(isinstance(error, OutOfReachError), f"{request}: {error!r} instead of OutOfReachError")
            fetch = _fetch_of(error, f"{request}")
            _expect((fetch.attempts, fetch.outcome) == (0, "out_of_reach"), f"{request}: {fetch}")
        _expect(bench.server.requests == [], f"sent for what is not declared: {bench.server.requests}")


# --- what is answered --------------------------------------------------------------------------------------------------


def hands_out_the_opens_of_the_window(vendor: Vendor) -> None:
    """Bars are stamped with their opens, [start, end) cut out exactly, values as the vendor sent them."""
    with _asked(vendor) as (bench, questions):
        for question in questions:
            if question.capability.interval is not None:
                bench.serve(question.answer)
                _expect_bars(question.ask(), _within(_served(vendor, question.capability), vendor.symbols[0]), f"{question}")


def sorts_and_keeps_each_stamp_once(vendor: Vendor) -> None:
    """The newest row first, a row twice: the same bars, in order."""
    with _asked(vendor) as (bench, questions):
        for question in questions:
            if question.capability.interval is not None:
                served = _served(vendor, question.capability)
                expected = _within(served, vendor.symbols[0])
                bench.serve(_serving(vendor, [*reversed(served), expected[0]]))
                _expect_bars(question.ask(), expected, f"{question}, shuffled")


def _expect_bars(answer: object, expected: Sequence[Bar], what: str) -> None:
    if not isinstance(answer, BarsAnswer):
        raise ContractBrokenError(f"{what}: answered with {type(answer).__name__}")
    told = answer.columns.opened_at.tolist()
    _expect(told == [bar.opened_at for bar in expected], f"{what}: stamps {told}, expected {[bar.opened_at for bar in expected]}")
    for name in ("open", "high", "low", "close", "volume"):
        values = getattr(answer.columns, name).tolist()
        wanted = [getattr(bar, name) for bar in expected]
        _expect(bool(np.allclose(values, wanted, rtol=1e-6)), f"{what}: {name} {values}, expected {wanted}")
    _expect(answer.flags is None or len(answer.flags) == len(told), f"{what}: {answer.flags} flags for {len(told)} bars")


def tells_where_an_answer_came_from(vendor: Vendor) -> None:
    """An answer carries its provenance: who, what, when, how it ended, how much was sent for it and what came."""
    with _asked(vendor) as (bench, questions):
        for question in questions:
            bench.serve(question.answer)
            _check_provenance(bench, question, question.ask())


def _check_provenance(bench: _Bench, question: _Question, answer: Any) -> None:  # noqa: ANN401 - of any capability
    fetch: Fetch = answer.fetch
    told = (fetch.provider, fetch.interval, fetch.outcome, fetch.started_at)
    wanted = (bench.provider.name, question.capability.interval, "ok", bench.vendor.now)
    _expect(told == wanted, f"{question}: {told}, expected {wanted}")
    _expect(fetch.attempts == len(bench.server.requests), f"{question}: {fetch.attempts} of {len(bench.server.requests)} sent")
    _expect(fetch.status == 200 and fetch.payload_bytes > 0 and fetch.latency_seconds >= 0, f"{question}: {fetch}")
    _expect(len(fetch.payload_sha256 or "") == 64, f"{question}: payload_sha256 {fetch.payload_sha256!r}")
    _expect(bench.server.url in fetch.request, f"{question}: request {fetch.request!r} does not say where it went")
    if isinstance(answer, BarsAnswer):
        _expect(fetch.rows == len(answer.columns), f"{question}: rows {fetch.rows} for {len(answer.columns)} bars")
        _expect(fetch.symbol == answer.request.symbol, f"{question}: symbol {fetch.symbol!r}")
    else:
        _expect(fetch.capability == question.capability.name, f"{question}: capability {fetch.capability!r}")


# --- what is refused ---------------------------------------------------------------------------------------------------


def _failures() -> list[tuple[str, Reply, tuple[type[ProviderError], ...], int | None]]:
    """What an answer looks like, the classes it may end in, and how many requests it may cost (None: any number)."""
    said = b'{"error":"no","message":"no","status":"ERROR"}'
    page = Reply(b"<!DOCTYPE html><html><body>Will be right back</body></html>", headers={"Content-Type": "text/html"})
    cut = b'{"results":[{"t":1,"o":1.0},{"t":2,"o'
    json_type = {"Content-Type": "application/json"}
    return [
        ("401", Reply(said, 401), (EntitlementError,), 1),
        ("402", Reply(said, 402), (EntitlementError,), 1),
        ("403", Reply(said, 403), (EntitlementError,), 1),
        ("404", Reply(said, 404), (UnknownSymbolError, PayloadError), 1),
        ("418", Reply(said, 418), (PayloadError,), 1),
        ("429", Reply(said, 429), (RateLimitedError,), 1),
        ("429 for ever", Reply(said, 429, {**json_type, "Retry-After": "86400"}), (RateLimitedError,), 1),
        ("429 for a second", Reply(said, 429, {**json_type, "Retry-After": "1"}), (RateLimitedError,), None),
        ("500", Reply(said, 500), (TransientError,), ATTEMPTS),
        ("503", Reply(said, 503), (TransientError,), ATTEMPTS),
        ("a web page", page, (TransientError,), ATTEMPTS),
        ("a web page as JSON", Reply(page.body), (TransientError,), ATTEMPTS),
        ("a redirect", Reply(b"", 302, {"Location": "https://example.invalid/"}), (TransientError,), ATTEMPTS),
        ("nothing", Reply(b""), (TransientError,), ATTEMPTS),
        ("a body that ends early", Reply(said, cut_after=10), (TransientError,), ATTEMPTS),
        ("JSON that ends early", Reply(cut), (TransientError,), ATTEMPTS),
        ("too many requests, as text", Reply(b"Too Many Requests\r\n"), (RateLimitedError,), 1),
        ("no JSON", Reply(b"surprise"), (PayloadError,), 1),
        ("a list", Reply(b"[1, 2]"), (PayloadError,), 1),
        ("a number", Reply(b"7"), (PayloadError,), 1),
        ("null", Reply(b"null"), (PayloadError,), 1),
    ]


def names_each_failure(vendor: Vendor) -> None:
    """Each failure ends in its class, is tried again only where that may help, and carries its provenance."""
    with _asked(vendor) as (bench, questions):
        for what, reply, classes, sent in _failures():
            for question in questions:
                bench.serve(_always(reply))
                error = _error_of(question.ask, f"{question}, {what}")
                told = f"{question}, {what}: {error!r}"
                _expect(isinstance(error, classes), f"{told} instead of {' or '.join(c.__name__ for c in classes)}")
                count = len(bench.server.requests)
                _expect(sent in {None, count}, f"{told}: {count} requests instead of {sent}")
                fetch = _fetch_of(error, told)
                _expect((fetch.outcome, fetch.attempts) == (error.kind, count), f"{told}: {fetch}")


def _always(reply: Reply) -> Callable[[Asked], Reply]:
    return lambda _: reply


def waits_as_long_as_it_is_told(vendor: Vendor) -> None:
    """A 429 that names a wait that fits is waited for, and what comes then is the answer."""
    with _asked(vendor) as (bench, questions):
        for question in questions:
            bench.serve(_first_refusing(question))
            fetch = question.ask().fetch
            _expect(fetch.outcome == "ok" and fetch.attempts >= 2, f"{question}: {fetch}")
            _expect("429" in str(fetch.error), f"{question}: the refusal before it is not told: {fetch.error!r}")
            heard = len(bench.budget.refusals)
            _expect(heard == 1, f"{question}: the budget heard of {heard} refusals")


def _first_refusing(question: _Question) -> Callable[[Asked], Reply]:
    refusals = [Reply(b"{}", 429, {"Retry-After": "1"})]
    return lambda asked: refusals.pop() if refusals else question.answer(asked)


def believes_nothing_that_is_bent(vendor: Vendor) -> None:
    """Whatever is missing, null or of another type in a good answer: a lawful answer or a ProviderError, nothing else."""
    with _asked(vendor) as (bench, questions):
        for question in questions:
            bench.serve(question.answer)
            question.ask()
            good = question.answer(bench.server.requests[-1])
            try:
                document = json.loads(good.body)
            except ValueError:
                continue
            for bent, what in _bent(document):
                bench.serve(_always(Reply(json.dumps(bent).encode())))
                _check_bent(question, f"{question}, {what}")


def _check_bent(question: _Question, what: str) -> None:
    try:
        answer = question.ask()
    except ProviderError as error:
        _fetch_of(error, what)
        return
    except Exception as other:
        raise ContractBrokenError(f"{what}: {type(other).__name__}: {other}") from other
    if isinstance(answer, BarsAnswer):
        _expect_lawful(answer, what)


def _bent(document: object) -> Iterator[tuple[object, str]]:
    """Copies of a document with one member taken out or replaced: every member of a small one, a sample of a large one."""
    chooser = random.Random(7)  # noqa: S311 - always the same bends
    paths = list(_paths(document, ()))
    for path in chooser.sample(paths, min(len(paths), _MOST_MUTATIONS // 2)):
        copy = json.loads(json.dumps(document))
        holder = copy
        for key in path[:-1]:
            holder = holder[key]
        del holder[path[-1]]
        yield copy, f"without {'.'.join(map(str, path))}"
        instead: object = chooser.choice([None, "x", -1, [], {}, 1e308, True, 10**25, "2024-07-01T13:30:00Z"])
        copy = json.loads(json.dumps(document))
        holder = copy
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = instead
        yield copy, f"{'.'.join(map(str, path))} = {instead!r}"


def _paths(document: object, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    members: Sequence[tuple[str | int, object]] = ()
    if isinstance(document, dict):
        members = list(document.items())
    elif isinstance(document, list):
        members = list(enumerate(document))
    for key, value in members:
        yield (*path, key)
        yield from _paths(value, (*path, key))


def _expect_lawful(answer: BarsAnswer, what: str) -> None:
    stamps = answer.columns.opened_at
    _expect(bool((np.diff(stamps) > 0).all()), f"{what}: stamps {stamps.tolist()} are not sorted and unique")
    if not answer.request.interval.is_daily:
        inside = (stamps >= answer.request.start) & (stamps < answer.request.end)
        _expect(bool(inside.all()), f"{what}: stamps {stamps.tolist()} outside of {answer.request}")
    _expect(answer.fetch.rows == len(stamps), f"{what}: rows {answer.fetch.rows} for {len(stamps)} bars")


# --- what is kept ------------------------------------------------------------------------------------------------------


def keeps_its_keys(vendor: Vendor) -> None:
    """No key in an error, its chain, a provenance, a repr or a log, even where the vendor repeats it; in no URL unless it must."""
    if not vendor.secrets:
        return
    # Long enough for a message that is cut short to hold half a key.
    echo = f"{', '.join(vendor.secrets)} and {'.' * 40} {' '.join(vendor.secrets)}"
    body = json.dumps(
        {"error": f"your key {echo} is not known", "Information": f"We have detected your API key as {echo}"}
    ).encode()
    with _captured_logs() as logged, _asked(vendor) as (bench, questions):
        for question in questions:
            echoes = [Reply(body, status) for status in (200, 400, 401, 403, 404, 429, 500)]
            for reply in (*echoes, Reply(json.dumps(echo).encode()), Reply(json.dumps([echo]).encode())):
                bench.serve(_always(reply))
                error = _error_of(question.ask, f"{question}, HTTP {reply.status} that repeats the key")
                told = "".join(traceback.format_exception(error))
                _expect_hidden(vendor, f"{told} {error!r} {error.fetch!r}", f"an error of {question}")
                _expect_hidden_on_the_wire(bench)
            bench.serve(question.answer)
            _expect_hidden(vendor, f"{question.ask().fetch!r}", f"the provenance of {question}")
            _expect_hidden_on_the_wire(bench)
        _expect_hidden(vendor, f"{bench.provider!r} {bench.provider.account}", "what the provider shows of itself")
    _expect_hidden(vendor, "\n".join(logged), "a log")


def _expect_hidden(vendor: Vendor, text: str, what: str) -> None:
    for secret in vendor.secrets:
        place = text.find(secret[: max(len(secret) // 2, 6)])
        shown = text[max(place - 60, 0) : place]
        _expect(place < 0, f"the key stands in {what}, after {shown!r}")


def _expect_hidden_on_the_wire(bench: _Bench) -> None:
    _expect(bool(bench.server.requests), "nothing was sent")
    targets = [asked.target for asked in bench.server.requests if not bench.vendor.key_in_url]
    shown = [target for target in targets if any(secret in target for secret in bench.vendor.secrets)]
    _expect(not shown, "the key stands in a URL: send it as a header")


@contextmanager
def _captured_logs() -> Iterator[list[str]]:
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler, root = Handler(logging.DEBUG), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


def spends_its_own_budget(vendor: Vendor) -> None:
    """Every request is taken from the provider's own budget and account, for the priority it is asked with."""
    with _asked(vendor) as (bench, questions):
        for question in questions:
            bench.serve(question.answer)
            question.ask()
            wanted = [(bench.provider.name, bench.provider.account, LIVE)] * len(bench.server.requests)
            _expect(bench.budget.taken == wanted, f"{question}: took {bench.budget.taken}, expected {wanted}")


def sends_nothing_without_budget(vendor: Vendor) -> None:
    """Where its budget is spent, BudgetSpentError with the provenance of a request that was not sent."""
    with _bench(vendor, spent=True) as bench:
        for question in _questions(bench):
            error = _error_of(question.ask, f"{question} without budget")
            _expect(isinstance(error, BudgetSpentError), f"{question} without budget: {error!r}")
            _expect(_fetch_of(error, f"{question}").attempts == 0, f"{question}: {error.fetch}")
        _expect(bench.server.requests == [], "sent without budget")


def answers_many_at_once(vendor: Vendor) -> None:
    """Several symbols in one call: each its own bars in the order asked, and every request counted once."""
    with _asked(vendor) as (bench, questions):
        provider = bench.provider
        for question in questions:
            capability = question.capability
            if capability.interval is None or capability.symbols_per_request < 2 or not isinstance(provider, ManyBarsProvider):
                continue
            bench.serve(question.answer)
            asked = list(reversed(vendor.symbols))[: capability.symbols_per_request]
            answers = provider.fetch_bars_of_many([_request(vendor, capability, symbol) for symbol in asked], now=vendor.now)
            _expect(len(answers) == len(asked), f"{question}: {len(answers)} answers for {len(asked)} requests")
            for symbol, answer in zip(asked, answers, strict=True):
                _expect_bars(answer, _within(_served(vendor, capability), symbol), f"{question} of {symbol}")
            fetches = [answer.fetch for answer in answers if isinstance(answer, BarsAnswer)]
            sent = [fetch.attempts for fetch in fetches]
            _expect(sent == [len(bench.server.requests), *[0] * (len(asked) - 1)], f"{question}: attempts {sent}")
            _expect([fetch.symbol for fetch in fetches] == asked, f"{question}: provenance of {[f.symbol for f in fetches]}")


def serves_several_threads(vendor: Vendor) -> None:
    """Eight threads at once: each gets the bars of the symbol it asked for."""
    with _asked(vendor) as (bench, questions), ThreadPoolExecutor(8) as pool:
        provider = bench.provider
        for question in questions:
            if question.capability.interval is None or not isinstance(provider, BarsProvider):
                continue
            bench.serve(question.answer)
            symbols = [vendor.symbols[place % len(vendor.symbols)] for place in range(32)]
            asking = [_asking_bars(provider, _request(vendor, question.capability, symbol), vendor) for symbol in symbols]
            for symbol, answer in zip(symbols, pool.map(lambda ask: ask(), asking), strict=True):
                expected = _within(_served(vendor, question.capability), symbol)
                _expect_bars(answer, expected, f"{question} of {symbol}, among threads")


def answers_the_same_to_the_same(vendor: Vendor) -> None:
    """The same bytes twice: the same bars, nothing remembered."""
    with _asked(vendor) as (bench, questions):
        for question in questions:
            bench.serve(question.answer)
            first, second = question.ask(), question.ask()
            _expect(first.fetch.payload_sha256 == second.fetch.payload_sha256, f"{question}: another digest")
            _expect(first.fetch.dropped == second.fetch.dropped, f"{question}: {first.fetch.dropped}, {second.fetch.dropped}")
            if isinstance(first, BarsAnswer):
                _expect(first.columns.close.tolist() == second.columns.close.tolist(), f"{question}: other bars")


def _fetch_of(error: ProviderError, what: str) -> Fetch:
    if error.fetch is None:
        raise ContractBrokenError(f"{what}: the error has no provenance; raise it inside Exchange.on_record()")
    return error.fetch


CHECKS: tuple[Callable[[Vendor], None], ...] = (
    declares_what_it_can_do,
    sends_nothing_without_its_key,
    refuses_what_it_does_not_declare,
    hands_out_the_opens_of_the_window,
    sorts_and_keeps_each_stamp_once,
    tells_where_an_answer_came_from,
    names_each_failure,
    waits_as_long_as_it_is_told,
    believes_nothing_that_is_bent,
    keeps_its_keys,
    spends_its_own_budget,
    sends_nothing_without_budget,
    answers_many_at_once,
    serves_several_threads,
    answers_the_same_to_the_same,
)
