"""Quotes and chains as they were known at any instant; the same answer again writes nothing but its fetch."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import NoResultFound

from market_data_pipeline.domain.capabilities import Feed
from market_data_pipeline.domain.ports import Fetch, OptionQuote, Quote, RefusedRecord
from market_data_pipeline.domain.snapshots import Flag, JudgedChain, JudgedQuotes
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.storage.options import OptionStore
from market_data_pipeline.storage.quotes import QuoteStore
from market_data_pipeline.storage.refused import refused_records
from market_data_pipeline.storage.universe import UniverseStore

if TYPE_CHECKING:
    from sqlalchemy import Engine

NOON = datetime(2024, 12, 2, 18, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
FRIDAY, NEXT_FRIDAY = date(2024, 12, 6), date(2024, 12, 13)
FETCH = Fetch("yahoo", "AAPL", None, "GET /v7/finance/quote?symbols=AAPL", NOON, 0.1, "ok", rows=1, capability="quotes_l1")
APPLE = Quote("AAPL", 239.5, 239.6, 100.0, 300.0, 239.55, NOON, NOON, 1e6, 237.3, "USD", "REGULAR", 0)
CALL = OptionQuote("AAPL241206C00240000", "AAPL", FRIDAY, 240.0, "C", 1.5, 1.6, 1.55, NOON, 10.0, 100.0, 0.2, 0.4, bid_size=3.0)
PUT = replace(CALL, contract="AAPL241213P00240000", right="P", expiry=NEXT_FRIDAY, bid=None, iv=None)


@pytest.fixture
def ids(engine: Engine) -> dict[str, int]:
    """AAPL and MSFT."""
    universe = UniverseStore(engine)
    entries = [UniverseEntry(symbol, "XNAS", Tier.T0) for symbol in ("AAPL", "MSFT")]
    universe.load(entries, version_tag="v", source="t", source_sha256="s", loaded_by="t")
    return {i.symbol: i.symbol_id for i in universe.instruments()}


def said(*quotes: Quote, provider: str = "yahoo", flags: Flag = Flag(0)) -> JudgedQuotes:  # noqa: B008 - a constant
    return JudgedQuotes(replace(FETCH, provider=provider), [(quote, flags) for quote in quotes], (), ())


def taken(*contracts: OptionQuote, **changes: Any) -> JudgedChain:  # noqa: ANN401 - fields
    chain = JudgedChain(
        fetch=replace(FETCH, capability="options_chain"),
        symbol="AAPL",
        expiry=None,
        taken_at=NOON,
        spot=239.5,
        contracts=[(contract, Flag(0)) for contract in contracts],
        is_complete=True,
        flags=Flag(0),
        refused=(),
    )
    return replace(chain, **changes)


# --- quotes ------------------------------------------------------------------------------------------------------------


def test_a_quote_that_is_no_news_is_confirmed_and_keeps_the_time_from_which_it_was_known(
    engine: Engine, ids: dict[str, int]
) -> None:
    store = QuoteStore(engine)
    for minutes in (0, 1, 2):
        store.record(said(APPLE), ids, known_at=NOON + minutes * MINUTE)
    # An answer that was under way for longer is stored last, and takes nothing back.
    store.record(said(APPLE), ids, known_at=NOON + MINUTE)
    (quote,) = store.latest([ids["AAPL"]])
    assert (quote.known_from, quote.confirmed_at) == (NOON, NOON + 2 * MINUTE)
    (earlier,) = store.latest([ids["AAPL"]], as_of=NOON + MINUTE)
    assert earlier.confirmed_at is None


def test_whom_somebody_has_just_quoted_is_known_by_either_clock(engine: Engine, ids: dict[str, int]) -> None:
    store = QuoteStore(engine)
    everybody = list(ids.values())
    store.record(said(APPLE), ids, known_at=NOON)
    for now, fresh in ((NOON + MINUTE, {ids["AAPL"]}), (NOON + 2 * MINUTE, set()), (NOON - 3 * MINUTE, set()), (None, set())):
        assert store.confirmed_within(everybody, 2 * MINUTE, now=now) == fresh
    store.record(said(replace(APPLE, symbol="MSFT")), ids)
    assert store.confirmed_within(everybody, 2 * MINUTE) == {ids["MSFT"]}


def test_a_quote_is_read_back_as_it_was_with_its_provenance(engine: Engine, ids: dict[str, int]) -> None:
    store = QuoteStore(engine)
    bare = Quote("MSFT", None, 430.0, None, 1.0, None, None, None)
    written = store.record(said(APPLE, bare, flags=Flag.STALE), ids, feed=Feed.IEX, known_at=NOON)
    stored = store.latest([ids["MSFT"], ids["AAPL"]])
    assert [(s.symbol_id, s.quote) for s in stored] == [(ids["MSFT"], bare), (ids["AAPL"], APPLE)]
    assert {(s.provider, s.feed, s.flags, s.known_from, s.fetch_id) for s in stored} == {
        ("yahoo", Feed.IEX, Flag.STALE, NOON, written.fetch_id)
    }
    assert (written.inserted, written.unchanged) == (2, 0)


def test_the_same_quote_again_writes_a_fetch_and_no_quote(engine: Engine, ids: dict[str, int]) -> None:
    store = QuoteStore(engine)
    store.record(said(APPLE), ids, known_at=NOON)
    written = store.record(said(APPLE, flags=Flag.STALE), ids, known_at=NOON + MINUTE)
    assert (written.inserted, written.unchanged) == (0, 1)
    assert len(store.history(ids["AAPL"], NOON, NOON + 2 * MINUTE)) == 1


def test_what_was_known_at_an_instant_is_read_for_ever(engine: Engine, ids: dict[str, int]) -> None:
    store = QuoteStore(engine)
    bids = [1.0, 2.0, 3.0]
    for number, bid in enumerate(bids):
        store.record(said(replace(APPLE, bid=bid)), ids, known_at=NOON + number * MINUTE)
    read = [store.latest([ids["AAPL"]], as_of=NOON + number * MINUTE + MINUTE / 2)[0].quote.bid for number in range(3)]
    assert read == bids
    assert store.latest([ids["AAPL"]], as_of=NOON - MINUTE) == []


def test_each_provider_has_its_own_last_word(engine: Engine, ids: dict[str, int]) -> None:
    store = QuoteStore(engine)
    store.record(said(APPLE), ids, known_at=NOON)
    written = store.record(said(APPLE, provider="alpaca"), ids, known_at=NOON + MINUTE)
    assert written.inserted == 1
    assert [s.provider for s in store.latest([ids["AAPL"]])] == ["alpaca"]
    assert [s.provider for s in store.latest([ids["AAPL"]], provider="yahoo")] == ["yahoo"]
    assert [s.provider for s in store.history(ids["AAPL"], NOON, NOON + 2 * MINUTE, provider="yahoo")] == ["yahoo"]


def test_knowledge_of_quotes_never_runs_backwards(engine: Engine, ids: dict[str, int]) -> None:
    store = QuoteStore(engine)
    store.record(said(APPLE), ids, known_at=NOON)
    written = store.record(said(replace(APPLE, bid=1.0)), ids, known_at=NOON - MINUTE)
    assert written.known_at == NOON + timedelta(microseconds=1)


def test_an_answer_without_quotes_leaves_its_fetch_and_its_refusals(engine: Engine, ids: dict[str, int]) -> None:
    judged = replace(said(), refused=[("AAPL", RefusedRecord("{}", "no_price"))])
    written = QuoteStore(engine).record(judged, ids)
    assert (written.inserted, written.refused) == (0, 1)
    kept = refused_records(engine, capability="quotes_l1")
    assert [(k.provider, k.symbol, k.refused.reason, k.fetch_id) for k in kept] == [("yahoo", "AAPL", "no_price", written.fetch_id)]


# --- chains ------------------------------------------------------------------------------------------------------------


def test_a_chain_is_read_back_as_one_moment(engine: Engine, ids: dict[str, int]) -> None:
    store = OptionStore(engine)
    written = store.record(taken(PUT, CALL, is_complete=False, flags=Flag.STALE), ids["AAPL"], known_at=NOON)
    chain = store.snapshot(written.snapshot_id)
    assert chain.contracts == [(CALL, Flag(0)), (PUT, Flag(0))]
    assert (chain.symbol, chain.provider, chain.taken_at, chain.spot) == ("AAPL", "yahoo", NOON, 239.5)
    assert (chain.is_complete, chain.flags, chain.known_from, chain.fetch_id) == (False, Flag.STALE, NOON, written.fetch_id)


def test_the_same_chain_again_is_no_new_snapshot(engine: Engine, ids: dict[str, int]) -> None:
    store = OptionStore(engine)
    first = store.record(taken(CALL), ids["AAPL"], known_at=NOON)
    again = store.record(taken(CALL), ids["AAPL"], known_at=NOON + MINUTE)
    assert (first.is_new, again.is_new, again.snapshot_id) == (True, False, first.snapshot_id)


@pytest.mark.parametrize("changes", [{"taken_at": NOON + MINUTE}, {"spot": 240.0}, {"is_complete": False}, {"contracts": ()}])
def test_another_moment_or_content_is_another_snapshot(engine: Engine, ids: dict[str, int], changes: dict[str, Any]) -> None:
    store = OptionStore(engine)
    first = store.record(taken(CALL), ids["AAPL"], known_at=NOON)
    second = store.record(taken(CALL, **changes), ids["AAPL"], known_at=NOON + MINUTE)
    assert second.snapshot_id != first.snapshot_id
    assert len(store.snapshot(first.snapshot_id).contracts) == 1


def test_a_chain_is_read_as_it_was_known(engine: Engine, ids: dict[str, int]) -> None:
    store = OptionStore(engine)
    store.record(taken(CALL), ids["AAPL"], known_at=NOON)
    store.record(taken(CALL, PUT), ids["AAPL"], known_at=NOON + MINUTE)
    counts = {}
    for seconds in (-1, 0, 60):
        chain = store.latest(ids["AAPL"], as_of=NOON + timedelta(seconds=seconds))
        counts[seconds] = None if chain is None else len(chain.contracts)
    assert counts == {-1: None, 0: 1, 60: 2}
    assert store.latest(ids["MSFT"]) is None


def test_an_expiry_is_found_in_a_whole_chain_and_a_part_never_stands_for_the_whole(engine: Engine, ids: dict[str, int]) -> None:
    store = OptionStore(engine)
    whole = store.record(taken(CALL, PUT), ids["AAPL"], known_at=NOON)
    part = store.record(taken(replace(CALL, bid=1.4), expiry=FRIDAY), ids["AAPL"], known_at=NOON + MINUTE)
    found = {day: store.latest(ids["AAPL"], expiry=day) for day in (None, FRIDAY, NEXT_FRIDAY)}
    assert {day: None if chain is None else chain.snapshot_id for day, chain in found.items()} == {
        None: whole.snapshot_id,
        FRIDAY: part.snapshot_id,
        NEXT_FRIDAY: whole.snapshot_id,
    }
    later = found[NEXT_FRIDAY]
    assert later is not None
    assert [contract for contract, _ in later.contracts] == [PUT]


def test_a_snapshot_that_is_not_there_is_an_error(engine: Engine) -> None:
    with pytest.raises(NoResultFound):
        OptionStore(engine).snapshot(1)
