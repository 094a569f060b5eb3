"""Yahoo's option endpoint: how it is asked, expiry by expiry, and its answers as one chain. Greeks are computed elsewhere."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from market_data_pipeline.domain.capabilities import OPTIONS_CHAIN, Basis, Capability
from market_data_pipeline.domain.errors import (
    BudgetSpentError,
    EntitlementError,
    PayloadError,
    ProviderError,
    RateLimitedError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.ports import ChainAnswer, OptionQuote
from market_data_pipeline.providers.http import describe
from market_data_pipeline.providers.records import ContractName, Record, UnusableRecordError, read_records
from market_data_pipeline.providers.wire import Exchange, listing, mapping, number, only, refuse_outage, shown
from market_data_pipeline.providers.yahoo_quotes import last_trade
from market_data_pipeline.providers.yahoo_session import NAME, answered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.domain.capabilities import Priority
    from market_data_pipeline.domain.ports import RefusedRecord
    from market_data_pipeline.providers.http import HttpAnswer
    from market_data_pipeline.providers.yahoo_session import YahooSession

# As the pages that it feeds say: a quarter of an hour behind.
CHAINS = Capability(name=OPTIONS_CHAIN, delay_seconds=15 * 60, basis=Basis.RAW)
_DAY = 86_400
# What Yahoo's solver leaves behind where it found no volatility: 1.0000000000000003e-05.
_NO_VOLATILITY = 1.5e-5
# What the name of a contract can tell apart.
_STRIKE_RESOLUTION = 0.001


@dataclass(frozen=True, slots=True, eq=False)
class ParsedOptions:
    """One body of a chain. ``expiries``: epoch seconds of every expiry listed; ``expiry`` that of the contracts, None without any.

    ``received`` contracts were in it: each is in ``contracts`` or in ``refused``. ``spot``: the underlying's last trade.
    """

    expiries: Sequence[int]
    expiry: int | None
    spot: float | None
    contracts: Sequence[OptionQuote]
    refused: Sequence[RefusedRecord]
    received: int


@dataclass(slots=True)
class _Chain:
    """A chain as it comes together, expiry by expiry. ``missing``: why an expiry that was listed is not in it."""

    symbol: str
    pages: list[ParsedOptions] = field(default_factory=list)
    answers: list[HttpAnswer] = field(default_factory=list)
    missing: dict[int, str] = field(default_factory=dict)

    @property
    def contracts(self) -> list[OptionQuote]:
        return [contract for page in self.pages for contract in page.contracts]

    def fetch(self, session: YahooSession, url: str, expiry: int | None, exchange: Exchange, priority: Priority) -> ParsedOptions:
        """Ask for one expiry, or for the first there is, and keep what comes."""
        found: list[ParsedOptions] = []

        def check(answer: HttpAnswer) -> None:
            refuse_outage(answer, NAME)
            found.append(parse_options(answer.body, self.symbol, expiry=expiry, known=self.contracts))

        parameters: dict[str, str | int] = {} if expiry is None else {"date": expiry}
        self.answers.append(session.ask(url, parameters, check, priority=priority, attempts=exchange.attempts))
        self.pages.append(found[-1])
        if expiry is not None and expiry in found[-1].expiries and not found[-1].received:
            self.missing[expiry] = "listed, and answered without a contract"
        return found[-1]

    def answer(self, exchange: Exchange) -> ChainAnswer:
        """The whole of it. The provenance counts the bytes of every page, and hashes them one after the other."""
        contracts = self.contracts
        refused = [record for page in self.pages for record in page.refused]
        counts = {"missing_expiry": len(self.missing), "refused": len(refused)}
        why = "; ".join(f"{_date(expiry)}: {reason}" for expiry, reason in sorted(self.missing.items()))
        fetch = exchange.provenance(
            rows=len(contracts),
            dropped={name: count for name, count in counts.items() if count},
            error=f"{len(self.missing)} expiries are missing: {why}" if self.missing else None,
        )
        body = b"".join(answer.body for answer in self.answers)
        return ChainAnswer(
            # Of what came, also where the last request failed.
            fetch=replace(
                fetch,
                status=self.answers[-1].status,
                latency_seconds=self.answers[-1].latency_seconds,
                payload_bytes=len(body),
                payload_sha256=hashlib.sha256(body).hexdigest(),
            ),
            symbol=self.symbol,
            taken_at=_answered_at(self.answers[0], exchange.started_at),
            spot=self.pages[0].spot,
            contracts=contracts,
            complete=not self.missing,
            refused=refused,
        )


def fetch_chain(
    session: YahooSession, base_url: str, symbol: str, *, expiry: date | None, priority: Priority, now: datetime
) -> ChainAnswer:
    """The chain of one underlying, one request an expiry; ``taken_at``: when Yahoo answered the first of them.

    An expiry that fails leaves the chain incomplete and is named in ``fetch.error``. Once Yahoo or our budget wants us to stop,
    the expiries that are left are not asked for. Raises, with ``fetch``, where the first request fails: what ``YahooSession.ask``
    raises, UnknownSymbolError and PayloadError.
    """
    url = f"{base_url}/v7/finance/options/{quote(symbol, safe='')}"
    first = None if expiry is None else (expiry - date(1970, 1, 1)).days * _DAY
    described = describe(url, {} if first is None else {"date": first}, {})
    exchange = Exchange(provider=NAME, symbol=symbol, request=described, started_at=now, capability=OPTIONS_CHAIN)
    chain = _Chain(symbol)
    with exchange.on_record():
        page = chain.fetch(session, url, first, exchange, priority)
    left = [] if first is not None else [listed for listed in page.expiries if listed != page.expiry or not page.received]
    stopped: str | None = None
    for listed in left:
        if stopped is not None:
            chain.missing[listed] = stopped
            continue
        try:
            chain.fetch(session, url, listed, exchange, priority)
        except ProviderError as failed:
            chain.missing[listed] = str(failed)
            if isinstance(failed, RateLimitedError | BudgetSpentError | EntitlementError):
                stopped = f"not asked for after {failed.kind}"
    return chain.answer(exchange)


def _answered_at(answer: HttpAnswer, now: datetime) -> datetime:
    """When Yahoo says that it answered, by the clock of its own: the contracts carry no time of their own."""
    try:
        at = parsedate_to_datetime(answer.headers.get("date", ""))
    except ValueError:
        return now
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def parse_options(body: bytes, symbol: str, *, expiry: int | None = None, known: Sequence[OptionQuote] = ()) -> ParsedOptions:
    """The contracts in a body of /v7/finance/options/``symbol`` that was asked for ``expiry`` (epoch seconds), None for the first.

    ``known``: contracts of the same chain that came before.

    A price of 0 is none, an absent field is None, and so is an implied volatility of 1e-5. An adjusted or mini contract keeps the
    class its name says (AMD1). Refused: a name that is none, an expiry or strike other than the name's, a second contract of one
    name, numbers that are negative, not finite or none. Raises PayloadError (another symbol or expiry, a body not as documented),
    UnknownSymbolError, and the error that the body tells of.
    """
    answer = answered(body, "optionChain", symbol)
    results = listing(answer.get("result"), "optionChain.result", NAME)
    if not results:
        raise UnknownSymbolError(f"{symbol}: nothing is known of its options", provider=NAME)
    result = mapping(only(results, "optionChain.result", NAME), NAME)
    if str(result.get("underlyingSymbol")).upper() != symbol.upper():
        raise PayloadError(f"asked for {symbol}, answered with {shown(result.get('underlyingSymbol'))}", provider=NAME)
    expiries = [_expiry(value) for value in listing(result.get("expirationDates"), "expirationDates", NAME)]
    spot = _spot(result.get("quote"))
    parts = listing(result.get("options"), "options", NAME)
    if not parts:
        return ParsedOptions(expiries, None, spot, (), (), 0)
    part = mapping(only(parts, "options", NAME), NAME)
    answered_expiry = _expiry(part.get("expirationDate"))
    if expiry not in {None, answered_expiry}:
        raise PayloadError(f"asked for the expiry {expiry}, answered with {answered_expiry}", provider=NAME)
    rights = {"calls": "C", "puts": "P"}
    contracts: list[OptionQuote] = []
    refused: list[RefusedRecord] = []
    received = 0
    for group, right in rights.items():
        records = listing(part.get(group), group, NAME)
        read = partial(_contract, right=right, expiry=_date(answered_expiry))
        some, refusals = read_records(records, read, name=lambda contract: contract.contract, known=(*known, *contracts))
        contracts += some
        refused += refusals
        received += len(records)
    return ParsedOptions(expiries, answered_expiry, spot, contracts, refused, received)


def _contract(record: Record, *, right: str, expiry: date) -> OptionQuote:
    symbol = record.text("contractSymbol")
    name = ContractName.of(symbol)
    if name.right != right:
        raise UnusableRecordError(f"{symbol} is listed among the {'calls' if right == 'C' else 'puts'}")
    expires_at = record.epoch("expiration")
    if name.expiry != expiry or (expires_at is not None and expires_at.date() != expiry):
        raise UnusableRecordError(f"{symbol} is listed under {expiry}, and says {record.fields.get('expiration')}")
    strike = record.amount("strike")
    if strike is not None and abs(strike - name.strike) >= _STRIKE_RESOLUTION / 2:
        raise UnusableRecordError(f"{symbol} is said to have the strike {strike:g}")
    volatility = record.amount("impliedVolatility")
    return OptionQuote(
        contract=str(symbol),
        root=name.root,
        expiry=name.expiry,
        strike=name.strike,
        right=right,
        bid=record.price("bid"),
        ask=record.price("ask"),
        last=record.price("lastPrice"),
        last_at=record.epoch("lastTradeDate"),
        volume=record.amount("volume"),
        open_interest=record.amount("openInterest"),
        iv=volatility if volatility is not None and volatility > _NO_VOLATILITY else None,
    )


def _spot(quote: object) -> float | None:
    """A broken quote of the underlying costs its price, not the chain."""
    try:
        return last_trade(Record.of(quote))[1]
    except UnusableRecordError:
        return None


def _expiry(value: object) -> int:
    """Midnight UTC of a day, epoch seconds: without it nobody could ask for the contracts."""
    seconds = number(value)
    if not 0 < seconds < 1 << 33 or seconds % 86_400:
        raise PayloadError(f"no expiry: {shown(value)}", provider=NAME)
    return int(seconds)


def _date(expiry: int) -> date:
    return datetime.fromtimestamp(expiry, UTC).date()
