"""Every adapter of ours keeps the contract that comes with the package; and the contract notices those that do not."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, Self
from zoneinfo import ZoneInfo

import pytest
from pydantic import SecretStr

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import MACRO, OPTIONS_CHAIN, QUOTES_L1, Stamp
from market_data_pipeline.domain.errors import EntitlementError, PayloadError, ProviderError, TransientError
from market_data_pipeline.providers.alpaca import AlpacaProvider
from market_data_pipeline.providers.alphavantage import AlphaVantageProvider
from market_data_pipeline.providers.cboe import CboeProvider
from market_data_pipeline.providers.finnhub import FinnhubProvider
from market_data_pipeline.providers.fred import FredProvider
from market_data_pipeline.providers.massive import MassiveProvider
from market_data_pipeline.providers.yahoo import YahooProvider
from market_data_pipeline.testing import contract
from market_data_pipeline.testing.contract import Bar, ContractBrokenError, Vendor
from market_data_pipeline.testing.loopback import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from market_data_pipeline.domain.ports import BarsAnswer, BarsRequest
    from market_data_pipeline.providers.http import HttpClient
    from market_data_pipeline.testing.loopback import Asked

NEW_YORK = ZoneInfo("America/New_York")
KEY = "sk-live-5f2c9a771b"
SECOND_KEY = "very+secret/8d3e=="


def reply(document: object) -> Reply:
    return Reply(json.dumps(document).encode())


def picked(bars: Sequence[Bar], symbol: str, interval: Interval) -> list[Bar]:
    return [bar for bar in bars if bar.symbol == symbol and bar.interval is interval]


def new_york_midnight(bar: Bar) -> datetime:
    """The instant at which the bar's session date begins in New York."""
    return bar.at.replace(tzinfo=NEW_YORK).astimezone(UTC)


# --- the vendors' side -------------------------------------------------------------------------------------------------


def alpaca_bars(asked: Asked, bars: Sequence[Bar]) -> Reply:
    interval = {"1Min": Interval.M1, "1Day": Interval.D1}[asked.query["timeframe"]]
    rows: dict[str, list[dict[str, Any]]] = {}
    for symbol in asked.query["symbols"].split(","):
        for bar in picked(bars, symbol, interval):
            at = new_york_midnight(bar) if interval.is_daily else bar.at
            stamp = at.strftime("%Y-%m-%dT%H:%M:%SZ")
            row = {"t": stamp, "o": bar.open, "h": bar.high, "l": bar.low, "c": bar.close, "v": bar.volume, "n": 3, "vw": 10.5}
            rows.setdefault(symbol, []).append(row)
    return reply({"bars": rows, "next_page_token": None})


def alpaca_quotes(asked: Asked) -> Reply:
    told = {"t": "2024-07-02T20:59:59.5Z", "bp": 10.0, "bs": 2, "ap": 10.1, "as": 3, "bx": "V", "ax": "V", "c": ["R"], "z": "A"}
    return reply({"quotes": dict.fromkeys(asked.query["symbols"].split(","), told)})


def massive_bars(asked: Asked, bars: Sequence[Bar]) -> Reply:
    if "/grouped/" in asked.path:
        date = asked.path.rpartition("/")[2]
        of_day = [bar for bar in bars if bar.interval is Interval.D1 and bar.at.date().isoformat() == date]
        # As the vendor has it: a grouped day is stamped with the close.
        rows = [{"T": bar.symbol, **massive_row(bar, new_york_midnight(bar).replace(hour=20))} for bar in of_day]
        return reply({"status": "OK", "adjusted": True, "resultsCount": len(rows), "queryCount": len(rows), "results": rows})
    symbol = asked.path.split("/")[4]
    interval = Interval.M1 if "/minute/" in asked.path else Interval.D1
    rows = [massive_row(b, new_york_midnight(b) if interval.is_daily else b.at) for b in picked(bars, symbol, interval)]
    said = {"status": "DELAYED", "ticker": symbol, "adjusted": True, "resultsCount": len(rows), "queryCount": len(rows)}
    return reply({**said, "results": rows})


def massive_row(bar: Bar, at: datetime) -> dict[str, Any]:
    stamp = int(at.timestamp() * 1000)
    return {"t": stamp, "o": bar.open, "h": bar.high, "l": bar.low, "c": bar.close, "v": bar.volume, "vw": 10.5, "n": 3}


