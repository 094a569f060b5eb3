"""The alerts file: all of it is judged, every problem has its place, and no secret is ever repeated."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market_data_pipeline.domain.alert_config import NO_CONFIG, AlertsConfig, PriceField, PriceRuleKind, PriceSource
from market_data_pipeline.domain.alerts import Severity
from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.ingest.alert_file import AlertsFile, alerts_of_process, exposed_channels, parse_alerts, read_alerts_file

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "alerts.yaml"
SECRET = "B0SECRETsecretSECRET9"  # noqa: S105 - nobody's
SLACK = f"slack://T1JJ3T3L2/A1BRTD4JD/{SECRET}/#ops"


def config_of(text: str, **environment: str) -> AlertsConfig:
    return parse_alerts(text.encode(), name="alerts.yaml", environment=environment)


def problems_of(text: str, **environment: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        config_of(text, **environment)
    return str(refused.value)


# --- what is read ------------------------------------------------------------------------------------------------------


def test_the_example_works_as_it_is() -> None:
    config = read_alerts_file(EXAMPLE, environment={})
    assert list(config.channels) == ["log"]
    assert {rule.kind for rule in config.price_rules} == set(PriceRuleKind)
    assert config.thresholds["SymbolStale"] == {"for": 120.0, "behind": 5}
    assert exposed_channels(EXAMPLE) == ()


def test_what_is_commented_out_in_the_example_works_with_secrets_in_the_environment() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    lines = [line.replace("  # ", "  ", 1) if line.startswith("  # ") else line for line in text.splitlines()]
    environment = {"OPS_SLACK_URL": SLACK, "PAGERDUTY_URL": f"pagerduty://{SECRET}@{SECRET}", "SMTP_PASSWORD": SECRET}
    assert list(config_of("\n".join(lines), **environment).channels) == ["log", "ops", "oncall", "mail", "hook"]


def test_without_a_file_nothing_is_configured() -> None:
    assert read_alerts_file(None) is NO_CONFIG


@pytest.mark.parametrize("empty", ["", "# nothing\n", "---\n", "{}"])
def test_an_empty_file_configures_nothing(empty: str) -> None:
    assert config_of(empty) == NO_CONFIG


def test_a_secret_comes_from_the_environment_and_is_in_no_representation() -> None:
    config = config_of("channels: {ops: {url: '${OPS}'}, mail: 'mailtos://me:${PASSWORD}@example.com'}", OPS=SLACK, PASSWORD=SECRET)
    assert config.channels["ops"].url.get_secret_value() == SLACK
    assert config.channels["mail"].url.get_secret_value() == f"mailtos://me:{SECRET}@example.com"
    assert SECRET not in repr(config)


def test_routes_are_kept_in_their_order() -> None:
    config = config_of(
        """
        channels: {log: log://, other: log://}
        routes:
          - {rules: Provider*, severities: critical, channels: [log, other], escalate_to: other}
          - {labels: {tier: T2}, channels: []}
        """
    )
    first, second = config.routes
    assert (first.rules, first.severities, first.channels) == (("Provider*",), (Severity.CRITICAL,), ("log", "other"))
    assert (first.escalate_to, dict(second.labels), second.channels) == (("other",), {"tier": "T2"}, ())


def test_a_rule_over_prices_is_read_with_its_units() -> None:
    (rule,) = config_of(
        "price_rules: {Moves: {kind: move, source: quote, tier: T0, by: 3%, window: 5m, hysteresis: 0.1, field: mid, max_age: 2m}}"
    ).price_rules
    assert (rule.name, rule.by, rule.window_seconds, rule.hysteresis) == ("Moves", 0.03, 300, 0.1)
    assert (rule.source, rule.field, rule.max_age_seconds, rule.tier) == (PriceSource.QUOTE, PriceField.MID, 120, "T0")


@pytest.mark.parametrize(("written", "seconds"), [("5m", 300), ("2h", 7200), ("90", 90), (300, 300), ("1.5h", 5400), ("30s", 30)])
def test_durations_are_seconds_or_have_a_unit(written: str | int, seconds: int) -> None:
    assert config_of(f"thresholds: {{SymbolStale: {{for: {written}}}}}").thresholds["SymbolStale"] == {"for": seconds}


def test_an_escalation_can_be_switched_off() -> None:
    assert config_of("thresholds: {SLOGapViolationHigh: {escalate: false}}").thresholds["SLOGapViolationHigh"] == {
        "escalate": False
    }


# --- what is refused ---------------------------------------------------------------------------------------------------


def test_all_problems_are_told_at_once_each_with_its_place() -> None:
    told = problems_of(
        """
        channels: {ops: {url: "${OPS_SLACK_URL}"}, odd: {url: "nonsense"}}
        routes: [{channels: opps}, {rules: SymbolStael, channels: ops}]
        thresholds: {SymbolStael: {for: 5m}, SymbolStale: {fro: 5m, behind: many}}
        price_rules: {BarsLost: {kind: threshold, symbols: AAPL, above: 1}}
        """
    ).splitlines()
    assert told[0] == "alerts.yaml: 8 problems"
    assert told[1] == "  channels.ops.url: the environment variable OPS_SLACK_URL is not set"
    assert told[2].startswith("  channels.odd.url: the channel odd has no URL that can be read")
    assert told[3] == "  routes.0.channels: no channel is called 'opps': did you mean ops?"
    assert told[4].startswith("  routes.1.rules: no rule is called 'SymbolStael': did you mean SymbolStale")
    assert told[5].startswith("  thresholds.SymbolStael: no rule is called so: did you mean SymbolStale")
    assert told[6].startswith("  thresholds.SymbolStale.fro: no such option")
    assert told[7].startswith("  thresholds.SymbolStale.behind: 'many' is no number")
    assert told[8] == "  price_rules.BarsLost: is the name of a built-in rule: expected another"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("chanels: {}", "chanels: is not known here: did you mean channels?"),
        ("- a list", "the file: input should be"),
        ("channels: {ops: {uri: log://}}", "channels.ops.uri: is not known here: did you mean url?"),
        ("channels: {ops: {}}", "channels.ops.url: is missing"),
        ("channels: {'no good': log://}", "'no good' is not a name"),
        ("channels: {ops: '${}'}", "channels.ops.url: ${…} does not hold the name"),
        ("channels: {ops: slack://CHANGE_ME/CHANGE_ME/CHANGE_ME}", "channels.ops.url: holds a sample value"),
        ("channels: {ops: slack://xxxxxxxxx/xxxxxxxxx/xxxxxxxxxxxxxxxxxxxxxxxx}", "channels.ops.url: holds a sample value"),
        ("channels: {ops: unheardof://somewhere}", "channels.ops.url: the channel ops (unheardof://…) is none"),
        ("channels: {ops: json://169.254.169.254/latest}", "where machines keep their credentials"),
        ("channels: {ops: log://}\nchannels: {}", "line 2: 'channels' stands there for the second time"),
        ("thresholds: {SymbolStale: {for: 1m, for: 2m}}", "'for' stands there for the second time"),
        ("channels: {ops: &a log://, b: *a}", "references (*name) are not taken"),
        ("channels: {? [a] : b}", "a key is not text"),
        ("channels: !!python/object/apply:os.system [ls]", "not YAML: could not determine a constructor"),
        ("channels: [", "line 1: not YAML"),
        ("routes: [{severities: loud}]", "routes.0.severities.0: input should be 'critical', 'warning' or 'info'"),
        ("thresholds: {SymbolStale: {for: soon}}", "thresholds.SymbolStale.for: 'soon' is not a duration"),
        ("thresholds: {SymbolStale: {severity: loud}}", "thresholds.SymbolStale.severity: 'loud' is no severity"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_reason(text: str, told: str) -> None:
    assert told in problems_of(text)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ("kind: threshold, symbols: AAPL", "expected above, below, or both"),
        ("kind: threshold, above: 1", "expected either symbols or tier"),
        ("kind: threshold, above: 1, symbols: AAPL, tier: T0", "expected either symbols or tier"),
        ("kind: threshold, above: 1, below: 2, symbols: AAPL", "below 2 is not less than above 1"),
        ("kind: threshold, above: .nan, symbols: AAPL", "above: input should be"),
        ("kind: threshold, above: -1, symbols: AAPL", "above: input should be greater than 0"),
        ("kind: threshold, above: 1, symbols: [AAPL, AAPL]", "expected each symbol once"),
        ("kind: threshold, above: 1, symbols: [ON]", "True is not text: put symbols"),
        ("kind: threshold, above: 1, symbols: aapl", "'aapl' is not a symbol"),
        ("kind: threshold, above: 1, symbols: AAPL, window: 5m", "window: a threshold has none"),
        ("kind: threshold, above: 1, symbols: AAPL, field: bid", "field: is of quotes"),
        ("kind: threshold, above: 1, symbols: AAPL, source: quote, interval: 1m", "interval: is of candles"),
        ("kind: move, symbols: AAPL, window: 5m", "expected by, such as 3%"),
        ("kind: move, symbols: AAPL, by: 3, window: 5m", "3 is 300%: expected a share"),
        ("kind: move, symbols: AAPL, by: 120%, window: 5m", "no price falls by all of itself"),
        ("kind: move, symbols: AAPL, by: 3%", "expected window"),
        ("kind: move, symbols: AAPL, by: 3%, window: 30s", "shorter than a bar of 1m"),
        ("kind: move, symbols: AAPL, by: 3%, window: 2d", "2,880 bars of 1m: expected at most 500; take a longer interval"),
        ("kind: move, symbols: AAPL, by: 3%, window: 2d, source: quote", "expected up to 1d of quotes"),
        ("kind: cross, symbols: AAPL, window: 90s", "expected two bars of 1m or more, and whole ones"),
        ("kind: cross, symbols: AAPL, window: 5m, source: quote", "an average is of the closes of candles"),
        ("kind: cross, symbols: AAPL, window: 5m, by: 3%", "by: is for kind: move"),
        ("kind: threshold, above: 1, symbols: AAPL, max_age: 30d", "max_age: expected at most 1000m"),
        ("kind: threshold, above: 1, symbols: AAPL, source: quote, max_age: 2d", "max_age: expected at most 1d"),
        ("kind: spike, symbols: AAPL", "kind: input should be 'threshold', 'move' or 'cross'"),
    ],
)
def test_a_rule_over_prices_that_cannot_hold_is_refused(fields: str, told: str) -> None:
    assert told in problems_of(f"price_rules: {{Mine: {{{fields}}}}}")


@pytest.mark.parametrize(
    "text",
    [
        f"channels: {{ops: {{url: '{SLACK}', uri: '{SLACK}'}}}}",
        f"channels: {{'{SLACK}': log://}}",
        f"channels: {{ops: ['{SLACK}']}}",
        f"channels: '{SLACK}'",
        f"channels: {{ops: {{url: 'slack://{SECRET}'}}}}",
        f"channels: {{ops: {{url: '{SLACK}'}}, ops: 1}}\nroutes: [{{channels: '{SLACK}'}}]",
        f"routes: [{{channels: '{SLACK}', rules: '{SLACK}'}}]",
        f"thresholds: {{SymbolStale: {{'{SLACK}': 1, for: '{SLACK}'}}}}",
        f"channels:\n  ops: '{SLACK}\n",
        f"channels: {{ops: {SLACK}: {SLACK}}}",
        f"? {SLACK}\n? {SLACK}\n",
    ],
)
def test_no_message_repeats_a_secret_wherever_it_stands(text: str) -> None:
    assert SECRET not in problems_of(text)


def test_a_file_of_more_than_a_mebibyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "alerts.yaml"
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigurationError, match="larger than 1 MiB"):
        read_alerts_file(path)


def test_a_file_that_is_nested_without_end_is_refused() -> None:
    assert "nested deeper than" in problems_of("[" * 5_000)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read the alerts file .*none\.yaml"):
        read_alerts_file(tmp_path / "none.yaml")


@given(st.binary(max_size=200) | st.text(alphabet="channelsrout: {}[]\n-*&'#", max_size=60).map(str.encode))
def test_whatever_stands_in_the_file_there_is_a_configuration_or_a_reason(data: bytes) -> None:
    problem = None
    try:
        parse_alerts(data, name="alerts.yaml", environment={})
    except ConfigurationError as refused:
        problem = str(refused)
    assert problem is None or problem.startswith("alerts.yaml: ")


# --- a file that changes -----------------------------------------------------------------------------------------------


def test_a_file_that_breaks_leaves_the_last_good_one_in_force_until_it_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "alerts.yaml"
    path.write_text("channels: {log: log://}")
    file = AlertsFile(path, environment={})
    good, problem = file.current()
    assert (list(good.channels), problem) == (["log"], None)
    path.write_text("channels: {log: log://")
    assert file.current() == (good, f"{path}: 1 problem\n  line 1: not YAML: expected ',' or '}}', but got '<stream end>'")
    path.unlink()
    kept, problem = file.current()
    assert kept == good
    assert problem is not None
    assert "cannot read" in problem
    path.write_text("channels: {other: log://}")
    mended, problem = file.current()
    assert (list(mended.channels), problem) == (["other"], None)


def test_a_file_that_never_worked_is_no_file_without_alerts_and_works_once_it_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "alerts.yaml"
    file = AlertsFile(path, environment={})
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="cannot read"):
            file.current()
    path.write_text("channels: {log: log://}")
    assert list(file.current()[0].channels) == ["log"]


def test_a_process_without_a_file_has_nothing_configured() -> None:
    assert alerts_of_process(None).current() == (NO_CONFIG, None)
    assert alerts_of_process(None) is alerts_of_process(None)


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "alerts.yaml"
    path.write_text("channels: {log: log://}")
    file = AlertsFile(path, environment={})
    assert file.current()[0] is file.current()[0]


def test_a_new_file_of_the_same_size_and_time_is_read(tmp_path: Path) -> None:
    path, other = tmp_path / "alerts.yaml", tmp_path / "new.yaml"
    for place, name in ((path, "one"), (other, "two")):
        place.write_text(f"channels: {{{name}: log://}}")
        os.utime(place, (1_700_000_000, 1_700_000_000))
    file = AlertsFile(path, environment={})
    assert list(file.current()[0].channels) == ["one"]
    other.replace(path)
    assert list(file.current()[0].channels) == ["two"]


@pytest.mark.parametrize(
    ("mode", "text", "exposed"),
    [
        (0o644, f"channels: {{ops: '{SLACK}', log: log://}}", ("ops",)),
        (0o600, f"channels: {{ops: '{SLACK}'}}", ()),
        (0o644, "channels: {ops: '${OPS}'}", ()),
    ],
)
def test_secrets_in_a_file_that_others_may_read_are_told(tmp_path: Path, mode: int, text: str, exposed: tuple[str, ...]) -> None:
    path = tmp_path / "alerts.yaml"
    path.write_text(text)
    path.chmod(mode)
    assert exposed_channels(path) == exposed
