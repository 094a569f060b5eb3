"""Who we are to Yahoo: the cookie and the crumb that its quote services want to see, and what its errors mean."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from market_data_pipeline.domain.errors import (
    EntitlementError,
    OutOfReachError,
    PayloadError,
    ProviderError,
    RateLimitedError,
    TransientError,
    UnknownSymbolError,
)
from market_data_pipeline.providers.wire import mapping, parse_json, refuse_outage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from market_data_pipeline.domain.capabilities import Priority
    from market_data_pipeline.providers.http import Attempt, HttpAnswer, HttpClient

NAME = "yahoo"
CRUMB_PATH = "/v1/test/getcrumb"
# The cookies that make a session; whatever else the page sets is nobody's business.
_COOKIE = re.compile(r"(?:^|,\s*)(?P<name>A1S?|A3)=(?P<value>[^;,\s]+)")
# 200: the refusal was in the body.
_PASS_REFUSED = frozenset({200, 401})
_CRUMB = re.compile(rb"[\x21-\x7e]{4,64}")

ERROR_KINDS: Mapping[str, type[ProviderError]] = {
    "Not Found": UnknownSymbolError,
    "Unprocessable Entity": OutOfReachError,
    "Too Many Requests": RateLimitedError,
    "Unauthorized": EntitlementError,
    "Forbidden": EntitlementError,
    "Internal Server Error": TransientError,
    "Service Unavailable": TransientError,
}


def error_of(error: object, subject: str) -> ProviderError:
    """What the ``error`` object of an answer stands for; one we do not know is a PayloadError."""
    code, description = (str(mapping(error, NAME).get(key, "")) for key in ("code", "description"))
    return ERROR_KINDS.get(code, PayloadError)(f"{subject}: {code}: {description}"[:300], provider=NAME)


def answered(body: bytes, name: str, subject: str) -> dict[str, Any]:
    """The object called ``name`` in a body; its error, which may come from the door-keeper in one called "finance", is raised."""
    document = mapping(parse_json(body, NAME), NAME)
    answer = mapping(document.get(name) or document.get("finance"), NAME)
    if answer.get("error") is not None:
        raise error_of(answer["error"], subject)
    return answer


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """A cookie and the crumb that goes with it: secrets, both."""

    cookie: str = field(repr=False)
    crumb: str = field(repr=False)


@dataclass(slots=True)
class YahooSession:
    """The pass of this process, fetched when first needed and kept in memory. Safe to use from several threads.

    ``cookie_url`` and ``crumb_url`` are base URLs; ``headers`` go with both requests.
    """

    http: HttpClient
    cookie_url: str
    crumb_url: str
    headers: Mapping[str, str]
    _held: Pass | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(
        self,
        url: str,
        parameters: Mapping[str, str | int],
        check: Callable[[HttpAnswer], None],
        *,
        priority: Priority,
        attempts: list[Attempt],
    ) -> HttpAnswer:
        """``HttpClient.get`` with the pass shown; where it is refused (401), once more with a new one.

        A pass costs two requests, noted in ``attempts`` like all others. Raises what ``HttpClient.get`` and ``check`` raise,
        RateLimitedError where "Too Many Requests" comes in place of a crumb, TransientError for consent pages and outages on the
        way to a pass, and EntitlementError where a new pass is refused, too.
        """
        shown = self._pass(None, priority, attempts)
        try:
            return self._ask(url, parameters, check, shown, priority, attempts)
        except EntitlementError:
            if attempts[-1].status not in _PASS_REFUSED:
                raise
        # Outside the handler: an error of the second attempt is about the second attempt.
        shown = self._pass(shown, priority, attempts)
        return self._ask(url, parameters, check, shown, priority, attempts)

    def _ask(
        self,
        url: str,
        parameters: Mapping[str, str | int],
        check: Callable[[HttpAnswer], None],
        shown: Pass,
        priority: Priority,
        attempts: list[Attempt],
    ) -> HttpAnswer:
        parameters = {**parameters, "crumb": shown.crumb}
        headers = {**self.headers, "cookie": shown.cookie}
        return self.http.get(url, parameters, headers, provider=NAME, priority=priority, check=check, attempts=attempts)

    def _pass(self, refused: Pass | None, priority: Priority, attempts: list[Attempt]) -> Pass:
        """The pass we hold, or a new one where we hold none or ``refused``. Threads refused together fetch one between them."""
        with self._lock:
            held = self._held
            if held is None or held is refused:
                self._held = None
                cookie = self._cookie(priority, attempts)
                self._held = held = Pass(cookie, self._crumb(cookie, priority, attempts))
            return held

    def _cookie(self, priority: Priority, attempts: list[Attempt]) -> str:
        found: list[str] = []

        def check(answer: HttpAnswer) -> None:
            # The page itself is a 404, and means nothing: the cookie that comes with it is all we want.
            cookies = {match["name"]: match["value"] for match in _COOKIE.finditer(answer.headers.get("set-cookie", ""))}
            if not cookies:
                refuse_outage(answer, NAME)
                raise TransientError(f"HTTP {answer.status} without the cookie of a session", provider=NAME)
            found.append("; ".join(f"{name}={value}" for name, value in cookies.items()))

        url = f"{self.cookie_url}/"
        self.http.get(url, None, self.headers, provider=NAME, priority=priority, check=check, attempts=attempts)
        return found[-1]

    def _crumb(self, cookie: str, priority: Priority, attempts: list[Attempt]) -> str:
        found: list[str] = []

        def check(answer: HttpAnswer) -> None:
            refuse_outage(answer, NAME)
            crumb = answer.body.strip()
            if answer.status != 200 or not _CRUMB.fullmatch(crumb) or crumb.startswith(b"{"):
                # Without the body: it may be a crumb all the same.
                raise PayloadError(f"HTTP {answer.status} with {len(crumb):,} bytes that are no crumb", provider=NAME)
            found.append(crumb.decode("ascii"))

        url = f"{self.crumb_url}{CRUMB_PATH}"
        headers = {**self.headers, "accept": "text/plain", "cookie": cookie}
        self.http.get(url, None, headers, provider=NAME, priority=priority, check=check, attempts=attempts)
        return found[-1]
