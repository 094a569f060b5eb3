"""The simulated vendors, all of them: a new one is a module beside this and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.simulator.yahoo import YAHOO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.simulator.vendor import Vendor

VENDORS: Sequence[Vendor] = (YAHOO,)
