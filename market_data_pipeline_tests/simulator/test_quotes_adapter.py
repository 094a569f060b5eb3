"""Yahoo's and CBOE's adapters against the simulator over real HTTP: passes that run out, batches, chains with holes, 304s."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import HISTORY
from market_data_pipeline.domain.errors import (
    EntitlementError,
    PayloadError,
    RateLimitedError,
    StaleError,
    TransientError,
    UnknownSymbolError,
)
from market_data_pipeline.domain.ports import BarsRequest
from market_data_pipeline.domain.quality import BarFlag
from market_data_pipeline.providers.answer_cache import AnswerCache
from market_data_pipeline.providers.cboe import CboeProvider
from market_data_pipeline.providers.http import HttpClient, HttpPolicy
from market_data_pipeline.providers.yahoo import YahooProvider
from market_data_pipeline.simulator.client import RunningSimulator, running_simulator
from market_data_pipeline.simulator.yahoo_quotes import cookie, crumb
from market_data_pipeline_tests.simulator.directories import OPEN, minute, session_of_minutes, write_bars, write_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from market_data_pipeline.domain.ports import ChainAnswer, QuotesAnswer

NOON = minute(150)
SEED = 7
QUOTE, OPTIONS, CRUMB, COOKIE = "/v7/finance/quote", "/v7/finance/options/*", "/v1/test/getcrumb", "/fc*"


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulator]:
    """A day of AAPL and MSFT at noon; BRKS is listed and never traded."""
    folder = tmp_path_factory.mktemp("quotes")
    write_lines(folder, "universe.csv", "symbol,exchange,asset_type", "AAPL,XNAS,equity", "MSFT,XNAS,equity", "BRKS,XNAS,equity")
    for symbol in ("AAPL", "MSFT"):
        write_bars(folder, session_of_minutes(), symbol=symbol)
    with running_simulator(data=folder, now=NOON, seed=SEED) as running:
        yield running


@pytest.fixture(autouse=True)
def _afresh(simulator: RunningSimulator) -> None:
    simulator.reset()


@pytest.fixture
def http() -> Iterator[HttpClient]:
    with HttpClient(HttpPolicy(attempts=2, timeout_seconds=5.0), sleep=lambda _: None) as client:
        yield client


@pytest.fixture
def yahoo(simulator: RunningSimulator, http: HttpClient) -> YahooProvider:
    told = simulator.environment()
    return YahooProvider(
        http,
        base_url=told["MDP_YAHOO_BASE_URL"],
        user_agent="tests",
        cookie_url=told["MDP_YAHOO_COOKIE_URL"],
        crumb_url=told["MDP_YAHOO_CRUMB_URL"],
    )


@pytest.fixture
def cboe(simulator: RunningSimulator, http: HttpClient) -> CboeProvider:
    return CboeProvider(http, base_url=simulator.environment()["MDP_CBOE_BASE_URL"], user_agent="tests")


def quotes(yahoo: YahooProvider, *symbols: str) -> QuotesAnswer:
    return yahoo.fetch_quotes(symbols or ("AAPL",), priority=HISTORY, now=NOON)


def chain(provider: YahooProvider | CboeProvider, expiry: date | None = None) -> ChainAnswer:
    return provider.fetch_chain("AAPL", expiry=expiry, priority=HISTORY, now=NOON)


def paths(simulator: RunningSimulator) -> list[str]:
    return [request["path"] for request in simulator.requests()]


# --- Yahoo -------------------------------------------------------------------------------------------------------------


def test_a_batch_of_quotes_is_one_request_and_names_the_unknown(simulator: RunningSimulator, yahoo: YahooProvider) -> None:
    answer = quotes(yahoo, "AAPL", "NOPE", "MSFT", "BRKS")
    assert ([q.symbol for q in answer.quotes], list(answer.unknown), list(answer.refused)) == (
        ["AAPL", "MSFT"],
        ["NOPE", "BRKS"],
        [],
    )
    assert paths(simulator) == ["/fc/", CRUMB, QUOTE]
    assert answer.quotes[0].last == 100 + 149 / 100 + 0.25
    assert answer.quotes[0].quoted_at == NOON


def test_a_crumb_that_ran_out_is_renewed_without_anybody_noticing(simulator: RunningSimulator, yahoo: YahooProvider) -> None:
    quotes(yahoo)
    simulator.set_now(NOON + timedelta(days=2))
    simulator.forget_requests()
    assert [q.symbol for q in quotes(yahoo).quotes] == ["AAPL"]
    assert paths(simulator) == [QUOTE, "/fc/", CRUMB, QUOTE]


def test_a_crumb_that_runs_out_in_the_middle_of_a_chain_costs_no_expiry(simulator: RunningSimulator, yahoo: YahooProvider) -> None:
    simulator.set_faults([{"match": {"path": OPTIONS, "nth": 2}, "action": "status", "code": 401}])
    answer = chain(yahoo)
    assert (answer.complete, len(answer.contracts), len({c.expiry for c in answer.contracts})) == (True, 66, 3)
    assert paths(simulator).count(CRUMB) == 2


def test_a_pass_that_is_refused_for_ever_is_renewed_once_and_then_not_for_us(
    simulator: RunningSimulator, yahoo: YahooProvider
) -> None:
    simulator.set_faults([{"match": {"path": QUOTE}, "action": "status", "code": 401}])
    with pytest.raises(EntitlementError):
        quotes(yahoo)
    assert (paths(simulator).count(QUOTE), paths(simulator).count(CRUMB)) == (2, 2)


def test_threads_that_are_refused_together_fetch_one_new_pass(simulator: RunningSimulator, yahoo: YahooProvider) -> None:
    quotes(yahoo)
    simulator.set_now(NOON + timedelta(days=2))
    simulator.forget_requests()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: quotes(yahoo), range(8)))
    assert [len(answer.quotes) for answer in answers] == [1] * 8
    assert paths(simulator).count(CRUMB) == 1


def test_too_many_requests_as_a_crumb_is_a_rate_limit(simulator: RunningSimulator, yahoo: YahooProvider) -> None:
    simulator.set_faults([{"match": {"path": CRUMB, "first": 1}, "action": "status", "code": 429}])
    with pytest.raises(RateLimitedError):
        quotes(yahoo)
    assert [q.symbol for q in quotes(yahoo).quotes] == ["AAPL"]


@pytest.mark.parametrize("path", [COOKIE, CRUMB, QUOTE])
def test_a_page_of_an_outage_is_asked_again_wherever_it_is(simulator: RunningSimulator, yahoo: YahooProvider, path: str) -> None:
    simulator.set_faults([{"match": {"path": path, "first": 1}, "action": "html", "page": "consent"}])
    assert [q.symbol for q in quotes(yahoo).quotes] == ["AAPL"]
    simulator.set_faults([{"match": {"path": QUOTE}, "action": "html"}])
    with pytest.raises(TransientError):
        quotes(yahoo)


def test_a_chain_with_an_expiry_that_will_not_come_is_told_incomplete(simulator: RunningSimulator, yahoo: YahooProvider) -> None:
    expiries = sorted({c.expiry for c in chain(yahoo).contracts})
    stamp = (expiries[1] - date(1970, 1, 1)).days * 86_400
    # Both attempts for the second expiry; a rule behind one that struck does not count that request.
    simulator.set_faults([{"match": {"path": OPTIONS, "nth": place}, "action": "empty"} for place in (3, 2)])
    answer = chain(yahoo)
    assert (answer.complete, sorted({c.expiry for c in answer.contracts})) == (False, [expiries[0], expiries[2]])
    assert answer.fetch.dropped == {"missing_expiry": 1}
    assert str(expiries[1]) in str(answer.fetch.error)
    one = chain(yahoo, expiries[1])
    assert (one.complete, {c.expiry for c in one.contracts}) == (True, {expiries[1]})
    assert simulator.requests()[-1]["query"].startswith(f"date={stamp}")


@pytest.mark.parametrize("action", ["strings", "out_of_order"])
def test_what_only_looks_wrong_in_quotes_is_read(simulator: RunningSimulator, yahoo: YahooProvider, action: str) -> None:
    told = {q.symbol: q for q in quotes(yahoo, "AAPL", "MSFT").quotes}
    simulator.set_faults([{"match": {"path": QUOTE}, "action": action}])
    assert {q.symbol: q for q in quotes(yahoo, "AAPL", "MSFT").quotes} == told


def test_quotes_sent_twice_are_kept_once(simulator: RunningSimulator, yahoo: YahooProvider) -> None:
    simulator.set_faults([{"match": {"path": QUOTE}, "action": "duplicate", "fraction": 1.0}])
    answer = quotes(yahoo, "AAPL", "MSFT")
    assert (len(answer.quotes), [r.reason for r in answer.refused]) == (2, ["a second record of AAPL", "a second record of MSFT"])


def test_a_number_that_is_none_costs_one_quote(simulator: RunningSimulator, yahoo: YahooProvider) -> None:
    simulator.set_faults([{"match": {"path": QUOTE}, "action": "other_symbol", "symbol": "EVIL"}])
    with pytest.raises(PayloadError):
        quotes(yahoo)
    simulator.set_faults([{"match": {"path": OPTIONS}, "action": "nan"}])
    answer = chain(yahoo)
    assert (len(answer.contracts) + len(answer.refused), len(answer.refused)) == (66, 3)


def test_minutes_that_come_as_text_are_the_same_minutes_flagged(simulator: RunningSimulator, yahoo: YahooProvider) -> None:
    request = BarsRequest("AAPL", Interval.M1, int(OPEN.timestamp()), int(NOON.timestamp()))
    plain = yahoo.fetch_bars(request, now=NOON)
    simulator.set_faults([{"action": "strings"}])
    read = yahoo.fetch_bars(request, now=NOON)
    assert plain.flags is None
    assert read.flags is not None
    assert set(read.flags.tolist()) == {BarFlag.STRING_NUMBERS}
    assert np.array_equal(plain.columns.close, read.columns.close)
    assert (plain.newest, read.newest) == (int(NOON.timestamp()),) * 2


def test_an_answer_from_the_past_shows_by_its_newest_trade(simulator: RunningSimulator, yahoo: YahooProvider) -> None:
    simulator.set_faults([{"action": "stale", "seconds": 3600}])
    answer = yahoo.fetch_bars(BarsRequest("AAPL", Interval.M1, int(OPEN.timestamp()), int(NOON.timestamp())), now=NOON)
    assert answer.newest == int(NOON.timestamp()) - 3600


def test_neither_cookie_nor_crumb_leaves_the_session(
    simulator: RunningSimulator, yahoo: YahooProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said = [repr(quotes(yahoo)), repr(chain(yahoo))]
    simulator.set_faults([{"match": {"path": QUOTE}, "action": "status", "code": 503}])
    with pytest.raises(TransientError) as raised:
        quotes(yahoo)
    said += [repr(raised.value), repr(raised.value.fetch), repr(simulator.requests()), repr(vars(yahoo)), caplog.text]
    secret_cookie = cookie(SEED)
    secret_crumb = crumb(SEED, secret_cookie, int(NOON.timestamp()) // 86_400)
    assert simulator.requests()[-1]["query"].endswith("crumb=REDACTED")
    assert secret_cookie not in "".join(said)
    assert secret_crumb not in "".join(said)


# --- CBOE --------------------------------------------------------------------------------------------------------------


def test_a_chain_of_cboe_is_whole_and_a_quarter_of_an_hour_old(cboe: CboeProvider) -> None:
    answer = chain(cboe)
    assert (len(answer.contracts), answer.complete, list(answer.refused)) == (66, True, [])
    assert (answer.taken_at, answer.spot) == (NOON, 100 + 134 / 100 + 0.25)
    assert {c.last_at is None for c in answer.contracts} == {True, False}
    assert all(c.delta is not None for c in answer.contracts if abs(c.strike - 101.59) < 5)


def test_both_tell_of_the_same_contracts(yahoo: YahooProvider, cboe: CboeProvider) -> None:
    assert {c.contract for c in chain(yahoo).contracts} == {c.contract for c in chain(cboe).contracts}


def test_a_quote_of_cboe_is_delayed_and_the_unknown_is_told(cboe: CboeProvider) -> None:
    (found,) = cboe.fetch_quotes(["AAPL"], priority=HISTORY, now=NOON).quotes
    assert (found.quoted_at, found.last_at) == (NOON, NOON - timedelta(minutes=15))
    assert list(cboe.fetch_quotes(["NOPE"], priority=HISTORY, now=NOON).unknown) == ["NOPE"]
    with pytest.raises(UnknownSymbolError):
        cboe.fetch_chain("NOPE", expiry=None, priority=HISTORY, now=NOON)
    with pytest.raises(StaleError):
        cboe.fetch_quotes(["BRKS"], priority=HISTORY, now=NOON)


def test_minutes_of_cboe_are_those_of_yahoo_a_quarter_of_an_hour_ago(yahoo: YahooProvider, cboe: CboeProvider) -> None:
    start, end = int(OPEN.timestamp()), int(NOON.timestamp())
    request = BarsRequest("AAPL", Interval.M1, start, end)
    theirs, ours = yahoo.fetch_bars(request, now=NOON).columns, cboe.fetch_bars(request, now=NOON)
    assert ours.columns.opened_at.tolist() == theirs.opened_at.tolist()[:-15]
    assert np.allclose(ours.columns.close, theirs.close[:-15], rtol=1e-6)
    assert ours.null_opened_at.tolist() == list(range(end - 15 * 60, end, 60))
    assert ours.newest == end - 15 * 60


def test_days_of_cboe_come_in_the_morning_after(simulator: RunningSimulator, cboe: CboeProvider) -> None:
    request = BarsRequest("AAPL", Interval.D1, int(OPEN.timestamp()), int(OPEN.timestamp()) + 390 * 60)
    assert len(cboe.fetch_bars(request, now=NOON).columns) == 0
    morning = OPEN + timedelta(hours=22)
    simulator.set_now(morning)
    answer = cboe.fetch_bars(request, now=morning)
    assert answer.columns.opened_at.tolist() == [int(datetime(2024, 12, 2, tzinfo=UTC).timestamp())]
    assert answer.columns.close.tolist() == [104.14]


def test_a_chain_that_has_not_changed_is_not_sent_again(simulator: RunningSimulator, tmp_path: Path) -> None:
    with HttpClient(cache=AnswerCache(tmp_path / "answers.db")) as http:
        cboe = CboeProvider(http, base_url=simulator.urls["cboe"], user_agent="tests")
        first, again = chain(cboe), chain(cboe)
    assert [request["status"] for request in simulator.requests()] == [200, 304]
    assert first.contracts == again.contracts
    assert (again.fetch.status, again.fetch.payload_sha256) == (304, first.fetch.payload_sha256)


def test_bent_records_of_cboe_are_refused_or_read(simulator: RunningSimulator, cboe: CboeProvider) -> None:
    told = chain(cboe).contracts
    simulator.set_faults([{"match": {"provider": "cboe"}, "action": "strings"}])
    assert chain(cboe).contracts == told
    simulator.set_faults([{"match": {"provider": "cboe"}, "action": "nan"}])
    answer = chain(cboe)
    assert (len(answer.contracts), len(answer.refused)) == (65, 1)
