"""Quotes and option chains, judged before they are stored: what is kept, with which flags, and what is refused and why. Pure."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from enum import IntFlag
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.errors import PayloadError
from market_data_pipeline.domain.ports import OptionQuote, Quote, RefusedRecord

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import date

    from market_data_pipeline.domain.ports import ChainAnswer, Fetch, QuotesAnswer

# Clocks differ by seconds; a stamp further ahead of ours means that one of the two is wrong.
CLOCK_SKEW = timedelta(seconds=60)


class Flag(IntFlag):
    """What must be known of a kept quote. The values are what the ``flags`` columns hold."""

    CROSSED = 1
    """The bid is above the ask: somebody's price is old."""
    STALE = 2
    """Older than asked for when we heard it, its declared delay allowed for: at night, or a feed that stands still."""
    EARLY = 4
    """Stamped later than our clock."""

    @property
    def words(self) -> str:
        """The flags by name, for people: "crossed, stale"; "" for none."""
        return ", ".join(str(flag.name).lower() for flag in self)


@dataclass(frozen=True, slots=True, eq=False)
class JudgedQuotes:
    """One quote a symbol, each with its flags. ``refused``: (symbol, record). ``unknown``: asked for and not answered."""

    fetch: Fetch
    quotes: Sequence[tuple[Quote, Flag]]
    refused: Sequence[tuple[str, RefusedRecord]]
    unknown: Sequence[str]
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class JudgedChain:
    """One moment of a chain: contracts with their flags, each contract once. ``expiry`` is what was asked for."""

    fetch: Fetch
    symbol: str
    expiry: date | None
    taken_at: datetime
    spot: float | None
    contracts: Sequence[tuple[OptionQuote, Flag]]
    is_complete: bool
    flags: Flag
    refused: Sequence[RefusedRecord]
    dropped: Mapping[str, int] = field(default_factory=dict)


def judge_quotes(answer: QuotesAnswer, *, asked: Collection[str], now: datetime, stale_after: timedelta) -> JudgedQuotes:
    """What may be kept of ``answer``. ``asked``: the symbols as the provider names them.

    Zero is no price: such a bid or ask is taken for absent. A crossed, stale or early quote is kept and flagged. Refused: a symbol
    nobody asked for, a price that is negative or no number, a quote with no price at all, a second one that says something else.
    """
    kept: dict[str, tuple[Quote, Flag]] = {}
    refused = [(answer.fetch.symbol, record) for record in answer.refused]
    dropped: Counter[str] = Counter()
    for quote in answer.quotes:
        if quote.symbol not in asked:
            refused.append((quote.symbol, _refusal(quote, "not_asked_for")))
            continue
        judged = _quote(quote, now, stale_after)
        if isinstance(judged, str):
            refused.append((quote.symbol, _refusal(quote, judged)))
        elif kept.setdefault(quote.symbol, judged) is judged:
            pass
        elif kept[quote.symbol] == judged:
            dropped["duplicate"] += 1
        else:
            refused.append((quote.symbol, _refusal(quote, "conflicting_duplicate")))
    spoken_of = kept.keys() | {symbol for symbol, _ in refused}
    # An answer that refuses records without saying whose they are has not said that it knows nobody else.
    unknown = [symbol for symbol in asked if symbol not in spoken_of]
    return JudgedQuotes(answer.fetch, list(kept.values()), refused, unknown, dict(dropped))


