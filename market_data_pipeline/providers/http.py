"""The only place that speaks HTTP: turns every way a call can end into an answer or one of our errors, with no secret in either."""

from __future__ import annotations

import hashlib
import logging
import random
import re
import time
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Self
from urllib.parse import quote, quote_plus

import httpx
import tenacity

from market_data_pipeline.domain.capabilities import HISTORY
from market_data_pipeline.domain.errors import (
    ConfigurationError,
    EntitlementError,
    MarketDataError,
    PayloadError,
    ProviderError,
    RateLimitedError,
    TransientError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from market_data_pipeline.domain.capabilities import Priority
    from market_data_pipeline.domain.ports import Budget
    from market_data_pipeline.settings import Settings

_SENSITIVE_NAME = r"[\w.-]*(?:token|key|crumb|secret|passw(?:or)?d|signature|authorization|credential|cookie)[\w.-]*"
_SECRET_PARAMETER = re.compile(rf"(?i)(?<![\w.%-])({_SENSITIVE_NAME})=([^&#\s\"'<>]*)")
_SECRET_HEADER = re.compile(rf"(?i)(?<![\w.%-])[\"']?({_SENSITIVE_NAME})[\"']?:\s*(?:(?:bearer|basic)\s+)?[^\s,;&]+")
_SENSITIVE = re.compile(rf"(?i){_SENSITIVE_NAME}")
_USER_INFO = re.compile(r"(?<=://)[^/@\s?#]+@")
HIDDEN = "***"

# A provider that says "come back in a year" is wrong or means "not today": ask again tomorrow.
LONGEST_RETRY_AFTER_SECONDS = 86_400.0
_DECIMAL = re.compile(r"\d+(?:\.\d+)?")
# Anything shorter is no secret, and hiding it everywhere would make every message unreadable.
_SHORTEST_SECRET = 4
# The patterns are quadratic in a word made to hurt them: at 4 KiB that is a few milliseconds.
_EXCERPT_BYTES = 4 << 10
_UNUSABLE_URL = (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError)


def redact(text: str, secrets: Collection[str] = ()) -> str:
    """``text`` without the values of secret parameters and headers, without user:password@, and without any of ``secrets``.

    Do this before cutting a text short: half a key no longer looks like one.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        for form in (secret, quote(secret, safe=""), quote_plus(secret)):
            text = text.replace(form, HIDDEN)
    text = _USER_INFO.sub(f"{HIDDEN}@", text)
    text = _SECRET_PARAMETER.sub(rf"\1={HIDDEN}", text)
    return _SECRET_HEADER.sub(rf"\1: {HIDDEN}", text)


def describe(url: str, params: Mapping[str, str | int], headers: Mapping[str, str]) -> str:
    """A GET request as text for logs and provenance, redacted."""
    query = "&".join(f"{name}={quote(str(value), safe=',')}" for name, value in params.items())
    return redact(f"GET {url}?{query}" if query else f"GET {url}", _secrets_of(params, headers))


def _secrets_of(params: Mapping[str, str | int], headers: Mapping[str, str]) -> frozenset[str]:
    """The values of parameters and headers whose names say that they are secret."""
    named = ((name, str(value)) for name, value in (*params.items(), *headers.items()))
    return frozenset(value for name, value in named if _SENSITIVE.fullmatch(name) and len(value) >= _SHORTEST_SECRET)


@dataclass(frozen=True, slots=True)
class HttpPolicy:
    """How long we wait and how often we try.

    ``timeout_seconds`` bounds one attempt, ``deadline_seconds`` all of them with the waits between. A time-out is noticed when
    the next bytes arrive or fail to: a body that drips may last up to twice its time-out, and dripping headers longer still.
    ``max_body_bytes`` counts decoded bytes.
    """

    timeout_seconds: float = 20.0
    deadline_seconds: float = 90.0
    attempts: int = 4
    backoff_seconds: float = 0.5
    longest_backoff_seconds: float = 30.0
    max_body_bytes: int = 64 << 20
    connections: int = 16


@dataclass(frozen=True, slots=True)
class Attempt:
    """One HTTP request that was sent. ``outcome`` is "answered" or the ``kind`` of the error it ended in."""

    outcome: str
    latency_seconds: float
    status: int | None = None
    payload_bytes: int = 0
    payload_sha256: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What came back, for the adapter to classify: any status but 401, 402, 403, 429 and 5xx.

    ``headers`` have lower-case names. ``body`` is decoded (gzip undone). ``request`` is redacted text, ``latency_seconds`` that
    of the attempt that was answered.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    latency_seconds: float
    request: str
    secrets: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def content_type(self) -> str:
        """The media type without its parameters, lower case, "" where the server did not say."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def excerpt(self, limit: int = 160) -> str:
        """The start of the body as one line of text, redacted first, for messages."""
        text = redact(self.body[:_EXCERPT_BYTES].decode("utf-8", "replace"), self.secrets)
        return " ".join(text.split())[:limit]


class _Retriable(Exception):  # noqa: N818 - a signal inside this module, never seen outside it
    """An attempt failed with ``error``; another may be sent, no sooner than ``retry_after`` where the provider said so."""

    def __init__(self, error: ProviderError, retry_after: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class _Call:
    """One ``get``: what is asked, by whom, until when, and what must not be said aloud."""

    url: str
    params: Mapping[str, str | int]
    headers: Mapping[str, str]
    provider: str
    check: Callable[[HttpAnswer], None] | None
    attempts: list[Attempt]
    deadline: float
    account: str
    priority: Priority
    cached: bool

    @property
    def secrets(self) -> frozenset[str]:
        return _secrets_of(self.params, self.headers)

    def redact(self, text: str) -> str:
        return redact(text, self.secrets)

    @property
    def described(self) -> str:
        return describe(self.url, self.params, self.headers)

    @property
    def host(self) -> str:
        return httpx.URL(self.url).netloc.decode()

    def transient(self, message: str) -> TransientError:
        return TransientError(message, provider=self.provider)


class HttpClient:
    """GET with time-outs, a size limit and retries, over one connection pool. Safe to use from several threads.

    The retry loop for seconds is here and nowhere else; what it leaves is a gap, and gaps heal in hours. ``sleep``, ``clock``
    (monotonic seconds), ``wall_clock`` and ``rng`` are handed in so that tests never wait.
    """

    def __init__(
        self,
        policy: HttpPolicy | None = None,
        *,
        budget: Budget | None = None,
        sleep: Callable[[float], None] = tenacity.nap.sleep,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        rng: random.Random | None = None,
    ) -> None:
        self.policy = policy or HttpPolicy()
        self._budget = budget
        self._sleep = sleep
        self._clock = clock
        self._wall_clock = wall_clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries out, protects nothing
        # At INFO httpx prints every URL, and providers take keys in the URL.
        for name in ("httpx", "httpcore"):
            logger = logging.getLogger(name)
            logger.setLevel(max(logger.level, logging.WARNING))
        pool = self.policy.connections
        self._client = httpx.Client(
            follow_redirects=False,
            limits=httpx.Limits(max_connections=pool, max_keepalive_connections=pool, keepalive_expiry=30.0),
            # A proxy of the environment cannot reach the simulator on this machine.
            mounts={"all://127.0.0.1": None, "all://localhost": None, "all://[::1]": None},
            # gzip alone: we undo it ourselves, within the size limit and noticing a stream that was cut.
            headers={"accept-encoding": "gzip"},
        )

    @classmethod
    @contextmanager
    def open(cls, settings: Settings, budget: Budget | None = None) -> Iterator[HttpClient]:
        """A client with the time-outs and limits of ``settings``, closed at the end."""
        policy = HttpPolicy(
            timeout_seconds=settings.http_timeout_seconds,
            deadline_seconds=settings.http_deadline_seconds,
            attempts=settings.http_attempts,
            backoff_seconds=settings.http_backoff_seconds,
            max_body_bytes=settings.http_max_body_bytes,
            # One more than the requests in flight: the simulator's clock is asked over the same pool.
            connections=settings.requests_in_flight + 1,
        )
        with cls(policy, budget=budget) as client:
            yield client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Repeating it is safe."""
        self._client.close()

    def get(  # noqa: PLR0913 - what is asked, for whom, and how the answer is to be taken
        self,
        url: str,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        provider: str,
        account: str = "",
        priority: Priority = HISTORY,
        check: Callable[[HttpAnswer], None] | None = None,
        attempts: list[Attempt] | None = None,
        cached: bool = False,
    ) -> HttpAnswer:
        """The answer to GET ``url``, after as many attempts as the policy allows for transient failures.

        Every request, each attempt by itself, is taken from the budget of ``provider`` and ``account`` first, for ``priority``; a
        429 tells the budget. ``cached``: an answer we hold may be used where the provider says that it still stands.

        ``check`` sees each answer and may raise: a TransientError (an outage page with status 200) is retried like a 503. Every
        request sent is appended to ``attempts``, also when the call raises.

        Raises TransientError (time-out, reset, DNS, TLS, truncated or corrupt body, 5xx), RateLimitedError (429: at once, unless
        the provider named a wait that fits the deadline), EntitlementError (401, 402, 403), PayloadError (a body too large or in
        an encoding we did not ask for), BudgetSpentError (our own budget leaves no room in time: nothing was sent),
        ConfigurationError (a URL that cannot be requested). Redirects are returned, not followed.
        """
        attempts = [] if attempts is None else attempts
        deadline = self._clock() + self.policy.deadline_seconds
        call = _Call(url, params or {}, headers or {}, provider, check, attempts, deadline, account, priority, cached)
        retrying = tenacity.Retrying(
            sleep=self._sleep,
            retry=tenacity.retry_if_exception_type(_Retriable),
            wait=self._pause,
            stop=lambda state: state.attempt_number >= self.policy.attempts or self._clock() + state.upcoming_sleep >= deadline,
            reraise=True,
        )
        failure: MarketDataError
        try:
            return retrying(self._attempt, call)
        except _Retriable as last:
            failure = last.error
        except ProviderError as refused:
            failure = refused
        except _UNUSABLE_URL as unusable:
            failure = ConfigurationError(f"{provider}: cannot request {call.described}: {call.redact(str(unusable))}")
        if len(attempts) > 1:
            failure.args = (f"{failure} (attempt {len(attempts)} of {self.policy.attempts})",)
        # Outside the handlers, for the chain holds URLs: `from None` only hides it, and error reporters follow __context__.
        failure.__cause__ = failure.__context__ = None
        raise failure

    def _attempt(self, call: _Call) -> HttpAnswer:
        """Send it once and note how that went. Raises _Retriable where another attempt may be sent."""
        self._take_from_budget(call)
        started = self._clock()
        answer: HttpAnswer | None = None
        failure: ProviderError
        try:
            answer = self._send(call, started)
            self._refuse_by_status(call, answer)
            if call.check is not None:
                call.check(answer)
        except ProviderError as error:
            failure = error
        except httpx.TimeoutException as late:
            failure = call.transient(f"{call.host}: {_words(late)} after {self._clock() - started:.1f} s")
        except _UNUSABLE_URL:
            raise
        except httpx.HTTPError as broken:
            failure = call.transient(f"{call.host}: {_words(broken)}: {call.redact(str(broken)) or 'no detail'}")
        else:
            call.attempts.append(_noted("answered", answer.latency_seconds, answer))
            return answer
        latency = answer.latency_seconds if answer else self._clock() - started
        call.attempts.append(_noted(failure.kind, latency, answer, error=str(failure)))
        retry_after = self._retry_after(answer.headers) if answer else None
        if isinstance(failure, RateLimitedError):
            self._note_refusal(call, failure, retry_after)
            retry_after = failure.retry_after_seconds
        if isinstance(failure, TransientError) or (isinstance(failure, RateLimitedError) and retry_after is not None):
            raise _Retriable(failure, retry_after)
        raise failure

    def _take_from_budget(self, call: _Call) -> None:
        """Before the attempt and no part of it: what is refused was never sent, and the wait is no latency of the provider."""
        if self._budget is not None:
            patience = max(call.deadline - self._clock(), 0.0)
            self._budget.take(call.provider, call.account, call.priority, patience_seconds=patience)

    def _note_refusal(self, call: _Call, refusal: RateLimitedError, retry_after: float | None) -> None:
        if refusal.retry_after_seconds is None:
            refusal.retry_after_seconds = retry_after
        if self._budget is not None:
            self._budget.refused(call.provider, call.account, retry_after_seconds=refusal.retry_after_seconds)

    def _send(self, call: _Call, started: float) -> HttpAnswer:
        patience = min(self.policy.timeout_seconds, call.deadline - started)
        # `params or None`: an empty mapping would strip the query that is in the URL already.
        with self._client.stream("GET", call.url, params=call.params or None, headers=call.headers, timeout=patience) as response:
            body = self._read(call, response, give_up_at=started + patience)
            return HttpAnswer(
                status=response.status_code,
                headers={name.lower(): value for name, value in response.headers.items()},
                body=body,
                latency_seconds=self._clock() - started,
                request=call.described,
                secrets=call.secrets,
            )

    def _read(self, call: _Call, response: httpx.Response, *, give_up_at: float) -> bytes:
        """The decoded body. Never holds more than the limit and one chunk, whatever a few compressed bytes unfold to."""
        limit = self.policy.max_body_bytes
        decoder = _decoder(call, response.headers.get("content-encoding", "").strip().lower())
        body = bytearray()
        for chunk in response.iter_raw():
            if self._clock() >= give_up_at:
                raise call.transient(f"{call.host}: the body was still arriving when the time-out passed, {len(body):,} bytes read")
            try:
                body += decoder.decompress(chunk, limit + 1 - len(body)) if decoder else chunk
            except zlib.error as corrupt:
                raise call.transient(f"{call.host}: corrupt gzip body: {corrupt}") from None
            if len(body) > limit:
                raise PayloadError(f"the body is longer than {limit:,} bytes", provider=call.provider)
        if decoder and not decoder.eof and response.num_bytes_downloaded:
            raise call.transient(f"{call.host}: the gzip body was cut short, {len(body):,} bytes decoded")
        return bytes(body)

    def _refuse_by_status(self, call: _Call, answer: HttpAnswer) -> None:
        said = f"HTTP {answer.status} {answer.excerpt()}".strip()
        if answer.status == 429:
            raise RateLimitedError(said, provider=call.provider)
        if answer.status in {401, 402, 403}:
            raise EntitlementError(said, provider=call.provider)
        if answer.status >= 500:
            raise call.transient(said)

    def _pause(self, state: tenacity.RetryCallState) -> float:
        """The provider's own wait, or a random one that doubles: workers that failed together must not come back together."""
        failed = state.outcome.exception() if state.outcome else None
        if isinstance(failed, _Retriable) and failed.retry_after is not None:
            return failed.retry_after
        ceiling = min(self.policy.backoff_seconds * 2.0 ** (state.attempt_number - 1), self.policy.longest_backoff_seconds)
        return ceiling * self._rng.uniform(0.5, 1.0)

    def _retry_after(self, headers: Mapping[str, str]) -> float | None:
        """Seconds to wait as Retry-After says (a number or an HTTP date), capped; None where absent or not understood."""
        text = headers.get("retry-after", "").strip()
        try:
            seconds = float(text) if _DECIMAL.fullmatch(text) else self._seconds_until(text, headers.get("date", ""))
        except (ValueError, TypeError, OverflowError):
            return None
        return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS)

    def _seconds_until(self, instant: str, sent: str) -> float:
        # Against the server's own Date where it sent one: its clock and ours may differ by more than the wait.
        now = _http_date(sent) if sent else self._wall_clock()
        return (_http_date(instant) - now).total_seconds()


def _http_date(text: str) -> datetime:
    instant = parsedate_to_datetime(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _decoder(call: _Call, encoding: str) -> zlib._Decompress | None:
    if encoding in {"", "identity"}:
        return None
    if encoding in {"gzip", "x-gzip"}:
        return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    raise PayloadError(f"the body is encoded as {encoding[:40]!r}; we asked for gzip or nothing", provider=call.provider)


def _noted(outcome: str, latency: float, answer: HttpAnswer | None, *, error: str | None = None) -> Attempt:
    body = answer.body if answer else b""
    return Attempt(
        outcome=outcome,
        latency_seconds=latency,
        status=answer.status if answer else None,
        payload_bytes=len(body),
        payload_sha256=hashlib.sha256(body).hexdigest() if body else None,
        error=error,
    )


def _words(error: Exception) -> str:
    """The class name in words: ConnectTimeout is "connect timeout"."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", type(error).__name__).lower()
