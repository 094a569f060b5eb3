"""`mdp alerts`: what is shown, what is changed and by whom, and whether a channel works; never a secret."""

from __future__ import annotations

from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.alert_config import NO_CONFIG
from market_data_pipeline.domain.alert_messages import NewNotice, trial_message
from market_data_pipeline.domain.alert_rules import RULES
from market_data_pipeline.domain.alerts import Finding, Look
from market_data_pipeline.ingest.alerting import fold
from market_data_pipeline.storage.alerts import Outbox
from market_data_pipeline_tests.cli.builders import pipeline_of
from market_data_pipeline_tests.cli.conftest import NOW

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from market_data_pipeline_tests.cli.conftest import Mdp

CANARY = "canary-4711-canary"


def find(mdp: Mdp, *found: Finding, minutes: float = 0.0) -> None:
    """Fold what was found into the alerts, so long before or after the commands are run."""
    now = datetime.fromisoformat(NOW) + timedelta(minutes=minutes)
    with pipeline_of(mdp) as pipeline:
        fold(pipeline, [Look(tuple(RULES), found)], RULES, NO_CONFIG, now=now)


def entitlement(provider: str = "yahoo") -> Finding:
    return Finding("ProviderEntitlementLost", 1.0, f"{provider} said 403", provider, {"provider": provider})