def finnhub_bars(asked: Asked, bars: Sequence[Bar]) -> Reply:
    interval = {"1": Interval.M1, "D": Interval.D1}[asked.query["resolution"]]
    chosen = picked(bars, asked.query["symbol"], interval)
    names = {"o": "open", "h": "high", "l": "low", "c": "close", "v": "volume", "t": "opened_at"}
    return reply({"s": "ok", **{key: [getattr(bar, name) for bar in chosen] for key, name in names.items()}})


def finnhub_quotes(asked: Asked) -> Reply:
    assert asked.path == "/quote"
    return reply({"c": 10.5, "d": 0.1, "dp": 1.0, "h": 11, "l": 10, "o": 10, "pc": 10.4, "t": 1719950399})


def alphavantage_bars(asked: Asked, bars: Sequence[Bar], *, label_seconds: int = 0) -> Reply:
    symbol, is_daily = asked.query["symbol"], asked.query["function"] == "TIME_SERIES_DAILY"
    rows = {}
    for bar in picked(bars, symbol, Interval.D1 if is_daily else Interval.M1):
        opened = datetime.fromtimestamp(bar.opened_at, NEW_YORK)
        if not is_daily and not time(9, 30) <= opened.time() < time(16):
            continue  # extended_hours=false
        named = opened + timedelta(seconds=label_seconds)
        label = f"{bar.at:%Y-%m-%d}" if is_daily else f"{named:%Y-%m-%d %H:%M:%S}"
        values = (bar.open, bar.high, bar.low, bar.close, bar.volume)
        names = ("1. open", "2. high", "3. low", "4. close", "5. volume")
        rows[label] = {name: f"{value:.4f}" for name, value in zip(names, values, strict=True)}
    if is_daily:
        meta = {"1. Information": "Daily", "2. Symbol": symbol, "4. Output Size": "Compact", "5. Time Zone": "US/Eastern"}
        return reply({"Meta Data": meta, "Time Series (Daily)": rows})
    meta = {"1. Information": "Intraday", "2. Symbol": symbol, "4. Interval": "1min", "6. Time Zone": "US/Eastern"}
    return reply({"Meta Data": meta, "Time Series (1min)": rows})


def yahoo_bars(asked: Asked, bars: Sequence[Bar]) -> Reply:
    symbol, interval = asked.path.rpartition("/")[2], Interval(asked.query["interval"])
    chosen = picked(bars, symbol, interval)
    stamps = [bar.opened_at + (13 * 3600 + 1800 if interval.is_daily else 0) for bar in chosen]
    quote = {name: [getattr(bar, name) for bar in chosen] for name in ("open", "high", "low", "close", "volume")}
    meta = {"symbol": symbol, "dataGranularity": interval.value, "exchangeTimezoneName": "America/New_York", "currency": "USD"}
    return reply({"chart": {"result": [{"meta": meta, "timestamp": stamps, "indicators": {"quote": [quote]}}], "error": None}})


def cboe_bars(asked: Asked, bars: Sequence[Bar]) -> Reply:
    symbol = asked.path.rpartition("/")[2].removesuffix(".json")
    if "/charts/historical/" in asked.path:
        days = picked(bars, symbol, Interval.D1)
        rows = [{"date": f"{bar.at:%Y-%m-%d}", **values_of(bar)} for bar in days]
        return reply({"timestamp": "11:00:17", "data": rows, "symbol": symbol})
    rows = []
    for bar in picked(bars, symbol, Interval.M1):
        closed = datetime.fromtimestamp(bar.opened_at + 60, NEW_YORK)
        price = {name: value for name, value in values_of(bar).items() if name != "volume"}
        rows.append({"datetime": f"{closed:%Y-%m-%dT%H:%M:%S}", "price": price, "volume": {"stock_volume": bar.volume}})
    return reply({"timestamp": "2024-07-02 20:59:00", "data": rows, "symbol": symbol})


def values_of(bar: Bar) -> dict[str, Any]:
    return {name: getattr(bar, name) for name in ("open", "high", "low", "close", "volume")}


def cboe_quotes(asked: Asked) -> Reply:
    symbol = asked.path.rpartition("/")[2].removesuffix(".json")
    data = {"symbol": symbol, "bid": 10.0, "ask": 10.1, "current_price": 10.05, "last_trade_time": "2024-07-02T15:59:59"}
    return reply({"timestamp": "2024-07-02 20:59:00", "data": data, "symbol": symbol})


