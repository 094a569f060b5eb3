"""The Dagster code location. Importing this module touches nothing; Dagster calls ``defs`` when it loads the location."""

from __future__ import annotations

import dagster as dg

from market_data_pipeline.defs.build import build_definitions
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.partition_plan import plan_path, read_plan


@dg.definitions
def defs() -> dg.Definitions:
    """What MDP_* and MDP_HOME/partitions.json say, read now: `mdp universe load` and a reload show a new plan."""
    settings = Settings.from_environment()
    path = plan_path(settings.home)
    return build_definitions(settings, read_plan(path), in_force=lambda: read_plan(path))