@pytest.fixture
def receiver() -> Iterator[ThreadingHTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200 if "good" in self.path else 500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def alerts_file(tmp_path: Path, receiver: ThreadingHTTPServer) -> str:
    port = receiver.server_port
    path = tmp_path / "alerts.yaml"
    path.write_text(
        f"""
channels:
  desk: {{url: "json://127.0.0.1:{port}/good/{CANARY}"}}
  pager: {{url: "json://127.0.0.1:{port}/bad/{CANARY}"}}
routes:
  - {{channels: [pager], severities: [critical], escalate_to: [desk]}}
  - {{channels: [desk], labels: {{provider: "y*"}}}}
thresholds:
  SymbolStale: {{enabled: false}}
""",
        encoding="utf-8",
    )
    return str(path)


def test_alerts_are_listed_shown_and_acknowledged_with_the_actor(mdp: Mdp) -> None:
    assert mdp("alerts", "list").err == "nothing is wrong: no alert is pending or firing\n"
    find(mdp, entitlement())
    (listed,) = mdp("alerts", "list", "--json").json
    assert (listed["id"], listed["state"], listed["rule"], listed["text"]) == (
        1,
        "firing",
        "ProviderEntitlementLost",
        "yahoo said 403",
    )
    assert "yahoo said 403" in mdp("alerts", "list").out
    first, again = mdp("alerts", "ack", "1", "--by", "anna"), mdp("alerts", "ack", "1")
    assert (first.code, first.out) == (0, "alert 1 is acknowledged\n")
    assert (again.code, again.out) == (1, "alert 1 is over, or was acknowledged before\n")
    shown = mdp("alerts", "show", "1", "--json").json
    assert (shown["acknowledged_by"], shown["labels"], shown["runbook"]) == (
        "anna",
        {"provider": "yahoo"},
        "docs/operations/provider-entitlement-lost.md",
    )
    assert mdp("alerts", "show", "1").code == 0
    assert mdp("alerts", "show", "9").code == mdp("alerts", "ack", "9").code == 2
    log = mdp("dlq", "audit", "--json").json
    assert [(entry["actor"], entry["action"], entry["subject"]) for entry in log] == [("anna", "alerts.ack", "1")]


def test_what_is_over_is_listed_where_asked_for(mdp: Mdp) -> None:
    find(mdp, entitlement(), minutes=-600.0)
    find(mdp, minutes=-590.0)
    find(mdp, minutes=-580.0)
    assert mdp("alerts", "list", "--json").json == []
    assert [row["state"] for row in mdp("alerts", "list", "--all", "--json").json] == ["resolved"]
    assert len(mdp("alerts", "list", "--since", "12h", "--json").json) == 1
    assert mdp("alerts", "list", "--since", "9h", "--json").json == []


def test_silences_are_made_listed_and_ended(mdp: Mdp) -> None:
    made = mdp("alerts", "silence", "Provider*", "--label", "provider=yahoo", "--for", "2h", "--reason", "work", "--by", "anna")
    assert (made.code, made.out) == (0, "silence 1 until 2024-12-07 14:00:00Z; end it with `mdp alerts unsilence 1`\n")
    (listed,) = mdp("alerts", "silences", "--json").json
    assert (listed["rule"], listed["labels"], listed["by"], listed["reason"]) == (
        "Provider*",
        {"provider": "yahoo"},
        "anna",
        "work",
    )
    assert "provider=yahoo" in mdp("alerts", "silences").out
    assert mdp("alerts", "unsilence", "1").code == 0
    assert mdp("alerts", "unsilence", "1").code == 2
    assert mdp("alerts", "silences").err == "nothing is silenced\n"
    assert len(mdp("alerts", "silences", "--all", "--json").json) == 1
    for wrong in (["--for", "2y", "--reason", "x"], ["--for", "2h", "--reason", " "], ["--for", "0m", "--reason", "x"]):
        assert mdp("alerts", "silence", "X", *wrong).code == 2
    assert mdp("alerts", "silence", "X", "--label", "tier", "--for", "1h", "--reason", "x").code == 2
    assert [entry["action"] for entry in mdp("dlq", "audit", "--json").json] == ["alerts.unsilence", "alerts.silence"]


def test_a_channel_is_tried_through_the_outbox_and_its_secret_is_never_shown(mdp: Mdp, alerts_file: str) -> None:
    good = mdp("alerts", "test", "desk", alerts_file=alerts_file)
    assert (good.code, good.out) == (0, "desk: sent\n")
    bad = mdp("alerts", "test", "pager", alerts_file=alerts_file)
    assert bad.code == 1
    assert "pager (json): Failed to send JSON POST notification" in bad.err
    unknown = mdp("alerts", "test", "nobody", alerts_file=alerts_file)
    assert (unknown.code, unknown.err) == (2, "mdp: no channel is called 'nobody': expected one of them (desk, pager)\n")
    assert mdp("alerts", "test", "desk").code == 2
    (notice,) = mdp("alerts", "notices", "--json").json
    assert (notice["title"], notice["state"], notice["attempts"]) == ("TEST desk", "sent", 1)
    answers = [good, bad, unknown, mdp("alerts", "channels", alerts_file=alerts_file), mdp("dlq", "audit", "--json")]
    assert all(CANARY not in answer.out + answer.err for answer in answers)


def test_channels_and_routes_are_shown_by_name_and_kind(mdp: Mdp, offline_mdp: Mdp, alerts_file: str) -> None:
    told = offline_mdp("alerts", "channels", "--json", alerts_file=alerts_file).json
    assert told["channels"] == [{"channel": "desk", "kind": "json"}, {"channel": "pager", "kind": "json"}]
    assert [route["channels"] for route in told["routes"]] == [["pager"], ["desk"]]
    assert "nobody is told" in offline_mdp("alerts", "channels").err
    urgent = mdp("alerts", "route", "SLOGapViolationHigh", alerts_file=alerts_file)
    assert (urgent.code, urgent.out) == (0, "critical SLOGapViolationHigh: pager; escalated to desk\n")
    labelled = mdp("alerts", "route", "RunFailed", "--label", "provider=yahoo", "--json", alerts_file=alerts_file)
    assert labelled.json["channels"] == ["desk"]
    unmatched = mdp("alerts", "route", "RunFailed", "--json", alerts_file=alerts_file)
    assert unmatched.json["channels"] == ["desk", "pager"]
    assert mdp("alerts", "route", "RunFailed", "--severity", "info", alerts_file=alerts_file).code == 1
    assert mdp("alerts", "route", "Nothing").code == 2


def test_rules_are_listed_as_configured(offline_mdp: Mdp, alerts_file: str) -> None:
    rules = {row["rule"]: row for row in offline_mdp("alerts", "rules", "--json", alerts_file=alerts_file).json}
    assert set(RULES) <= set(rules)
    assert not rules["SymbolStale"]["enabled"]
    assert rules["DiskFilling"]["runbook"] == "docs/operations/disk-filling.md"
    assert "DiskFilling" in offline_mdp("alerts", "rules").out


def test_dead_messages_are_found_and_tried_again(mdp: Mdp) -> None:
    assert mdp("alerts", "notices").err == "there are no such messages\n"
    find(mdp, entitlement())
    now = datetime.fromisoformat(NOW)
    with pipeline_of(mdp) as pipeline:
        outbox = Outbox(pipeline.engine)
        outbox.post(NewNotice(1, "desk", trial_message("desk", now)), actor="x", at=now - timedelta(days=3))
        with pipeline.engine.begin() as connection:
            connection.exec_driver_sql("update alert_notices set kind = 'firing'")
        (taken,) = outbox.take("desk", at=now)
        assert outbox.failed([taken], f"desk: https://x.test/?token={CANARY} said 500", at=now) == 1
    dead = mdp("alerts", "notices", "--dead", "--json")
    assert (dead.code, dead.json[0]["state"]) == (1, "dead")
    assert CANARY not in dead.out + mdp("alerts", "notices").out + mdp("alerts", "show", "1").out
    assert mdp("alerts", "retry", "7").code == 2
    assert mdp("alerts", "retry", "1", "--by", "anna").out == "1 will be tried again\n"
    assert mdp("alerts", "notices", "--json").json[0]["state"] == "queued"
    assert mdp("alerts", "retry").out == "0 will be tried again\n"


def test_a_database_that_is_away_is_said_with_its_own_exit_code(offline_mdp: Mdp) -> None:
    assert offline_mdp("alerts", "list").code == 3
