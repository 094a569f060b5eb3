"""The laws of alerts, over any history of looks: told once an episode, never in vain, and never kept to themselves for good."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.alert_config import AlertsConfig, Route, configured
from market_data_pipeline.domain.alert_messages import (
    MOST_APART,
    digest,
    hearers,
    message_of,
    notices_of,
    route_of,
    trial_message,
)
from market_data_pipeline.domain.alerts import (
    Alert,
    AlertState,
    Blind,
    Event,
    EventKind,
    Finding,
    Look,
    Rule,
    Severity,
    Silence,
    explanations,
    fold_looks,
)
from market_data_pipeline.domain.errors import InvalidInputError

START = datetime(2024, 12, 2, 15, tzinfo=UTC)
CLEAR = 120.0
SLOW = Rule("Slow", Severity.WARNING, "It is slow.", "slow", for_seconds=60.0, clear_seconds=CLEAR, escalate_seconds=300.0)
FOUND, WORSE, HOLDS, GONE, BLIND = "found", "worse", "holds", "gone", "blind"
SIGHTS = {
    FOUND: Look(("Slow",), [Finding("Slow", 1.0, "slow")]),
    WORSE: Look(("Slow",), [Finding("Slow", 2.0, "slower", severity=Severity.CRITICAL)]),
    HOLDS: Look(("Slow",), [Finding("Slow", 0.5, "nearly slow", holds_only=True)]),
    GONE: Look(("Slow",)),
    BLIND: Look(("Slow",), blind="nobody could look"),
}
steps = st.tuples(st.integers(1, 150), st.sampled_from(list(SIGHTS)))
histories = st.lists(steps, max_size=40)
silences = st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 1000)), max_size=3)


@dataclass
class Past:
    """What became of one rule's alert: the instants, what was seen, what was told, and where the alert stood after each look."""

    rule: Rule = SLOW
    quiet: list[Silence] = field(default_factory=list)
    now: datetime = START
    alert: Alert | None = None
    seen: list[tuple[datetime, str]] = field(default_factory=list)
    told: list[tuple[datetime, EventKind]] = field(default_factory=list)
    states: list[tuple[str, datetime] | None] = field(default_factory=list)

    def look(self, seconds: float, sight: str) -> None:
        self.now += timedelta(seconds=seconds)
        self.seen.append((self.now, sight))
        open_alerts = [self.alert] if self.alert is not None else []
        folded = fold_looks(open_alerts, [SIGHTS[sight]], {"Slow": self.rule}, silences=self.quiet, now=self.now)
        for alert in folded.alerts:
            self.alert = alert if alert.is_open else None
        self.told += [(self.now, event.kind) for event in folded.events]
        self.states.append(None if self.alert is None else (self.alert.state, self.alert.began_at))

    def kinds(self) -> list[EventKind]:
        return [kind for _, kind in self.told]


def lived(history: list[tuple[int, str]], *, rule: Rule = SLOW, quiet: list[tuple[int, int]] | None = None) -> Past:
    past = Past(rule, [silence(begin, length) for begin, length in quiet or []])
    for seconds, sight in history:
        past.look(seconds, sight)
    return past


def silence(begin: int, length: int) -> Silence:
    starts_at = START + timedelta(seconds=begin)
    return Silence("Sl*", {}, starts_at, starts_at + timedelta(seconds=length), "work", "anna")


def alert(name: str = "Slow", **values: object) -> Alert:
    """One that fires, except …"""
    given = {
        "key": "",
        "severity": Severity.WARNING,
        "state": AlertState.FIRING,
        "began_at": START,
        "seen_at": START,
        "value": 1.0,
        "text": "slow",
        "fired_at": START,
    }
    return Alert(rule=name, **{**given, **values})  # type: ignore[arg-type]


@given(histories, silences)
def test_it_is_told_once_an_episode_and_its_end_iff_it_was_told(
    history: list[tuple[int, str]], quiet: list[tuple[int, int]]
) -> None:
    is_told = False
    for kind in lived(history, quiet=quiet).kinds():
        if kind is EventKind.FIRING:
            assert not is_told
            is_told = True
        else:
            assert is_told
            is_told = kind is not EventKind.RESOLVED


