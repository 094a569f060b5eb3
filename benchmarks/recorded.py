"""Everything recorded of Yahoo, CBOE and FRED, through the production path into Postgres: every row is stored or refused by name.

python benchmarks/recorded.py [--data DIR] [--files] [--json FILE]

Each body is served as it was recorded, on the loopback; the production adapters ask for it, the production use-cases judge and
store it, into tables emptied before each file. Rows in are counted in the raw JSON with the standard library, rows stored in the
tables. Exit code 1 where a file has rows that are neither stored, nor refused with a reason, nor declared (repeats, nulls).
MDP_DATABASE_URL: an empty, migrated database to use instead of a temporary one.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import sys
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from batches import fresh_database
from pydantic import SecretStr
from report import RESULTS, report, table

from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.capabilities import MACRO
from market_data_pipeline.domain.errors import MarketDataError
from market_data_pipeline.domain.ports import Fetch, MacroAnswer, RefusedRecord
from market_data_pipeline.ingest.candles import ingest_candles
from market_data_pipeline.ingest.report import Stretch
from market_data_pipeline.ingest.routing import Router
from market_data_pipeline.ingest.snapshots import fetch_chain, fetch_macro, fetch_quotes
from market_data_pipeline.providers.fred import parse_series
from market_data_pipeline.providers.http import HttpClient
from market_data_pipeline.providers.registry import ProviderContext, open_providers
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.database import open_engine
from market_data_pipeline.storage.macro import MacroStore
from market_data_pipeline.wiring import StandingClock, open_pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy.engine import Engine

    from market_data_pipeline.ingest.pipeline import Pipeline

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "recorded"
KEY = "0123456789abcdefghijklmnopqrstuv"
JSON_TYPE = "application/json;charset=utf-8"
EPOCH = date(1970, 1, 1)
NO_OBSERVATIONS = b'{"units":"lin","output_type":1,"count":0,"offset":0,"limit":100000,"observations":[]}'
# Recorded without a Date: long after everything in them.
LATER = datetime(2026, 7, 26, tzinfo=UTC)
# Exchanges of the recording -> the calendars that hold their sessions. Wider than what a universe file may name today.
CALENDARS = {
    ".TO": "XTSE", ".OL": "XOSL", ".L": "XLON", ".CO": "XCSE", ".JK": "XIDX", ".DE": "XETR", ".AX": "XASX",
    "=X": "24/5", "=F": "CMES", "-USD": "24/7",
}  # fmt: skip
# What says the same twice in provenance: refused records have a table of their own, and empty shells are counted by name.
COUNTED_ELSEWHERE = {"refused"}
TABLES = {
    "bars": "select (select count(*) from candles_daily) + (select count(*) from candles_intraday)",
    "actions": "select count(*) from corporate_actions",
    "quotes": "select count(*) from quotes_l1",
    "contracts": "select count(*) from option_contracts",
    "observations": "select count(*) from macro_observations",
    "series": "select count(*) from macro_series",
}
STORED_IN = {
    "yahoo chart": ("bars", "actions"),
    "cboe charts/historical": ("bars",),
    "fred observations": ("observations",),
    "fred vintages": ("observations",),
    "fred series": ("series",),
    "fred release series": ("series",),
}
# Not truncate: new files for a dozen tables, flushed, take a tenth of a second; a few thousand rows do not.
EMPTY = ";".join(
    f"delete from {name}"  # noqa: S608 - names of this list
    for name in (
        "refused_bars", "refused_records", "corporate_actions", "quotes_l1", "option_contracts", "option_chains", "macro_series",
        "macro_observations", "coverage", "ingestion_cursor", "candles_daily", "candles_intraday", "candle_revisions", "fetches",
    )
)  # fmt: skip
REFUSED = "select reason, count(*) from (select reason from refused_bars union all select reason from refused_records) r group by 1"


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded answer. ``kind``: the service that was asked; ``at``: when. ``made``: a body put together from recorded rows."""

    kind: str
    path: Path
    url: str
    status: int
    headers: Mapping[str, str]
    at: datetime
    made: bytes | None = None

    @property
    def body(self) -> bytes:
        """As the client saw it: gzip undone."""
        if self.made is not None:
            return self.made
        raw = self.path.read_bytes()
        return gzip.decompress(raw) if self.path.suffix == ".gz" else raw

    @property
    def document(self) -> Any:  # noqa: ANN401 - JSON
        """The body, read with the standard library."""
        return json.loads(self.body)

    @property
    def query(self) -> dict[str, str]:
        """What was asked for."""
        return dict(parse_qsl(urlsplit(self.url).query))

    @property
    def name(self) -> str:
        """The last part of the path: mostly the symbol."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2]).removesuffix(".json")


@dataclass(slots=True)
class Outcome:
    """What became of one file. ``declared``: rows left out on purpose, by reason; ``note``: the class of an answer without rows."""

    kind: str
    file: str
    rows_in: int
    stored: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    declared: Counter[str] = field(default_factory=Counter)
    note: str = ""

    @property
    def lost(self) -> int:
        """Rows that nobody can account for; negative where more came out than went in."""
        return self.rows_in - self.stored - self.refused.total() - self.declared.total()


# --- what there is -----------------------------------------------------------------------------------------------------


def recordings(data: Path) -> list[Recording]:
    """Every recorded body of the three, in the order of the files."""
    return [*_yahoo(data), *_cboe(data), *_fred(data), *_alfred(data)]


def _yahoo(data: Path) -> Iterator[Recording]:
    folder = data / "yahoo_wire_yf2"
    kinds = {"chart": "yahoo chart", "options": "yahoo options", "quote": "yahoo quote"}
    for entry in _index(folder):
        service = urlsplit(entry["url"]).path.split("/")[3]
        at = parsedate_to_datetime(entry["date"]).astimezone(UTC)
        yield Recording(kinds[service], folder / entry["file"], entry["url"], entry["status"], {"content-type": JSON_TYPE}, at)
    other = data / "yahoo_wire_other"
    for file, kind, url in (
        ("pp_response_yahoo_historical01.txt", "yahoo chart", "https://h/v8/finance/chart/MUV2.DE?interval=1d"),
        ("pp_response_yahoo_historical02.txt", "yahoo chart", "https://h/v8/finance/chart/MUV2.DE?interval=1d"),
        ("pdr_yahoo_options1.json", "yahoo options", "https://h/v7/finance/options/AAPL"),
    ):
        yield Recording(kind, other / file, url, 200, {"content-type": JSON_TYPE}, LATER)


def _cboe(data: Path) -> Iterator[Recording]:
    folder = data / "cboe_openbb_vcr"
    indexed = {entry["file"]: entry for entry in _index(folder)}
    for path in sorted(folder.iterdir()):
        if path.name == "INDEX.jsonl":
            continue
        entry = indexed.get(path.name, {})
        told = entry.get("headers", {"Content-Type": "application/json"})
        headers = {name: value for name, value in told.items() if name.lower() in {"content-type", "last-modified", "location"}}
        url = entry.get("uri", "https://cdn.cboe.com/api/global/delayed_quotes/options/AAPL.json")
        service = urlsplit(url).path.removeprefix("/api/global/delayed_quotes/").rpartition("/")[0]
        kind = f"cboe {service}" if service in {"charts/historical", "options", "quotes", "historical_data"} else "cboe redirect"
        at = parsedate_to_datetime(told["Date"]).astimezone(UTC) if "Date" in told else datetime(2026, 7, 25, 4, tzinfo=UTC)
        if kind == "cboe charts/historical":
            # Its newest day is there before we would ask for it.
            at += timedelta(days=3)
        yield Recording(kind, path, url, entry.get("status", 200), headers, at)


def _fred(data: Path) -> Iterator[Recording]:
    folder = data / "fred_openbb_vcr"
    kinds = {
        "/fred/series": "fred series",
        "/fred/series/observations": "fred observations",
        "/fred/release/series": "fred release series",
        "/fred/release/tables": "fred release tables",
    }
    for entry in _index(folder):
        kind = kinds[urlsplit(entry["uri"]).path]
        at = parsedate_to_datetime(entry["headers"]["Date"]).astimezone(UTC)
        yield Recording(kind, folder / entry["file"], entry["uri"], entry["status"], {"content-type": JSON_TYPE}, at)


def _alfred(data: Path) -> Iterator[Recording]:
    """Vintages as they were published in 2016, rows without a body: each series in one page, as ALFRED writes it."""
    path = data / "fred_vintages_frbny_2016" / "alfred_rows.csv.gz"
    lines = list(csv.DictReader(gzip.decompress(path.read_bytes()).decode().splitlines()))
    for series in sorted({line["series_id"] for line in lines}):
        names = ("realtime_start", "realtime_end", "date", "value")
        rows = [{name: line[name] for name in names} for line in lines if line["series_id"] == series]
        counts = {"count": len(rows), "offset": 0, "limit": 100_000}
        window = {"realtime_start": "1776-07-04", "realtime_end": "9999-12-31"}
        made = json.dumps({**window, "units": "lin", "output_type": 1, **counts, "observations": rows}).encode()
        url = f"https://api.stlouisfed.org/fred/series/observations?series_id={series}&realtime_end=9999-12-31"
        yield Recording(
            "fred vintages", path.with_name(f"{path.name}:{series}"), url, 200, {"content-type": JSON_TYPE}, LATER, made
        )


def _index(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "INDEX.jsonl").read_text(encoding="utf-8").splitlines()]


# --- rows in: counted in the raw JSON, by nothing of ours ----------------------------------------------------------------


def rows_in(recording: Recording) -> int:
    """How many bars, actions, quotes, contracts, observations, series or table elements a body holds. 0 for an error answer."""
    count = COUNTS.get(recording.kind)
    return 0 if recording.status != 200 else 1 if count is None else count(recording.document)


def _chart_rows(document: Mapping[str, Any]) -> int:
    if "chart" not in document:
        # An old form, closes alone.
        return len(document["timestamp"])
    (result,) = document["chart"]["result"]
    return len(result.get("timestamp", ())) + sum(len(group) for group in result.get("events", {}).values())


def _contracts(document: Mapping[str, Any]) -> int:
    (result,) = document["optionChain"]["result"]
    return sum(len(page["calls"]) + len(page["puts"]) for page in result["options"])


def elements(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every element of a release table, without its children: each of them is in the table by itself, too."""
    return [{name: value for name, value in one.items() if name != "children"} for one in document["elements"].values()]


