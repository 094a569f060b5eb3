"""The ledger's arithmetic: one verdict for every expected bar. Bitmaps in, verdicts and counts out; no I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from market_data_pipeline.domain.finality import Finality

if TYPE_CHECKING:
    from datetime import date, datetime

    import numpy.typing as npt

    from market_data_pipeline.domain.candles import Bools, Int64s, Interval


class Verdict(StrEnum):
    """What we say of one expected bar. Order is precedence: the first that holds is the verdict."""

    PRESENT = "present"
    CONFIRMED_EMPTY = "confirmed_empty"
    HALTED = "halted"
    NOT_LISTED = "not_listed"
    PENDING = "pending"
    UNREACHABLE = "unreachable"
    MISSING = "missing"


VERDICTS = tuple(Verdict)


@dataclass(frozen=True, slots=True, eq=False)
class LedgerRow:
    """What the ledger holds of one symbol, interval and session.

    ``present``, ``confirmed_empty`` and ``halted`` are boolean arrays with one place (slot) for each expected bar in opening order;
    no slot is true in two of them. ``halted`` None: nowhere. ``opens_at`` and ``closes_at`` are epoch seconds UTC of the regular
    session. ``attempts`` counts answers that left a hole, ``failures`` the requests in a row that got no answer.
    ``next_attempt_at`` None with something still absent means: no further request is planned. ``recheck_at``: when the session is
    asked for again although nothing is absent, to become settled or final; None: never. ``digest`` is that of the stored bars when
    one answer held exactly them.
    """

    symbol_id: int
    interval: Interval
    session: date
    opens_at: int
    closes_at: int
    present: Bools
    confirmed_empty: Bools
    attempts: int = 0
    failures: int = 0
    last_attempt_at: datetime | None = None
    next_attempt_at: datetime | None = None
    known_at: datetime | None = None
    digest: bytes | None = None
    halted: Bools | None = None
    finality: Finality = Finality.PROVISIONAL
    recheck_at: datetime | None = None

    @property
    def expected(self) -> int:
        """How many bars the calendar expects in this session."""
        return len(self.present)

    @property
    def halted_slots(self) -> Bools:
        """``halted``, all false where nothing was."""
        return np.zeros(len(self.present), bool) if self.halted is None else self.halted

    @property
    def resolved(self) -> Bools:
        """The slots that have their verdict from bars or evidence: present, confirmed empty or halted."""
        known: Bools = self.present | self.confirmed_empty
        return known if self.halted is None else known | self.halted


def verdict_codes(  # noqa: PLR0913 - everything a verdict follows from
    *,
    present: Bools,
    confirmed_empty: Bools,
    halted: Bools,
    listed: Bools,
    opened_at: Int64s,
    ends_at: Int64s,
    now: int,
    settle_seconds: int,
    reach_seconds: int | None,
) -> npt.NDArray[np.uint8]:
    """One code per expected bar: the index of its verdict in ``VERDICTS``.

    All arrays have one element a bar. A bar is pending until ``ends_at + settle_seconds`` has passed; unreachable when it opened
    more than ``reach_seconds`` before ``now`` (None: the provider's history has no limit).
    """
    reachable = np.ones(len(opened_at), bool) if reach_seconds is None else opened_at >= now - reach_seconds
    rules = (present, confirmed_empty, halted, ~listed, ends_at + settle_seconds > now, ~reachable)
    return np.select(rules, range(len(rules)), default=len(rules)).astype(np.uint8)


def tally(codes: npt.NDArray[np.uint8]) -> dict[Verdict, int]:
    """How many bars have each verdict. The values add up to ``len(codes)``."""
    counts = np.bincount(codes, minlength=len(VERDICTS))
    return dict(zip(VERDICTS, counts.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Run:
    """A contiguous stretch of slots, half-open: ``first`` is in it, ``last`` is not."""

    first: int
    last: int


def runs(mask: Bools) -> list[Run]:
    """The fewest stretches that cover exactly the true slots of ``mask``, in order."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [Run(first, last) for first, last in edges.reshape(-1, 2).tolist()]
