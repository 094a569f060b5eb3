"""What Yahoo serves beside charts, simulated: the cookie, the crumb, quotes and option chains; and Yahoo as a vendor.

Formats: PROVIDERS.md §1, and ../shared/data/recorded/yahoo_wire_yf2, which the answers are compared with.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote
from zoneinfo import ZoneInfo

import numpy as np

from market_data_pipeline.simulator.market import DAY
from market_data_pipeline.simulator.options import contracts_of
from market_data_pipeline.simulator.tape import newest_tick
from market_data_pipeline.simulator.vendor import Call, RecordsAnswer, Reply, Vendor, json_reply
from market_data_pipeline.simulator.yahoo import EXCHANGES, INSTRUMENT_TYPES, ChartEndpoint, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.simulator.market import Grid, Listing
    from market_data_pipeline.simulator.options import Contract
    from market_data_pipeline.simulator.tape import Tick
    from market_data_pipeline.simulator.vendor import Answer, Received, Scene

COOKIE_PATHS = frozenset({"/fc", "/fc/"})
CRUMB_PATH = "/v1/test/getcrumb"
QUOTE_PATH = "/v7/finance/quote"
OPTIONS_PATH = "/v7/finance/options/"
_COOKIE = re.compile(r"(?:^|;\s*)A3=([^;\s]+)")
_WHOLE = re.compile(r"\d{1,12}", re.ASCII)
_TEXT = (("content-type", "text/plain;charset=utf-8"),)


# --- the pass ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a request brought to be let in, and what it asks for."""

    cookie: str = field(repr=False)
    crumb: str = field(repr=False)
    wanted: str = ""


def _cookie_of(received: Received) -> str:
    found = _COOKIE.search(received.headers.get("cookie", ""))
    return found[1] if found else ""


def cookie(seed: int) -> str:
    """The session that this Yahoo hands out: always the same, for the same script must give the same bytes."""
    return f"d=AQAB{blake2b(f'{seed}:A3'.encode(), digest_size=12).hexdigest()}&S=AQAAAsimulated"


def crumb(seed: int, shown_cookie: str, day: int) -> str:
    """The crumb that goes with a cookie on a day (since 1970, UTC)."""
    return f"{blake2b(f'{seed}:{shown_cookie}:{day}'.encode(), digest_size=5).hexdigest()}."


