"""Old rows go, by table; what a kept row, an open gap or a read as of a later instant needs stays."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest

from market_data_pipeline.domain.candles import CandleColumns
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.healing import HealingPolicy
from market_data_pipeline.domain.ports import CorporateAction, RefusedBars
from market_data_pipeline.domain.retention import RetentionPolicy
from market_data_pipeline.domain.universe import Tier, UniverseEntry
from market_data_pipeline.storage.bulk import CandleWriter
from market_data_pipeline.storage.fetches import FetchStore
from market_data_pipeline.storage.options import OptionStore
from market_data_pipeline.storage.quotes import QuoteStore
from market_data_pipeline.storage.retention import KINDS, NEWEST_FETCHES, Retention
from market_data_pipeline.storage.universe import UniverseStore
from market_data_pipeline_tests.storage.builders import MONDAY, TUESDAY, Answer, at, batch, fetch, full, opened_at
from market_data_pipeline_tests.storage.test_quotes import APPLE, CALL, FETCH, said, taken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
POLICY = RetentionPolicy()


@pytest.fixture
def ids(engine: Engine) -> dict[str, int]:
    """AAPL and MSFT."""
    universe = UniverseStore(engine)
    entries = [UniverseEntry(symbol, "XNAS", Tier.T0) for symbol in ("AAPL", "MSFT")]
    universe.load(entries, version_tag="v", source="t", source_sha256="s", loaded_by="t")
    return {i.symbol: i.symbol_id for i in universe.instruments()}


def pruned(engine: Engine, *, after: timedelta, only: Sequence[str] = (), dry_run: bool = False) -> dict[str, int]:
    """What was deleted, so long after now; kinds of which nothing was are left out."""
    found = Retention(engine, rows_at_once=3).prune(POLICY, now=NOW + after, only=only, dry_run=dry_run)
    return {one.what: one.rows for one in found if one.rows}


def whole(engine: Engine) -> dict[str, int]:
    """``pruned`` on every day of four weeks, a hundred days from now: each symbol has its turn."""
    total: dict[str, int] = {}
    for day in range(28):
        for what, rows in pruned(engine, after=(100 + day) * DAY).items():
            total[what] = total.get(what, 0) + rows
    return total


def save(engine: Engine, *answers: Answer, provider: str = "yahoo", **more: object) -> None:
    CandleWriter(engine).write(batch(*answers, provider=provider, **more), now=at(0), policy=HealingPolicy())  # type: ignore[arg-type]


def count(engine: Engine, table: str) -> int:
    with engine.connect() as connection:
        return int(connection.exec_driver_sql(f"select count(*) from {table}").scalar_one())  # noqa: S608 - names from tests


# --- quotes and chains


def test_old_quotes_go_and_every_read_as_of_a_kept_instant_says_the_same(engine: Engine, ids: dict[str, int]) -> None:
    store = QuoteStore(engine)
    times = [NOW - 20 * DAY + hours * timedelta(hours=7) for hours in range(60)]
    for number, known_at in enumerate(times):
        store.record(said(replace(APPLE, bid=100.0 + number)), ids, known_at=known_at)
    edge = NOW - POLICY.quotes
    asked = [edge, edge + timedelta(hours=1), *(known_at for known_at in times if known_at >= edge), NOW]
    before = [store.latest([ids["AAPL"]], as_of=instant) for instant in asked]
    old = sum(known_at < edge for known_at in times)
    assert pruned(engine, after=timedelta(0)) == {"quotes_l1": old - 1}
    assert [store.latest([ids["AAPL"]], as_of=instant) for instant in asked] == before
    assert pruned(engine, after=timedelta(0)) == {}


def test_the_only_quote_of_a_symbol_stays_however_old_it_is(engine: Engine, ids: dict[str, int]) -> None:
    QuoteStore(engine).record(said(APPLE), ids, known_at=NOW - 400 * DAY)
    assert pruned(engine, after=timedelta(0)) == {}
    assert whole(engine) == {}
    (quote,) = QuoteStore(engine).latest([ids["AAPL"]])
    assert count(engine, f"fetches where fetch_id = {quote.fetch_id}") == 1


def test_the_fetches_of_quotes_go_after_them(engine: Engine, ids: dict[str, int]) -> None:
    for number in range(5):
        QuoteStore(engine).record(said(replace(APPLE, bid=100.0 + number)), ids, known_at=NOW + number * timedelta(minutes=1))
    assert pruned(engine, after=100 * DAY) == {"quotes_l1": 4, "fetches": 4}


def test_old_chains_go_with_their_contracts_and_the_last_one_stays(engine: Engine, ids: dict[str, int]) -> None:
    store = OptionStore(engine)
    for number in range(3):
        chain = taken(replace(CALL, last=1.0 + number))
        store.record(chain, ids["AAPL"], known_at=NOW - 400 * DAY + number * DAY)
    assert pruned(engine, after=timedelta(0)) == {"option_chains": 2}
    assert (count(engine, "option_chains"), count(engine, "option_contracts")) == (1, 1)


# --- provenance


def test_the_provenance_of_every_stored_bar_and_revision_stays_for_ever(engine: Engine, ids: dict[str, int]) -> None:
    apple = ids["AAPL"]
    save(engine, full(apple, MONDAY))
    save(engine, full(apple, MONDAY, price=20.0))
    assert whole(engine) == {}
    assert count(engine, "fetches f where not exists (select from candles_intraday c where c.fetch_id = f.fetch_id)") == 1


def test_answers_that_said_nothing_new_go_but_the_newest_few(engine: Engine, ids: dict[str, int]) -> None:
    apple = ids["AAPL"]
    for _ in range(NEWEST_FETCHES + 4):
        save(engine, full(apple, MONDAY))
        FetchStore(engine).record([(apple, fetch(rows=5))])
    everything = count(engine, "fetches")
    gone = whole(engine).get("fetches_of_bars", 0)
    left = count(engine, "fetches")
    assert gone == everything - left
    # The first named the bars; of the rest the newest tell `mdp gaps --explain` what was asked last.
    assert left <= NEWEST_FETCHES + 1
    assert count(engine, "candles_intraday c where not exists (select from fetches f where f.fetch_id = c.fetch_id)") == 0


def test_old_failures_go_but_the_newest_few_of_each_series(engine: Engine, ids: dict[str, int]) -> None:
    store = FetchStore(engine)
    for symbol_id in ids.values():
        store.record([(symbol_id, fetch(outcome="transient", status=500)) for _ in range(9)])
    store.record([(None, replace(FETCH, outcome="transient", rows=0)) for _ in range(4)])
    assert pruned(engine, after=100 * DAY) == {"fetches": 2 * (9 - NEWEST_FETCHES) + 4}
    assert pruned(engine, after=100 * DAY) == {}


def test_a_fetch_that_anything_kept_names_stays(engine: Engine, ids: dict[str, int]) -> None:
    apple = ids["AAPL"]
    dividend = CorporateAction("dividend", MONDAY, 0.5, "USD")
    save(engine, full(apple, MONDAY), actions=[(apple, 0, dividend)])
    for _ in range(NEWEST_FETCHES + 2):
        FetchStore(engine).record([(apple, fetch(outcome="transient"))])
    whole(engine)
    assert count(engine, "corporate_actions") == 1


def test_young_rows_stay(engine: Engine, ids: dict[str, int]) -> None:
    FetchStore(engine).record([(ids["AAPL"], fetch(outcome="transient")) for _ in range(20)])
    assert pruned(engine, after=80 * DAY) == {}


# --- what was refused


def refused(session_slot: int) -> RefusedBars:
    """One bar that broke a law."""
    one = np.array([1.0])
    stamp = np.array([opened_at(MONDAY, session_slot)], np.int64)
    return RefusedBars(CandleColumns(stamp, one, one, one * 2, one, one, one, one), ["low_above_open"])


def test_a_refused_bar_stays_as_long_as_its_session_lacks_anything(engine: Engine, ids: dict[str, int]) -> None:
    apple = ids["AAPL"]
    lacking = Answer(apple, MONDAY, {0: 10.0, 1: 10.0, 3: 10.0, 4: 10.0})
    save(engine, lacking, refused=[(apple, 0, refused(2))])
    assert "refused_bars" not in whole(engine)
    save(engine, full(apple, MONDAY))
    assert whole(engine)["refused_bars"] == 1


def test_a_gap_in_another_session_keeps_nothing(engine: Engine, ids: dict[str, int]) -> None:
    apple = ids["AAPL"]
    save(engine, full(apple, MONDAY), refused=[(apple, 0, refused(2))])
    save(engine, Answer(apple, TUESDAY, {0: 10.0}))
    assert pruned(engine, after=100 * DAY, only=["refused_bars"]) == {"refused_bars": 1}


# --- alerts

_AN_ALERT = """
insert into alerts (rule, key, severity, state, value, text, began_at, fired_at, resolved_at, seen_at, told_at, told_severity,
                    explained_by)
