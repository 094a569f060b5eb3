"""The simulated vendors, all of them: a new one is a module beside this and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.simulator.alpaca import ALPACA
from market_data_pipeline.simulator.alphavantage import ALPHAVANTAGE
from market_data_pipeline.simulator.cboe import CBOE
from market_data_pipeline.simulator.finnhub import FINNHUB
from market_data_pipeline.simulator.fred import FRED
from market_data_pipeline.simulator.massive import MASSIVE
from market_data_pipeline.simulator.yahoo_quotes import YAHOO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.simulator.vendor import Vendor

VENDORS: Sequence[Vendor] = (YAHOO, FINNHUB, ALPACA, MASSIVE, ALPHAVANTAGE, CBOE, FRED)