def cboe_chain(asked: Asked) -> Reply:
    symbol = asked.path.rpartition("/")[2].removesuffix(".json")
    contract = {"option": f"{symbol}240719C00010000", "bid": 0.4, "ask": 0.5, "iv": 0.3, "delta": 0.5, "last_trade_time": None}
    data = {"options": [contract], "symbol": symbol, "current_price": 10.05, "last_trade_time": "2024-07-02T15:59:59"}
    return reply({"timestamp": "2024-07-02 20:59:00", "data": data, "symbol": symbol})


def fred_observations(asked: Asked) -> Reply:
    """FRED's two answers to one question: what the series is, and its values as of today."""
    today = {"realtime_start": "2024-07-02", "realtime_end": "2024-07-02"}
    if asked.path == "/fred/series":
        series = {"id": asked.query["series_id"], **today, "title": "A series", "units": "Percent", "frequency_short": "M"}
        return reply({**today, "seriess": [series]})
    rows = [{**today, "date": f"2024-0{month}-01", "value": value} for month, value in ((4, "3.9"), (5, "."), (6, "4.1"))]
    window = {"offset": int(asked.query["offset"]), "limit": int(asked.query["limit"]), "count": len(rows), "output_type": 1}
    return reply({**today, **window, "units": "lin", "file_type": "json", "observations": rows[window["offset"] :]})


def fred(http: HttpClient, url: str, key: str | None = KEY) -> FredProvider:
    return FredProvider(http, base_url=url, key=SecretStr(key) if key else None)


def no_bars(asked: Asked, bars: Sequence[Bar]) -> Reply:
    raise AssertionError(asked, bars)


def massive(http: HttpClient, url: str, key: str | None = KEY) -> MassiveProvider:
    return MassiveProvider(http, base_url=url, key=SecretStr(key) if key else None)


def alpaca(http: HttpClient, url: str, *keys: str) -> AlpacaProvider:
    key_id, secret_key = (SecretStr(key) for key in keys) if keys else (None, None)
    return AlpacaProvider(http, base_url=url, key_id=key_id, secret_key=secret_key)


def finnhub(http: HttpClient, url: str, key: str | None = KEY) -> FinnhubProvider:
    return FinnhubProvider(http, base_url=url, key=SecretStr(key) if key else None)


def alphavantage(http: HttpClient, url: str, key: str | None = KEY) -> AlphaVantageProvider:
    return AlphaVantageProvider(http, base_url=url, key=SecretStr(key) if key else None)


def yahoo(http: HttpClient, url: str) -> YahooProvider:
    return YahooProvider(http, base_url=url, user_agent="contract")


VENDORS = {
    "alpaca": Vendor(
        open=lambda http, url: alpaca(http, url, KEY, SECOND_KEY),
        keyless=alpaca,
        bars=alpaca_bars,
        answers={QUOTES_L1: alpaca_quotes},
        secrets=(KEY, SECOND_KEY),
    ),
    "massive": Vendor(open=massive, keyless=lambda http, url: massive(http, url, None), bars=massive_bars, secrets=(KEY,)),
    "finnhub": Vendor(
        open=finnhub,
        keyless=lambda http, url: finnhub(http, url, None),
        bars=finnhub_bars,
        answers={QUOTES_L1: finnhub_quotes},
        secrets=(KEY,),
    ),
    "alphavantage": Vendor(
        open=alphavantage,
        keyless=lambda http, url: alphavantage(http, url, None),
        bars=alphavantage_bars,
        secrets=(KEY,),
        key_in_url=True,
    ),
    "fred": Vendor(
        open=fred,
        keyless=lambda http, url: fred(http, url, None),
        bars=no_bars,
        answers={MACRO: fred_observations},
        secrets=(KEY,),
        key_in_url=True,
    ),
    "yahoo": Vendor(open=yahoo, bars=yahoo_bars),
    "cboe": Vendor(
        open=lambda http, url: CboeProvider(http, base_url=url, user_agent="contract"),
        bars=cboe_bars,
        answers={QUOTES_L1: cboe_quotes, OPTIONS_CHAIN: cboe_chain},
        # Before the next session: its minutes are of the latest one alone.
        now=datetime(2024, 7, 3, 12, tzinfo=UTC),
    ),
}


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", VENDORS)
def test_the_adapter_keeps_the_contract(name: str, check: Callable[[Vendor], None]) -> None:
    check(VENDORS[name])


