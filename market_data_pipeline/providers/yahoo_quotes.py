"""Yahoo's quote endpoint: how it is asked, its answers as quotes. What a quote is worth is judged elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.capabilities import QUOTES_L1, Basis, Capability
from market_data_pipeline.domain.errors import OutOfReachError, PayloadError
from market_data_pipeline.domain.ports import Quote, QuotesAnswer
from market_data_pipeline.providers.http import describe
from market_data_pipeline.providers.records import Record, UnusableRecordError, read_records
from market_data_pipeline.providers.wire import Exchange, listing, refuse_outage, shown
from market_data_pipeline.providers.yahoo_session import NAME, answered

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from market_data_pipeline.domain.capabilities import Priority
    from market_data_pipeline.domain.ports import RefusedRecord
    from market_data_pipeline.providers.http import HttpAnswer
    from market_data_pipeline.providers.yahoo_session import YahooSession

# Yahoo takes more; but a long list is a long URL, and all of it is lost when the request is.
SYMBOLS_PER_REQUEST = 50
QUOTES = Capability(name=QUOTES_L1, symbols_per_request=SYMBOLS_PER_REQUEST, basis=Basis.RAW)

# Where Yahoo counts the sizes of bid and ask in lots of 100 (measured 2025-02); elsewhere they are shares already.
_IN_LOTS = frozenset({"NMS", "NGM", "NCM", "NYQ", "ASE", "PCX", "BTS"})
_LOT = 100
_LONGEST_DELAY_MINUTES = 24 * 60
_TRADES = tuple((f"{session}MarketTime", f"{session}MarketPrice") for session in ("pre", "regular", "post"))


@dataclass(frozen=True, slots=True, eq=False)
class ParsedQuotes:
    """The quotes of one body. ``received`` records were in it: each is in ``quotes``, in ``refused`` or one of ``hollow``.

    ``hollow``: symbols that Yahoo has a record of and no price. ``unknown``: those asked for that are hollow or not in the body.
    """

    quotes: Sequence[Quote]
    unknown: Sequence[str]
    hollow: Sequence[str]
    refused: Sequence[RefusedRecord]
    received: int


def fetch_quotes(
    session: YahooSession, base_url: str, symbols: Sequence[str], *, priority: Priority, now: datetime
) -> QuotesAnswer:
    """Quotes of up to 50 symbols in one request, and two or four more where a pass is needed. An error carries its ``fetch``.

    Raises OutOfReachError, with nothing sent, for no symbol or too many; else what ``YahooSession.ask`` raises, and PayloadError.
    """
    url, parameters, listed = f"{base_url}/v7/finance/quote", {"symbols": ",".join(symbols)}, ",".join(symbols)
    exchange = Exchange(provider=NAME, symbol=listed, request=describe(url, parameters, {}), started_at=now, capability=QUOTES_L1)
    found: list[ParsedQuotes] = []

    def check(answer: HttpAnswer) -> None:
        refuse_outage(answer, NAME)
        found.append(parse_quotes(answer.body, symbols))

    with exchange.on_record():
        if not 0 < len(symbols) <= SYMBOLS_PER_REQUEST:
            raise OutOfReachError(f"{len(symbols)} symbols: 1 to {SYMBOLS_PER_REQUEST} a request", provider=NAME)
        session.ask(url, parameters, check, priority=priority, attempts=exchange.attempts)
    parsed = found[-1]
    dropped = {name: len(left) for name, left in (("hollow", parsed.hollow), ("refused", parsed.refused)) if left}
    return QuotesAnswer(
        fetch=exchange.provenance(rows=len(parsed.quotes), dropped=dropped),
        quotes=parsed.quotes,
        unknown=parsed.unknown,
        refused=parsed.refused,
    )


def parse_quotes(body: bytes, symbols: Sequence[str]) -> ParsedQuotes:
    """The quotes in a body of /v7/finance/quote that was asked for ``symbols``; a quote is named as it was asked for.

    A bid or ask of 0 is none. Sizes in shares. ``last`` is the newest trade of any session, pre- and post-market included, and
    ``quoted_at`` its time: Yahoo puts no time on bid and ask. Refused: a symbol nobody asked for, a second record of one, numbers
    that are negative, not finite or none, a record without any price. Raises PayloadError (nothing but other symbols, a body not as
    documented) and the error that the body tells of.
    """
    answer = answered(body, "quoteResponse", ",".join(symbols))
    records = listing(answer.get("result"), "quoteResponse.result", NAME)
    asked = {symbol.upper(): symbol for symbol in symbols}
    hollow = [record for record in records if isinstance(record, dict) and _is_hollow(record)]
    solid = [record for record in records if not (isinstance(record, dict) and _is_hollow(record))]
    quotes, refused = read_records(solid, partial(_quote, asked=asked), name=lambda quote: quote.symbol)
    echoed = {str(record.get("symbol")).upper() for record in solid if isinstance(record, dict)}
    if echoed and not echoed & asked.keys():
        raise PayloadError(f"asked for {','.join(symbols)[:60]}, answered with {','.join(sorted(echoed))[:60]}", provider=NAME)
    return ParsedQuotes(
        quotes=quotes,
        # One that was refused is known, and has its reason.
        unknown=[symbol for upper, symbol in asked.items() if upper not in echoed],
        hollow=[str(record.get("symbol")) for record in hollow],
        refused=refused,
        received=len(records),
    )


def _is_hollow(record: Mapping[str, Any]) -> bool:
    """Registered, but nothing that trades (recorded: quoteType NONE; a fund without price and currency), or nothing but a name."""
    return not any(name in record for _, name in _TRADES) and "bid" not in record and "ask" not in record


def _quote(record: Record, *, asked: Mapping[str, str]) -> Quote:
    echoed = record.text("symbol")
    symbol = asked.get((echoed or "").upper())
    if symbol is None:
        raise UnusableRecordError(f"{shown(echoed)} was not asked for")
    bid, ask = record.price("bid"), record.price("ask")
    lot = _LOT if record.text("exchange") in _IN_LOTS else 1
    last_at, last = last_trade(record)
    if bid is None and ask is None and last is None:
        raise UnusableRecordError(f"{symbol} has no bid, no ask and no last price")
    return Quote(
        symbol=symbol,
        bid=bid,
        ask=ask,
        bid_size=_size(record, "bidSize", bid, lot),
        ask_size=_size(record, "askSize", ask, lot),
        last=last,
        last_at=last_at,
        quoted_at=last_at,
        volume=record.amount("regularMarketVolume"),
        previous_close=record.price("regularMarketPreviousClose"),
        currency=record.text("currency"),
        market_state=record.text("marketState"),
        delay_seconds=_delay_seconds(record),
    )


def _size(record: Record, name: str, price: float | None, lot: int) -> float | None:
    """Shares; None where there is none, or no price that they could be had for."""
    size = record.amount(name)
    if not size or price is None:
        return None
    shares = size * lot
    if not math.isfinite(shares):
        raise UnusableRecordError(f"{name} is not finite")
    return shares


def _delay_seconds(record: Record) -> int:
    """0 where Yahoo does not say: it names the delays that there are."""
    minutes = record.amount("exchangeDataDelayedBy") or 0
    if minutes > _LONGEST_DELAY_MINUTES:
        raise UnusableRecordError(f"exchangeDataDelayedBy is no delay: {minutes:g}")
    return round(minutes * 60)


def last_trade(record: Record) -> tuple[datetime | None, float | None]:
    """When and at what the last trade was, of the sessions that tell both; else the regular session's price alone."""
    trades = [(at, price) for at, price in ((record.epoch(at), record.price(price)) for at, price in _TRADES) if at and price]
    return max(trades) if trades else (None, record.price("regularMarketPrice"))
