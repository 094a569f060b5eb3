"""What a command is about: the open pipeline, the instruments that were named, and the sessions the ledger knows of them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.domain.universe import Tier

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline


@contextmanager
def opened_pipeline() -> Iterator[Pipeline]:
    """The pipeline of this process's environment. Imported here: `mdp --help` must not wait for pandas and SQLAlchemy."""
    from market_data_pipeline.settings import Settings  # noqa: PLC0415
    from market_data_pipeline.wiring import open_pipeline  # noqa: PLC0415

    with open_pipeline(Settings.from_environment()) as pipeline:
        yield pipeline


def named_instrument(pipeline: Pipeline, symbol: str) -> Instrument:
    """The instrument called ``symbol``, active or not; InvalidInputError where the universe has none."""
    return pipeline.universe.instruments(symbols=[symbol], active_only=False)[0]


def chosen_instruments(
    pipeline: Pipeline, *, symbols: Sequence[str] | None = None, tier: str | None = None, active_only: bool = True
) -> list[Instrument]:
    """The instruments that ``--symbols`` or ``--tier`` names, all of them where neither is given."""
    if symbols is not None and tier is not None:
        raise InvalidInputError(f"--symbols {','.join(symbols)} and --tier {tier} were both given: expected one of them")
    found = pipeline.universe.instruments(
        symbols=symbols, tier=Tier(tier) if tier else None, active_only=active_only and symbols is None
    )
    if found:
        return found
    if tier is not None:
        raise InvalidInputError(f"no active symbol has tier {tier}: see `mdp universe list`")
    raise InvalidInputError("the universe is empty: expected symbols, loaded with `mdp universe load FILE`")
