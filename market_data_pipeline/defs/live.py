"""The assets that no run makes: what `mdp collect` brings, and tells Dagster of by events without a run."""

from __future__ import annotations

import dagster as dg

from market_data_pipeline.defs.candles import OWNER
from market_data_pipeline.domain.runs import LIVE_QUOTES

GROUP = "live"


def live_assets() -> list[dg.AssetSpec]:
    """Quotes of the tiers that have a cadence. Outside of Dagster's control: it shows when they came and how many."""
    return [
        dg.AssetSpec(
            dg.AssetKey(LIVE_QUOTES.split("/")),
            group_name=GROUP,
            owners=[OWNER],
            description=(
                "Best bid and ask, collected by `mdp collect` while a market is open: T0 every 5 s and T1 every 15 s"
                " (MDP_QUOTES_EVERY_SECONDS). A row only where something changed; quotes_confirmed says when each was last heard."
            ),
            kinds={"postgres"},
            metadata={"dagster/table_name": "quotes_l1"},
        )
    ]
