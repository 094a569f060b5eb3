"""How fast a Yahoo chart body becomes columns: `python benchmarks/parse.py`. One process, the best of several rounds.

The floor is ``orjson.loads`` alone: no parser that goes through JSON objects can be faster. The comparison is the usual way: one
dict a row, handed to pandas.
"""

from __future__ import annotations

import argparse
import random
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pandas as pd
from report import report

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.ports import BarsRequest
from market_data_pipeline.providers.yahoo import parse_chart

if TYPE_CHECKING:
    from collections.abc import Callable

START = 1_719_840_600  # 2024-07-01 13:30 UTC
EIGHT_DAYS_OF_MINUTES = 8 * 390


def body_of(bars: int, *, nulls: float, seed: int = 7) -> bytes:
    """A chart body with ``bars`` minutes, a share of them null; prices are widened float32, as Yahoo's are."""
    rng = random.Random(seed)
    quote: dict[str, list[float | int | None]] = {name: [] for name in ("open", "high", "low", "close", "volume")}
    price = 198.0
    for _ in range(bars):
        if rng.random() < nulls:
            for column in quote.values():
                column.append(None)
            continue
        open_, price = price, price * (1 + rng.gauss(0, 0.0005))
        high, low = max(open_, price) * 1.0002, min(open_, price) * 0.9998
        for name, value in (("open", open_), ("high", high), ("low", low), ("close", price)):
            quote[name].append(struct.unpack("f", struct.pack("f", value))[0])
        quote["volume"].append(int(rng.lognormvariate(10, 1)))
    meta = {"symbol": "MSFT", "currency": "USD", "exchangeTimezoneName": "America/New_York", "dataGranularity": "1m"}
    result = {"meta": meta, "timestamp": [START + 60 * i for i in range(bars)], "indicators": {"quote": [quote]}}
    return orjson.dumps({"chart": {"result": [result], "error": None}})


def through_row_dicts(body: bytes) -> pd.DataFrame:
    """What most adapters do: a dict a row, then a frame."""
    result = orjson.loads(body)["chart"]["result"][0]
    quote = result["indicators"]["quote"][0]
    rows: list[dict[str, Any]] = [
        {
            "opened_at": pd.Timestamp(stamp, unit="s", tz="UTC"),
            "open": quote["open"][i],
            "high": quote["high"][i],
            "low": quote["low"][i],
            "close": quote["close"][i],
            "volume": quote["volume"][i],
        }
        for i, stamp in enumerate(result["timestamp"])
    ]
    return pd.DataFrame(rows).dropna(subset=["open", "high", "low", "close"]).sort_values("opened_at")


def through_a_frame_of_columns(body: bytes) -> pd.DataFrame:
    """The better way with pandas: the arrays as they are."""
    result = orjson.loads(body)["chart"]["result"][0]
    frame = pd.DataFrame(result["indicators"]["quote"][0], dtype=np.float64)
    frame.index = pd.to_datetime(result["timestamp"], unit="s", utc=True)
    return frame.dropna(how="all").sort_index()


def best_seconds(work: Callable[[], object], *, rounds: int) -> float:
    """The shortest of ``rounds`` runs: the others were disturbed."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    rows = []
    for bars, nulls in ((EIGHT_DAYS_OF_MINUTES, 0.0), (EIGHT_DAYS_OF_MINUTES, 0.05), (20_000, 0.0), (20_000, 0.05)):
        body = body_of(bars, nulls=nulls)
        request = BarsRequest("MSFT", Interval.M1, START, START + 60 * bars)
        contenders: dict[str, Callable[[], object]] = {
            "orjson.loads alone (floor)": lambda body=body: orjson.loads(body),  # type: ignore[misc]
            "parse_chart": lambda body=body, request=request: parse_chart(body, request),  # type: ignore[misc]
            "pandas from columns": lambda body=body: through_a_frame_of_columns(body),  # type: ignore[misc]
            "pandas from row dicts": lambda body=body: through_row_dicts(body),  # type: ignore[misc]
        }
        seconds = {name: best_seconds(work, rounds=options.rounds) for name, work in contenders.items()}
        rows += [
            {
                "bars": bars,
                "null": f"{nulls:.0%}",
                "body_kb": len(body) / 1000,
                "way": name,
                "ms": took * 1000,
                "mb_per_s": len(body) / took / 1e6,
                "bars_per_s": bars / took,
                "times_the_floor": took / seconds["orjson.loads alone (floor)"],
            }
            for name, took in seconds.items()
        ]
    report("parse", rows, notes=["best of several rounds, one process, body in memory"], json_path=options.json)


if __name__ == "__main__":
    main()
