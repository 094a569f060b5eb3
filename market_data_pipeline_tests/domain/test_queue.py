"""The rules of the job queue, without a table: who enters, how large a batch is, how long a retry waits."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.queue import (
    MOST_AT_ONCE,
    DeadLetterFilter,
    JobKind,
    NewJob,
    QueuePolicy,
    batch_size,
    bounded,
    refused_number,
    sort_submitted,
)
from market_data_pipeline.domain.universe import Tier

TIERS = st.sampled_from([Tier.T0, Tier.T1])


def job(number: int, key: int, tier: Tier = Tier.T0) -> NewJob:
    """A job with this id that does this."""
    return NewJob(f"i-{number}", JobKind.BACKFILL, tier, f"k-{key}", {}, "test")


@given(
    wanted=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), TIERS), max_size=30),
    room=st.dictionaries(TIERS, st.integers(-1, 5)),
    known=st.sets(st.integers(0, 5)),
    taken=st.sets(st.integers(0, 5)),
)
def test_what_is_submitted_enters_once_within_its_room_and_adds_up(
    wanted: list[tuple[int, int, Tier]], room: dict[Tier, int], known: set[int], taken: set[int]
) -> None:
    jobs = [job(number, key, tier) for number, key, tier in wanted]
    ids, keys = {f"i-{n}" for n in known}, {f"k-{n}" for n in taken}
    told = sort_submitted(jobs, known_ids=ids, open_keys=keys, room=room)
    assert len(told.accepted) + told.duplicates + len(told.turned_away) == len(jobs)
    assert len({one.job_id for one in told.accepted} - ids) == len({one.dedupe_key for one in told.accepted} - keys)
    assert len({one.job_id for one in told.accepted} - ids) == len(told.accepted)
    entered = Counter(one.tier for one in told.accepted)
    assert all(count <= max(room.get(tier, 0), 0) for tier, count in entered.items())


@given(lapses=st.lists(st.integers(0, 4), min_size=1, max_size=200), limit=st.integers(1, 200))
def test_a_batch_has_somebody_and_is_a_fourth_for_each_lapse_of_its_worst(lapses: list[int], limit: int) -> None:
    size = batch_size(lapses, limit=limit, most_attempts=5)
    assert 1 <= size <= min(limit, len(lapses))
    assert size <= max(limit // 4 ** max(lapses[:size]), 1)
    if max(lapses[:size]) == 4:
        assert size == 1


@pytest.mark.parametrize("attempts", [1, 2, 5, 1000])
def test_a_retry_waits_an_hour_at_most(attempts: int) -> None:
    wait = QueuePolicy(retry_seconds=15).retry_wait(attempts)
    assert wait == {1: 15, 2: 30, 5: 240, 1000: 3600}[attempts]


def test_what_does_not_enter_takes_nothing_from_those_after_it() -> None:
    # The second has the first's id, so its key is free for the third. The fifth is the fourth again, which is told once.
    jobs = [job(1, 1), job(1, 2), job(2, 2), job(3, 3), job(3, 3, Tier.T1)]
    told = sort_submitted(jobs, known_ids=(), open_keys=(), room={Tier.T0: 2, Tier.T1: 1})
    assert [one.job_id for one in told.accepted] == ["i-1", "i-2"]
    assert told.turned_away.keys() == {"i-3"}
    assert told.duplicates == 2


@pytest.mark.parametrize("name", ["", "a b", "refused/1", "x" * 129, "é", "a\n"])
def test_an_id_that_the_table_would_refuse_is_refused_at_once(name: str) -> None:
    with pytest.raises(InvalidInputError, match="is no job id"):
        NewJob(name, JobKind.BACKFILL, Tier.T0, "k", {}, "test")


def test_a_refused_payload_has_a_name_that_no_job_can_have() -> None:
    assert refused_number("refused/12") == 12
    assert [refused_number(name) for name in ("refused/", "refused/x", "refused-12", "refused/1/2", "refused/-1")] == [None] * 5


@pytest.mark.parametrize(
    ("meant", "jobs", "refused"),
    [
        (DeadLetterFilter(), True, True),
        (DeadLetterFilter(tier=Tier.T0), True, False),
        (DeadLetterFilter(interval="1m"), True, False),
        (DeadLetterFilter(kind="backfill"), True, False),
        (DeadLetterFilter(kind="refused"), False, True),
    ],
)
def test_a_filter_means_refused_payloads_where_they_can_be_meant(meant: DeadLetterFilter, *, jobs: bool, refused: bool) -> None:
    assert (meant.takes_jobs, meant.takes_refused) == (jobs, refused)


def test_bulk_actions_are_bounded() -> None:
    assert bounded(MOST_AT_ONCE) == MOST_AT_ONCE
    for limit in (0, -1, MOST_AT_ONCE + 1):
        with pytest.raises(InvalidInputError, match="expected 1 to 10,000"):
            bounded(limit)
