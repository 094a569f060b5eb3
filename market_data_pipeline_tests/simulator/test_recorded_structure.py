"""The simulator against what Yahoo really sent: recorded bars go in, the same questions are asked, the shapes compared."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import numpy as np
import orjson
import pytest

from market_data_pipeline.simulator.clock import microseconds
from market_data_pipeline.simulator.market import Market
from market_data_pipeline.simulator.yahoo import CHART_PATH, ChartAnswer, ChartRequest, answer_chart, parse_request
from market_data_pipeline_tests.recorded import RECORDED
from market_data_pipeline_tests.simulator.directories import write_bars, write_lines

if TYPE_CHECKING:
    from pathlib import Path

WIRE = RECORDED / "yahoo_wire_yf2"
pytestmark = pytest.mark.skipif(not WIRE.is_dir(), reason=f"recorded data not here: {WIRE}")

# The exchanges of the recording -> one that we keep the sessions of. Stamps differ where it is another one; shapes must not.
EXCHANGES = {
    "NMS": "XNAS",
    "NGM": "XNAS",
    "NYQ": "XNYS",
    "LSE": "XLON",
    "GER": "XETR",
    "CCC": "CRYPTO",
    "CCY": "CRYPTO",
    "TOR": "XTSE",
}
OUR_OWN = {"NMS", "NGM", "NYQ", "LSE", "GER", "CCC"}


def _charts() -> list[dict[str, Any]]:
    if not WIRE.is_dir():
        return []
    entries = [json.loads(line) for line in (WIRE / "INDEX.jsonl").read_text(encoding="utf-8").splitlines()]
    return [entry for entry in entries if CHART_PATH in entry["url"]]


def _body(entry: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((WIRE / entry["file"]).read_text(encoding="utf-8"))
    return body


def shape(value: object) -> object:
    """Key sets, types and where null may stand; not lengths, order or values. Epochs as keys are one key."""
    if isinstance(value, dict):
        return {"<epoch>" if key.isdigit() else key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(shape(inner), sort_keys=True) for inner in value})
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return type(value).__name__


def _directory(directory: Path, entries: list[dict[str, Any]]) -> Path:
    """The daily bars, actions and listings that the recorded answers of one symbol hold."""
    bars: dict[str, list[str]] = {}
    actions: dict[str, str] = {}
    meta: dict[str, Any] = {}
    for entry in entries:
        result = _body(entry)["chart"]["result"][0]
        meta = result["meta"]
        zone = ZoneInfo(meta["exchangeTimezoneName"])
        quote = result["indicators"]["quote"][0]
        for i, stamp in enumerate(result.get("timestamp", [])):
            session = datetime.fromtimestamp(stamp, zone).date().isoformat()
            bars[session] = [session, *(repr(quote[name][i]) for name in ("open", "high", "low", "close", "volume")), ""]
        for event in result.get("events", {}).get("dividends", {}).values():
            session = datetime.fromtimestamp(event["date"], zone).date().isoformat()
            actions[f"d{session}"] = f"{meta['symbol']},dividend,{session},{event['amount']},"
        for event in result.get("events", {}).get("splits", {}).values():
            session = datetime.fromtimestamp(event["date"], zone).date().isoformat()
            actions[f"s{session}"] = f"{meta['symbol']},split,{session},{event['numerator'] / event['denominator']},"
    asset_type = "crypto" if meta["instrumentType"] == "CRYPTOCURRENCY" else meta["instrumentType"].lower()
    listing = [meta["symbol"], EXCHANGES.get(meta["exchangeName"], "XNYS"), asset_type, meta["currency"]]
    write_lines(directory, "universe.csv", "symbol,exchange,asset_type,currency", ",".join(listing))
    write_lines(directory, "actions.csv", "symbol,kind,session_date,value,currency", *actions.values())
    return write_bars(directory, [bars[session] for session in sorted(bars)], symbol=meta["symbol"], interval="1d")


def _generated(entry: dict[str, Any], directory: Path) -> tuple[dict[str, Any], ChartRequest]:
    url = urlsplit(entry["url"])
    of_symbol = [other for other in _charts() if urlsplit(other["url"]).path == url.path]
    market = Market(_directory(directory, of_symbol))
    request = parse_request(url.path, url.query)
    assert isinstance(request, ChartRequest)
    now = parsedate_to_datetime(entry["date"]).astimezone(UTC)
    answer = answer_chart(market, request, now_us=microseconds(now), seed=7)
    assert isinstance(answer, ChartAnswer), answer
    document: dict[str, Any] = orjson.loads(answer.body())
    return document, request


@pytest.mark.parametrize("entry", _charts(), ids=lambda entry: str(entry["file"]))
def test_the_answer_has_the_structure_of_the_recorded_one(entry: dict[str, Any], tmp_path: Path) -> None:
    generated, _ = _generated(entry, tmp_path)

    assert shape(generated) == shape(_body(entry))


@pytest.mark.parametrize(
    "entry",
    [e for e in _charts() if _body(e)["chart"]["result"][0]["meta"]["exchangeName"] in OUR_OWN],
    ids=lambda entry: str(entry["file"]),
)
def test_the_answer_has_the_bars_and_stamps_of_the_recorded_one(entry: dict[str, Any], tmp_path: Path) -> None:
    generated = _generated(entry, tmp_path)[0]["chart"]["result"][0]
    recorded = _body(entry)["chart"]["result"][0]

    assert generated.get("timestamp") == recorded.get("timestamp")
    assert generated.get("events") == recorded.get("events")
    for name, column in recorded["indicators"]["quote"][0].items():
        assert np.array_equal(generated["indicators"]["quote"][0][name], column)