COUNTS: Mapping[str, Callable[[Any], int]] = {
    "yahoo chart": _chart_rows,
    "yahoo quote": lambda document: len(document["quoteResponse"]["result"]),
    "yahoo options": _contracts,
    "cboe options": lambda document: len(document["data"]["options"]),
    "cboe charts/historical": lambda document: len(document["data"]),
    "fred observations": lambda document: len(document["observations"]),
    "fred vintages": lambda document: len(document["observations"]),
    "fred series": lambda document: len(document["seriess"]),
    "fred release series": lambda document: len(document["seriess"]),
    "fred release tables": lambda document: len(document["elements"]),
}


# --- replay ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Replay:
    """A server on the loopback that answers with what it was told last. ``series``: what /fred/series says beside ``current``."""

    url: str
    current: tuple[int, Mapping[str, str], bytes] = (404, {}, b"")
    series: bytes = b""

    def answer(self, path: str) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body for ``path``."""
        if path == "/cookie/":
            return 200, {"content-type": "text/html", "set-cookie": "A3=recorded; Path=/"}, b"<html></html>"
        if path == "/v1/test/getcrumb":
            return 200, {"content-type": "text/plain"}, b"a.recorded.crumb"
        if path == "/fred/series" and self.series:
            return 200, {"content-type": JSON_TYPE}, self.series
        return self.current


@contextmanager
def replaying() -> Iterator[Replay]:
    """A replay that listens for the length of the block."""
    replay = Replay("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # One segment an answer: headers sent by themselves wait 40 ms for the client's acknowledgement.
        wbufsize = 1 << 20

        def do_GET(self) -> None:
            status, headers, body = replay.answer(urlsplit(self.path).path)
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        replay.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield replay
        server.shutdown()


def settings_on(replay: Replay, url: str, home: Path) -> Settings:
    """A pipeline that lives at the replay, asks nobody twice and is limited by nobody."""
    return Settings(
        home=home,
        database_url=SecretStr(url),
        clock=LATER.isoformat(),
        yahoo_base_url=replay.url,
        yahoo_cookie_url=f"{replay.url}/cookie",
        yahoo_crumb_url=replay.url,
        cboe_base_url=replay.url,
        fred_base_url=replay.url,
        fred_key=SecretStr(KEY),
        http_attempts=1,
        limits="yahoo=none;cboe=none;fred=none",
        breaker_failures=1_000_000,
    )


# --- the production path -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Course:
    """Takes one recording after the other through the pipeline. ``described``: the recorded descriptions of series, by name."""

    pipeline: Pipeline
    http: HttpClient
    replay: Replay
    described: Mapping[str, bytes]

    def run(self, recording: Recording) -> Outcome:
        """What becomes of one file."""
        outcome = Outcome(recording.kind, recording.path.name, rows_in(recording))
        with self.pipeline.engine.begin() as connection:
            connection.exec_driver_sql(EMPTY)
        self.replay.current = (recording.status, recording.headers, recording.body)
        self.replay.series = b""
        if recording.kind == "fred series" and recording.status == 200:
            # Described by the recorded body; no observation was recorded with it.
            self.replay.series, self.replay.current = recording.body, (200, {"content-type": JSON_TYPE}, NO_OBSERVATIONS)
        pipeline = self._alone(recording)
        try:
            self._store(recording, pipeline)
        except MarketDataError as error:
            outcome.note = f"{getattr(error, 'kind', type(error).__name__)}: {error}"
        pipeline.health.flush()
        self._count(recording, outcome)
        return outcome

    def _alone(self, recording: Recording) -> Pipeline:
        """The pipeline at the time of the recording, with its provider alone and new: it remembers nothing of other files."""
        name = recording.kind.partition(" ")[0]
        policies = dict.fromkeys(("policy_eod", "policy_bars_1m", "policy_quotes_l1", "policy_options_chain", "policy_macro"), name)
        settings = self.pipeline.settings.model_copy(update=policies)
        providers = open_providers(ProviderContext(settings, self.http))
        return replace(
            self.pipeline,
            settings=settings,
            clock=StandingClock(recording.at),
            providers=providers,
            router=Router(settings, providers, self.pipeline.health),
        )

    def _store(self, recording: Recording, pipeline: Pipeline) -> None:
        if recording.kind in {"yahoo chart", "cboe charts/historical"}:
            self._bars(recording, pipeline)
        elif recording.kind in {"yahoo options", "cboe options"}:
            (instrument,) = self._instruments([recording.name])
            expiry = None
            if recording.kind == "yahoo options":
                pages = recording.document["optionChain"]["result"][0]["options"]
                expiry = None if not pages else EPOCH + timedelta(seconds=pages[0]["expirationDate"])
            fetch_chain(instrument, expiry=expiry, pipeline=pipeline)
        elif recording.kind in {"yahoo quote", "cboe quotes", "cboe historical_data", "cboe redirect"}:
            symbols = recording.query.get("symbols", recording.name if recording.status == 200 else "AAPL").split(",")
            list(fetch_quotes(self._instruments(symbols), pipeline=pipeline))
        elif recording.kind in {"fred observations", "fred vintages"}:
            series = recording.query["series_id"]
            self.replay.series = self.described.get(series) or _description(series)
            first, last = (recording.query.get(f"observation_{end}") for end in ("start", "end"))
            fetch_macro(
                series,
                first=date.fromisoformat(first) if first else None,
                last=date.fromisoformat(last) if last else None,
                vintages=recording.kind == "fred vintages",
                pipeline=pipeline,
            )
        elif recording.kind == "fred series":
            fetch_macro(recording.query["series_id"], pipeline=pipeline)
        else:
            self._release(recording, pipeline)

    def _bars(self, recording: Recording, pipeline: Pipeline) -> None:
        symbol = recording.name
        interval = Interval(recording.query.get("interval", "1d"))
        (instrument,) = self._instruments([symbol])
        days = _days(recording)
        calendar = pipeline.calendars(instrument.calendar)
        first, last = days[0], days[-1]
        if not calendar.sessions(first, last):
            first = last = calendar.previous_session(first)
        first = max(first, calendar.first_session)
        list(ingest_candles([Stretch(instrument, first, last)], interval, pipeline=pipeline))

    def _release(self, recording: Recording, pipeline: Pipeline) -> None:
        """Bodies that no use-case asks for: series are described by them; a table's values have no realtime dates to store."""
        path = urlsplit(recording.url).path
        fetch = Fetch("fred", recording.name, None, f"GET {path}", recording.at, 0.0, "ok", capability=MACRO)
        store = MacroStore(pipeline.engine)
        if recording.kind == "fred release series":
            for info in parse_series(recording.body):
                store.record(
                    MacroAnswer(fetch, info.series, (), units=info.units, frequency=info.frequency, title=info.title),
                    known_at=recording.at,
                )
            return
        reason = "a release table tells no realtime dates"
        refused = [RefusedRecord(json.dumps(element), reason) for element in elements(recording.document)]
        store.record(MacroAnswer(fetch, recording.name, (), refused=refused), known_at=recording.at)

    def _instruments(self, symbols: Sequence[str]) -> list[Any]:
        return self.pipeline.universe.instruments(symbols=symbols)

    def _count(self, recording: Recording, outcome: Outcome) -> None:
        """Read the tables, and what the provenance says was left out."""
        counted = STORED_IN.get(recording.kind, ("quotes", "contracts"))
        with self.pipeline.engine.connect() as connection:
            outcome.stored = sum(connection.exec_driver_sql(TABLES[name]).scalar_one() for name in counted)
            outcome.refused = Counter({row.reason: row.count for row in connection.exec_driver_sql(REFUSED)})
            fetches = connection.exec_driver_sql("select outcome, error, dropped from fetches order by fetch_id").all()
        for row in fetches:
            if row.outcome != "ok":
                outcome.note = outcome.note or ": ".join(filter(None, (row.outcome, row.error)))
            for reason, count in row.dropped.items():
                if reason not in COUNTED_ELSEWHERE:
                    outcome.declared[reason] += count
        if outcome.note and outcome.rows_in and outcome.lost == outcome.rows_in:
            # Nothing of the body may be used: it is refused whole, and its provenance says why.
            outcome.refused[outcome.note[:90]] += outcome.rows_in
        if not outcome.note and not outcome.rows_in:
            outcome.note = "ok: nothing in it"


