"""How hypothesis runs here: without a time limit an example. Speed is measured in benchmarks/, and a busy machine is no fault."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
