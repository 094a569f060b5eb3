"""Alerts, silences and the outbox of messages, in ``alerts``, ``alert_silences`` and ``alert_notices``.

What becomes of alerts is decided elsewhere (``domain.alerts``) and written here, in one transaction with the messages that tell it:
no alert changes without its messages, no message without its alert. One such transaction at a time: two watchers cannot both begin
an alert. A message is kept until it is sent. Whoever takes it has it for ``LEASE_SECONDS``: killed meanwhile, he leaves it to the
next, so that each is sent at least once, and twice only where somebody died between sending and saying so.

``at`` is the instant on a virtual clock; None: the database's clock, the only one that several hosts have in common.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson

from market_data_pipeline.domain.alert_messages import Message
from market_data_pipeline.domain.alerts import Alert, AlertState, Event, EventKind, Severity, Silence
from market_data_pipeline.domain.errors import InvalidInputError
from market_data_pipeline.storage.audit import record
from market_data_pipeline.storage.bulk import transaction
from market_data_pipeline.storage.jobs import storable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class that psycopg2 spells in lower case
    from sqlalchemy import Engine

    from market_data_pipeline.domain.alert_messages import NewNotice
    from market_data_pipeline.domain.alerts import Folded

# Longer than one pass takes at most (ingest.alerting), with the message that is under way when its time is up.
LEASE_SECONDS = 90.0
TAKEN_AT_ONCE = 100
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 5.0, 900.0
KEPT_TRYING = timedelta(hours=48)
MOST_LISTED = 10_000

# Any numbers will do that no other user of the server's advisory locks takes. The second is the first of two int4: bars' locks have
# the seconds of an interval there, and none is so long.
_FOLDING = int.from_bytes(hashlib.sha256(b"market_data_pipeline alerts").digest()[:8], signed=True)
_TAKING = 7_306_003
# Whoever stops in the midst of it (SIGSTOP, a host that sleeps) loses his transaction: otherwise all watchers would wait for him.
_BRIEFLY = "set transaction isolation level read committed; set local idle_in_transaction_session_timeout = '10s';"
# The clock is read once the lock is ours: no fold is earlier than the one before it.
_FOLD = f"{_BRIEFLY} select pg_advisory_xact_lock(%(folding)s); select coalesce(%(at)s, clock_timestamp())"
_NOW = "select coalesce(%(at)s, clock_timestamp())"

_COLUMNS = """
a.rule, a.key, a.severity, a.state, a.began_at, a.seen_at, a.value, a.text, a.labels, a.members, a.alert_id, a.fired_at,
a.clear_since, a.resolved_at, a.told_at, a.told_severity, a.escalated_at, a.acknowledged_at, a.acknowledged_by, a.explained_at,
a.explained_by"""
_OPEN = f"select {_COLUMNS} from alerts a where a.state <> 'resolved' order by a.alert_id"  # noqa: S608 - constants of ours
_LISTED = f"""
select {_COLUMNS} from alerts a
 where a.state <> 'resolved' or %(since)s::timestamptz is null or a.resolved_at >= %(since)s
 order by a.alert_id desc limit %(limit)s"""  # noqa: S608
_ONE = f"select {_COLUMNS} from alerts a where a.alert_id = %(alert_id)s"  # noqa: S608

_ROWS = """
jsonb_to_recordset(%(rows)s::jsonb) as k (
  alert_id int8, rule text, key text, severity text, state text, labels jsonb, members text[], value float8, text text,
  began_at timestamptz, fired_at timestamptz, clear_since timestamptz, resolved_at timestamptz, seen_at timestamptz,
  told_at timestamptz, told_severity text, escalated_at timestamptz, acknowledged_at timestamptz, acknowledged_by text,
  explained_at timestamptz, explained_by int8)"""
_BEGIN = f"""
insert into alerts (rule, key, severity, state, labels, members, value, text, began_at, fired_at, seen_at, told_at, told_severity,
                    explained_at)
