"""The right to send, shared by all processes through one row an account: a request leaves only when every limit has room for it."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from market_data_pipeline.domain.budget import slack_seconds
from market_data_pipeline.domain.errors import BudgetSpentError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Engine

    from market_data_pipeline.domain.capabilities import Priority, RateLimit

_TAKE = """
select granted, wait_seconds, is_held, is_restored
  from take_budget(%(provider)s, %(account)s, %(requests)s::int4[], %(seconds)s::float8[], %(slacks)s::float8[], %(share)s,
                   %(wanted)s)"""

_REFUSE = "select is_first, hold_seconds, factor from refuse_budget(%(provider)s, %(account)s, %(retry_after)s)"

_RESTORE = """
update provider_budgets
   set factor = 1, learned_at = null, refusals = 0
 where provider = %(provider)s and account = %(account)s
   and factor < 1 and budget_factor(factor, learned_at, clock_timestamp()) >= 1
returning account"""

_HOLDS = """
select provider, account, coalesce(extract(epoch from held_until - clock_timestamp()), 0)::float8,
       factor < 1 and budget_factor(factor, learned_at, clock_timestamp()) >= 1
  from provider_budgets where held_until > clock_timestamp() or factor < 1"""

_STATUS = """
select provider, account, seconds, heads, counts, extract(epoch from clock_timestamp())::float8,
       budget_factor(factor, learned_at, clock_timestamp()), case when held_until > clock_timestamp() then held_until end, granted
  from provider_budgets
 where %(provider)s::text is null or provider = %(provider)s
 order by provider, account"""

_TELL = """
insert into provider_events (at, provider, kind, detail, is_recovery)
values (clock_timestamp(), %(provider)s, %(kind)s, %(detail)s, %(is_recovery)s)"""

_FORGET = """
update provider_budgets
   set factor = 1, learned_at = null, refusals = 0, refused_at = null, held_until = null
 where provider = %(provider)s and (factor < 1 or held_until > clock_timestamp())
returning account"""

# Of how many newest sub-buckets a row keeps the counts (sql/0003_health_and_budgets.sql), and how many make up a window.
_KEPT, _SUB_BUCKETS = 40, 32
# How long an answer "not now" is believed without asking again, and a look at who is held: what a reset has to wait for.
_BELIEVED_SECONDS = 1.0
# Those who wait for one moment come back within this of it, not all in the same millisecond.
_JITTER = 0.05


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """What is left of an account's budget now. ``left``: by limit, the requests that live T0 may still send in the running window.

    ``factor``: how much of the limits is used, below 1 after refusals; ``held_until``: nobody sends before, None where nothing
    holds; ``granted``: requests since the row was made; ``used_shares``: by limit, the share of what may be sent in a window that
    was sent in the running one.
    """

    provider: str
    account: str
    left: Mapping[str, int]
    factor: float
    held_until: datetime | None
    granted: int
    used_shares: Mapping[RateLimit, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the row said to one round: ``granted`` requests may go, or none for ``wait_seconds``. ``asked_at``: monotonic."""

    granted: int
    wait_seconds: float
    is_held: bool
    asked_at: float


@dataclass(slots=True, eq=False)
class _Round:
    """Threads that ask together. One of them speaks for all."""

    size: int = 0
    answer: _Answer | None = None
    is_over: bool = False


