"""Looks at live prices for the rules that an operator wrote, and says what it found as the alert engine takes it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from market_data_pipeline.domain.alert_config import PriceField, PriceRule, PriceRuleKind, PriceSource
from market_data_pipeline.domain.alerts import Finding, Look, Rule
from market_data_pipeline.domain.candles import Interval
from market_data_pipeline.domain.errors import CalendarHorizonError
from market_data_pipeline.domain.price_rules import (
    Judgement,
    PricePanel,
    Side,
    bars_in_window,
    evaluate,
    live_seconds,
    sentence,
    short_of_window,
    sides,
)
from market_data_pipeline.domain.quality import BarFlag
from market_data_pipeline.settings import numbers_by_tier
from market_data_pipeline.storage.price_rules import PriceRuleStore, Remembered

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from market_data_pipeline.domain.alert_config import AlertsConfig
    from market_data_pipeline.domain.candles import Int32s
    from market_data_pipeline.domain.sessions import TradingCalendar
    from market_data_pipeline.domain.universe import Instrument
    from market_data_pipeline.ingest.pipeline import Pipeline
    from market_data_pipeline.settings import Settings

RUNBOOK = "price-rule"
# Bars read for each bar that an average needs: a symbol that trades every other minute has its average, too.
_READ_FOR_ONE = 2
# What a rule is known by to whoever hears of it; a change of these is no other rule.
_MANNER = frozenset({"severity", "escalate_seconds"})


@dataclass(frozen=True, slots=True)
class PriceReport:
    """What one look at prices brought. ``notes``: why a rule says nothing of some of its symbols, for whoever wrote it."""

    looks: Sequence[Look] = ()
    rules: Mapping[str, Rule] = field(default_factory=dict)
    notes: Sequence[str] = ()


def price_looks(pipeline: Pipeline, config: AlertsConfig, *, now: datetime) -> tuple[list[Look], dict[str, Rule]]:
    """A look for each rule over prices, and the rules as the alert engine takes them; what ``look_at_prices`` says, shorter."""
    report = look_at_prices(pipeline, config, now=now)
    return list(report.looks), dict(report.rules)


def look_at_prices(pipeline: Pipeline, config: AlertsConfig, *, now: datetime) -> PriceReport:
    """Judge the live prices of every rule of ``config`` and remember what was decided, in one transaction.

    A finding for each symbol and side that holds; where no price is live it only keeps an alert open. What began is found again
    and again, over or not, until an alert says that it was seen: a crash between this and the alert engine loses nothing.
    Repeating it is safe.
    """
    store = PriceRuleStore(pipeline.engine)
    if not config.price_rules:
        with store.look(pipeline.known_at(now)) as look:
            look.forget(look.remembered())
        return PriceReport()
    notes: list[str] = []
    followed = _Followed.of(pipeline, config.price_rules, notes)
    known_rules = {rule.name: _definition(rule) for rule in config.price_rules}
    looks: list[Look] = []
    with store.look(pipeline.known_at(now)) as look:
        valid, gone = _divided(look.remembered(), known_rules, followed)
        kept: list[Remembered] = []
        prices = _Prices(pipeline, store, followed, config.price_rules, now)
        for rule in config.price_rules:
            judging = _Judging(rule, known_rules[rule.name], followed, look.at)
            try:
                panel, live_from = prices.of(rule)
            except CalendarHorizonError as beyond:
                looks.append(Look((rule.name,), blind=str(beyond)))
                continue
            findings = judging.findings(valid.get(rule.name, []), panel, live_from)
            short = short_of_window(rule, panel, live_from=live_from)
            if short:
                notes.append(_too_short(rule, short, followed))
            looks.append(Look((rule.name,), findings))
            kept += judging.kept
            gone += judging.gone
        look.forget(gone)
        look.remember(kept)
    return PriceReport(looks, {rule.name: as_rule(rule) for rule in config.price_rules}, notes)


def price_notes(pipeline: Pipeline, config: AlertsConfig, *, now: datetime) -> list[str]:
    """Why rules over prices say nothing of some of their symbols, open market or not. Nothing is judged or remembered."""
    notes: list[str] = []
    if not config.price_rules:
        return notes
    followed = _Followed.of(pipeline, config.price_rules, notes)
    notes += [note for rule in config.price_rules if (note := _never_live(rule, followed, pipeline.settings)) is not None]
    crossings = [rule for rule in config.price_rules if rule.kind is PriceRuleKind.CROSS]
    prices = _Prices(pipeline, PriceRuleStore(pipeline.engine), followed, crossings, now)
    for rule in crossings:
        panel, _ = prices.of(rule)
        short = {*short_of_window(rule, panel, live_from=0), *(followed.ids[rule.name] - set(panel.owner.tolist()))}
        if short:
            notes.append(_too_short(rule, sorted(short), followed))
    return notes


def as_rule(rule: PriceRule) -> Rule:
    """What makes alerts of its findings."""
    # The rule's own hysteresis says when it is over: there is nothing to wait for.
    return Rule(
        name=rule.name,
        severity=rule.severity,
        summary=f"{rule.name} of the alerts file holds.",
        runbook=RUNBOOK,
        for_seconds=0.0,
        clear_seconds=0.0,
        escalate_seconds=rule.escalate_seconds,
    )


def _definition(rule: PriceRule) -> str:
    told = {one.name: getattr(rule, one.name) for one in fields(rule) if one.name not in _MANNER | {"name", "symbols", "tier"}}
    return hashlib.sha256(repr(sorted(told.items())).encode()).hexdigest()[:16]


def _divided(
    remembered: Sequence[Remembered], definitions: Mapping[str, str], followed: _Followed
) -> tuple[dict[str, list[Remembered]], list[Remembered]]:
    """What still counts, by rule; and what is of a rule that is gone or says something else now, or is not about the symbol."""
    valid: dict[str, list[Remembered]] = defaultdict(list)
    gone: list[Remembered] = []
    for row in remembered:
        counts = definitions.get(row.rule) == row.definition and row.symbol_id in followed.ids[row.rule]
        (valid[row.rule] if counts else gone).append(row)
    return valid, gone


@dataclass(frozen=True, slots=True)
class _Followed:
    """Whom each rule is about, as ids, and every instrument by its id."""

    instruments: Mapping[int, Instrument]
    ids: Mapping[str, frozenset[int]]

    @classmethod
    def of(cls, pipeline: Pipeline, rules: Sequence[PriceRule], notes: list[str]) -> _Followed:
        """The active instruments that each rule names; those that are not in the universe become notes."""
        instruments = {one.symbol_id: one for one in pipeline.universe.instruments()}
        by_symbol = {one.symbol: one.symbol_id for one in instruments.values()}
        ids: dict[str, frozenset[int]] = {}
        of_tier = {
            tier: frozenset(i for i, one in instruments.items() if one.tier == tier) for tier in {rule.tier for rule in rules}
        }
        for rule in rules:
            unknown = [symbol for symbol in rule.symbols if symbol not in by_symbol]
            if unknown:
                notes.append(f"{rule.name}: {', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} not active in the universe")
            named = frozenset(by_symbol[symbol] for symbol in rule.symbols if symbol in by_symbol)
            ids[rule.name] = named | of_tier[rule.tier] if named else of_tier[rule.tier]
        return cls(instruments, ids)


class _Judging:
    """One rule in one look: what it finds, and what is to be remembered of it."""

    def __init__(self, rule: PriceRule, definition: str, followed: _Followed, at: datetime) -> None:
        self.rule, self.definition, self.followed, self.at = rule, definition, followed, at
        self.kept: list[Remembered] = []
        self.gone: list[Remembered] = []

    def findings(self, remembered: Sequence[Remembered], panel: PricePanel, live_from: int) -> list[Finding]:
        """What holds, and what held and nobody was told of, by symbol and side."""
        found = []
        for side in sides(self.rule):
            before = {row.symbol_id: row for row in remembered if row.side is side}
            states = {symbol_id: row.state for symbol_id, row in before.items()}
            for symbol_id, judged in evaluate(self.rule, side, panel, states, live_from=live_from).items():
                row = self._row(side, symbol_id, judged, before.get(symbol_id))
                self._remember(row, before.get(symbol_id), live_from)
                if row.state.is_on or not row.is_told:
                    found.append(self._finding(row, None if judged.at is None else judged.price))
        return found

    def _row(self, side: Side, symbol_id: int, judged: Judgement, before: Remembered | None) -> Remembered:
        """What is known of a symbol and side now."""
        if before is not None and not judged.began:
            # It is told with the price by which it began, however long it lasts.
            return before if judged.state == before.state else replace(before, state=judged.state)
        instrument = self.followed.instruments[symbol_id]
        return Remembered(
            rule=self.rule.name,
            symbol_id=symbol_id,
            side=side,
            key=f"{instrument.symbol} {side}",
            definition=self.definition,
            state=judged.state,
            fired_at=self.at,
            value=judged.price,
            text=sentence(self.rule, side, instrument.symbol, judged, currency=instrument.currency),
        )

    def _remember(self, row: Remembered, before: Remembered | None, live_from: int) -> None:
        if not row.state.is_on and row.is_told and row.state.since < live_from:
            self.gone.append(row)
        elif before is None or (row.state, row.fired_at, row.is_told) != (before.state, before.fired_at, before.is_told):
            self.kept.append(row)

    def _finding(self, row: Remembered, price: float | None) -> Finding:
        """``price``: the live one, None where none is: then what was told before only goes on."""
        instrument = self.followed.instruments[row.symbol_id]
        return Finding(
            rule=self.rule.name,
            value=row.value if price is None else price,
            text=row.text,
            key=row.key,
            labels={"symbol": instrument.symbol, "tier": str(instrument.tier), "kind": str(self.rule.kind), "side": str(row.side)},
            holds_only=row.is_told and price is None,
        )


def _never_live(rule: PriceRule, followed: _Followed, settings: Settings) -> str | None:
    """The note about symbols whose prices come when they are old already."""
    is_quoted = rule.source is PriceSource.QUOTE
    if rule.max_age_seconds is not None or (not is_quoted and Interval(rule.interval).is_daily):
        return None
    setting = "quotes_every_seconds" if is_quoted else "bars_every_seconds"
    every = numbers_by_tier(getattr(settings, setting))
    tiers = sorted({one.tier for one in (followed.instruments[i] for i in followed.ids[rule.name]) if every[one.tier] == 0})
    if not tiers:
        return None
    return f"{rule.name}: nobody asks for prices of {', '.join(tiers)} while markets are open (MDP_{setting.upper()}): set max_age"


def _too_short(rule: PriceRule, short: Sequence[int], followed: _Followed) -> str:
    """The note about symbols without a full window."""
    names = [followed.instruments[symbol_id].symbol for symbol_id in short[:5]]
    more = f" and {len(short) - 5:,} more" if len(short) > 5 else ""
    return f"{rule.name}: fewer than {bars_in_window(rule)} bars of {', '.join(names)}{more} to take an average of"


class _Prices:
    """The prices that the rules of one look need: read once for all rules of one kind of bar, or of one field of quotes."""

    def __init__(
        self, pipeline: Pipeline, store: PriceRuleStore, followed: _Followed, rules: Sequence[PriceRule], now: datetime
    ) -> None:
        self._pipeline, self._store, self._followed, self._now = pipeline, store, followed, now
        self._rules: dict[tuple[Any, ...], list[PriceRule]] = defaultdict(list)
        for rule in rules:
            self._rules[_group(rule)].append(rule)
        self._read: dict[tuple[Any, ...], tuple[PricePanel, int]] = {}
        self._parts: dict[tuple[Any, ...], PricePanel] = {}

    def of(self, rule: PriceRule) -> tuple[PricePanel, int]:
        """The prices of the symbols of ``rule``, and from when on they are live, epoch seconds."""
        group, ids = _group(rule), self._followed.ids[rule.name]
        if group not in self._read:
            rules = self._rules[group]
            everybody = sorted(frozenset().union(*(self._followed.ids[one.name] for one in rules)))
            read = self._bars if rule.source is PriceSource.CANDLE else self._quotes
            self._read[group] = read(rules, everybody)
        panel, grace = self._read[group]
        if (group, ids) not in self._parts:
            self._parts[group, ids] = panel.only(sorted(ids))
        return self._parts[group, ids], int(self._now.timestamp()) - live_seconds(rule) - grace

    def _quotes(self, rules: Sequence[PriceRule], ids: Sequence[int]) -> tuple[PricePanel, int]:
        before = max(rule.window_seconds + live_seconds(rule) for rule in rules)
        # A quote is at least as old as its declared delay when it comes.
        told = self._store.quotes(ids, self._now - timedelta(seconds=before), self._now, rules[0].field)
        return told.panel, told.delay_seconds

    def _bars(self, rules: Sequence[PriceRule], ids: Sequence[int]) -> tuple[PricePanel, int]:
        """Closes at the end of their bars. A bar that comes when its session has settled is as live as one can be."""
        interval = Interval(rules[0].interval)
        grace = self._pipeline.settle_seconds(interval)
        now = int(self._now.timestamp())
        start = min(self._needed_from(rule, interval, now - live_seconds(rule) - grace) for rule in rules)
        read = self._pipeline.reader.closes(ids, interval, start, now)
        # An unexplained jump is more often a bad print, or a split nobody told us of, than a price: it is no price to act on, and
        # what comes after is not compared with what was before.
        order = np.lexsort((read.opened_at, read.symbol_id))
        owner, opened_at, close = read.symbol_id[order], read.opened_at[order], read.close[order]
        jumps = (read.flags[order] & BarFlag.UNEXPLAINED_JUMP) != 0
        basis: Int32s = self._store.split_basis(owner, opened_at, datetime.fromtimestamp(start, UTC)) + np.cumsum(
            jumps, dtype=np.int32
        )
        price = np.where(jumps, np.nan, close)
        ended = opened_at + interval.seconds <= now
        return PricePanel.of(owner[ended], opened_at[ended] + interval.seconds, price[ended], basis[ended]), grace

    def _needed_from(self, rule: PriceRule, interval: Interval, live_from: int) -> int:
        """The earliest open that ``rule`` compares a live bar with."""
        if rule.kind is not PriceRuleKind.CROSS:
            return live_from - rule.window_seconds - interval.seconds
        calendars = {self._followed.instruments[i].calendar for i in self._followed.ids[rule.name]}
        bars = _READ_FOR_ONE * (bars_in_window(rule) + 1)
        return min(
            (_opened_before(self._pipeline.calendars(name), interval, live_from, bars) for name in calendars), default=live_from
        )


def _group(rule: PriceRule) -> tuple[PriceSource, str | PriceField]:
    return rule.source, rule.interval if rule.source is PriceSource.CANDLE else rule.field


def _opened_before(calendar: TradingCalendar, interval: Interval, instant: int, bars: int) -> int:
    """The open of the bar that lies ``bars`` expected bars before ``instant``: nights, weekends and holidays do not count."""
    last = datetime.fromtimestamp(instant, UTC).date()
    days = 14
    while True:
        first = max(last - timedelta(days=days), calendar.first_session)
        opens = calendar.expected_opens(interval, first, last).opened_at
        place = int(np.searchsorted(opens, instant)) - bars
        if place >= 0 or first == calendar.first_session:
            return int(opens[max(place, 0)]) if len(opens) else instant
        days *= 2