@given(st.lists(st.tuples(st.integers(1, int(CLEAR) // 3), st.sampled_from([GONE, BLIND, HOLDS])), max_size=3), st.data())
def test_flapping_within_the_time_to_clear_is_one_episode(gap: list[tuple[int, str]], data: st.DataObject) -> None:
    history = [(61, FOUND), (61, FOUND)]
    for _ in range(data.draw(st.integers(1, 10))):
        history += [*gap, (1, FOUND)]
    assert EventKind.RESOLVED not in lived(history).kinds()
    assert lived(history).kinds().count(EventKind.FIRING) == 1


@given(histories)
def test_whoever_is_told_is_told_of_what_was_found_for_its_time_without_a_break(history: list[tuple[int, str]]) -> None:
    past = lived(history)
    for at, kind in past.told:
        if kind is EventKind.FIRING:
            seen = [sight for moment, sight in past.seen if (at - moment).total_seconds() <= SLOW.for_seconds and moment <= at]
            assert GONE not in seen
            assert seen[-1] in {FOUND, WORSE}


@given(histories)
def test_it_is_over_only_after_its_time_to_clear_without_a_sight_of_it(history: list[tuple[int, str]]) -> None:
    past = lived(history)
    for at, kind in past.told:
        if kind is EventKind.RESOLVED:
            seen = [sight for moment, sight in past.seen if (at - moment).total_seconds() < CLEAR and moment <= at]
            assert set(seen) <= {GONE, BLIND}
            assert seen[-1] == GONE


@given(st.lists(st.tuples(st.integers(1, 150), st.sampled_from([HOLDS, GONE, BLIND]))))
def test_what_only_holds_begins_nothing(history: list[tuple[int, str]]) -> None:
    past = lived(history)
    assert past.told == []
    assert set(past.states) <= {None}


@given(st.lists(st.tuples(st.integers(1, 150), st.sampled_from([HOLDS, FOUND, BLIND])), min_size=1))
def test_what_holds_keeps_an_open_alert_open(history: list[tuple[int, str]]) -> None:
    past = lived([(1, FOUND), (61, FOUND), *history])
    assert past.alert is not None
    assert past.alert.state is AlertState.FIRING


@given(histories, st.integers(1, 10_000))
def test_blindness_changes_nothing(history: list[tuple[int, str]], seconds: int) -> None:
    past = lived(history)
    if past.alert is not None:
        assert past.alert.after(Blind("no database"), SLOW, past.now + timedelta(seconds=seconds)) == past.alert


@given(st.lists(st.tuples(st.integers(1, 55), st.just(FOUND)), max_size=1))
def test_a_pending_alert_that_goes_is_never_told(history: list[tuple[int, str]]) -> None:
    past = lived([(1, FOUND), *history, (1, GONE), (30, FOUND), (1, GONE)])
    assert (past.told, past.alert) == ([], None)


@given(histories)
def test_it_escalates_at_most_once_for_each_severity_that_was_told(history: list[tuple[int, str]]) -> None:
    since: list[EventKind] = []
    for kind in lived(history).kinds():
        if kind is EventKind.ESCALATED:
            assert EventKind.ESCALATED not in since
            since.append(kind)
        else:
            since = [kind]


@given(histories)
def test_it_becomes_more_urgent_at_most_once_an_episode(history: list[tuple[int, str]]) -> None:
    raised = 0
    for kind in lived(history).kinds():
        raised = 0 if kind is EventKind.FIRING else raised + (kind is EventKind.RAISED)
        assert raised <= 1


@given(histories)
def test_nothing_but_its_end_is_told_while_it_is_gone(history: list[tuple[int, str]]) -> None:
    past = lived(history)
    sights = dict(past.seen)
    assert [kind for at, kind in past.told if sights[at] == GONE and kind is not EventKind.RESOLVED] == []


def test_what_is_gone_for_good_is_over_after_its_time_to_clear_and_escalates_no_more() -> None:
    past = lived([(1, FOUND), (61, FOUND), (200, GONE), (110, GONE), (10, GONE)])
    assert [(kind, (at - START).total_seconds()) for at, kind in past.told] == [("firing", 62.0), ("resolved", 382.0)]
    brief = replace(SLOW, escalate_seconds=100.0, clear_seconds=1000.0)
    assert lived([(1, FOUND), (61, FOUND), (200, GONE)], rule=brief).kinds() == ["firing"]


def test_nobody_looks_so_it_escalates_once_and_again_where_it_becomes_critical() -> None:
    past = lived([(1, FOUND), (61, FOUND), (299, FOUND), (1, FOUND), (900, FOUND), (1, WORSE), (300, WORSE), (900, WORSE)])
    assert past.kinds() == ["firing", "escalated", "raised", "escalated"]


@given(st.lists(st.tuples(st.integers(1, 400), st.sampled_from([FOUND, HOLDS, BLIND, WORSE])), max_size=20))
def test_what_was_acknowledged_does_not_escalate(history: list[tuple[int, str]]) -> None:
    past = lived([(1, FOUND), (61, FOUND)])
    assert past.alert is not None
    past.alert = replace(past.alert, acknowledged_at=past.now, acknowledged_by="anna")
    for seconds, sight in [*history, (400, FOUND)]:
        past.look(seconds, sight)
    assert EventKind.ESCALATED not in past.kinds()


@given(histories, silences)
def test_a_silence_changes_no_state_and_lets_nothing_through_but_ends(
    history: list[tuple[int, str]], quiet: list[tuple[int, int]]
) -> None:
    silenced, free = lived(history, quiet=quiet), lived(history)
    assert silenced.states == free.states
    for at, kind in silenced.told:
        if any(one.starts_at <= at < one.ends_at for one in silenced.quiet):
            assert kind is EventKind.RESOLVED


@given(st.integers(1, 3000))
def test_what_still_fires_when_its_silence_ends_is_told_then_and_once(length: int) -> None:
    past = lived([(30, FOUND)] * (length // 30 + 6), quiet=[(0, length)])
    firing = [at for at, kind in past.told if kind is EventKind.FIRING]
    ends_at = START + timedelta(seconds=max(length, 90))
    assert len(firing) == 1
    assert timedelta(0) <= firing[0] - ends_at < timedelta(seconds=30)


def test_what_one_look_did_not_see_another_that_could_not_look_might_have() -> None:
    past = lived([(1, FOUND), (61, FOUND)])
    assert past.alert is not None
    folded = fold_looks([past.alert], [SIGHTS[GONE], SIGHTS[BLIND]], {"Slow": SLOW}, silences=[], now=past.now)
    assert folded.alerts == ()


def test_labels_that_contradict_and_causes_that_are_less_urgent_explain_nothing() -> None:
    rules = {
        "Cause": Rule("Cause", Severity.WARNING, "", "", for_seconds=60.0),
        "Symptom": Rule("Symptom", Severity.WARNING, "", "", explained_by=("Cause",)),
    }
    cause, symptom = alert("Cause", labels={"provider": "yahoo"}), alert("Symptom", labels={"provider": "yahoo", "tier": "T0"})

    def explains(one: Alert, other: Alert, *, after: float = 0.0) -> bool:
        return bool(explanations([one, other], rules, START + timedelta(seconds=after)))

    assert explains(cause, symptom)
    assert explains(cause, replace(symptom, labels={}))
    assert not explains(cause, replace(symptom, labels={"provider": "cboe"}))
    assert not explains(cause, replace(symptom, severity=Severity.CRITICAL))
    assert not explains(replace(cause, state=AlertState.RESOLVED, resolved_at=START), symptom)
    pending = replace(cause, state=AlertState.PENDING, fired_at=None)
    assert explains(pending, symptom, after=60.0)
    assert not explains(pending, symptom, after=61.0)


names = st.sampled_from("ABCDEF")


@given(st.dictionaries(names, st.lists(names, max_size=3)), st.lists(names, unique=True))
def test_whoever_is_not_told_is_explained_by_somebody_who_is(causes: dict[str, list[str]], open_: list[str]) -> None:
    rules = {name: Rule(name, Severity.WARNING, "", "", explained_by=tuple(causes.get(name, ()))) for name in "ABCDEF"}
    found = {name: cause for (name, _), (cause, _) in explanations([alert(name) for name in open_], rules, START).items()}
    assert set(found) | set(found.values()) <= set(open_)
    for name in found:
        walked = [name]
        while walked[-1] in found:
            assert found[walked[-1]] in causes[walked[-1]]
            walked.append(found[walked[-1]])
            assert len(walked) <= len(open_)
        assert not [cause for cause in causes.get(walked[-1], []) if cause in open_ and cause != walked[-1] and cause not in found]


def test_silences_match_by_shell_patterns() -> None:
    made = Silence("Provider*", {"provider": "ya*"}, START, START + timedelta(hours=1), "work", "anna")
    assert made.covers(alert("ProviderErrorSpike", labels={"provider": "yahoo"}), START)
    assert not made.covers(alert("ProviderErrorSpike", labels={"provider": "cboe"}), START)
    assert not made.covers(alert("ProviderErrorSpike"), START)
    assert not made.covers(alert("DiskFilling", labels={"provider": "yahoo"}), START)
    assert not made.covers(alert("ProviderErrorSpike", labels={"provider": "yahoo"}), made.ends_at)


def test_messages_say_what_since_when_and_where_to_read_on() -> None:
    told = alert("Slow", key="T0 1m", alert_id=17, members=tuple(f"S{n}" for n in range(30)), text="9 of 10 are late")
    message = message_of(Event(EventKind.FIRING, told), SLOW)
    assert message.title == "WARNING Slow T0 1m"
    assert message.body.splitlines() == [
        "9 of 10 are late",
        "It is slow.",
        f"{', '.join(f'S{n}' for n in range(20))} and 10 more",
        "Since 2024-12-02 15:00:00Z",
        "What to do: docs/operations/slow.md",
        "mdp alerts show 17 · mdp alerts ack 17",
    ]
    over = replace(
        told, state=AlertState.RESOLVED, resolved_at=START + timedelta(minutes=9), clear_since=START + timedelta(minutes=7)
    )
    ended = message_of(Event(EventKind.RESOLVED, over), None)
    assert ended.title == "RESOLVED Slow T0 1m"
    assert "From 2024-12-02 15:00:00Z to 2024-12-02 15:07:00Z" in ended.body
    assert "ack" not in ended.body


def test_a_digest_has_a_line_for_each_and_the_severity_of_the_worst() -> None:
    messages = [message_of(Event(EventKind.FIRING, alert(key=str(n))), SLOW) for n in range(MOST_APART + 1)]
    worst = message_of(Event(EventKind.RAISED, alert(severity=Severity.CRITICAL)), SLOW)
    told = digest([*messages, worst])
    assert (told.title, told.severity, told.kind) == ("7 alerts", Severity.CRITICAL, EventKind.FIRING)
    assert told.body.splitlines()[-2:] == ["NOW CRITICAL Slow: slow", "mdp alerts list"]
    assert trial_message("ops", START).kind is EventKind.TEST
    assert digest([worst] * 70).body.splitlines()[-2:] == ["and 20 more", "mdp alerts list"]


def test_a_title_is_one_line_whatever_the_key_holds() -> None:
    assert message_of(Event(EventKind.FIRING, alert(key="x\r\nBcc: y")), SLOW).title == "WARNING Slow x Bcc: y"


def test_the_first_route_that_matches_decides_and_all_hear_warnings_where_none_does() -> None:
    pager, desk = Route(("pager",), severities=(Severity.CRITICAL,), escalate_to=("boss",)), Route(("desk",), labels={"tier": "T0"})
    config = AlertsConfig(channels=dict.fromkeys(("pager", "desk", "boss")), routes=(pager, desk))  # type: ignore[arg-type]
    assert route_of("Slow", Severity.CRITICAL, {"tier": "T0"}, config) is pager
    assert route_of("Slow", Severity.WARNING, {"tier": "T0"}, config) is desk
    assert route_of("Slow", Severity.WARNING, {}, config).channels == ("pager", "desk", "boss")
    assert route_of("Slow", Severity.INFO, {}, config).channels == ()
    urgent = alert(severity=Severity.CRITICAL, alert_id=1)
    assert hearers(Event(EventKind.ESCALATED, urgent), config, told=()) == ("boss",)
    assert hearers(Event(EventKind.RESOLVED, urgent), config, told={"pager", "boss"}) == ("boss", "pager")
    (notice,) = notices_of([Event(EventKind.FIRING, urgent)], {}, config, told={})
    assert (notice.alert_id, notice.channel) == (1, "pager")


def test_thresholds_change_rules_and_what_cannot_be_meant_is_named() -> None:
    rules = {"Slow": replace(SLOW, numbers={"above": 5.0}), "Other": replace(SLOW, name="Other")}

    def told(**options: object) -> dict[str, Rule]:
        return configured(rules, AlertsConfig(thresholds={"Slow": options}))

    changed = told(**{"for": 5, "clear": 1.5, "escalate": None, "severity": "critical", "above": 7})["Slow"]
    assert (changed.for_seconds, changed.clear_seconds, changed.escalate_seconds) == (5.0, 1.5, None)
    assert (changed.severity, dict(changed.numbers)) == (Severity.CRITICAL, {"above": 7.0})
    assert list(told(enabled=False)) == ["Other"]
    for options, named in (
        ({"fro": 5}, "fro: no such option: expected one of enabled, severity, for, clear, escalate, above"),
        ({"for": -1}, "for: -1 is no number"),
        ({"for": "5m"}, "for: '5m' is no number"),
        ({"above": float("nan")}, "above: nan is no number"),
        ({"severity": "loud"}, "severity: 'loud' is no severity"),
        ({"enabled": "no"}, "enabled: 'no' is neither true nor false"),
    ):
        with pytest.raises(InvalidInputError) as wrong:
            told(**options)
        assert named in str(wrong.value)
    with pytest.raises(InvalidInputError, match="no rule is called 'Slwo'"):
        configured(rules, AlertsConfig(thresholds={"Slwo": {}}))
