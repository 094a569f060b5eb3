"""Who can be asked now, and asking until one has answered: a real health book, providers that answer as they are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from market_data_pipeline.domain.capabilities import QUOTES_L1, Capability, RateLimit
from market_data_pipeline.domain.errors import (
    ConfigurationError,
    EntitlementError,
    InvalidInputError,
    NoProviderAvailableError,
    ProviderError,
    TransientError,
)
from market_data_pipeline.domain.health import HealthPolicy
from market_data_pipeline.domain.ports import Fetch, QuotesAnswer
from market_data_pipeline.ingest.routing import Router, check_names
from market_data_pipeline.settings import Settings
from market_data_pipeline.storage.health import HealthBook

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Engine

    from market_data_pipeline.domain.ports import Provider

NOW = datetime(2024, 12, 7, 12, tzinfo=UTC)
POLICY = HealthPolicy(breaker_failures=2)


@dataclass
class Vendor:
    """A provider of quotes whose answers are scripted: an error to raise, or nothing for an answer."""

    name: str
    script: list[type[ProviderError] | None] = field(default_factory=list)
    lacking: str | None = None
    serves: str = QUOTES_L1
    account: str = ""
    limits: Sequence[RateLimit] = ()
    probe_symbol: str = "AAPL"
    asked: int = 0

    @property
    def capabilities(self) -> Sequence[Capability]:
        return (Capability(name=self.serves),)

    def answer(self) -> QuotesAnswer:
        self.asked += 1
        error = self.script.pop(0) if self.script else None
        if error is not None:
            raise error("as scripted", provider=self.name)
        return QuotesAnswer(Fetch(self.name, "AAPL", None, "", NOW, 0.1, "ok"), ())


def called(provider: Provider) -> QuotesAnswer:
    assert isinstance(provider, Vendor)
    return provider.answer()


@pytest.fixture
def router(engine: Engine) -> Callable[..., Router]:
    def of(*vendors: Vendor, policy: str = "a,b,c", allow_source_override: bool = True) -> Router:
        settings = Settings(policy_quotes_l1=policy, allow_source_override=allow_source_override)
        return Router(settings, {vendor.name: vendor for vendor in vendors}, HealthBook(engine, POLICY))

    return of


def names(router: Router, *, hint: str | None = None, now: datetime = NOW) -> list[str]:
    return [provider.name for provider, _ in router.candidates(QUOTES_L1, hint=hint, now=now).order]


def test_the_policy_is_the_order_and_everybody_passed_over_has_a_reason(router: Callable[..., Router]) -> None:
    a, c = Vendor("a", lacking="MDP_A_KEY is not set"), Vendor("c", serves="macro")
    route = router(a, Vendor("b"), c, policy="a,b,c,d").candidates(QUOTES_L1, now=NOW)
    assert [provider.name for provider, _ in route.order] == ["b"]
    assert route.passed_over == {
        "a": "MDP_A_KEY is not set",
        "c": "it does not serve quotes_l1",
        "d": "it is not configured",
    }


def test_the_first_answer_is_taken_and_nobody_else_is_asked(router: Callable[..., Router]) -> None:
    a, b = Vendor("a"), Vendor("b")
    assert router(a, b).ask(QUOTES_L1, called, now=NOW).fetch.provider == "a"
    assert (a.asked, b.asked) == (1, 0)


def test_after_a_failure_the_next_is_asked_and_the_last_error_is_raised_where_all_fail(router: Callable[..., Router]) -> None:
    a, b = Vendor("a", [TransientError, TransientError]), Vendor("b", [None, TransientError])
    asking = router(a, b)
    assert asking.ask(QUOTES_L1, called, now=NOW).fetch.provider == "b"
    with pytest.raises(TransientError, match="b: as scripted"):
        asking.ask(QUOTES_L1, called, now=NOW)


def test_an_open_breaker_is_not_asked_until_it_has_cooled_and_then_once(router: Callable[..., Router]) -> None:
    a, b = Vendor("a", [TransientError] * 3), Vendor("b")
    asking = router(a, b)
    for _ in range(4):
        asking.ask(QUOTES_L1, called, now=NOW)
    assert (a.asked, b.asked) == (2, 4)
    assert "breaker open until" in asking.candidates(QUOTES_L1, now=NOW).passed_over["a"]
    later = NOW + timedelta(seconds=61)
    assert names(asking, now=later) == ["a", "b"]
    assert asking.ask(QUOTES_L1, called, now=later).fetch.provider == "b"
    assert a.asked == 3
    asking.ask(QUOTES_L1, called, now=later)
    assert a.asked == 3
    assert asking.ask(QUOTES_L1, called, now=later + timedelta(seconds=61)).fetch.provider == "a"


def test_an_entitlement_that_is_lost_is_asked_for_again_after_a_day(router: Callable[..., Router]) -> None:
    a = Vendor("a", [EntitlementError])
    asking = router(a)
    with pytest.raises(EntitlementError):
        asking.ask(QUOTES_L1, called, now=NOW)
    with pytest.raises(NoProviderAvailableError, match=r"nobody can be asked .*: a: disabled until .*Z: as scripted; b: "):
        asking.ask(QUOTES_L1, called, now=NOW + timedelta(hours=23))
    assert a.asked == 1
    assert asking.ask(QUOTES_L1, called, now=NOW + timedelta(hours=25)).fetch.provider == "a"


def test_with_nobody_to_ask_the_error_names_every_reason(router: Callable[..., Router]) -> None:
    with pytest.raises(NoProviderAvailableError) as refusal:
        router(Vendor("a", lacking="MDP_A_KEY is not set")).ask(QUOTES_L1, called, now=NOW)
    expected = "a: MDP_A_KEY is not set; b: it is not configured; c: it is not configured"
    assert str(refusal.value) == f"nobody can be asked for quotes_l1: {expected}"


def test_a_hint_goes_first_and_need_not_stand_in_the_policy(router: Callable[..., Router]) -> None:
    asking = router(Vendor("a"), Vendor("b"), Vendor("z"))
    assert names(asking, hint="b") == ["b", "a"]
    assert names(asking, hint="z") == ["z", "a", "b"]
    assert names(router(Vendor("a"), Vendor("b"), allow_source_override=False), hint="b") == ["a", "b"]


def test_a_hint_that_means_nobody_is_refused_with_the_choices(router: Callable[..., Router]) -> None:
    asking = router(Vendor("a"), Vendor("m", serves="macro"))
    with pytest.raises(InvalidInputError, match="no provider is called 'x': expected one of a, m"):
        asking.candidates(QUOTES_L1, hint="x", now=NOW)
    with pytest.raises(InvalidInputError, match="m does not serve quotes_l1"):
        asking.candidates(QUOTES_L1, hint="m", now=NOW)


def test_how_complete_answers_are_is_remembered(engine: Engine) -> None:
    book, a = HealthBook(engine, POLICY), Vendor("a")
    asking = Router(Settings(policy_quotes_l1="a"), {"a": a}, book)
    asking.ask(QUOTES_L1, called, now=NOW, expected=10, received=lambda _: 5)
    book.flush()
    assert book.all()["a", QUOTES_L1].completeness == pytest.approx(0.9)


def test_a_policy_of_the_user_may_only_name_what_is_installed_and_one_as_shipped_may_name_more() -> None:
    check_names(Settings(), ["yahoo"])
    check_names(Settings(policy_bars_1m="yahoo,files"), ["files", "yahoo"])
    with pytest.raises(ConfigurationError, match="MDP_POLICY_BARS_1M names yaho, nobody: expected some of files, yahoo"):
        check_names(Settings(policy_bars_1m="yaho,files,nobody"), ["files", "yahoo"])
    with pytest.raises(ConfigurationError, match="MDP_LIMITS names yaho: expected some of yahoo"):
        check_names(Settings(limits="yaho=5/s"), ["yahoo"])
