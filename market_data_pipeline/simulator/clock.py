"""The simulator's virtual clock: it stands still, runs at the real pace, or faster. Nothing else here tells the time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from market_data_pipeline.domain.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable


def parse_instant(value: object, *, name: str) -> datetime:
    """``value`` (ISO 8601 text or a datetime) as an aware instant in UTC; a naive one is refused: whose midnight would it be."""
    try:
        # PyYAML turns unquoted stamps into datetimes by itself.
        instant = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        raise InvalidInputError(f"{name}: {value!r} is not a time: expected ISO 8601 such as 2024-12-02T15:00:00Z") from None
    if instant.tzinfo is None:
        raise InvalidInputError(f"{name}: {value!r} has no time zone: expected ISO 8601 with one, such as 2024-12-02T15:00:00Z")
    return instant.astimezone(UTC)


def microseconds(instant: datetime) -> int:
    """Epoch microseconds of an aware instant, exact."""
    since = instant - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds


@dataclass(slots=True)
class VirtualClock:
    """Time as the simulated provider sees it: ``base`` plus ``speed`` times what ``monotonic`` says has passed since it was set.

    ``speed`` 0 stands still, 1 is the real pace. Going back in time is allowed: a test may.
    """

    base: datetime
    speed: float
    monotonic: Callable[[], float]
    set_at: float = 0.0

    def __post_init__(self) -> None:
        self.set(self.base, speed=self.speed)

    def set(self, base: datetime, *, speed: float) -> None:
        """From now on it is ``base``, moving on at ``speed``."""
        self.base, self.speed, self.set_at = base, speed, self.monotonic()

    def now_us(self) -> int:
        """Epoch microseconds of the virtual now."""
        return microseconds(self.base) + round((self.monotonic() - self.set_at) * self.speed * 1_000_000)

    def now(self) -> datetime:
        """The virtual now, UTC."""
        return instant_of(self.now_us())


def instant_of(us: int) -> datetime:
    """The instant that is ``us`` microseconds after the epoch."""
    return datetime.fromtimestamp(us // 1_000_000, UTC).replace(microsecond=us % 1_000_000)


def parse_speed(value: object) -> float:
    """``value`` as a speed: a finite number that is not negative."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value)
    raise InvalidInputError(f"speed {value!r}: expected a number, 0 to stand still, 1 for the real pace")
