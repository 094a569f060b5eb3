"""What providers answered about an instrument, and what follows for its listing."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.listing import (
    BarrenSession,
    ListingEvidence,
    ListingKind,
    ListingPolicy,
    Reply,
    Witness,
    contradicts,
    findings,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

POLICY = ListingPolicy()
START = datetime(2024, 12, 9, 22, tzinfo=UTC)
FRIDAY = date(2024, 12, 6)
WEEK = [date(2024, 12, day) for day in range(9, 14)]


def said(reply: Reply, *hours: float, provider: str = "yahoo") -> list[Witness]:
    return [Witness(provider, START + timedelta(hours=hour), reply) for hour in hours]


def barren(*sessions: date, interval: Interval = Interval.M1, attempts: int = 3, failures: int = 0) -> list[BarrenSession]:
    return [BarrenSession(interval, session, attempts, failures) for session in sessions]


def kinds(evidence: ListingEvidence) -> list[ListingKind]:
    return [finding.kind for finding in findings(evidence, POLICY)]


# --- never

UNKNOWN = ListingEvidence(answers=said(Reply.NOT_FOUND, 0, 0.25, 1.25, 5.25, 21.25), serving=frozenset({"yahoo"}))


def test_what_the_only_provider_does_not_find_for_most_of_a_day_was_never_listed() -> None:
    [finding] = findings(UNKNOWN, POLICY)
    assert (finding.kind, finding.session, finding.providers) == (ListingKind.NEVER_LISTED, None, ("yahoo",))


@pytest.mark.parametrize(
    "evidence",
    [
        replace(UNKNOWN, answers=UNKNOWN.answers[:3]),
        replace(UNKNOWN, answers=said(Reply.NOT_FOUND, 0, 0.1, 0.2, 21)),
        replace(UNKNOWN, answers=[replace(answer, is_healthy=False) for answer in UNKNOWN.answers]),
        replace(UNKNOWN, answers=[replace(answer, reply=Reply.NOTHING) for answer in UNKNOWN.answers]),
        replace(UNKNOWN, serving=frozenset()),
        replace(UNKNOWN, serving=frozenset({"yahoo", "alpaca"})),
    ],
    ids=["three in an hour", "two apart", "in an outage", "silence alone", "nobody has anything", "another was not asked"],
)
def test_less_than_that_is_not_enough(evidence: ListingEvidence) -> None:
    assert kinds(evidence) == []


def test_of_several_providers_each_must_have_nothing_and_one_must_not_find_it() -> None:
    silent = said(Reply.NOTHING, 0, 1, 5, 21, provider="alpaca")
    both = replace(UNKNOWN, answers=[*UNKNOWN.answers, *silent], serving=frozenset({"yahoo", "alpaca"}))
    assert kinds(both) == [ListingKind.NEVER_LISTED]


def test_a_provider_that_is_asked_for_nobody_else_seconds_a_healthy_one_and_convinces_nobody_alone() -> None:
    behind = [replace(answer, is_healthy=None) for answer in said(Reply.NOTHING, 0, 1, 5, 21, provider="alpaca")]
    both = replace(UNKNOWN, answers=[*UNKNOWN.answers, *behind], serving=frozenset({"yahoo", "alpaca"}))
    assert kinds(both) == [ListingKind.NEVER_LISTED]
    assert kinds(replace(UNKNOWN, answers=[replace(answer, is_healthy=None) for answer in UNKNOWN.answers])) == []


# --- last

GONE = ListingEvidence(
    firsts={Interval.M1: date(2024, 11, 1)},
    last=FRIDAY,
    last_closed_at=START - timedelta(days=3),
    trailing=barren(*WEEK, attempts=0, failures=3),
    answers=said(Reply.NOT_FOUND, 0, 24, 48, 72, 96),
    serving=frozenset({"yahoo"}),
)


def test_a_week_of_not_found_is_a_delisting() -> None:
    [finding] = findings(GONE, POLICY)
    assert (finding.kind, finding.session) == (ListingKind.LAST_SESSION, FRIDAY)
    assert "not found" in finding.detail


@pytest.mark.parametrize(
    "evidence",
    [
        replace(GONE, trailing=GONE.trailing[:4]),
        replace(GONE, answers=GONE.answers[:2]),
        replace(GONE, answers=said(Reply.NOT_FOUND, 0, 1, 2)),
        replace(GONE, answers=[replace(answer, is_healthy=False) for answer in GONE.answers]),
        replace(GONE, answers=[replace(answer, at=answer.at - timedelta(days=30)) for answer in GONE.answers]),
        replace(GONE, serving=frozenset({"yahoo", "alpaca"})),
        replace(GONE, answers=said(Reply.NOTHING, 0, 24, 48, 72, 96)),
    ],
    ids=["four sessions", "two answers", "three hours", "in an outage", "before its last bar", "another was not asked", "silence"],
)
def test_less_than_that_delists_nothing(evidence: ListingEvidence) -> None:
    assert kinds(evidence) == []


def test_two_of_three_providers_delist_and_the_silence_of_one_takes_four_weeks() -> None:
    two = [*GONE.answers, *said(Reply.NOTHING, 0, 24, 48, provider="alpaca")]
    three = frozenset({"yahoo", "alpaca", "massive"})
    assert kinds(replace(GONE, answers=two, serving=three)) == [ListingKind.LAST_SESSION]
    silence = said(Reply.NOTHING, 0, 24, 48)
    month = barren(*(FRIDAY + timedelta(days=day) for day in range(1, 21)))
    assert kinds(replace(GONE, answers=silence, trailing=month)) == [ListingKind.LAST_SESSION]
    second = said(Reply.NOTHING, 0, 24, 48, provider="alpaca")
    assert kinds(replace(GONE, answers=[*silence, *second], serving=three)) == [ListingKind.LAST_SESSION]


@given(st.lists(st.floats(0, 12), max_size=30), st.integers(1, 30))
def test_no_number_of_refusals_within_half_a_day_ever_ends_a_listing(hours: Sequence[float], sessions: int) -> None:
    answers = said(Reply.NOT_FOUND, *sorted(hours))
    trailing = barren(*(FRIDAY + timedelta(days=day) for day in range(1, sessions + 1)), failures=9)
    assert kinds(replace(GONE, answers=answers, trailing=trailing)) == []
    assert kinds(replace(UNKNOWN, answers=answers)) == []


# --- first

NEW = ListingEvidence(
    firsts={Interval.M1: WEEK[2], Interval.D1: WEEK[2]},
    last=WEEK[4],
    leading=[*barren(*WEEK[:2]), *barren(*WEEK[:2], interval=Interval.D1, attempts=1)],
    serving=frozenset({"yahoo", "alpaca"}),
    others_traded=True,
)


def test_a_listing_begins_where_two_intervals_begin() -> None:
    [finding] = findings(NEW, POLICY)
    assert (finding.kind, finding.session) == (ListingKind.FIRST_SESSION, WEEK[2])


def test_a_listing_begins_where_two_providers_begin() -> None:
    minutes = replace(NEW, firsts={Interval.M1: WEEK[2]}, leading=barren(*WEEK[:2]))
    assert kinds(minutes) == []
    answers = [*said(Reply.BARS, 0, 1, 5), *said(Reply.NOTHING, 0, 1, 5, provider="alpaca")]
    assert kinds(replace(minutes, answers=answers)) == [ListingKind.FIRST_SESSION]
    assert kinds(replace(minutes, answers=answers[:5])) == []


def test_where_nobody_else_can_be_asked_a_listing_begins_once_the_asking_ends() -> None:
    alone = replace(NEW, firsts={Interval.M1: WEEK[2]}, leading=barren(*WEEK[:2], attempts=5), serving=frozenset({"yahoo"}))
    assert kinds(alone) == []
    assert kinds(replace(alone, leading=barren(*WEEK[:2], attempts=6))) == [ListingKind.FIRST_SESSION]


def test_a_session_that_nobody_has_bars_of_begins_no_listing() -> None:
    assert kinds(replace(NEW, others_traded=False)) == []


def test_only_what_was_asked_for_often_enough_beside_the_first_bar_counts() -> None:
    hardly = [*barren(WEEK[0], attempts=9), *barren(WEEK[1], attempts=2), *barren(*WEEK[:2], interval=Interval.D1, attempts=2)]
    assert kinds(replace(NEW, leading=hardly)) == []


# --- taking back


def test_a_bar_outside_says_that_a_finding_was_wrong() -> None:
    monday, friday = WEEK[0], WEEK[-1]
    assert contradicts(ListingKind.FIRST_SESSION, WEEK[1], first=monday, last=friday)
    assert not contradicts(ListingKind.FIRST_SESSION, monday, first=monday, last=friday)
    assert contradicts(ListingKind.LAST_SESSION, WEEK[3], first=monday, last=friday)
    assert not contradicts(ListingKind.LAST_SESSION, friday, first=monday, last=friday)
    assert contradicts(ListingKind.NEVER_LISTED, None, first=monday, last=monday)
