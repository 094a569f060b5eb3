"""What ingesting asks for and reports: stretches of sessions of one instrument, each with its outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

    from market_data_pipeline.domain.coverage import Verdict
    from market_data_pipeline.domain.finality import Finality
    from market_data_pipeline.domain.universe import Instrument


@dataclass(frozen=True, slots=True)
class Stretch:
    """The sessions of one instrument from ``first`` to ``last``, both included: the unit that is asked for and reported."""

    instrument: Instrument
    first: date
    last: date


@dataclass(frozen=True, slots=True)
class LedgerHistory:
    """What lies behind the verdicts of some sessions: stretches of missing bars, answers that left a hole, sessions by finality."""

    gaps: int = 0
    attempts: int = 0
    finality: Mapping[Finality, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StretchReport:
    """What became of one stretch.

    ``verdicts`` counts every expected bar of the stretch after the work; they add up to ``expected``. ``inserted`` counts the
    bars that are present now and were not before, ``refused`` and ``dropped`` the rows left out. ``providers``: who answered,
    sorted by name. ``failure`` is why some session got no usable answer from anybody, None where every one did; ``failures`` says
    how each provider failed, also where another one answered instead. A request that serves several stretches counts for each as
    its share of ``requests`` and ``seconds``, and wholly in ``dropped`` and ``refused`` of the first.
    """

    stretch: Stretch
    expected: int
    verdicts: Mapping[Verdict, int]
    inserted: int = 0
    refused: int = 0
    requests: float = 0.0
    seconds: float = 0.0
    providers: tuple[str, ...] = ()
    failure: str | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    history: LedgerHistory = field(default_factory=LedgerHistory)
