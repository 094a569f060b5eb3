"""Every MDP_* variable, parsed and validated into one frozen Settings. Nothing is read at import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.domain.healing import HealingPolicy

YAHOO_QUERY_URL = "https://query2.finance.yahoo.com"
# Yahoo answers 429 to clients that do not look like a browser (PROVIDERS.md §1).
BROWSER_USER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0 Safari/537.36"


def _http_url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError(f"{text!r} is not a URL: expected http://… or https://…")
    return text.rstrip("/")


HttpUrl = Annotated[str, AfterValidator(_http_url)]


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
    yahoo_user_agent: str = Field(default=BROWSER_USER_AGENT, description="User-Agent sent to Yahoo.")
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
    heal_requests_per_tick: int = Field(default=25, ge=1, le=100, description="Most runs that the gap sensor asks for in one tick.")
    partition_budget: int = Field(default=60_000, ge=1, description="Most partitions an asset may have; the grain follows from it.")
    event_retention_days: int = Field(default=30, ge=1, description="Finished Dagster runs older than this are pruned.")

    @property
    def healing_policy(self) -> HealingPolicy:
        """How often to ask again, as the domain takes it."""
        return HealingPolicy(
            confirm_after=self.confirm_after, give_up_after=self.give_up_after, backoff_seconds=self.heal_backoff_seconds
        )

    @classmethod
    def from_environment(cls) -> Settings:
        """The settings of this process; ConfigurationError names each variable that cannot be used and why."""
        try:
            settings = cls()
        except ValidationError as invalid:
            # from None: pydantic's text repeats the input, which may be a database URL with its password.
            problems = "; ".join(f"MDP_{str(e['loc'][0]).upper()}: {e['msg']}" for e in invalid.errors(include_input=False))
            raise ConfigurationError(problems) from None
        return settings.model_copy(update={"home": Path(os.path.abspath(settings.home.expanduser()))})  # noqa: PTH100 - resolve() would follow symlinks