select rule, key, severity, state, labels, members, value, text, began_at, fired_at, seen_at, told_at, told_severity, explained_at
  from {_ROWS}
returning rule, key, alert_id"""  # noqa: S608 - constants of ours
_CHANGE = f"""
update alerts a
   set severity = k.severity, state = k.state, labels = k.labels, members = k.members, value = k.value, text = k.text,
       fired_at = k.fired_at, clear_since = k.clear_since, resolved_at = k.resolved_at, seen_at = k.seen_at, told_at = k.told_at,
       told_severity = k.told_severity, escalated_at = k.escalated_at, explained_at = k.explained_at, explained_by = k.explained_by
  from {_ROWS}
 where a.alert_id = k.alert_id"""  # noqa: S608
_NEVER_FIRED = "delete from alerts where alert_id = any(%(ids)s)"

# Who was told that an alert is: he hears that it is over.
_TOLD = """
select alert_id, array_agg(distinct channel) from alert_notices
 where alert_id = any(%(ids)s) and kind in ('firing', 'raised', 'escalated')
 group by alert_id"""
_NOTICE = """
notice_id, alert_id, channel, kind, severity, title, body, state, attempts, ready_at, created_at, queued_at, sent_at, error"""
_POST = f"""
insert into alert_notices (alert_id, channel, kind, severity, title, body, attempts, ready_at, created_at, queued_at)
select alert_id, channel, kind, severity, title, body, %(attempts)s, %(ready_at)s, %(now)s, %(now)s
  from jsonb_to_recordset(%(rows)s::jsonb) as k (
         alert_id int8, channel text, kind text, severity text, title text, body text)
returning {_NOTICE}"""  # noqa: S608 - constants of ours

_SILENCES = """
select rule, labels, starts_at, ends_at, reason, created_by, silence_id from alert_silences
 where ends_at > %(now)s or %(and_over)s
 order by silence_id"""
_SILENCE = """
insert into alert_silences (rule, labels, starts_at, ends_at, reason, created_by, created_at)
values (%(rule)s, %(labels)s::jsonb, %(starts_at)s, %(ends_at)s, %(reason)s, %(created_by)s, %(starts_at)s)
returning silence_id"""
_UNSILENCE = """
update alert_silences set ends_at = greatest(%(now)s, starts_at)
 where silence_id = %(silence_id)s and ends_at > %(now)s
returning rule"""
_ACKNOWLEDGE = """
update alerts set acknowledged_at = %(now)s, acknowledged_by = %(actor)s
 where alert_id = %(alert_id)s and state <> 'resolved' and acknowledged_at is null"""

_NOTICES = f"""
select {_NOTICE} from alert_notices
 where (%(states)s::text[] is null or state = any(%(states)s)) and (%(alert_id)s::int8 is null or alert_id = %(alert_id)s)
   and (%(notice_id)s::int8 is null or notice_id = %(notice_id)s)
 order by notice_id desc limit %(limit)s"""  # noqa: S608 - constants of ours
_DUE_CHANNELS = "select distinct channel from alert_notices where state = 'queued' and ready_at <= %(now)s order by channel"
# One taker of a channel at a time, or one could pass the other by. A message waits while an earlier one about the same alert is
# with somebody, or is to be tried again later: that it is over is not told before that it is.
_TAKE = f"""
{_BRIEFLY}
select pg_advisory_xact_lock(%(taking)s, hashtext(%(channel)s));
with due as (
  select n.notice_id from alert_notices n
   where n.state = 'queued' and n.channel = %(channel)s and n.ready_at <= %(now)s
     and not exists (select from alert_notices e
                      where e.state = 'queued' and e.channel = n.channel and e.alert_id = n.alert_id
                        and e.notice_id < n.notice_id and e.ready_at > %(now)s)
   order by n.notice_id limit %(limit)s for update)
