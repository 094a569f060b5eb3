"""Every MDP_* variable, parsed and validated into one frozen Settings. Nothing is read at import."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from market_data_pipeline.domain.capabilities import parse_limits
from market_data_pipeline.domain.errors import ConfigurationError, InvalidInputError
from market_data_pipeline.domain.healing import HealingPolicy
from market_data_pipeline.domain.health import HealthPolicy
from market_data_pipeline.domain.queue import QueuePolicy
from market_data_pipeline.domain.redaction import is_sensitive
from market_data_pipeline.domain.universe import Tier

YAHOO_QUERY_URL = "https://query2.finance.yahoo.com"
YAHOO_COOKIE_URL = "https://fc.yahoo.com"
YAHOO_CRUMB_URL = "https://query1.finance.yahoo.com"
# Yahoo answers 429 to clients that do not look like a browser (PROVIDERS.md §1).
BROWSER_USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0 Safari/537.36"


def _http_url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError(f"{text!r} is not a URL: expected http://… or https://…")
    return text.rstrip("/")


# What is shorter is no secret, and hiding it everywhere would hide everything.
_SHORTEST_SECRET = 8

HttpUrl = Annotated[str, AfterValidator(_http_url)]


def _names(text: str) -> str:
    listed = [name.strip() for name in text.split(",")]
    if not all(listed):
        raise ValueError(f"{text!r}: expected names of providers with commas between them, such as yahoo,alpaca")
    if len(set(listed)) < len(listed):
        raise ValueError(f"{text!r} names a provider twice")
    return ",".join(listed)


Names = Annotated[str, AfterValidator(_names)]


def _limits(text: str) -> str:
    try:
        parse_limits(text)
    except InvalidInputError as wrong:
        raise ValueError(str(wrong)) from None
    return text


Limits = Annotated[str, AfterValidator(_limits)]


def _tier_numbers(text: str) -> str:
    numbers_by_tier(text)
    return text


def numbers_by_tier(text: str) -> dict[Tier, float]:
    """``T0=60,T1=300`` as a number a tier; a tier that is not named has 0. ValueError says what was expected."""
    numbers = dict.fromkeys(Tier, 0.0)
    for part in text.split(","):
        name, equals, number = part.strip().partition("=")
        try:
            value = float(number)
            numbers[Tier(name.strip())] = value
        except ValueError:
            value = -1.0
        if not equals or not 0 <= value < float("inf"):
            raise ValueError(f"{part.strip()!r} in {text!r}: expected TIER=NUMBER, numbers from 0 on, such as T0=60,T1=300,T2=0")
    return numbers


TierNumbers = Annotated[str, AfterValidator(_tier_numbers)]


class Settings(BaseSettings):
    """What this process was told. Each field is the variable MDP_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="MDP_", frozen=True, extra="ignore")

    home: Path = Field(default=Path(".mdp"), description="Where the embedded Postgres, Dagster's home, logs and plans live.")
    database_url: SecretStr | None = Field(default=None, description="A Postgres of your own; unset: the embedded one.")
    dagster_url: HttpUrl = Field(default="http://127.0.0.1:3000", description="Where the Dagster webserver answers.")
    clock: str = Field(default="system", description='"system", an instant to stand still at, or a simulator\'s control URL.')
    calendar_overrides: Path | None = Field(
        default=None, description="CSV of sessions that calendars do not know (docs/concepts.md)."
    )
    yahoo_base_url: HttpUrl = Field(default=YAHOO_QUERY_URL, description="Base URL of Yahoo's chart host, or of `mdp simulate`.")
    yahoo_user_agent: str = Field(default=BROWSER_USER_AGENT, description="User-Agent sent to Yahoo and CBOE.")
    yahoo_cookie_url: HttpUrl = Field(default=YAHOO_COOKIE_URL, description="Where Yahoo hands out the cookie of a session.")
    yahoo_crumb_url: HttpUrl = Field(default=YAHOO_CRUMB_URL, description="Where Yahoo hands out the crumb of a session.")
    finnhub_base_url: HttpUrl = Field(default="https://finnhub.io/api/v1", description="Base URL of Finnhub.")
    finnhub_key: SecretStr | None = Field(default=None, description="Finnhub's API key; sent as a header.")
    finnhub_bid_ask: bool = Field(default=False, description="Whether this key may ask for bid and ask (premium).")
    alpaca_base_url: HttpUrl = Field(default="https://data.alpaca.markets", description="Base URL of Alpaca's market data.")
    alpaca_key_id: SecretStr | None = Field(default=None, description="Alpaca's key id; sent as a header.")
    alpaca_secret_key: SecretStr | None = Field(default=None, description="Alpaca's secret key; sent as a header.")
    alpaca_feed: Literal["iex", "sip", "delayed_sip"] = Field(
        default="iex",
        description="Which of Alpaca's feeds this key may use; delayed_sip, free: all but 15 minutes.",
    )
    massive_base_url: HttpUrl = Field(default="https://api.massive.com", description="Base URL of Massive, formerly Polygon.")
    massive_key: SecretStr | None = Field(default=None, description="Massive's API key; sent as a header.")
    massive_plan: Literal["basic", "starter", "developer", "advanced"] = Field(
        default="basic", description="The plan of that key: how far back it reaches, how late it is, how often it may ask."
    )
    alphavantage_base_url: HttpUrl = Field(default="https://www.alphavantage.co", description="Base URL of Alpha Vantage.")
    alphavantage_key: SecretStr | None = Field(default=None, description="Alpha Vantage's API key; it takes it only in the URL.")
    alphavantage_stamp: Literal["open", "close"] = Field(
        default="open", description="Which instant its minutes are named by. An answer that contradicts it is refused by name."
    )
    cboe_base_url: HttpUrl = Field(default="https://cdn.cboe.com", description="Base URL of CBOE's delayed quotes.")
    fred_base_url: HttpUrl = Field(default="https://api.stlouisfed.org", description="Base URL of FRED and ALFRED.")
    fred_key: SecretStr | None = Field(default=None, description="FRED's API key; it takes it only in the URL.")
    files_dir: Path | None = Field(default=None, description="A directory of vendor files to serve bars from (docs/providers.md).")
    policy_bars_1m: Names = Field(default="yahoo,alpaca,massive,finnhub,files", description="Who is asked for 1m bars, in order.")
    policy_bars_1h: Names = Field(default="yahoo,files", description="Who is asked for 1h bars, in order.")
    policy_eod: Names = Field(
        default="yahoo,alpaca,massive,alphavantage,finnhub,cboe,files", description="Who is asked for 1d bars, in order."
    )
    policy_quotes_l1: Names = Field(default="alpaca,yahoo,finnhub,cboe", description="Who is asked for quotes, in order.")
    policy_options_chain: Names = Field(default="cboe,yahoo", description="Who is asked for option chains, in order.")
    policy_macro: Names = Field(default="fred", description="Who is asked for economic series, in order.")
    allow_source_override: bool = Field(default=True, description="Whether a run may name the provider to ask first.")
    allow_mixed_feeds: bool = Field(
        default=False, description="Whether a fallback may fill a gap from a feed that counts other trades (IEX for SIP), labelled."
    )
    limits: Limits = Field(default="", description="Rate limits instead of the documented ones: yahoo=5/s,2000/h;finnhub=none.")
    latency_cap_ms: float = Field(
        default=1000.0, gt=0, description="The p95 latency at which the health term for latency is spent."
    )
    demote_below: float = Field(default=0.55, ge=0, le=1, description="A provider whose health falls below this is asked last.")
    promote_above: float = Field(default=0.70, ge=0, le=1, description="It is asked in its old place again above this.")
    breaker_failures: int = Field(default=5, ge=1, description="Failures in a row that open a provider's breaker.")
    breaker_cooldown_seconds: float = Field(default=60.0, gt=0, description="How long an open breaker rests before one trial.")
    second_opinion_share: float = Field(
        default=0.01, ge=0, le=1, description="Share of finished sessions that a second provider is asked about."
    )
    quote_stale_seconds: float = Field(
        default=900.0, gt=0, description="A quote or chain older than this when it comes, its delay allowed for, is flagged."
    )
    http_timeout_seconds: float = Field(default=20.0, gt=0, description="Time-out of one HTTP attempt.")
    http_deadline_seconds: float = Field(default=90.0, gt=0, description="Time-out of one request with all its retries.")
    http_attempts: int = Field(default=4, ge=1, description="How often a transient failure is tried, the first time included.")
    http_backoff_seconds: float = Field(default=0.5, ge=0, description="The first wait between attempts; it doubles, with jitter.")
    http_max_body_bytes: int = Field(default=64 << 20, gt=0, description="A longer body is refused.")
    requests_in_flight: int = Field(default=4, ge=1, le=64, description="Requests to one provider at a time, per run.")
    settle_seconds: int = Field(default=90, ge=0, description="How long after its end a bar is still pending.")
    confirm_after: int = Field(default=3, ge=2, description="Spaced answers without a minute before it is confirmed empty.")
    give_up_after: int = Field(default=6, ge=2, description="Fruitless answers before a gap is no longer asked for.")
    heal_backoff_seconds: float = Field(default=900.0, ge=0, description="Wait before the second attempt; then four times longer.")
    heal_every_seconds: int = Field(default=30, ge=1, description="How often the gap sensor looks.")
    give_up_failures: int = Field(default=24, ge=2, description="Failures in a row before a gap is no longer asked for.")
    heal_requests_per_tick: int = Field(default=25, ge=1, le=100, description="Most runs that the gap sensor asks for in one tick.")
    heal_budget_share: float = Field(
        default=0.3, gt=0, le=1, description="Most of a provider's rate limits that healing, rechecks included, may use."
    )
    tier_caps: TierNumbers = Field(
        default="T0=1200,T1=3000", description="Most symbols of T0 and T1 that `mdp universe tiers` assigns; the rest is T2."
    )
    bars_every_seconds: TierNumbers = Field(
        default="T0=60,T1=300,T2=0",
        description="How often the newest bars of a tier are asked for while its market is open; 0: never.",
    )
    quotes_every_seconds: TierNumbers = Field(
        default="T0=5,T1=15,T2=0", description="How often `mdp collect` asks for quotes of a tier; 0: never."
    )
    queue_caps: TierNumbers = Field(default="T0=5000,T1=10000,T2=20000", description="Most jobs of a tier that may be queued.")
    queue_concurrency: TierNumbers = Field(
        default="T0=4,T1=2,T2=1", description="Runs that work on queued jobs of a tier at a time."
    )
    queue_dispatch_per_second: TierNumbers = Field(
        default="T0=20,T1=10,T2=5", description="Queued jobs of a tier given out a second."
    )
    queue_lease_seconds: float = Field(default=120.0, ge=10, description="A job whose worker is silent for so long is another's.")
    queue_most_attempts: int = Field(default=5, ge=1, description="How often a job is given out before it is a dead letter.")
    use_rlc: bool = Field(
        default=False, description="Jobs come from a Rate-Limit Coordinator's Redis lists; False: the local sweeper."
    )
    redis_url: SecretStr | None = Field(default=None, description="Redis of the Rate-Limit Coordinator: redis://host:6379/0.")
    partition_budget: int = Field(default=60_000, ge=1, description="Most partitions an asset may have; the grain follows from it.")
    event_retention_days: int = Field(default=30, ge=1, description="Finished Dagster runs older than this are pruned.")
    quotes_retention_days: int = Field(default=14, ge=1, description="Quotes older than this are pruned.")
    chains_retention_days: int = Field(default=365, ge=1, description="Option chains older than this are pruned.")
    fetches_retention_days: int = Field(
        default=90, ge=7, description="Provenance that no kept row names, and refused rows, are pruned when older than this."
    )
    slo_targets: TierNumbers = Field(
        default="T0=0.005,T1=0.02,T2=0.05", description="Share of tradable symbols, and of due bars, that may be late, by tier."
    )
    eod_within_seconds: int = Field(
        default=7200, ge=0, description="How long after the close a bar may come that is not collected while the market is open."
    )
    watch_every_seconds: float = Field(default=30.0, ge=5, description="How often SLOs and alert rules are looked at.")
    alerts_file: Path | None = Field(default=None, description="YAML of channels, routes, thresholds and price rules.")
    disk_free_least: float = Field(default=0.1, ge=0, le=1, description="Free share of the disk below which an alert begins.")
    serve_host: str = Field(default="127.0.0.1", description="Where `mdp serve` listens.")
    serve_port: int = Field(default=8600, ge=0, le=65535, description="Its port; 0: any that is free.")
    log_format: Literal["text", "json"] = Field(default="text", description="Logs for people, or one JSON object a line.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="The least that is logged.")
    # The reference's names of these two hold as well: VIZTRACER_ENABLED and VIZ_OUT_DIR.
    viztracer_enabled: bool = Field(
        default=False,
        validation_alias=AliasChoices("mdp_viztracer_enabled", "viztracer_enabled"),
        description="Whether maybe_trace records (extra `tracing`).",
    )
    viz_out_dir: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("mdp_viz_out_dir", "viz_out_dir"),
        description="Where it writes; unset: MDP_HOME/traces.",
    )
    otel_endpoint: HttpUrl | None = Field(
        default=None, description="OTLP/HTTP endpoint for spans (extra `telemetry`); unset: nothing is recorded."
    )

    @property
    def healing_policy(self) -> HealingPolicy:
        """How often to ask again, as the domain takes it."""
        return HealingPolicy(
            confirm_after=self.confirm_after,
            give_up_after=self.give_up_after,
            give_up_failures=self.give_up_failures,
            backoff_seconds=self.heal_backoff_seconds,
        )

    @property
    def queue_policy(self) -> QueuePolicy:
        """The limits of the job queue, as the domain takes them."""
        return QueuePolicy(
            caps={tier: int(number) for tier, number in numbers_by_tier(self.queue_caps).items()},
            concurrency={tier: int(number) for tier, number in numbers_by_tier(self.queue_concurrency).items()},
            dispatch_per_second=numbers_by_tier(self.queue_dispatch_per_second),
            lease_seconds=self.queue_lease_seconds,
            most_attempts=self.queue_most_attempts,
        )

    @property
    def health_policy(self) -> HealthPolicy:
        """When a provider is asked last or not at all, as the domain takes it."""
        return HealthPolicy(
            latency_cap_seconds=self.latency_cap_ms / 1000,
            demote_below=self.demote_below,
            promote_above=self.promote_above,
            breaker_failures=self.breaker_failures,
            breaker_cooldown_seconds=self.breaker_cooldown_seconds,
            # A trial is a request with all its retries; whoever takes longer is dead.
            trial_seconds=self.http_deadline_seconds + 30.0,
        )

    def policy(self, capability: str) -> tuple[str, ...]:
        """The names of the providers for ``capability``, in order; empty for one that no policy is about."""
        return tuple(filter(None, str(getattr(self, f"policy_{capability}", "")).split(",")))

    @classmethod
    def from_environment(cls) -> Settings:
        """The settings of this process; ConfigurationError names each variable that cannot be used and why."""
        try:
            settings = cls()
        except ValidationError as invalid:
            # from None: pydantic's text repeats the input, which may be a database URL with its password.
            problems = "; ".join(
                f"MDP_{str(e['loc'][0]).upper().removeprefix('MDP_')}: {e['msg']}" for e in invalid.errors(include_input=False)
            )
            raise ConfigurationError(problems) from None
        if settings.demote_below >= settings.promote_above:
            raise ConfigurationError(
                f"MDP_DEMOTE_BELOW {settings.demote_below:g} must be less than MDP_PROMOTE_ABOVE {settings.promote_above:g}"
            )
        return settings.model_copy(update={"home": Path(os.path.abspath(settings.home.expanduser()))})  # noqa: PTH100 - resolve() would follow symlinks


def secrets_of(settings: Settings) -> frozenset[str]:
    """The values that must not be shown, wherever they stand: those of secret settings and of this environment's secrets.

    Of a URL with a password, the password alone, too.
    """
    told = {value.get_secret_value() for _, value in settings if isinstance(value, SecretStr)}
    # Of providers that are installed beside ours. A field that is no secret only sounds like one: MDP_YAHOO_COOKIE_URL.
    ours = {f"MDP_{name.upper()}" for name in Settings.model_fields}
    told |= {v for name, v in os.environ.items() if name.startswith("MDP_") and is_sensitive(name) and name not in ours}
    urls = [value for value in told if "://" in value and "@" in value]
    with suppress(ValueError):
        told |= {unquote(password) for url in urls if (password := urlsplit(url).password)}
    return frozenset(value for value in told if len(value) >= _SHORTEST_SECRET)