def _description(series: str) -> bytes:
    """For observations whose series was not recorded: FRED would have described it."""
    info = {"id": series, "title": series, "units": "not recorded", "frequency_short": "D"}
    return json.dumps({"seriess": [info]}).encode()


def _days(recording: Recording) -> list[date]:
    """The dates that a chart's rows are of, at the exchange; those asked for where it has no row."""
    document = recording.document
    if recording.kind.startswith("cboe"):
        return sorted(date.fromisoformat(row["date"]) for row in document["data"])
    result = document["chart"]["result"][0] if "chart" in document else document
    stamps = result.get("timestamp") or [int(recording.query["period1"]), int(recording.query["period2"]) - 1]
    zone = ZoneInfo(result.get("meta", {}).get("exchangeTimezoneName", "Europe/Berlin"))
    return sorted(datetime.fromtimestamp(stamp, zone).date() for stamp in stamps)


# --- the whole course --------------------------------------------------------------------------------------------------


def list_symbols(engine: Engine, symbols: Sequence[str]) -> None:
    """Put the symbols of the recording into the universe, each with the calendar of its exchange."""
    with engine.begin() as connection:
        version = connection.execute(
            sa.text(
                "insert into universe_versions (version_tag, source, source_sha256, symbols, added, changed, deactivated,"
                " loaded_by) values ('recorded', 'recorded', 'none', :n, :n, 0, 0, 'benchmark') returning version_id"
            ),
            {"n": len(symbols)},
        ).scalar_one()
        for symbol in symbols:
            calendar = next((name for ending, name in CALENDARS.items() if symbol.endswith(ending)), "XNYS")
            connection.execute(
                sa.text(
                    "insert into symbol_universe (symbol, exchange, calendar, tier, version_id) values (:symbol, :x, :x, 'T0', :v)"
                ),
                {"symbol": symbol, "x": calendar, "v": version},
            )