update alert_notices n
   set attempts = n.attempts + 1, ready_at = %(now)s + %(lease)s
  from due where n.notice_id = due.notice_id
returning {", ".join(f"n.{name.strip()}" for name in _NOTICE.split(","))}"""  # noqa: S608
_SENT = """
update alert_notices set state = 'sent', sent_at = %(now)s, error = null where notice_id = any(%(ids)s) and state = 'queued'"""
# Where the lease was lost meanwhile, attempts has grown: then it is another's, and nothing is said of it here.
_FAILED = """
update alert_notices n
   set error = %(error)s, ready_at = %(now)s + k.wait_seconds * interval '1 second',
       state = case when %(now)s - n.queued_at >= %(kept)s then 'dead' else 'queued' end
  from unnest(%(ids)s::int8[], %(attempts)s::int4[], %(waits)s::float8[]) as k (notice_id, attempts, wait_seconds)
 where n.notice_id = k.notice_id and n.attempts = k.attempts and n.state = 'queued'
returning n.state"""
# Not tried: no attempt of its own, and due when the one before it is.
_GIVE_BACK = """
update alert_notices n
   set attempts = n.attempts - 1, ready_at = %(now)s + %(wait)s
  from unnest(%(ids)s::int8[], %(attempts)s::int4[]) as k (notice_id, attempts)
 where n.notice_id = k.notice_id and n.attempts = k.attempts and n.state = 'queued'"""
_RETRY = """
update alert_notices set state = 'queued', attempts = 0, ready_at = %(now)s, queued_at = %(now)s
 where (state = 'dead' or state = 'queued' and ready_at > %(now)s and error is not null)
   and (%(notice_id)s::int8 is null or notice_id = %(notice_id)s)
