"""A new listing, a delisting, a symbol that never existed, and outages that look like them, against a real provider process."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import Lane
from market_data_pipeline.domain.coverage import Verdict
from market_data_pipeline.domain.listing import ListingKind
from market_data_pipeline.ingest.candles import ingest_candles
from market_data_pipeline.ingest.coverage import coverage_report
from market_data_pipeline.ingest.listing import infer_listings
from market_data_pipeline.ingest.report import Stretch
from market_data_pipeline.storage.listing import ListingStore
from market_data_pipeline_tests.world import World, a_world, expected_opens, write_bars

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.listing import ListingChange

FIRST, LAST = date(2024, 12, 2), date(2024, 12, 20)
LISTED, DELISTED = date(2024, 12, 5), date(2024, 12, 10)
GOOD = ("AAPL", "MSFT", "IBM")
ALL_DAYS = (*range(2, 7), *range(9, 14), *range(16, 21))


def evening(day: int, hour: int = 22) -> datetime:
    return datetime(2024, 12, day, hour, tzinfo=UTC)


def provide(data: Path) -> None:
    """Hourly bars, so that a month of them is small: of three symbols always, of one from a day on, of one until a day."""
    for symbol in GOOD:
        write_bars(data, symbol, Interval.H1, expected_opens(Interval.H1, FIRST, LAST))
        write_bars(data, symbol, Interval.D1, expected_opens(Interval.D1, FIRST, LAST))
    for interval in (Interval.H1, Interval.D1):
        write_bars(data, "NEWCO", interval, expected_opens(interval, LISTED, LAST))
        write_bars(data, "OLDCO", interval, expected_opens(interval, FIRST, DELISTED))


@pytest.fixture
def world(tmp_path: Path, database_url: str) -> Iterator[World]:
    provide(tmp_path / "data")
    with a_world(tmp_path / "data", database_url, tmp_path / "home", now=evening(2)) as world:
        yield world


@dataclass
class Days:
    """The life of a small pipeline: every evening the day is fetched, and what lacks is healed as the ledger plans it."""

    world: World
    instruments: Sequence[Instrument]
    intervals: Sequence[Interval] = (Interval.H1, Interval.D1)

    def live(self, days: Sequence[int], *, infers: bool = True) -> list[ListingChange]:
        found = []
        for day in days:
            self.world.simulator.set_now(evening(day))
            for interval in self.intervals:
                self.fetch(self.instruments, interval, date(2024, 12, day), date(2024, 12, day))
            for minutes in (0, 60, 90):
                now = evening(day) + timedelta(minutes=minutes)
                self.world.simulator.set_now(now)
                self.heal(now)
            found += infer_listings(self.world.pipeline) if infers else []
        return found

    def fetch(self, instruments: Sequence[Instrument], interval: Interval, first: date, last: date) -> None:
        # As the database knows them now: what is no longer listed is not asked for.
        known = self.world.pipeline.universe.instruments(symbols=[i.symbol for i in instruments])
        stretches = [Stretch(instrument, first, last) for instrument in known]
        for _ in ingest_candles(stretches, interval, pipeline=self.world.pipeline):
            pass

    def heal(self, now: datetime) -> int:
        gaps = self.world.pipeline.ledger.due_gaps(now, limit=100, settle_seconds=90)
        for gap in gaps:
            [instrument] = self.world.pipeline.universe.instruments(symbols=[gap.symbol])
            stretch = Stretch(instrument, gap.first, gap.last)
            for _ in ingest_candles([stretch], gap.interval, pipeline=self.world.pipeline, lane=Lane.HEALING):
                pass
        return len(gaps)

    def verdicts(self, symbol: str, first: date = FIRST, last: date = LAST) -> dict[Verdict, int]:
        """Of its daily bars, without the zeros."""
        instruments = self.world.pipeline.universe.instruments(symbols=[symbol])
        [line] = coverage_report(instruments, [Interval.D1], first, last, pipeline=self.world.pipeline)
        return {verdict: bars for verdict, bars in line.counts.items() if bars}


def told(changes: Sequence[ListingChange]) -> dict[str, tuple[ListingKind, date | None]]:
    return {change.symbol: (change.finding.kind, change.finding.session) for change in changes if not change.is_taken_back}


def test_a_new_listing_a_delisting_and_a_symbol_that_never_existed_end_in_their_verdicts_and_cost_no_more(world: World) -> None:
    days = Days(world, world.load(*GOOD, "NEWCO", "OLDCO", "NOSUCH"))
    gone = {"symbol": "OLDCO", "after": "2024-12-11T00:00:00Z"}
    world.simulator.set_faults([{"match": gone, "action": "status", "code": 404}])
    found = days.live(ALL_DAYS)
    assert told(found) == {
        "NEWCO": (ListingKind.FIRST_SESSION, LISTED),
        "OLDCO": (ListingKind.LAST_SESSION, DELISTED),
        "NOSUCH": (ListingKind.NEVER_LISTED, None),
    }
    assert days.verdicts("NEWCO") == {Verdict.PRESENT: 12, Verdict.NOT_LISTED: 3}
    assert days.verdicts("OLDCO") == {Verdict.PRESENT: 7, Verdict.NOT_LISTED: 8}
    assert days.verdicts("NOSUCH") == {Verdict.NOT_LISTED: 15}
    assert days.verdicts("AAPL") == {Verdict.PRESENT: 15}
    paths = Counter(request["path"].rsplit("/", 1)[-1] for request in world.simulator.requests())
    assert paths["NOSUCH"] <= 12
    assert paths["NEWCO"] <= paths["AAPL"] + 20
    assert paths["OLDCO"] <= paths["AAPL"] + 40
    world.simulator.forget_requests()
    world.simulator.set_now(datetime(2024, 12, 23, 12, tzinfo=UTC))
    days.fetch(days.instruments, Interval.D1, FIRST, LAST)
    assert days.heal(datetime(2024, 12, 23, 12, tzinfo=UTC)) == 0
    assert not {request["path"].rsplit("/", 1)[-1] for request in world.simulator.requests()} & {"NEWCO", "OLDCO", "NOSUCH"}


def test_two_providers_that_have_nothing_before_and_after_say_when_it_was_listed(tmp_path: Path, database_url: str) -> None:
    provide(tmp_path / "data")
    vendors = ("yahoo", "massive")
    with a_world(tmp_path / "data", database_url, tmp_path / "home", now=evening(2), vendors=vendors) as world:
        days = Days(world, world.load(*GOOD, "NEWCO", "OLDCO", "NOSUCH"), intervals=[Interval.D1])
        found = days.live(ALL_DAYS[:12])
        assert told(found) == {
            "NEWCO": (ListingKind.FIRST_SESSION, LISTED),
            "OLDCO": (ListingKind.LAST_SESSION, DELISTED),
            "NOSUCH": (ListingKind.NEVER_LISTED, None),
        }
        last = date(2024, 12, ALL_DAYS[11])
        assert days.verdicts("NEWCO", FIRST, last) == {Verdict.PRESENT: 9, Verdict.NOT_LISTED: 3}
        assert days.verdicts("OLDCO", FIRST, last) == {Verdict.PRESENT: 7, Verdict.NOT_LISTED: 5}
        assert days.verdicts("NOSUCH", FIRST, last) == {Verdict.NOT_LISTED: 12}


def test_three_404s_in_an_outage_delist_nobody(world: World) -> None:
    days = Days(world, world.load(*GOOD), intervals=[Interval.D1])
    days.live([2, 3])
    world.simulator.set_faults([{"match": {}, "action": "status", "code": 404}])
    for hours in (0, 1, 3, 8, 20):
        now = evening(4) + timedelta(hours=hours)
        world.simulator.set_now(now)
        days.fetch(days.instruments, Interval.D1, date(2024, 12, 4), date(2024, 12, 4))
        days.heal(now)
        assert infer_listings(world.pipeline) == []
    world.simulator.set_faults([])
    assert days.live([6, 9]) == []
    world.simulator.set_now(evening(10))
    days.heal(evening(10))
    assert days.verdicts("AAPL", FIRST, date(2024, 12, 9))[Verdict.PRESENT] == 5
    assert world.count("listing_evidence") == 0


def test_one_symbol_that_is_lost_for_four_days_is_not_delisted(world: World) -> None:
    days = Days(world, world.load(*GOOD), intervals=[Interval.D1])
    days.live([2, 3])
    world.simulator.set_faults([{"match": {"symbol": "IBM"}, "action": "status", "code": 404}])
    assert days.live([4, 5, 6, 9]) == []
    world.simulator.set_faults([])
    assert days.live([10, 11, 12]) == []
    assert days.verdicts("IBM", FIRST, date(2024, 12, 12)) == {Verdict.PRESENT: 9}


def test_a_delisting_that_was_a_long_suspension_is_taken_back_by_the_first_bar(world: World) -> None:
    days = Days(world, world.load(*GOOD), intervals=[Interval.D1])
    days.live([2, 3])
    world.simulator.set_faults([{"match": {"symbol": "IBM"}, "action": "status", "code": 404}])
    assert told(days.live([4, 5, 6, 9, 10, 11])) == {"IBM": (ListingKind.LAST_SESSION, date(2024, 12, 3))}
    [ibm] = world.pipeline.universe.instruments(symbols=["IBM"])
    assert days.verdicts("IBM", FIRST, date(2024, 12, 11)) == {Verdict.PRESENT: 2, Verdict.NOT_LISTED: 6}
    world.simulator.set_faults([])
    world.simulator.forget_requests()
    assert days.live([12, 13, 16]) == []
    assert not any("IBM" in request["path"] for request in world.simulator.requests())
    # A week without a question: one probe, and the finding is wrong.
    changes = days.live([18, 19, 20])
    assert [(change.symbol, change.is_taken_back) for change in changes] == [("IBM", True)]
    days.heal(evening(20, 23) + timedelta(minutes=45))
    assert days.verdicts("IBM") == {Verdict.PRESENT: 15}
    history = ListingStore(world.pipeline.engine).history(ibm.symbol_id)
    assert [(entry.finding.kind, entry.known_to is not None) for entry in history] == [(ListingKind.LAST_SESSION, True)]


def test_another_name_at_the_provider_is_another_question(world: World) -> None:
    days = Days(world, world.load(*GOOD, "OTHER"), intervals=[Interval.D1])
    assert told(days.live([2, 3, 4])) == {"OTHER": (ListingKind.NEVER_LISTED, None)}
    world.load("OTHER", aliases={"yahoo": "OLDCO"})
    [other] = world.pipeline.universe.instruments(symbols=["OTHER"])
    assert not other.is_unknown
    days.live([5, 6])
    assert days.verdicts("OTHER", FIRST, date(2024, 12, 6))[Verdict.PRESENT] >= 2


def test_inferring_again_changes_nothing(world: World) -> None:
    days = Days(world, world.load(*GOOD, "NOSUCH"), intervals=[Interval.D1])
    assert days.live([2, 3, 4])
    sent = len(world.simulator.requests())
    assert infer_listings(world.pipeline) == []
    assert len(world.simulator.requests()) == sent
    assert world.count("listing_evidence") == 1