def test_close_labelled_minutes_keep_the_same_contract() -> None:
    vendor = replace(
        VENDORS["alphavantage"],
        open=lambda http, url: AlphaVantageProvider(http, base_url=url, key=SecretStr(KEY), stamp=Stamp.CLOSE),
        bars=lambda asked, bars: alphavantage_bars(asked, bars, label_seconds=60),
    )
    contract.hands_out_the_opens_of_the_window(vendor)
    contract.sorts_and_keeps_each_stamp_once(vendor)


# --- the contract notices ----------------------------------------------------------------------------------------------


class Finnhub(FinnhubProvider):
    """An adapter to be spoiled."""

    @classmethod
    def at(cls, http: HttpClient, url: str) -> Self:
        return cls(http, base_url=url, key=SecretStr(KEY))


class NamesBarsByTheirClose(Finnhub):
    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        answer = super().fetch_bars(request, now=now)
        shifted = replace(answer.columns, opened_at=answer.columns.opened_at + request.interval.seconds)
        return replace(answer, columns=shifted)


class AsksForMore(Finnhub):
    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        if request.end <= request.start:
            return super().fetch_bars(replace(request, end=request.start + 60), now=now)
        return super().fetch_bars(request, now=now)


class LosesTheProvenance(Finnhub):
    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        try:
            return super().fetch_bars(request, now=now)
        except ProviderError as error:
            error.fetch = None
            raise


class CallsEverythingTransient(Finnhub):
    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        try:
            return super().fetch_bars(request, now=now)
        except EntitlementError as error:
            other = TransientError("try again", provider=self.name)
            other.fetch = error.fetch
            raise other from None


class RaisesWhatPythonRaises(Finnhub):
    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        try:
            return super().fetch_bars(request, now=now)
        except PayloadError as error:
            raise ValueError(str(error)) from None


class TellsItsKey(Finnhub):
    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        try:
            return super().fetch_bars(request, now=now)
        except EntitlementError as error:
            error.args = (f"{error}: is {KEY} the right one?",)
            raise


class SharesWhatItParses(Finnhub):
    """One place for everybody's answer: the last thread wins."""

    latest: BarsAnswer | None = None

    def fetch_bars(self, request: BarsRequest, *, now: datetime) -> BarsAnswer:
        fetched = super().fetch_bars(request, now=now)
        self.latest = self.latest or fetched
        return replace(self.latest, request=request)


class KnowsNoKey(Finnhub):
    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - whatever the adapter takes
        super().__init__(*args, **kwargs)
        self.account = ""


@pytest.mark.parametrize(
    ("spoiled", "check"),
    [
        (NamesBarsByTheirClose, contract.hands_out_the_opens_of_the_window),
        (NamesBarsByTheirClose, contract.sorts_and_keeps_each_stamp_once),
        (AsksForMore, contract.refuses_what_it_does_not_declare),
        (LosesTheProvenance, contract.names_each_failure),
        (LosesTheProvenance, contract.refuses_what_it_does_not_declare),
        (CallsEverythingTransient, contract.names_each_failure),
        (RaisesWhatPythonRaises, contract.names_each_failure),
        (RaisesWhatPythonRaises, contract.believes_nothing_that_is_bent),
        (TellsItsKey, contract.keeps_its_keys),
        (SharesWhatItParses, contract.serves_several_threads),
        (KnowsNoKey, contract.declares_what_it_can_do),
    ],
)
def test_the_contract_notices_an_adapter_that(spoiled: type[Finnhub], check: Callable[[Vendor], None]) -> None:
    with pytest.raises(ContractBrokenError):
        check(replace(VENDORS["finnhub"], open=spoiled.at))


def test_the_contract_notices_a_key_in_a_url() -> None:
    with pytest.raises(ContractBrokenError, match="send it as a header"):
        contract.keeps_its_keys(replace(VENDORS["alphavantage"], key_in_url=False))


def test_a_vendor_without_answers_is_not_passed_in_silence() -> None:
    with pytest.raises(ContractBrokenError, match="no capability can be asked for"):
        contract.names_each_failure(
            replace(VENDORS["finnhub"], open=lambda http, url: OnlyQuotes(http, base_url=url, key=None), answers={})
        )


class OnlyQuotes(FinnhubProvider):
    capabilities = tuple(capability for capability in FinnhubProvider.capabilities if capability.interval is None)