returning notice_id"""
_FORGET = "delete from alert_notices where notice_id = %(notice_id)s and kind = 'test'"


@dataclass(frozen=True, slots=True)
class Notice:
    """A message in the outbox. ``state``: queued, sent or dead. ``error``: how the last attempt failed, redacted."""

    notice_id: int
    alert_id: int | None
    channel: str
    message: Message
    state: str
    attempts: int
    ready_at: datetime
    created_at: datetime
    queued_at: datetime
    sent_at: datetime | None
    error: str | None


def wait_seconds(attempts: int) -> float:
    """How long a message waits that failed ``attempts`` times, the last one included: 5 s, doubling, at most 15 minutes."""
    return min(FIRST_WAIT_SECONDS * 2.0 ** min(attempts - 1, 30), LONGEST_WAIT_SECONDS)


class AlertBook:
    """The alerts and whom they silence, as several processes share them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def fold(
        self,
        decide: Callable[[Sequence[Alert], Sequence[Silence], datetime], Folded],
        post: Callable[[Sequence[Event], Mapping[int, Sequence[str]]], Sequence[NewNotice]],
        *,
        at: datetime | None,
    ) -> tuple[tuple[Event, ...], int]:
        """Write what ``decide`` makes of the open alerts and the silences, and the messages that ``post`` makes of its events.

        The events, with the ids of their alerts, and how many messages there are. ``post`` is told by alert which channels were
        told of it before. An alert that is over before it fired is forgotten. All or nothing.
        """
        with transaction(self._engine) as cursor:
            cursor.execute(_FOLD, {"folding": _FOLDING, "at": at})
            now = _the_one(cursor)
            cursor.execute(_OPEN)
            before = [_alert(row) for row in cursor.fetchall()]
            cursor.execute(_SILENCES, {"now": now, "and_over": False})
            folded = decide(before, [_silence(row) for row in cursor.fetchall()], now)
            ids = self._write(cursor, before, folded)
            events = tuple(replace(event, alert=replace(event.alert, alert_id=ids[event.alert.name])) for event in folded.events)
            told: dict[int, Sequence[str]] = {}
            if over := [ids[event.alert.name] for event in events if event.kind is EventKind.RESOLVED]:
                cursor.execute(_TOLD, {"ids": over})
                told = dict(cursor.fetchall())
            notices = post(events, told)
            _post(cursor, notices, now)
        return events, len(notices)

    def _write(self, cursor: Cursor, before: Sequence[Alert], folded: Folded) -> dict[tuple[str, str], int]:
        """The ids of the open alerts by name, those that began among them."""
        ids = {alert.name: alert.alert_id for alert in before if alert.alert_id is not None}
        if begun := [alert for alert in folded.alerts if alert.alert_id is None]:
            cursor.execute(_BEGIN, {"rows": _rows(begun)})
            ids |= {(rule, key): alert_id for rule, key, alert_id in cursor.fetchall()}
        kept = [alert for alert in folded.alerts if alert.is_open or alert.fired_at is not None]
        # Once more for the new ones that something explains: that may be as new as they are.
        changed = [
            replace(alert, alert_id=ids[alert.name], explained_by=ids[cause] if cause else alert.explained_by)
            for alert in kept
            if (cause := folded.explained.get(alert.name)) or alert.alert_id is not None
        ]
        if changed:
            cursor.execute(_CHANGE, {"rows": _rows(changed)})
        # Last: what they explained may still name them until then.
        if never := [alert.alert_id for alert in folded.alerts if not alert.is_open and alert.fired_at is None]:
            cursor.execute(_NEVER_FIRED, {"ids": never})
        return ids

    def open(self) -> list[Alert]:
        """The alerts that are pending or firing, the oldest first."""
        with transaction(self._engine) as cursor:
            cursor.execute(_OPEN)
            return [_alert(row) for row in cursor.fetchall()]

    def alerts(self, *, since: datetime | None, limit: int) -> list[Alert]:
        """The newest ``limit`` that are open, or were over no earlier than ``since`` (None: whenever), the newest first."""
        with transaction(self._engine) as cursor:
            cursor.execute(_LISTED, {"since": since, "limit": limit})
            return [_alert(row) for row in cursor.fetchall()]

    def alert(self, alert_id: int) -> Alert | None:
        """The alert of this id, if there is one."""
        with transaction(self._engine) as cursor:
            cursor.execute(_ONE, {"alert_id": alert_id})
            found = cursor.fetchone()
        return None if found is None else _alert(found)

    def acknowledge(self, alert_id: int, *, actor: str, at: datetime | None) -> bool:
        """Somebody looks at it: it escalates no more. False where somebody did already, or it is over."""
        with transaction(self._engine) as cursor:
            cursor.execute(_ACKNOWLEDGE, {"alert_id": alert_id, "actor": actor, "now": _now(cursor, at)})
            done = cursor.rowcount == 1
            if done:
                record(cursor, actor, "alerts.ack", str(alert_id), {})
        return done

    def silence(
        self, rule: str, labels: Mapping[str, str], *, lasting: timedelta, reason: str, actor: str, at: datetime | None
    ) -> Silence:
        """Tell nobody of matching alerts from now on, for so long. Alerts go on as before."""
        with transaction(self._engine) as cursor:
            now = _now(cursor, at)
            made = Silence(rule, dict(labels), now, now + lasting, reason, actor)
            given = {
                "rule": storable(rule),
                "labels": _json(made.labels),
                "starts_at": made.starts_at,
                "ends_at": made.ends_at,
                "reason": storable(reason),
                "created_by": actor,
            }
            cursor.execute(_SILENCE, given)
            made = replace(made, silence_id=_the_one(cursor))
            detail = {"silence": made.silence_id, "labels": dict(labels), "hours": lasting / timedelta(hours=1), "reason": reason}
            record(cursor, actor, "alerts.silence", rule, detail)
        return made

    def unsilence(self, silence_id: int, *, actor: str, at: datetime | None) -> bool:
        """End a silence now; False where it was over, or there is none."""
        with transaction(self._engine) as cursor:
            cursor.execute(_UNSILENCE, {"silence_id": silence_id, "now": _now(cursor, at)})
            found = cursor.fetchone()
            if found is not None:
                record(cursor, actor, "alerts.unsilence", found[0], {"silence": silence_id})
        return found is not None

    def silences(self, *, and_over: bool, at: datetime | None) -> list[Silence]:
        """Those in force, and those that are over where asked for."""
        with transaction(self._engine) as cursor:
            cursor.execute(_SILENCES, {"now": _now(cursor, at), "and_over": and_over})
            return [_silence(row) for row in cursor.fetchall()]


