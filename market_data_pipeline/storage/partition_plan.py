"""The partition plan's file, MDP_HOME/partitions.json: so that Dagster can import the definitions without a database."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from market_data_pipeline.domain.errors import ConfigurationError, DiskError
from market_data_pipeline.domain.partitions import PartitionPlan, default_plan, plan_as_json, plan_from_json


def plan_path(home: Path) -> Path:
    """Where the plan of this installation is."""
    return home / "partitions.json"


def read_plan(path: Path) -> PartitionPlan:
    """The plan in the file ``path``, the default plan where there is no file. Creates nothing."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return default_plan()
    except (OSError, UnicodeDecodeError) as unreadable:
        raise ConfigurationError(f"{path} cannot be read: {unreadable}") from unreadable
    return plan_from_json(text, source=str(path))


def write_plan(path: Path, plan: PartitionPlan) -> None:
    """Put ``plan`` into the file ``path``, whole or not at all: a reader sees the old plan or the new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        draft = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(plan_as_json(plan) + "\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    except OSError as refused:
        raise DiskError(f"the partition plan cannot be written to {path}: {refused}") from refused