values (%(rule)s, '', 'warning', %(state)s, 1, 't', %(at)s, %(at)s, %(over)s, %(at)s, %(at)s, 'warning', %(explained_by)s)
returning alert_id"""
_A_NOTICE = """
insert into alert_notices (alert_id, channel, kind, severity, title, body, state, ready_at, created_at, queued_at, sent_at)
values (%(alert_id)s, 'ops', 'firing', 'warning', 't', 'b', %(state)s, %(at)s, %(at)s, %(at)s, %(sent)s)"""


def an_alert(
    engine: Engine, rule: str, *, age: timedelta, is_over: bool = True, explained_by: int | None = None, notice: str = "sent"
) -> int:
    at = NOW - age
    given = {"rule": rule, "state": "resolved" if is_over else "firing", "at": at, "over": at if is_over else None}
    with engine.begin() as connection:
        alert_id = int(connection.exec_driver_sql(_AN_ALERT, {**given, "explained_by": explained_by}).scalar_one())
        sent = at if notice == "sent" else None
        connection.exec_driver_sql(_A_NOTICE, {"alert_id": alert_id, "state": notice, "at": at, "sent": sent})
    return alert_id


def test_alerts_that_were_over_a_year_ago_go_with_their_messages_and_open_ones_stay(engine: Engine) -> None:
    cause = an_alert(engine, "ProviderCircuitBreakerOpen", age=400 * DAY)
    an_alert(engine, "SymbolStale", age=400 * DAY, is_over=False, explained_by=cause)
    an_alert(engine, "DiskFilling", age=400 * DAY, notice="queued")
    an_alert(engine, "DiskFilling", age=300 * DAY)
    assert pruned(engine, after=timedelta(0)) == {"alerts": 1}
    assert (count(engine, "alerts"), count(engine, "alert_notices")) == (3, 3)


# --- the call itself


def test_a_dry_run_counts_what_the_real_one_deletes_and_deletes_nothing(engine: Engine, ids: dict[str, int]) -> None:
    store = FetchStore(engine)
    store.record([(ids["AAPL"], fetch(outcome="transient")) for _ in range(20)])
    for number in range(6):
        QuoteStore(engine).record(said(replace(APPLE, bid=100.0 + number)), ids, known_at=NOW + number * timedelta(minutes=1))
    only = ["quotes_l1", "fetches"]
    expected = pruned(engine, after=100 * DAY, only=["quotes_l1"], dry_run=True)
    assert (count(engine, "fetches"), count(engine, "quotes_l1")) == (26, 6)
    assert pruned(engine, after=100 * DAY, only=only).get("quotes_l1") == expected["quotes_l1"] == 5


def test_one_call_deletes_no_more_than_it_may_and_says_that_there_is_more(engine: Engine, ids: dict[str, int]) -> None:
    FetchStore(engine).record([(ids["AAPL"], fetch(outcome="transient")) for _ in range(20)])
    retention = Retention(engine, rows_at_once=2)
    (some,) = retention.prune(POLICY, now=NOW + 100 * DAY, only=["fetches"], at_most=6)
    assert (some.rows, some.is_complete) == (6, False)
    (rest,) = retention.prune(POLICY, now=NOW + 100 * DAY, only=["fetches"])
    assert (rest.rows, rest.is_complete) == (20 - NEWEST_FETCHES - 6, True)


def test_an_unknown_kind_is_named_with_those_there_are(engine: Engine) -> None:
    with pytest.raises(InvalidInputError, match=r"'candles'.*expected some of quotes_l1"):
        list(Retention(engine).prune(POLICY, now=NOW, only=["candles"]))


def test_candles_revisions_and_the_ledger_are_no_kind_of_it() -> None:
    assert not {"candles_intraday", "candles_daily", "candle_revisions", "coverage", "verdict_evidence", "audit_log"} & set(KINDS)
