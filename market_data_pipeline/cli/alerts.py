"""`mdp alerts`: what is wrong, who was told, who looks at it; silences; and whether messages arrive."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from market_data_pipeline.cli.dlq import AGE, who
from market_data_pipeline.cli.jobs import limit_option, print_fields
from market_data_pipeline.cli.output import json_option, note, print_json, print_table
from market_data_pipeline.cli.selection import opened_pipeline
from market_data_pipeline.domain.alerts import Severity
from market_data_pipeline.domain.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from market_data_pipeline.domain.alert_config import AlertsConfig
    from market_data_pipeline.domain.alerts import Alert, Rule, Silence
    from market_data_pipeline.settings import Settings
    from market_data_pipeline.storage.alerts import Notice

DONE, FOUND_SOMETHING = 0, 1

alert_argument = click.argument("alert_id", metavar="ID", type=click.IntRange(1))
by_option = click.option("--by", "--actor", "actor", help="Who does this, for the audit log; default: the user of this shell.")
label_option = click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Only with this label; may be repeated.")


@click.group()
def alerts() -> None:
    """Show alerts, silence them, acknowledge them, and try channels.

    Channels, routes, thresholds and rules over prices are in the YAML file that MDP_ALERTS_FILE names. Without it alerts are kept
    and shown, and nobody is told. What is done by hand is kept in the audit log (`mdp dlq audit`).
    """


@alerts.command("list", epilog="Example: mdp alerts list --since 7d")
@click.option("--all", "everything", is_flag=True, help="Those that are over, too.")
@click.option("--since", type=AGE, help="Those, too, that were over no longer ago: 7d, 12h or 45m.")
@limit_option(200, "No more than so many, the newest.")
@json_option
def list_(*, everything: bool, since: timedelta | None, limit: int, as_json: bool) -> None:
    """List the alerts that are pending or firing, the newest first."""
    from market_data_pipeline.cli.discretion import discreet  # noqa: PLC0415 - `mdp --help` must not wait for these
    from market_data_pipeline.settings import secrets_of  # noqa: PLC0415
    from market_data_pipeline.storage.alerts import AlertBook  # noqa: PLC0415

    with opened_pipeline() as pipeline:
        book, now = AlertBook(pipeline.engine), pipeline.clock.now()
        if everything or since is not None:
            found = book.alerts(since=None if since is None else now - since, limit=limit)
        else:
            found = book.open()[::-1][:limit]
        secrets = secrets_of(pipeline.settings)
    rows = [discreet(_row(alert), secrets) for alert in found]
    if as_json:
        print_json(rows)
    elif rows:
        print_table(rows, columns=["id", "state", "severity", "rule", "key", "since", "until", "text", "note"])
    else:
        note("there are no such alerts" if everything or since else "nothing is wrong: no alert is pending or firing")


@alerts.command(epilog="Example: mdp alerts show 17")
@alert_argument
@json_option
def show(*, alert_id: int, as_json: bool) -> None:
    """Show one alert with everything known of it: its numbers, whom it is about, who was told, what to do."""
    from market_data_pipeline.cli.discretion import discreet  # noqa: PLC0415 - `mdp --help` must not wait for these
    from market_data_pipeline.settings import secrets_of  # noqa: PLC0415
    from market_data_pipeline.storage.alerts import AlertBook, Outbox  # noqa: PLC0415

    with opened_pipeline() as pipeline:
        found = AlertBook(pipeline.engine).alert(alert_id)
        told = Outbox(pipeline.engine).notices(alert_id=alert_id)
        secrets = secrets_of(pipeline.settings)
    if found is None:
        raise InvalidInputError(f"there is no alert {alert_id}: see `mdp alerts list --all`")
    fields = {
        **_row(found),
        "value": found.value,
        "labels": dict(found.labels) or None,
        "members": list(found.members) or None,
        "fired_at": _stamp(found.fired_at),
        "seen_at": _stamp(found.seen_at),
        "told_at": _stamp(found.told_at),
        "escalated_at": _stamp(found.escalated_at),
        "acknowledged_at": _stamp(found.acknowledged_at),
        "acknowledged_by": found.acknowledged_by,
        "explained_by": found.explained_by,
        "runbook": _runbook(found.rule),
        "notices": [_notice_row(notice) for notice in reversed(told)] or None,
    }
    print_fields(discreet(fields, secrets), as_json=as_json)


@alerts.command(epilog="Example: mdp alerts ack 17 --by anna")
@alert_argument
@by_option
@json_option
def ack(*, alert_id: int, actor: str | None, as_json: bool) -> int:
    """Say that somebody looks at alert ID: it does not escalate any more. Exit code 1 where that was said before, or it is over."""
    from market_data_pipeline.ingest.alerting import acknowledge  # noqa: PLC0415 - `mdp --help` must not wait for it

    with opened_pipeline() as pipeline:
        done = acknowledge(pipeline, alert_id, actor=who(actor), now=pipeline.clock.now())
    if as_json:
        print_json({"alert": alert_id, "acknowledged": done})
    else:
        click.echo(f"alert {alert_id} " + ("is acknowledged" if done else "is over, or was acknowledged before"))
    return DONE if done else FOUND_SOMETHING


@alerts.command(epilog='Example: mdp alerts silence "Provider*" --label provider=yahoo --for 2h --reason "Yahoo announced work"')
@click.argument("rule", metavar="RULE")
@label_option
@click.option("--for", "lasting", type=AGE, required=True, help="How long: 2h, 45m or 3d.")
@click.option("--reason", required=True, help="Why, for whoever asks.")
@by_option
@json_option
def silence(*, rule: str, labels: tuple[str, ...], lasting: timedelta, reason: str, actor: str | None, as_json: bool) -> None:
    """Tell nobody of alerts of RULE for a while. RULE and the values of labels may be shell patterns.

    Alerts begin and end as before. What fires when the silence is over is told then, once. That an alert is over is told in a
    silence, too, to whoever heard of it before.
    """
    from market_data_pipeline.ingest import alerting  # noqa: PLC0415 - `mdp --help` must not wait for it

    with opened_pipeline() as pipeline:
        now = pipeline.clock.now()
        made = alerting.silence(pipeline, rule, _labels(labels), lasting=lasting, reason=reason, actor=who(actor), now=now)
    if as_json:
        print_json(_silence_row(made))
    else:
        click.echo(f"silence {made.silence_id} until {_stamp(made.ends_at)}; end it with `mdp alerts unsilence {made.silence_id}`")


@alerts.command(epilog="Example: mdp alerts silences --all")
@click.option("--all", "everything", is_flag=True, help="Those that are over, too.")
@json_option
def silences(*, everything: bool, as_json: bool) -> None:
    """List the silences that are in force."""
    from market_data_pipeline.storage.alerts import AlertBook  # noqa: PLC0415 - `mdp --help` must not wait for it

    with opened_pipeline() as pipeline:
        found = AlertBook(pipeline.engine).silences(and_over=everything, at=pipeline.known_at(pipeline.clock.now()))
    rows = [_silence_row(one) for one in found]
    if as_json:
        print_json(rows)
    elif rows:
        shown = [{**row, "labels": _joined(row["labels"])} for row in rows]
        print_table(shown, columns=["silence", "rule", "labels", "starts_at", "ends_at", "by", "reason"])
    else:
        note("nothing is silenced")


@alerts.command(epilog="Example: mdp alerts unsilence 3")
@click.argument("silence_id", metavar="ID", type=click.IntRange(1))
@by_option
@json_option
def unsilence(*, silence_id: int, actor: str | None, as_json: bool) -> None:
    """End silence ID now."""
    from market_data_pipeline.ingest import alerting  # noqa: PLC0415 - `mdp --help` must not wait for it

    with opened_pipeline() as pipeline:
        alerting.unsilence(pipeline, silence_id, actor=who(actor), now=pipeline.clock.now())
    if as_json:
        print_json({"silence": silence_id, "ended": True})
    else:
        click.echo(f"silence {silence_id} is over")


@alerts.command(epilog="Example: mdp alerts test pager")
@click.argument("channel")
@by_option
@json_option
def test(*, channel: str, actor: str | None, as_json: bool) -> int:
    """Send a message to CHANNEL the way alerts go, through the outbox, and wait for it.

    Exit code 1 where it fails; the reason is said.
    """
    from market_data_pipeline.ingest.alerting import send_test  # noqa: PLC0415 - `mdp --help` must not wait for it

    with opened_pipeline() as pipeline:
        config = _config(pipeline.settings)
        error = send_test(pipeline, config, channel, actor=who(actor), now=pipeline.clock.now())
    if as_json:
        print_json({"channel": channel, "sent": error is None, "error": error})
    elif error is None:
        click.echo(f"{channel}: sent")
    else:
        note(f"not sent: {error}")
    return DONE if error is None else FOUND_SOMETHING


@alerts.command(epilog="Example: mdp alerts channels")
@json_option
def channels(*, as_json: bool) -> None:
    """List the channels, of what kind they are, and the routes that lead to them. URLs are not shown: they hold secrets."""
    from market_data_pipeline.observability.delivery import kind_of  # noqa: PLC0415 - `mdp --help` must not wait for it

    config = _config(_settings())
    rows = [{"channel": name, "kind": kind_of(channel)} for name, channel in config.channels.items()]
    routes = [
        {
            "route": place,
            "rules": list(route.rules),
            "severities": [str(severity) for severity in route.severities],
            "labels": dict(route.labels),
            "channels": list(route.channels),
            "escalate_to": list(route.escalate_to),
        }
        for place, route in enumerate(config.routes, start=1)
    ]
    if as_json:
        print_json({"channels": rows, "routes": routes})
        return
    if not rows:
        note("no channel is configured: alerts are kept and shown, and nobody is told (MDP_ALERTS_FILE, docs/alerts.md)")
        return
    print_table(rows, columns=["channel", "kind"])
    if routes:
        shown = [{name: _joined(value) for name, value in route.items()} for route in routes]
        print_table(shown, columns=["route", "rules", "severities", "labels", "channels", "escalate_to"])
    note("the first route that matches decides; where none does, all channels hear of warnings and what is worse")


@alerts.command(epilog="Example: mdp alerts check")
@json_option
def check(*, as_json: bool) -> int:
    """Judge the alerts file as a whole: whether it can be used, and what of it will not work as it was meant.

    A file that cannot be used is told problem by problem (exit code 2). Exit code 1 where it can, and yet a secret stands in a file
    that others may read, or a rule over prices says nothing of some symbols.
    """
    from market_data_pipeline.ingest.alert_file import exposed_channels  # noqa: PLC0415 - `mdp --help` must not wait for these
    from market_data_pipeline.ingest.price_watch import price_notes  # noqa: PLC0415

    settings = _settings()
    path, config = settings.alerts_file, _config(settings)
    exposed = () if path is None else exposed_channels(path)
    advice = "take it from the environment, or chmod 600"
    notes = [f"channels.{name}: its secret stands in a file that others may read: {advice}" for name in exposed]
    if config.price_rules:
        with opened_pipeline() as pipeline:
            notes += price_notes(pipeline, config, now=pipeline.clock.now())
    told = {
        "file": None if path is None else str(path),
        "channels": len(config.channels),
        "routes": len(config.routes),
        "thresholds": len(config.thresholds),
        "price_rules": len(config.price_rules),
    }
    if as_json:
        print_json({**told, "notes": notes})
    else:
        print_fields(told, as_json=False)
        for text in notes:
            note(text)
    return FOUND_SOMETHING if notes else DONE


@alerts.command(epilog="Example: mdp alerts route SymbolStale --label tier=T0")
@click.argument("rule", metavar="RULE")
@label_option
@click.option("--severity", type=click.Choice([str(severity) for severity in Severity]), help="Default: the rule's.")
@json_option
def route(*, rule: str, labels: tuple[str, ...], severity: str | None, as_json: bool) -> int:
    """Say who would hear of an alert of RULE with these labels. Nothing is sent. Exit code 1 where nobody would."""
    from market_data_pipeline.domain.alert_messages import route_of  # noqa: PLC0415 - `mdp --help` must not wait for it

    config = _config(_settings())
    known = _rules(config)
    if rule not in known:
        raise InvalidInputError(f"no rule is called {rule!r}: see `mdp alerts rules`")
    meant = Severity(severity) if severity else known[rule].severity
    found = route_of(rule, meant, _labels(labels), config)
    if as_json:
        print_json(
            {"rule": rule, "severity": meant, "channels": found.channels, "escalate_to": found.escalate_to or found.channels}
        )
    elif found.channels:
        then = "" if known[rule].escalate_seconds is None else f"; escalated to {_joined(found.escalate_to or found.channels)}"
        click.echo(f"{meant} {rule}: {_joined(found.channels)}{then}")
    else:
        note(f"nobody hears of {meant} {rule}")
    return DONE if found.channels else FOUND_SOMETHING


@alerts.command(epilog="Example: mdp alerts rules")
@json_option
def rules(*, as_json: bool) -> None:
    """List all rules with their severities, times in seconds and numbers, as configured, and their runbooks."""
    from market_data_pipeline.domain.alert_rules import RULES  # noqa: PLC0415 - `mdp --help` must not wait for it

    config = _config(_settings())
    enabled = _rules(config)
    rows = [
        {
            "rule": name,
            "enabled": name in enabled,
            "severity": str(rule.severity),
            "for": rule.for_seconds,
            "clear": rule.clear_seconds,
            "escalate": rule.escalate_seconds,
            "numbers": dict(rule.numbers),
            "summary": rule.summary,
            "runbook": _runbook(name),
        }
        for name, rule in {**RULES, **enabled}.items()
    ]
    if as_json:
        print_json(rows)
    else:
        shown = [{**row, "numbers": _joined(row["numbers"])} for row in rows]
        print_table(shown, columns=["rule", "enabled", "severity", "for", "clear", "escalate", "numbers", "summary"])


@alerts.command(epilog="Example: mdp alerts notices --dead")
@click.option("--dead", is_flag=True, help="Only those that are not tried any more.")
@limit_option(50, "No more than so many, the newest.")
@json_option
def notices(*, dead: bool, limit: int, as_json: bool) -> int:
    """List the messages about alerts, the newest first, with how often they were tried. Exit code 1 where one of them is dead."""
    from market_data_pipeline.cli.discretion import discreet  # noqa: PLC0415 - `mdp --help` must not wait for these
    from market_data_pipeline.settings import secrets_of  # noqa: PLC0415
    from market_data_pipeline.storage.alerts import Outbox  # noqa: PLC0415

    with opened_pipeline() as pipeline:
        found = Outbox(pipeline.engine).notices(states=["dead"] if dead else None, limit=limit)
        secrets = secrets_of(pipeline.settings)
    rows = [discreet(_notice_row(notice), secrets) for notice in found]
    if as_json:
        print_json(rows)
    elif rows:
        print_table(
            rows, columns=["notice", "alert", "channel", "kind", "title", "state", "attempts", "next_at", "sent_at", "error"]
        )
    else:
        note("there are no such messages")
    return FOUND_SOMETHING if any(notice.state == "dead" for notice in found) else DONE


@alerts.command(epilog="Example: mdp alerts retry 12")
@click.argument("notice_id", metavar="[ID]", type=click.IntRange(1), required=False)
@by_option
@json_option
def retry(*, notice_id: int | None, actor: str | None, as_json: bool) -> None:
    """Try message ID again, dead or waiting after a failure, for two days more; without ID, all of them.

    The next watch sends it, within seconds.
    """
    from market_data_pipeline.storage.alerts import Outbox  # noqa: PLC0415 - `mdp --help` must not wait for it

    with opened_pipeline() as pipeline:
        at = pipeline.known_at(pipeline.clock.now())
        ids = Outbox(pipeline.engine).retry(notice_id, actor=who(actor), at=at)
    if as_json:
        print_json({"retried": ids})
    else:
        click.echo(f"{len(ids):,} will be tried again")


def _settings() -> Settings:
    from market_data_pipeline.settings import Settings  # noqa: PLC0415 - `mdp --help` must not wait for pydantic

    return Settings.from_environment()


def _config(settings: Settings) -> AlertsConfig:
    from market_data_pipeline.ingest.alert_file import read_alerts_file  # noqa: PLC0415 - `mdp --help` must not wait for YAML

    return read_alerts_file(settings.alerts_file)


def _rules(config: AlertsConfig) -> dict[str, Rule]:
    """The rules that are enabled, as configured, those over prices among them."""
    from market_data_pipeline.domain.alert_config import configured  # noqa: PLC0415 - `mdp --help` must not wait for these
    from market_data_pipeline.domain.alert_rules import RULES  # noqa: PLC0415
    from market_data_pipeline.ingest.price_watch import as_rule  # noqa: PLC0415

    return {**configured(RULES, config), **{rule.name: as_rule(rule) for rule in config.price_rules}}


def _runbook(rule: str) -> str:
    from market_data_pipeline.domain.alert_messages import RUNBOOKS  # noqa: PLC0415 - `mdp --help` must not wait for these
    from market_data_pipeline.domain.alert_rules import RULES  # noqa: PLC0415

    return f"{RUNBOOKS}/{RULES[rule].runbook if rule in RULES else 'price-rule'}.md"


def _labels(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise InvalidInputError(f"{text!r} is no label: expected NAME=VALUE, like tier=T0")
        found[name.strip()] = value.strip()
    return found


def _row(alert: Alert) -> dict[str, Any]:
    notes = {
        "explained by": alert.explained_by if alert.is_open and alert.told_at is None else None,
        "acknowledged by": alert.acknowledged_by,
        "gone since": _stamp(alert.clear_since) if alert.is_open else None,
    }
    return {
        "id": alert.alert_id,
        "state": str(alert.state),
        "severity": str(alert.severity),
        "rule": alert.rule,
        "key": alert.key,
        "since": _stamp(alert.began_at),
        "until": _stamp(alert.resolved_at and (alert.clear_since or alert.resolved_at)),
        "text": alert.text,
        "note": ", ".join(f"{name} {value}" for name, value in notes.items() if value is not None) or None,
    }


def _silence_row(silence: Silence) -> dict[str, Any]:
    row = asdict(silence)
    return {
        "silence": row["silence_id"],
        "rule": row["rule"],
        "labels": row["labels"],
        "starts_at": _stamp(silence.starts_at),
        "ends_at": _stamp(silence.ends_at),
        "by": row["created_by"],
        "reason": row["reason"],
    }


def _notice_row(notice: Notice) -> dict[str, Any]:
    return {
        "notice": notice.notice_id,
        "alert": notice.alert_id,
        "channel": notice.channel,
        "kind": str(notice.message.kind),
        "title": notice.message.title,
        "state": notice.state,
        "attempts": notice.attempts,
        "created_at": _stamp(notice.created_at),
        "next_at": _stamp(notice.ready_at) if notice.state == "queued" else None,
        "sent_at": _stamp(notice.sent_at),
        "error": notice.error,
    }


def _joined(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={member}" for name, member in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _stamp(at: datetime | None) -> str | None:
    return None if at is None else f"{at:%Y-%m-%d %H:%M:%S}Z"
