"""What may be kept of quotes and chains: each rule by itself, and that nothing gets lost."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.errors import PayloadError
from market_data_pipeline.domain.ports import ChainAnswer, Fetch, OptionQuote, Quote, QuotesAnswer, RefusedRecord
from market_data_pipeline.domain.snapshots import Flag, JudgedChain, JudgedQuotes, judge_chain, judge_quotes

if TYPE_CHECKING:
    from collections.abc import Sequence

NOW = datetime(2024, 12, 2, 18, tzinfo=UTC)
FRIDAY = date(2024, 12, 6)
STALE_AFTER = timedelta(minutes=15)
FETCH = Fetch("yahoo", "AAPL", None, "GET /quote", NOW, 0.1, "ok", capability="quotes_l1")

APPLE = Quote("AAPL", 239.5, 239.6, 100.0, 300.0, 239.55, NOW, NOW, volume=1e6, previous_close=237.3, currency="USD")
CALL = OptionQuote(
    contract="AAPL241206C00240000",
    root="AAPL",
    expiry=FRIDAY,
    strike=240.0,
    right="C",
    bid=1.5,
    ask=1.6,
    last=1.55,
    last_at=NOW,
    volume=10.0,
    open_interest=100.0,
    iv=0.21,
    delta=0.4,
)


def judged(*quotes: Quote, asked: Sequence[str] = ("AAPL",), refused: Sequence[RefusedRecord] = ()) -> JudgedQuotes:
    return judge_quotes(QuotesAnswer(FETCH, quotes, refused=refused), asked=asked, now=NOW, stale_after=STALE_AFTER)


def chain(*contracts: OptionQuote, expiry: date | None = None, **changes: Any) -> JudgedChain:  # noqa: ANN401 - fields
    answer = replace(ChainAnswer(FETCH, "AAPL", NOW, 239.5, contracts, complete=True), **changes)
    return judge_chain(answer, asked="AAPL", expiry=expiry, now=NOW, stale_after=STALE_AFTER)


def reasons(refused: Sequence[tuple[str, RefusedRecord]]) -> list[tuple[str, str]]:
    return [(symbol, record.reason) for symbol, record in refused]


def test_a_lawful_quote_is_kept_as_it_is() -> None:
    assert list(judged(APPLE).quotes) == [(APPLE, Flag(0))]


def test_a_bid_of_zero_is_no_bid_and_has_no_size() -> None:
    ((quote, _),) = judged(replace(APPLE, bid=0.0)).quotes
    assert (quote.bid, quote.bid_size, quote.ask, quote.ask_size) == (None, None, 239.6, 300.0)


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        ({"bid": 239.7}, Flag.CROSSED, "crossed"),
        ({"bid": 239.6}, Flag(0), ""),
        ({"quoted_at": NOW - timedelta(minutes=16)}, Flag.STALE, "stale"),
        ({"quoted_at": NOW - timedelta(minutes=16), "delay_seconds": 900}, Flag(0), ""),
        ({"quoted_at": None, "last_at": NOW - timedelta(hours=1)}, Flag.STALE, "stale"),
        ({"quoted_at": None, "last_at": None}, Flag(0), ""),
        ({"quoted_at": NOW + timedelta(minutes=2)}, Flag.EARLY, "early"),
        ({"quoted_at": NOW + timedelta(seconds=30)}, Flag(0), ""),
        ({"bid": 240.0, "quoted_at": NOW - timedelta(days=1)}, Flag.CROSSED | Flag.STALE, "crossed, stale"),
    ],
)
def test_what_is_odd_is_kept_and_flagged(changes: dict[str, Any], flags: Flag, words: str) -> None:
    ((_, found),) = judged(replace(APPLE, **changes)).quotes
    assert (found, found.words) == (flags, words)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bid": -1.0}, "bid_not_a_price"),
        ({"ask": math.inf}, "ask_not_a_price"),
        ({"last": math.nan}, "last_not_a_price"),
        ({"bid_size": -5.0}, "bid_size_not_a_count"),
        ({"volume": math.nan}, "volume_not_a_count"),
        ({"bid": 0.0, "ask": None, "last": 0.0}, "no_price"),
        ({"symbol": "MSFT"}, "not_asked_for"),
    ],
)
def test_what_no_market_can_have_sent_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    quote = replace(APPLE, **changes)
    found = judged(quote)
    assert (list(found.quotes), reasons(found.refused)) == ([], [(quote.symbol, reason)])
    assert json.loads(found.refused[0][1].record)["symbol"] == quote.symbol


def test_the_same_quote_twice_is_counted_and_another_one_refused() -> None:
    found = judged(APPLE, APPLE, replace(APPLE, bid=1.0))
    assert list(found.quotes) == [(APPLE, Flag(0))]
    assert (found.dropped, reasons(found.refused)) == ({"duplicate": 1}, [("AAPL", "conflicting_duplicate")])


def test_those_nobody_spoke_of_are_unknown() -> None:
    found = judged(APPLE, replace(APPLE, symbol="MSFT", bid=-1.0), asked=("AAPL", "MSFT", "NVDA"))
    assert found.unknown == ["NVDA"]


def test_what_the_adapter_refused_is_passed_on() -> None:
    assert reasons(judged(refused=[RefusedRecord("x", "unreadable")]).refused) == [("AAPL", "unreadable")]


def test_a_lawful_contract_is_kept_as_it_is() -> None:
    assert list(chain(CALL).contracts) == [(CALL, Flag(0))]


def test_a_zero_where_a_provider_has_nothing_is_absent() -> None:
    ((contract, _),) = chain(replace(CALL, bid=0.0, last=0.0, iv=0.0, delta=math.nan)).contracts
    assert (contract.bid, contract.last, contract.iv, contract.delta, contract.ask) == (None, None, None, None, 1.6)


def test_a_delta_of_zero_is_a_delta() -> None:
    ((contract, _),) = chain(replace(CALL, delta=0.0)).contracts
    assert contract.delta == 0.0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strike": 0.0}, "strike_not_a_price"),
        ({"strike": -5.0}, "strike_not_a_price"),
        ({"strike": math.inf}, "strike_not_a_price"),
        ({"right": "X"}, "neither_call_nor_put"),
        ({"bid": -0.01}, "bid_not_a_price"),
        ({"open_interest": -1.0}, "open_interest_not_a_count"),
    ],
)
def test_an_unlawful_contract_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    found = chain(replace(CALL, **changes))
    assert (list(found.contracts), [record.reason for record in found.refused]) == ([], [reason])


def test_a_crossed_contract_is_flagged() -> None:
    assert [flags for _, flags in chain(replace(CALL, bid=1.7)).contracts] == [Flag.CROSSED]


def test_another_expiry_than_asked_for_is_refused() -> None:
    found = chain(CALL, replace(CALL, contract="later", expiry=FRIDAY + timedelta(days=7)), expiry=FRIDAY)
    assert (len(found.contracts), [record.reason for record in found.refused]) == (1, ["other_expiry"])


def test_another_underlying_is_no_answer() -> None:
    with pytest.raises(PayloadError, match="asked for the chain of AAPL, answered with 'MSFT'"):
        chain(CALL, symbol="MSFT")


def test_an_old_chain_is_flagged_and_says_whether_it_is_complete() -> None:
    found = chain(CALL, taken_at=NOW - timedelta(hours=1), complete=False, spot=0.0)
    assert (found.flags, found.is_complete, found.spot) == (Flag.STALE, False, None)


prices = st.one_of(st.none(), st.floats(), st.just(0.0))
quotes = st.builds(
    Quote,
    symbol=st.sampled_from(["AAPL", "MSFT", "XXX"]),
    bid=prices,
    ask=prices,
    bid_size=prices,
    ask_size=prices,
    last=prices,
    last_at=st.none(),
    quoted_at=st.none(),
    volume=prices,
)


@given(st.lists(quotes, max_size=6))
def test_every_quote_is_kept_refused_or_counted_and_those_kept_obey_the_laws(told: list[Quote]) -> None:
    found = judged(*told, asked=("AAPL", "MSFT"))
    assert len(told) == len(found.quotes) + len(found.refused) + sum(found.dropped.values())
    for quote, _ in found.quotes:
        present = [price for price in (quote.bid, quote.ask, quote.last) if price is not None]
        assert present
        assert all(math.isfinite(price) and price > 0 for price in present)
    for _, record in found.refused:
        assert json.loads(record.record)["symbol"] in {"AAPL", "MSFT", "XXX"}