def symbols_of(found: Sequence[Recording]) -> list[str]:
    """Every symbol that a recording is about."""
    named = {"AAPL"}
    for recording in found:
        if not recording.kind.startswith("fred") and recording.kind != "cboe redirect":
            named |= set(recording.query.get("symbols", recording.name).split(","))
    return sorted(named)


def run(engine: Engine, data: Path) -> list[Outcome]:
    """Every file through the production path into this database, which must be migrated and empty."""
    found = recordings(data)
    list_symbols(engine, symbols_of(found))
    url = engine.url.render_as_string(hide_password=False)
    described = {r.query["series_id"]: r.body for r in found if r.kind == "fred series" and r.status == 200}
    with (
        tempfile.TemporaryDirectory() as home,
        replaying() as replay,
        open_pipeline(settings := settings_on(replay, url, Path(home))) as pipeline,
        HttpClient.open(settings) as http,
    ):
        course = Course(pipeline, http, replay, described)
        return [course.run(recording) for recording in found]


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One line a kind of answer, and one for all of them."""
    rows = []
    for kind in [*dict.fromkeys(outcome.kind for outcome in outcomes), "everything"]:
        of_kind = [outcome for outcome in outcomes if kind in {outcome.kind, "everything"}]
        refused, declared = Counter[str](), Counter[str]()
        for outcome in of_kind:
            refused += outcome.refused
            declared += outcome.declared
        rows.append(
            {
                "answers": kind,
                "files": len(of_kind),
                "rows in": sum(outcome.rows_in for outcome in of_kind),
                "stored": sum(outcome.stored for outcome in of_kind),
                "refused": refused.total(),
                "declared": declared.total(),
                "lost": sum(abs(outcome.lost) for outcome in of_kind),
                "reasons": "" if kind == "everything" else "; ".join(_reasons(refused) + _reasons(declared)),
            }
        )
    return rows


def _reasons(counts: Counter[str]) -> list[str]:
    return [f"{reason}: {count:,}" for reason, count in counts.most_common()]


def file_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One line a file."""
    return [
        {
            "answers": outcome.kind,
            "file": outcome.file,
            "rows in": outcome.rows_in,
            "stored": outcome.stored,
            "refused": outcome.refused.total(),
            "declared": outcome.declared.total(),
            "lost": outcome.lost,
            "reasons": "; ".join(_reasons(outcome.refused) + _reasons(outcome.declared)),
            "class": outcome.note,
        }
        for outcome in outcomes
    ]


def main() -> int:
    """Run, print, write; 1 where a row was lost."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=DATA, help="the recorded sets (default: ../shared/data/recorded)")
    arguments.add_argument("--files", action="store_true", help="print a line for each file, too")
    arguments.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    chosen = arguments.parse_args()
    if not chosen.data.is_dir():
        print(f"skipped: no recorded data at {chosen.data}")
        return 0
    given = os.environ.get("MDP_DATABASE_URL")
    with fresh_database() if given is None else nullcontext(open_engine(given)) as engine:
        outcomes = run(engine, chosen.data)
    files = file_rows(outcomes)
    path = (chosen.json or RESULTS / "recorded.json").with_suffix(".files.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(files, indent=1) + "\n")
    if chosen.files:
        print(table(files))
    lost = [row for row in files if row["lost"]]
    if lost:
        print(f"\nrows that nobody can account for\n{table(lost)}")
    notes = [
        "rows in: counted in the raw JSON; stored: counted in the tables after the production path (HTTP, adapter, judge, store)",
        "declared: left out on purpose and counted by reason in the provenance of the answer",
        f"the files one by one: {path}, or --files",
    ]
    report("recorded", summary(outcomes), notes=notes, json_path=chosen.json)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