def judge_chain(answer: ChainAnswer, *, asked: str, expiry: date | None, now: datetime, stale_after: timedelta) -> JudgedChain:
    """What may be kept of ``answer``; PayloadError where it is another underlying's.

    Refused: a contract of another expiry than asked for, one without a lawful strike, with a negative price or count, and a second
    one that says something else. What a provider writes as 0 where it has nothing is absent: bid, ask, last and implied volatility.
    """
    if answer.symbol != asked:
        raise PayloadError(f"asked for the chain of {asked}, answered with {answer.symbol!r}", provider=answer.fetch.provider)
    kept: dict[str, tuple[OptionQuote, Flag]] = {}
    refused = list(answer.refused)
    dropped: Counter[str] = Counter()
    for contract in answer.contracts:
        judged = "other_expiry" if expiry not in {None, contract.expiry} else _contract(contract)
        if isinstance(judged, str):
            refused.append(_refusal(contract, judged))
        elif kept.setdefault(contract.contract, judged) is judged:
            pass
        elif kept[contract.contract] == judged:
            dropped["duplicate"] += 1
        else:
            refused.append(_refusal(contract, "conflicting_duplicate"))
    return JudgedChain(
        fetch=answer.fetch,
        symbol=answer.symbol,
        expiry=expiry,
        taken_at=answer.taken_at,
        spot=_price(answer.spot),
        contracts=[kept[name] for name in sorted(kept)],
        is_complete=answer.complete,
        flags=_age(answer.taken_at, now, stale_after),
        refused=refused,
        dropped=dict(dropped),
    )


def _quote(quote: Quote, now: datetime, stale_after: timedelta) -> tuple[Quote, Flag] | str:
    wrong = _unlawful(quote, prices=("bid", "ask", "last"), counts=("bid_size", "ask_size", "volume"))
    if wrong is not None:
        return wrong
    bid, ask, last = _price(quote.bid), _price(quote.ask), _price(quote.last)
    if bid is None and ask is None and last is None:
        return "no_price"
    kept = replace(
        quote,
        bid=bid,
        ask=ask,
        last=last,
        # The size of an offer that is none.
        bid_size=quote.bid_size if bid is not None else None,
        ask_size=quote.ask_size if ask is not None else None,
        previous_close=_price(quote.previous_close),
    )
    stamp = quote.quoted_at or quote.last_at
    age = Flag(0) if stamp is None else _age(stamp, now, stale_after + timedelta(seconds=quote.delay_seconds))
    return kept, _crossed(bid, ask) | age


def _contract(contract: OptionQuote) -> tuple[OptionQuote, Flag] | str:
    if _price(contract.strike) is None or contract.strike < 0:
        return "strike_not_a_price"
    if contract.right not in {"C", "P"}:
        return "neither_call_nor_put"
    wrong = _unlawful(contract, prices=("bid", "ask", "last"), counts=("volume", "open_interest", "bid_size", "ask_size"))
    if wrong is not None:
        return wrong
    bid, ask = _price(contract.bid), _price(contract.ask)
    kept = replace(
        contract,
        bid=bid,
        ask=ask,
        last=_price(contract.last),
        iv=_price(contract.iv),
        delta=_finite(contract.delta),
        gamma=_finite(contract.gamma),
        vega=_finite(contract.vega),
        theta=_finite(contract.theta),
        rho=_finite(contract.rho),
    )
    return kept, _crossed(bid, ask)


def _unlawful(record: Quote | OptionQuote, *, prices: Sequence[str], counts: Sequence[str]) -> str | None:
    """The first field that no market can have sent, as a reason."""
    for names, what in ((prices, "price"), (counts, "count")):
        for name in names:
            value = getattr(record, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                return f"{name}_not_a_{what}"
    return None


def _crossed(bid: float | None, ask: float | None) -> Flag:
    return Flag.CROSSED if bid is not None and ask is not None and bid > ask else Flag(0)


def _age(stamp: datetime, now: datetime, stale_after: timedelta) -> Flag:
    if stamp > now + CLOCK_SKEW:
        return Flag.EARLY
    return Flag.STALE if now - stamp > stale_after else Flag(0)


def _price(value: float | None) -> float | None:
    """None for what is no price: absent, zero, or no finite number."""
    return value if value is not None and math.isfinite(value) and value != 0 else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _refusal(record: Quote | OptionQuote, reason: str) -> RefusedRecord:
    return RefusedRecord(json.dumps(asdict(record), default=_as_text), reason)


def _as_text(value: Any) -> str:  # noqa: ANN401 - whatever a record holds
    return value.isoformat() if hasattr(value, "isoformat") else repr(value)