def _is_let_in(shown: _Shown, scene: Scene) -> bool:
    """A crumb is good on the day it was fetched and the day after."""
    if shown.cookie != cookie(scene.seed):
        return False
    return shown.crumb in {crumb(scene.seed, shown.cookie, scene.now // DAY - ago) for ago in (0, 1)}


class CookieEndpoint:
    """fc.yahoo.com: a page that is not there, and a cookie all the same."""

    def parse(self, received: Received) -> Call | Reply | None:
        """Any question at all."""
        return Call("") if received.path in COOKIE_PATHS else None

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:  # noqa: ARG002 - every visitor gets the same
        """404 with A3."""
        expires = datetime.fromtimestamp(scene.now + 366 * DAY, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        told = f"A3={cookie(scene.seed)}; Expires={expires}; Max-Age=31557600; Path=/; HttpOnly; SameSite=None"
        return Reply(404, (("content-type", "text/html; charset=utf-8"), ("set-cookie", told)), b"<html>Not Found</html>")


class CrumbEndpoint:
    """/v1/test/getcrumb: plain text."""

    def parse(self, received: Received) -> Call | Reply | None:
        """The cookie that it is for."""
        return Call("", asked=_Shown(_cookie_of(received), "")) if received.path == CRUMB_PATH else None

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:
        """The crumb of the day; nothing at all without a cookie, as Yahoo does."""
        shown: _Shown = call.asked
        if shown.cookie != cookie(scene.seed):
            return Reply(200, _TEXT, b"")
        return Reply(200, _TEXT, crumb(scene.seed, shown.cookie, scene.now // DAY).encode())


# --- quotes ------------------------------------------------------------------------------------------------------------


class QuoteEndpoint:
    """/v7/finance/quote: the newest of everything about several symbols."""

    def parse(self, received: Received) -> Call | Reply | None:
        """The symbols asked for."""
        if received.path != QUOTE_PATH:
            return None
        given = dict(parse_qsl(received.query, keep_blank_values=True))
        symbols = tuple(filter(None, given.get("symbols", "").upper().split(",")))
        return Call("quotes_l1", symbols, asked=_Shown(_cookie_of(received), given.get("crumb", "")))

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:
        """A record each; a symbol that is unknown has none, one that never traded has its name and nothing more."""
        if not _is_let_in(call.asked, scene):
            return refuse(401, "")
        listings = ((symbol, scene.market.listing(symbol)) for symbol in dict.fromkeys(call.symbols))
        records = [quote_record(scene, listing) for _, listing in listings if listing is not None]
        return RecordsAnswer(records, _written_quotes, symbol=",".join(call.symbols))


def _written_quotes(records: Sequence[Mapping[str, Any]]) -> Reply:
    return json_reply(200, {"quoteResponse": {"result": list(records), "error": None}})


def quote_record(scene: Scene, listing: Listing) -> dict[str, Any]:
    """What Yahoo says of one symbol. Prices are of the data directory; whatever is about the company behind it is invented."""
    kind = INSTRUMENT_TYPES.get(listing.asset_type.lower(), listing.asset_type.upper())
    tick = newest_tick(scene, listing.symbol)
    base: dict[str, Any] = {
        "language": "en-US",
        "region": "US",
        "quoteType": kind if tick else "NONE",
        "triggerable": tick is not None,
        "customPriceAlertConfidence": "HIGH" if tick else "NONE",
        "corporateActions": [],
        "messageBoardId": f"finmb_{listing.symbol}",
        "esgPopulated": False,
        "hasPrePostMarketData": False,
        "tradeable": False,
        "cryptoTradeable": kind == "CRYPTOCURRENCY",
        "symbol": listing.symbol,
    }
    if tick is None:
        return base
    exchange = EXCHANGES[listing.exchange.upper()]
    has_pre_post = exchange.has_pre_post and kind in {"EQUITY", "ETF"}
    grid = scene.market.grid(listing.symbol)
    state = market_state(grid, scene.now, has_pre_post=has_pre_post)
    name = listing.name or listing.symbol
    days = scene.market.seen(listing.symbol, "1d", scene.now_us).finished
    local = datetime.fromtimestamp(scene.now, ZoneInfo(grid.timezone))
    offset = local.utcoffset()
    base |= {
        "typeDisp": kind.capitalize(),
        "quoteSourceName": "Nasdaq Real Time Price" if has_pre_post else "Delayed Quote",
        "shortName": name,
        "longName": name,
        "marketState": state,
        "currency": listing.currency or exchange.currency,
        "exchange": exchange.name,
        "fullExchangeName": exchange.full_name,
        "exchangeTimezoneName": grid.timezone,
        "exchangeTimezoneShortName": local.tzname(),
        "gmtOffSetMilliseconds": 0 if offset is None else int(offset.total_seconds()) * 1000,
        "market": "us_market" if has_pre_post else f"{exchange.name.lower()}_market",
        "hasPrePostMarketData": has_pre_post,
        "firstTradeDateMilliseconds": int(days.opened_at[0]) * 1000 if len(days) else scene.now * 1000,
        "priceHint": 4 if kind == "CURRENCY" else 2,
        "sourceInterval": 15,
        "exchangeDataDelayedBy": 0 if has_pre_post or kind in {"CRYPTOCURRENCY", "CURRENCY"} else 15,
    }
    base |= _market_numbers(tick)
    base |= _long_run(scene, listing.symbol, tick)
    if kind == "CRYPTOCURRENCY":
        return base | _of_a_coin(listing.symbol, tick)
    base |= {"bid": _decimal(tick.bid), "ask": _decimal(tick.ask)}
    # In lots where there is a consolidated tape, and unknown elsewhere.
    base |= {"bidSize": tick.bid_size // 100, "askSize": tick.ask_size // 100} if has_pre_post else {"bidSize": 0, "askSize": 0}
    if kind != "EQUITY":
        return base
    base |= _outside_hours(scene, listing.symbol, tick, state) if has_pre_post else {}
    return base | _of_a_company(scene, listing, tick)


def _decimal(price: float) -> float:
    return round(price, 4)


def market_state(grid: Grid, now: int, *, has_pre_post: bool) -> str:
    """PREPRE, PRE, REGULAR, POST, POSTPOST or CLOSED: by the session of today in the exchange's own time."""
    zone = ZoneInfo(grid.timezone)
    local = datetime.fromtimestamp(now, zone)
    today = (local.date() - date(1970, 1, 1)).days
    place = int(np.searchsorted(grid.session, today))
    if place == len(grid.session) or int(grid.session[place]) != today:
        return "CLOSED"
    opens_at, closes_at = int(grid.opens_at[place]), int(grid.closes_at[place])
    if opens_at <= now < closes_at:
        return "REGULAR"
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    before, after = ((int(midnight.replace(hour=hour).timestamp())) for hour in (4, 20))
    if now < opens_at:
        return "PRE" if has_pre_post and now >= before else "PREPRE"
    return "POST" if has_pre_post and now < after else "POSTPOST"


def _market_numbers(tick: Tick) -> dict[str, Any]:
    before = tick.previous_close or tick.opened
    change = tick.last - before
    return {
        "regularMarketPrice": _decimal(tick.last),
        "regularMarketTime": tick.at,
        "regularMarketChange": _decimal(change),
        "regularMarketChangePercent": _decimal(100 * change / before),
        "regularMarketOpen": _decimal(tick.opened),
        "regularMarketDayHigh": _decimal(tick.high),
        "regularMarketDayLow": _decimal(tick.low),
        "regularMarketDayRange": f"{tick.low:.2f} - {tick.high:.2f}",
        "regularMarketVolume": round(tick.volume),
        "regularMarketPreviousClose": _decimal(before),
    }


def _long_run(scene: Scene, symbol: str, tick: Tick) -> dict[str, Any]:
    days = scene.market.seen(symbol, "1d", scene.now_us).finished
    year = days.between(scene.now - 365 * DAY, scene.now + 1)
    high = float(year.ohlcv[1].max()) if len(year) else tick.high
    low = float(year.ohlcv[2].min()) if len(year) else tick.low
    closes = days.ohlcv[3] if len(days) else np.asarray([tick.last])
    volumes = days.ohlcv[4] if len(days) else np.asarray([tick.volume])
    told: dict[str, Any] = {
        "averageDailyVolume3Month": round(float(volumes[-63:].mean())),
        "averageDailyVolume10Day": round(float(volumes[-10:].mean())),
        "fiftyTwoWeekHigh": _decimal(high),
        "fiftyTwoWeekLow": _decimal(low),
        "fiftyTwoWeekRange": f"{low:.2f} - {high:.2f}",
        "fiftyTwoWeekChangePercent": _decimal(100 * (tick.last / float(closes[max(0, len(closes) - 252)]) - 1)),
    }
    against = {
        "fiftyTwoWeekHigh": high,
        "fiftyTwoWeekLow": low,
        "fiftyDayAverage": float(closes[-50:].mean()),
        "twoHundredDayAverage": float(closes[-200:].mean()),
    }
    for name, level in against.items():
        told |= {name: _decimal(level), f"{name}Change": _decimal(tick.last - level)}
        told |= {f"{name}ChangePercent": _decimal(tick.last / level - 1)}
    return told


def _outside_hours(scene: Scene, symbol: str, tick: Tick, state: str) -> dict[str, Any]:
    """The last trade before the open or after the close: of the data directory, else the last regular one."""
    if state == "REGULAR":
        return {}
    minutes = scene.market.seen(symbol, "1m", scene.now_us).finished
    outside = minutes.take(~minutes.regular & (minutes.opened_at >= tick.at)) if len(minutes) else minutes
    price, at = (float(outside.ohlcv[3, -1]), int(outside.ends_at[-1])) if len(outside) else (tick.last, tick.at)
    session = "pre" if state == "PRE" else "post"
    return {
        f"{session}MarketPrice": _decimal(price),
        f"{session}MarketTime": at,
        f"{session}MarketChange": _decimal(price - tick.last),
        f"{session}MarketChangePercent": _decimal(100 * (price / tick.last - 1)),
    }


def _of_a_coin(symbol: str, tick: Tick) -> dict[str, Any]:
    coin, _, money = symbol.partition("-")
    supply = 19_825_500
    return {
        "quoteSourceName": "CoinMarketCap",
        "lastMarket": "CoinMarketCap",
        "market": "ccc_market",
        "circulatingSupply": supply,
        "marketCap": round(tick.last * supply),
        "volume24Hr": round(tick.volume),
        "volumeAllCurrencies": round(tick.volume),
        "fromCurrency": coin,
        "toCurrency": f"{money}=X",
        "startDate": 1278979200,
        "coinMarketCapLink": f"https://coinmarketcap.invalid/{coin.lower()}",
        "coinImageUrl": f"https://coinmarketcap.invalid/{coin.lower()}.png",
        "logoUrl": f"https://coinmarketcap.invalid/{coin.lower()}.png",
    }


def _of_a_company(scene: Scene, listing: Listing, tick: Tick) -> dict[str, Any]:
    """Invented, but for the dividends: an annual profit of a twentieth of the price a share."""
    earned = round(tick.last / 20, 2) or 0.01
    shares = 10_000_000 + int.from_bytes(blake2b(listing.symbol.encode(), digest_size=4).digest(), "big")
    quarter = scene.now - scene.now % (91 * DAY)
    paid = [a for a in scene.market.actions_of(listing.symbol, scene.now_us) if a.kind == "dividend"]
    yearly = math.fsum(action.value for action in paid[-4:])
    book = round(tick.last / 4, 3) or 0.001
    told: dict[str, Any] = {
        "displayName": listing.name or listing.symbol,
        "financialCurrency": listing.currency or EXCHANGES[listing.exchange.upper()].currency,
        "marketCap": round(tick.last * shares),
        "sharesOutstanding": shares,
        "bookValue": book,
        "priceToBook": _decimal(tick.last / book),
        "epsTrailingTwelveMonths": earned,
        "epsForward": earned,
        "epsCurrentYear": earned,
        "priceEpsCurrentYear": _decimal(tick.last / earned),
        "trailingPE": _decimal(tick.last / earned),
        "forwardPE": _decimal(tick.last / earned),
        "averageAnalystRating": "2.5 - Hold",
        "trailingAnnualDividendRate": yearly,
        "trailingAnnualDividendYield": _decimal(yearly / tick.last),
        "isEarningsDateEstimate": True,
        **{f"earnings{name}": quarter for name in ("Timestamp", "TimestampStart", "TimestampEnd")},
        **{f"earningsCallTimestamp{name}": quarter for name in ("Start", "End")},
    }
    if paid:
        stamp = int(datetime.combine(paid[-1].session, datetime.min.time(), UTC).timestamp())
        told |= {"dividendDate": stamp, "dividendRate": yearly, "dividendYield": _decimal(100 * yearly / tick.last)}
    return told


# --- options -----------------------------------------------------------------------------------------------------------


class OptionsEndpoint:
    """/v7/finance/options/SYM: the contracts of one expiry, and which others there are."""

    def parse(self, received: Received) -> Call | Reply | None:
        """The underlying, and the expiry where one is given."""
        if not received.path.startswith(OPTIONS_PATH):
            return None
        symbol = unquote(received.path.removeprefix(OPTIONS_PATH)).upper()
        given = dict(parse_qsl(received.query, keep_blank_values=True))
        shown = _Shown(_cookie_of(received), given.get("crumb", ""), given.get("date", ""))
        return Call("options_chain", (symbol,), asked=shown)

    def answer(self, call: Call, scene: Scene) -> Answer | Reply:
        """The expiry asked for, empty where there is none of that day, or the first one; no result for an unknown symbol."""
        if not _is_let_in(call.asked, scene):
            return refuse(401, "")
        (symbol,) = call.symbols
        listing = scene.market.listing(symbol)
        if listing is None:
            return json_reply(200, {"optionChain": {"result": [], "error": None}})
        contracts = contracts_of(scene, symbol)
        expiries = sorted({contract.expires_at for contract in contracts})
        wanted = call.asked.wanted
        chosen = int(wanted) if _WHOLE.fullmatch(wanted) else expiries[0] if expiries else None
        page = [contract for contract in contracts if contract.expires_at == chosen]
        quote = quote_record(scene, listing)
        currency = quote.get("currency", "USD")
        last = quote.get("regularMarketPrice", 0.0)

        def written(records: Sequence[Mapping[str, Any]]) -> Reply:
            rights = {right: [record for record in records if _right(record) == right] for right in "CP"}
            part = {"expirationDate": chosen, "hasMiniOptions": False, "calls": rights["C"], "puts": rights["P"]}
            result = {
                "underlyingSymbol": symbol,
                "expirationDates": expiries,
                "strikes": sorted({contract.strike for contract in page}),
                "hasMiniOptions": False,
                "quote": quote,
                "options": [] if chosen is None else [part],
            }
            return json_reply(200, {"optionChain": {"result": [result], "error": None}})

        return RecordsAnswer([_contract_record(c, currency, last) for c in page], written, symbol=symbol)


def _right(record: Mapping[str, Any]) -> str:
    """By the name; among the calls where a fault has taken it away."""
    return "P" if str(record.get("contractSymbol", ""))[-9:-8] == "P" else "C"


def _contract_record(contract: Contract, currency: str, spot: float) -> dict[str, Any]:
    """As Yahoo writes it: no ``volume`` where none was traded, 1e-5 where it found no volatility."""
    record: dict[str, Any] = {
        "contractSymbol": contract.name,
        "strike": contract.strike,
        "currency": currency,
        "lastPrice": contract.last,
        "change": 0,
        "percentChange": 0,
        "volume": round(contract.volume),
        "openInterest": round(contract.open_interest),
        "bid": contract.bid,
        "ask": contract.ask,
        "contractSize": "REGULAR",
        "expiration": contract.expires_at,
        "lastTradeDate": contract.last_at or 0,
        "impliedVolatility": contract.iv or 1.0000000000000003e-05,
        "inTheMoney": contract.strike < spot if contract.right == "C" else contract.strike > spot,
    }
    if not contract.volume:
        del record["volume"]
    return record


# --- the vendor --------------------------------------------------------------------------------------------------------


def variables(base_url: str, plan: str) -> dict[str, str]:  # noqa: ARG001 - Yahoo has no plans
    """What the pipeline must be told to ask here; its three hosts are one here."""
    return {"MDP_YAHOO_BASE_URL": base_url, "MDP_YAHOO_COOKIE_URL": f"{base_url}/fc", "MDP_YAHOO_CRUMB_URL": base_url}


# Yahoo publishes no quota: nothing is limited unless `--limits` says so.
YAHOO = Vendor(
    name="yahoo",
    prefix="",
    endpoints=(ChartEndpoint(), CookieEndpoint(), CrumbEndpoint(), QuoteEndpoint(), OptionsEndpoint()),
    variables=variables,
    refuse=refuse,
)