@dataclass(slots=True, eq=False)
class _Line:
    """Those of one process that ask the same account for the same share."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    forming: _Round = field(default_factory=_Round)
    is_asking: bool = False
    refusal: _Answer | None = None


class PostgresBudget:
    """``ports.Budget`` over the table ``provider_budgets``. Safe to use from several threads.

    Within ``limits`` (by provider, one a window: ``domain.budget.limits_of``), however many processes send. Threads of one process
    that want to send at the same time ask in one round trip. A provider without limits costs none: only a look, once a second, at
    who was refused.
    ``sleep``, ``clock`` (monotonic) and ``rng`` are handed in. Raises DatabaseUnreachableError where the database is gone.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Mapping[str, Sequence[RateLimit]] | None = None,
        *,
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._limits = limits or {}
        self._sleep = sleep or threading.Event().wait
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads those who wait, protects nothing
        self._lines: defaultdict[tuple[str, str, float], _Line] = defaultdict(_Line)
        self._holds: dict[tuple[str, str], float] = {}
        self._looked_at: float | None = None
        self._looking = threading.Lock()

    def limit(self, limits: Mapping[str, Sequence[RateLimit]]) -> None:
        """From now on ``limits`` hold. Providers say theirs when they are open, and are opened with the client that asks here."""
        self._limits = limits

    def limits_of(self, provider: str) -> Sequence[RateLimit]:
        """The limits in force; none where it may be asked as often as we like."""
        return self._limits.get(provider, ())

    def take(self, provider: str, account: str, priority: Priority, *, patience_seconds: float) -> None:
        """Return when one request may be sent at once. Raises BudgetSpentError where that is further away than the patience."""
        give_up_at = self._clock() + patience_seconds
        limits = self.limits_of(provider)
        while True:
            answer = self._ask(provider, account, limits, priority.share) if limits else self._look(provider, account)
            if answer is None:
                return
            wait = answer.asked_at + answer.wait_seconds - self._clock()
            if self._clock() + wait > give_up_at:
                why = "it told us to wait" if answer.is_held else f"our budget for {priority.lane} {priority.tier} is spent"
                raise BudgetSpentError(f"{why} for another {wait:.1f} s", provider=provider, wait_seconds=max(wait, 0.0))
            self._sleep(max(wait, 0.0) + self._rng.uniform(0, _JITTER))

    def refused(self, provider: str, account: str, *, retry_after_seconds: float | None) -> None:
        """The provider said 429: everybody waits for as long as it said, or ever longer; then less of the limits is used."""
        with self._engine.connect() as connection:
            names = {"provider": provider, "account": account}
            self._restore(connection, provider, account)
            is_first, hold, factor = connection.exec_driver_sql(_REFUSE, names | {"retry_after": retry_after_seconds}).one()
            if is_first:
                limits = ", ".join(map(str, self.limits_of(provider)))
                learned = f"; {factor:.0%} of {limits} is used from now on" if limits else ""
                detail = f"refused with 429: everybody waits {hold:.0f} s{learned}"
                said = {"provider": provider, "kind": "limit_learned", "detail": detail, "is_recovery": False}
                connection.exec_driver_sql(_TELL, said)
        with self._looking:
            self._holds[provider, account] = self._clock() + hold

    def status(self, provider: str | None = None) -> list[BudgetStatus]:
        """What is left now, by account; an account that never asked has no row."""
        with self._engine.connect() as connection:
            rows = connection.exec_driver_sql(_STATUS, {"provider": provider}).all()
        found = []
        for name, account, seconds, heads, counts, instant, factor, held_until, granted in rows:
            windows = self._windows(name, seconds, heads, counts, instant, factor)
            left = {str(limit): max(usable - used, 0) for limit, (usable, used) in windows.items()}
            shares = {limit: used / usable for limit, (usable, used) in windows.items()}
            found.append(BudgetStatus(name, account, left, factor, held_until, granted, shares))
        return found

    def reset(self, provider: str) -> bool:
        """Forget what refusals taught and whom they hold; whether there was anything. What was sent stays counted."""
        with self._engine.connect() as connection:
            return bool(connection.exec_driver_sql(_FORGET, {"provider": provider}).all())

    def _windows(
        self, provider: str, seconds: list[float], heads: list[int], counts: list[int], instant: float, factor: float
    ) -> dict[RateLimit, tuple[int, int]]:
        """By limit, how many requests may be sent in a window, and how many were in the running one."""
        windows: dict[RateLimit, tuple[int, int]] = {}
        for limit in self.limits_of(provider):
            used = 0
            if limit.seconds in seconds:
                place, width = seconds.index(limit.seconds), limit.seconds / _SUB_BUCKETS
                since = instant - limit.seconds - slack_seconds(limit)
                kept = counts[place * _KEPT : (place + 1) * _KEPT]
                used = sum(count for age, count in enumerate(kept) if (heads[place] - age + 1) * width > since)
            windows[limit] = max(int(limit.requests * factor + 1e-9), 1), used
        return windows

    # --- asking for many at once ---------------------------------------------------------------------------------------

    def _ask(self, provider: str, account: str, limits: Sequence[RateLimit], share: float) -> _Answer | None:
        """None where one request may be sent now, else the answer that says when to ask again."""
        line = self._lines[provider, account, share]
        patience = min(map(slack_seconds, limits)) / 2
        while True:
            with line.changed:
                known = line.refusal
                if known is not None and self._clock() < known.asked_at + min(known.wait_seconds, _BELIEVED_SECONDS):
                    return known
                ours = line.forming
                place, ours.size = ours.size, ours.size + 1
                while line.is_asking and not ours.is_over:
                    line.changed.wait()
                leads = not ours.is_over
                if leads:
                    line.is_asking, line.forming = True, _Round()
            if leads:
                self._speak_for(ours, line, provider, account, limits, share)
            answer = ours.answer
            if answer is None:
                continue  # whoever spoke for us could not reach the database: we try ourselves, and say so if we cannot either
            if place >= answer.granted:
                return answer
            if self._clock() - answer.asked_at < patience:
                return None
            # Granted so long ago that sending it now could be one too many in the provider's window: let it lapse.

    def _speak_for(self, ours: _Round, line: _Line, provider: str, account: str, limits: Sequence[RateLimit], share: float) -> None:
        try:
            ours.answer = self._take(provider, account, limits, share, ours.size)
        finally:
            with line.changed:
                line.is_asking, ours.is_over = False, True
                line.refusal = ours.answer if ours.answer is not None and ours.answer.granted < ours.size else None
                line.changed.notify_all()

    def _take(self, provider: str, account: str, limits: Sequence[RateLimit], share: float, wanted: int) -> _Answer:
        asked_at = self._clock()
        parameters = {
            "provider": provider,
            "account": account,
            "requests": [limit.requests for limit in limits],
            "seconds": [limit.seconds for limit in limits],
            "slacks": [slack_seconds(limit) for limit in limits],
            "share": share,
            "wanted": wanted,
        }
        with self._engine.connect() as connection:
            granted, wait, is_held, is_restored = connection.exec_driver_sql(_TAKE, parameters).one()
            if is_restored:
                self._restore(connection, provider, account)
        return _Answer(granted, wait, is_held, asked_at)

    def _look(self, provider: str, account: str) -> _Answer | None:
        """For providers without limits: the answer that says how long a refusal holds, None where none does."""
        with self._looking:
            if self._looked_at is None or self._clock() - self._looked_at >= _BELIEVED_SECONDS:
                self._looked_at = self._clock()
                with self._engine.connect() as connection:
                    rows = connection.exec_driver_sql(_HOLDS).all()
                    for name, whose, _, is_restored in rows:
                        if is_restored:
                            self._restore(connection, name, whose)
                self._holds = {(name, whose): self._looked_at + seconds for name, whose, seconds, _ in rows}
            until, now = self._holds.get((provider, account), 0.0), self._clock()
        return _Answer(0, until - now, is_held=True, asked_at=now) if until > now else None

    def _restore(self, connection: Connection, provider: str, account: str) -> None:
        """Say that all of the limits is used again where that is so; of several processes that notice, one says it."""
        if connection.exec_driver_sql(_RESTORE, {"provider": provider, "account": account}).all():
            limits = ", ".join(map(str, self.limits_of(provider)))
            detail = f"no refusal for hours: all of {limits} is used again" if limits else "no refusal for hours"
            connection.exec_driver_sql(
                _TELL, {"provider": provider, "kind": "limit_restored", "detail": detail, "is_recovery": True}
            )