class Outbox:
    """The messages, from when they are written until they are sent."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def post(self, notice: NewNotice, *, actor: str, at: datetime | None) -> Notice:
        """Put one message in by hand, a test of its channel, for the caller to send: it is his for ``LEASE_SECONDS``."""
        with transaction(self._engine) as cursor:
            (posted,) = _post(cursor, [notice], _now(cursor, at), is_taken=True)
            record(cursor, actor, "alerts.test", notice.channel, {"notice": posted.notice_id})
        return posted

    def due_channels(self, *, at: datetime | None) -> list[str]:
        """The channels that a message is due for."""
        with transaction(self._engine) as cursor:
            cursor.execute(_DUE_CHANNELS, {"now": _now(cursor, at)})
            return [channel for (channel,) in cursor.fetchall()]

    def take(self, channel: str, *, at: datetime | None) -> list[Notice]:
        """The messages that are due for ``channel``, the oldest first, no more than a hundred, for the caller to send.

        They are his for ``LEASE_SECONDS``.
        """
        with transaction(self._engine) as cursor:
            given = {
                "taking": _TAKING,
                "channel": channel,
                "now": _now(cursor, at),
                "limit": TAKEN_AT_ONCE,
                "lease": timedelta(seconds=LEASE_SECONDS),
            }
            cursor.execute(_TAKE, given)
            return sorted((_notice(row) for row in cursor.fetchall()), key=lambda notice: notice.notice_id)

    def sent(self, notices: Sequence[Notice], *, at: datetime | None) -> None:
        """They are delivered, whoever has them by now."""
        with transaction(self._engine) as cursor:
            cursor.execute(_SENT, {"ids": [notice.notice_id for notice in notices], "now": _now(cursor, at)})

    def failed(self, notices: Sequence[Notice], error: str, *, at: datetime | None) -> int:
        """They were not: to be tried again later, or dead where that has been so for two days; how many are dead now.

        ``error`` holds no secret. A test of a channel that failed is not kept.
        """
        with transaction(self._engine) as cursor:
            tests = [notice for notice in notices if notice.message.kind is EventKind.TEST]
            for notice in tests:
                cursor.execute(_FORGET, {"notice_id": notice.notice_id})
            given = {
                "ids": [notice.notice_id for notice in notices],
                "attempts": [notice.attempts for notice in notices],
                "waits": [wait_seconds(notice.attempts) for notice in notices],
                "error": storable(error),
                "kept": KEPT_TRYING,
                "now": _now(cursor, at),
            }
            cursor.execute(_FAILED, given)
            return sum(state == "dead" for (state,) in cursor.fetchall())

    def give_back(self, notices: Sequence[Notice], *, after_seconds: float, at: datetime | None) -> None:
        """They were not tried, and are due again after so long."""
        with transaction(self._engine) as cursor:
            given = {
                "ids": [notice.notice_id for notice in notices],
                "attempts": [notice.attempts for notice in notices],
                "wait": timedelta(seconds=after_seconds),
                "now": _now(cursor, at),
            }
            cursor.execute(_GIVE_BACK, given)

    def notices(
        self,
        *,
        states: Sequence[str] | None = None,
        alert_id: int | None = None,
        notice_id: int | None = None,
        limit: int = MOST_LISTED,
    ) -> list[Notice]:
        """The newest ``limit`` messages in these states, or of this alert, or this one; the newest first."""
        given = {"states": None if states is None else list(states), "alert_id": alert_id, "notice_id": notice_id, "limit": limit}
        with transaction(self._engine) as cursor:
            cursor.execute(_NOTICES, given)
            return [_notice(row) for row in cursor.fetchall()]

    def retry(self, notice_id: int | None, *, actor: str, at: datetime | None) -> list[int]:
        """Try dead messages, and those that wait after a failure, again now, with two days more; None: all. Which."""
        with transaction(self._engine) as cursor:
            cursor.execute(_RETRY, {"notice_id": notice_id, "now": _now(cursor, at)})
            ids = sorted(found for (found,) in cursor.fetchall())
            if notice_id is not None and not ids:
                raise InvalidInputError(f"no message {notice_id} is dead or waits after a failure: see `mdp alerts notices`")
            if ids:
                record(cursor, actor, "alerts.retry", "all" if notice_id is None else str(notice_id), {"notices": ids[:100]})
        return ids


def _post(cursor: Cursor, notices: Sequence[NewNotice], now: datetime, *, is_taken: bool = False) -> list[Notice]:
    if not notices:
        return []
    rows = [
        {
            "alert_id": notice.alert_id,
            "channel": storable(notice.channel),
            "kind": str(notice.message.kind),
            "severity": str(notice.message.severity),
            "title": storable(notice.message.title),
            "body": storable(notice.message.body),
        }
        for notice in notices
    ]
    ready_at = now + timedelta(seconds=LEASE_SECONDS) if is_taken else now
    cursor.execute(_POST, {"rows": _json(rows), "now": now, "ready_at": ready_at, "attempts": int(is_taken)})
    return [_notice(row) for row in cursor.fetchall()]


def _rows(alerts: Sequence[Alert]) -> str:
    return _json([_row(alert) for alert in alerts])


def _row(alert: Alert) -> dict[str, Any]:
    return {
        "alert_id": alert.alert_id,
        # As they are: what is stored must be found again by its name.
        "rule": alert.rule,
        "key": alert.key,
        "severity": str(alert.severity),
        "state": str(alert.state),
        "labels": {storable(name): storable(value) for name, value in alert.labels.items()},
        "members": [storable(member) for member in alert.members],
        # As text: JSON knows no infinity.
        "value": repr(float(alert.value)),
        "text": storable(alert.text),
        "told_severity": None if alert.told_severity is None else str(alert.told_severity),
        **{name: getattr(alert, name) for name in _AS_THEY_ARE},
    }


_AS_THEY_ARE = (
    "began_at",
    "fired_at",
    "clear_since",
    "resolved_at",
    "seen_at",
    "told_at",
    "escalated_at",
    "acknowledged_at",
    "acknowledged_by",
    "explained_at",
    "explained_by",
)


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _alert(row: Sequence[Any]) -> Alert:
    rule, key, severity, state, began_at, seen_at, value, text, labels, members, *rest = row
    alert = Alert(rule, key, Severity(severity), AlertState(state), began_at, seen_at, value, text, labels, tuple(members), *rest)
    return alert if alert.told_severity is None else replace(alert, told_severity=Severity(alert.told_severity))


def _silence(row: Sequence[Any]) -> Silence:
    return Silence(*row)


def _notice(row: Sequence[Any]) -> Notice:
    notice_id, alert_id, channel, kind, severity, title, body, *rest = row
    return Notice(notice_id, alert_id, channel, Message(title, body, EventKind(kind), Severity(severity)), *rest)


def _now(cursor: Cursor, at: datetime | None) -> datetime:
    cursor.execute(_NOW, {"at": at})
    now: datetime = _the_one(cursor)
    return now


def _the_one(cursor: Cursor) -> Any:  # noqa: ANN401 - of whatever type the statement's only column is
    ((value,),) = cursor.fetchall()
    return value
