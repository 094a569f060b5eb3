"""The only place that speaks HTTP: turns every way a call can end into an answer or one of our errors, with no secret in either."""

from __future__ import annotations

import hashlib
import logging
import random
import re
import time
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qsl, quote, urlencode

import httpcore
import httpx
import tenacity
from h2.exceptions import H2Error

from market_data_pipeline.domain.capabilities import HISTORY
from market_data_pipeline.domain.errors import (
    BudgetSpentError,
    ConfigurationError,
    EntitlementError,
    PayloadError,
    ProviderError,
    RateLimitedError,
    TransientError,
)
from market_data_pipeline.domain.redaction import HIDDEN, SHORTEST_SECRET, is_sensitive, redact
from market_data_pipeline.domain.tracing import NO_TRACER
from market_data_pipeline.providers.answer_cache import AnswerCache, Kept
from market_data_pipeline.providers.connections import Connections

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from market_data_pipeline.domain.capabilities import Priority
    from market_data_pipeline.domain.ports import Budget
    from market_data_pipeline.domain.tracing import Tracer
    from market_data_pipeline.settings import Settings

# A provider that says "come back in a year" is wrong or means "not today": ask again tomorrow.
LONGEST_RETRY_AFTER_SECONDS = 86_400.0
_DECIMAL = re.compile(r"\d+(?:\.\d+)?")
# X-Ratelimit-Reset is an instant with some vendors and a number of seconds with others: no wait is as long as the epoch is old.
_OLDEST_INSTANT = 1e9
_SHORTEST_KEY = 8
# The patterns are quadratic in a word made to hurt them: at 4 KiB that is a few milliseconds.
_EXCERPT_BYTES = 4 << 10

_OUR_HEADERS = {
    "accept": "*/*",
    # gzip alone: we undo it ourselves, within the size limit and noticing a stream that was cut.
    "accept-encoding": "gzip",
    "user-agent": "market-data-pipeline",
}
# What h11 would refuse, with the whole value in its message. A key from a file often ends in a line break.
_HEADER_TEXT = re.compile(r"(?:[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?)?")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 3
_LAST_PORT = 65_535
_BROKEN = (httpcore.ConnectionNotAvailable, httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError, H2Error)


def describe(url: str, params: Mapping[str, str | int], headers: Mapping[str, str]) -> str:
    """A GET request as text for logs and provenance, redacted."""
    query = "&".join(f"{name}={quote(str(value), safe=',')}" for name, value in params.items())
    return redact(f"GET {url}?{query}" if query else f"GET {url}", _secrets_of(params, headers))


def _secrets_of(params: Mapping[str, str | int], headers: Mapping[str, str]) -> frozenset[str]:
    """The values of parameters and headers whose names say that they are secret."""
    named = [(name, str(value)) for name, value in (*params.items(), *headers.items()) if is_sensitive(name)]
    # A cookie is several secrets in one line, and an authorization has a word before it: an echo may show the part alone.
    parts = [part for _, value in named for word in value.split() for part in (word, word.partition("=")[2].rstrip(";"))]
    return frozenset(value for value in (*(value for _, value in named), *parts) if len(value) >= SHORTEST_SECRET)


logger = logging.getLogger(__name__)


class _Discreet(logging.Filter):
    """Lets warnings through, redacted, and nothing below: there the libraries print URLs, headers and cookies."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return False
        record.msg, record.args = redact(record.getMessage()), ()
        return True


_DISCREET = _Discreet()
# On each by its name: a filter is not inherited, and the level alone would yield to whoever sets a child's to DEBUG.
_TALKERS = (
    "h2",
    "hishel",
    "hishel.core.spec",
    "hishel._core._storages._sync_sqlite",
    "hpack",
    "hpack.hpack",
    "hpack.table",
    "httpcore",
    "httpcore.connection",
    "httpcore.http11",
    "httpcore.http2",
    "httpcore.proxy",
    "httpcore.socks",
    "httpx",
)


def _silence_talkers() -> None:
    for name in _TALKERS:
        logger = logging.getLogger(name)
        logger.addFilter(_DISCREET)
        # Beside the filter, for speed: a record that no level asks for is not made.
        logger.setLevel(max(logger.level, logging.WARNING))


@dataclass(frozen=True, slots=True)
class HttpPolicy:
    """How long we wait and how often we try.

    ``timeout_seconds`` bounds one attempt from the first byte sent to the last received, however they drip; ``deadline_seconds``
    bounds all attempts with the waits between. Only the resolving of a host's name keeps the operating system's own time.
    ``max_body_bytes`` counts decoded bytes. ``connections``: idle ones kept open.
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
    """One HTTP request that was sent. ``outcome`` is "answered" or the ``kind`` of the error it ended in.

    ``status`` is that on the wire: with 304 the payload is what we held, which is what the answer was made of.
    """

    outcome: str
    latency_seconds: float
    status: int | None = None
    payload_bytes: int = 0
    payload_sha256: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What came back, for the adapter to classify: any status but 401, 402, 403, 429 and 5xx.

    ``headers`` have lower-case names, repeated ones joined with ", " (Set-Cookie, Retry-After, X-Ratelimit-Remaining and all the
    others). ``body`` is decoded (gzip undone). ``request`` is redacted text, ``latency_seconds`` that of the attempt that was
    answered. ``is_unchanged``: the provider said that what we held still stands, and this is it.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    latency_seconds: float
    request: str
    secrets: frozenset[str] = field(default=frozenset(), repr=False)
    is_unchanged: bool = False

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


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Target:
    """Where a request goes and with which headers; ``secrets`` are the values in either that must not be said aloud."""

    url: httpx.URL
    headers: Mapping[str, str]
    described: str
    secrets: frozenset[str]
    is_keyless: bool

    @classmethod
    def of(cls, url: str, params: Mapping[str, str | int], headers: Mapping[str, str], provider: str) -> _Target:
        """Raises ConfigurationError for what cannot be sent, with no secret in it."""
        described = describe(url, params, headers)
        query = url.partition("?")[2]
        sent = {**dict(parse_qsl(query)), **params}
        secrets = _secrets_of(sent, headers)
        try:
            # Added by hand: httpx replaces the query that is in the URL already.
            target = httpx.URL(f"{url}{'&' if query else '?'}{urlencode(params)}" if params else url)
        except httpx.InvalidURL:
            target = None
        if target is None or target.scheme not in {"http", "https"} or not target.host or (target.port or 0) > _LAST_PORT:
            raise ConfigurationError(f"{provider}: cannot request {described}: expected http://host/… or https://host:port/…")
        for name, text in headers.items():
            if not _HEADER_TEXT.fullmatch(text):
                told = f"the header {name} holds a character that HTTP does not allow, such as a line break"
                raise ConfigurationError(f"{provider}: cannot request {described}: {told}")
        return cls(
            url=target,
            headers={**_OUR_HEADERS, **{name.lower(): text for name, text in headers.items()}},
            described=described,
            secrets=secrets,
            is_keyless=not target.userinfo and not any(is_sensitive(name) for name in (*sent, *headers)),
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Call:
    """One ``get``: what is asked, for whom and until when.

    ``attempts`` is the caller's list and may hold those of other calls; ``failures`` are those of this call.
    """

    target: _Target
    provider: str
    check: Callable[[HttpAnswer], None] | None
    attempts: list[Attempt]
    deadline: float
    account: str
    priority: Priority
    cached: bool
    failures: list[ProviderError] = field(default_factory=list)
    redirects: int = 0

    def redact(self, text: str) -> str:
        return redact(text, self.target.secrets)

    @property
    def host(self) -> str:
        return self.target.url.netloc.decode()

    @property
    def may_be_kept(self) -> bool:
        return self.cached and self.target.is_keyless

    def transient(self, message: str) -> TransientError:
        return TransientError(message, provider=self.provider)

    def onward(self, answer: HttpAnswer) -> _Call | None:
        """The same call to where a redirect leads; None where the answer leads nowhere that we follow.

        Only within one origin, so that no other server is told what we ask, and never with a secret.
        """
        location = answer.headers.get("location", "")
        if answer.status not in _REDIRECTS or not location or not self.target.is_keyless or self.redirects >= _MOST_REDIRECTS:
            return None
        here = self.target.url
        try:
            there = here.join(location)
        except httpx.InvalidURL:
            return None
        if (there.scheme, there.netloc, there.userinfo) != (here.scheme, here.netloc, b""):
            return None
        return replace(self, target=replace(self.target, url=there), redirects=self.redirects + 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Failed:
    """An attempt that gave nothing usable; ``answer`` where one came all the same."""

    error: ProviderError
    answer: HttpAnswer | None = None


class HttpClient:
    """GET with time-outs, a size limit, retries, a budget and a cache, over one pool of connections. Safe for several threads.

    The retry loop for seconds is here and nowhere else; what it leaves is a gap, and gaps heal in hours. Cookies are not kept: who
    needs one sends it. ``sleep``, ``clock`` (monotonic seconds), ``wall_clock`` and ``rng`` are handed in so that tests never wait.
    """

    def __init__(  # noqa: PLR0913 - its collaborators, each of them optional
        self,
        policy: HttpPolicy | None = None,
        *,
        budget: Budget | None = None,
        cache: AnswerCache | None = None,
        connections: Connections | None = None,
        sleep: Callable[[float], None] = tenacity.nap.sleep,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        rng: random.Random | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        _silence_talkers()
        self.policy = policy or HttpPolicy()
        self._budget = budget
        self._cache = cache
        self._connections = connections or Connections(kept=self.policy.connections)
        self._sleep = sleep
        self._clock = clock
        self._wall_clock = wall_clock
        self._tracer = tracer
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries out, protects nothing

    @classmethod
    @contextmanager
    def open(cls, settings: Settings, budget: Budget | None = None, tracer: Tracer = NO_TRACER) -> Iterator[HttpClient]:
        """A client with the time-outs and limits of ``settings`` and its cache in their home, closed at the end."""
        policy = HttpPolicy(
            timeout_seconds=settings.http_timeout_seconds,
            deadline_seconds=settings.http_deadline_seconds,
            attempts=settings.http_attempts,
            backoff_seconds=settings.http_backoff_seconds,
            max_body_bytes=settings.http_max_body_bytes,
            # One more than the requests in flight: the simulator's clock is asked over the same pool.
            connections=settings.requests_in_flight + 1,
        )
        cache = AnswerCache(settings.home / "http-cache" / "answers.db", max_body_bytes=settings.http_max_body_bytes)
        with cls(policy, budget=budget, cache=cache, tracer=tracer) as client:
            yield client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and the cache. Repeating it is safe."""
        self._connections.close()
        if self._cache is not None:
            self._cache.close()

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
        429 tells the budget. ``cached``: where we hold an answer with an ETag or a Last-Modified, it is asked whether it still
        stands, and a 304 gives it again; new answers with one are kept. It does nothing for a request that carries a secret.

        ``check`` sees each answer and may raise: a TransientError (an outage page with status 200) is retried like a 503. Every
        request sent is appended to ``attempts``, also when the call raises.

        Redirects are followed three times at most, within one scheme, host and port, and by requests without a secret only;
        every other one is returned as it is.

        Raises TransientError (time-out, reset, DNS, TLS, truncated or corrupt body, 5xx), RateLimitedError (429: at once, unless
        the provider named a wait that fits the deadline), EntitlementError (401, 402, 403), PayloadError (a body too large or in
        an encoding we did not ask for), BudgetSpentError (our own budget leaves no room in time: nothing was sent),
        ConfigurationError (a URL or a header that cannot be sent).
        """
        attempts = [] if attempts is None else attempts
        deadline = self._clock() + self.policy.deadline_seconds
        target = _Target.of(url, params or {}, headers or {}, provider)
        call = _Call(target, provider, check, attempts, deadline, account, priority, cached)
        retrying = tenacity.Retrying(
            sleep=self._sleep,
            retry=tenacity.retry_if_exception_type(_Retriable),
            wait=self._pause,
            stop=lambda state: self._is_over(call, state),
            reraise=True,
        )
        failure: ProviderError
        try:
            return retrying(self._attempt, call)
        except _Retriable as last:
            failure = last.error
        except BudgetSpentError as spent:
            # The failure that called for another attempt is what happened; that there is no budget for it, only why it ended.
            failure = call.failures[-1] if call.failures else spent
        except ProviderError as refused:
            failure = refused
        tried = f" (attempt {len(call.failures)} of {self.policy.attempts})" if len(call.failures) > 1 else ""
        failure.args = (call.redact(str(failure)) + tried,)
        _forget_theirs(failure)
        raise failure

    def _attempt(self, call: _Call) -> HttpAnswer:
        """Send it once and note how that went. Raises _Retriable where another attempt may be sent."""
        self._take_from_budget(call)
        outcome = self._traced(call)
        onward = call.onward(outcome)
        if onward is not None:
            return self._attempt(onward)
        if self._cache is not None and call.may_be_kept and not outcome.is_unchanged:
            self._cache.keep(str(call.target.url), call.target.headers, Kept(outcome.status, outcome.headers, outcome.body))
        return outcome

    def _traced(self, call: _Call) -> HttpAnswer:
        """One request as a span and a line of the log: to whom and what came, and of the URL nothing but the host."""
        number = len(call.failures) + 1
        with self._tracer.span("http", provider=call.provider, attempt=number, server__address=call.host) as span:
            started = self._clock()
            outcome = self._try(call, started)
            seconds = self._clock() - started
            answer = outcome.answer if isinstance(outcome, _Failed) else outcome
            if answer is not None:
                span.note(http__response__status_code=answer.status, bytes=len(answer.body), is_unchanged=answer.is_unchanged)
            said = "no answer" if answer is None else f"HTTP {answer.status}, {len(answer.body):,} bytes"
            logger.debug(
                "%s, attempt %d: %s in %.3f s", call.target.described, number, said, seconds, extra={"provider": call.provider}
            )
            if isinstance(outcome, _Failed):
                span.failed(outcome.error)
        if isinstance(outcome, _Failed):
            raise self._noted_failure(call, outcome, seconds)
        call.attempts.append(_noted("answered", outcome.latency_seconds, outcome))
        return outcome

    def _try(self, call: _Call, started: float) -> HttpAnswer | _Failed:
        """What came back, or what is wrong with it."""
        answer: HttpAnswer | None = None
        try:
            answer = self._send(call, started)
            self._refuse_by_status(call, answer)
            if call.check is not None and call.onward(answer) is None:
                call.check(answer)
        except ProviderError as error:
            # What a check says of a body may repeat a key that the vendor repeats there.
            error.args = (call.redact(str(error)),)
            if answer is not None and answer.is_unchanged and self._cache is not None:
                # What we held does not pass any more: next time the whole answer is asked for.
                self._cache.forget(str(call.target.url))
            return _Failed(error, answer)
        except httpcore.TimeoutException as late:
            return _Failed(call.transient(f"{call.host}: {_words(late)} after {self._clock() - started:.1f} s"))
        except _BROKEN as broken:
            return _Failed(call.transient(f"{call.host}: {_words(broken)}: {call.redact(str(broken)) or 'no detail'}"))
        return answer

    def _noted_failure(self, call: _Call, failed: _Failed, seconds: float) -> _Retriable | ProviderError:
        """What to raise for it: a _Retriable where another attempt may help."""
        error, answer = failed.error, failed.answer
        latency = answer.latency_seconds if answer else seconds
        call.attempts.append(_noted(error.kind, latency, answer, error=call.redact(str(error))))
        call.failures.append(error)
        retry_after = self._retry_after(answer.headers, error) if answer else None
        if isinstance(error, RateLimitedError):
            if error.retry_after_seconds is None:
                error.retry_after_seconds = retry_after
            retry_after = error.retry_after_seconds
            if self._budget is not None:
                self._budget.refused(call.provider, call.account, retry_after_seconds=retry_after)
        if isinstance(error, TransientError) or (isinstance(error, RateLimitedError) and retry_after is not None):
            return _Retriable(error, retry_after)
        return error

    def _is_over(self, call: _Call, state: tenacity.RetryCallState) -> bool:
        # A trial asks whether a provider is back: a second request in a row would tell nothing new.
        most = 1 if call.priority.is_trial else self.policy.attempts
        return state.attempt_number >= most or self._clock() + state.upcoming_sleep >= call.deadline

    def _take_from_budget(self, call: _Call) -> None:
        """Before the attempt and no part of it: what is refused was never sent, and the wait is no latency of the provider."""
        if self._budget is None:
            return
        left = max(call.deadline - self._clock(), 0.0)
        # Whoever waits to the last moment has none left for the answer, and the provider would be blamed for it.
        patience = max(left - self.policy.timeout_seconds, left / 2)
        self._budget.take(call.provider, call.account, call.priority, patience_seconds=patience)

    def _send(self, call: _Call, started: float) -> HttpAnswer:
        url = call.target.url
        held = self._cache.held(str(url), call.target.headers) if self._cache is not None and call.may_be_kept else None
        headers = {**call.target.headers, **held.validators} if held else call.target.headers
        patience = max(min(self.policy.timeout_seconds, call.deadline - started), 0.0)
        with self._connections.get(url, headers, seconds=patience) as response:
            received = _headers_of(response)
            body = self._read(call, response, received.get("content-encoding", ""))
        answer = HttpAnswer(
            status=response.status,
            headers=received,
            body=_without(call.target.secrets, body),
            latency_seconds=self._clock() - started,
            request=call.target.described,
            secrets=call.target.secrets,
        )
        if answer.status != 304 or held is None or self._cache is None:
            return answer
        kept = self._cache.confirmed(held, received)
        if kept is None:
            raise call.transient(f"{call.host}: HTTP 304 for an answer that we do not hold")
        return replace(answer, status=kept.status, headers=kept.headers, body=kept.body, is_unchanged=True)

    def _read(self, call: _Call, response: httpcore.Response, encoding: str) -> bytes:
        """The decoded body. Never holds more than the limit and one chunk, whatever a few compressed bytes unfold to."""
        limit = self.policy.max_body_bytes
        decoder = _decoder(call, encoding.strip().lower())
        body, received = bytearray(), 0
        try:
            for chunk in response.iter_stream():
                received += len(chunk)
                body += decoder.decompress(chunk, limit + 1 - len(body)) if decoder else chunk
                if len(body) > limit:
                    raise PayloadError(f"the body is longer than {limit:,} bytes", provider=call.provider)
        except httpcore.ReadTimeout:
            seen = f"{received:,} bytes read"
            raise call.transient(f"{call.host}: the body was still arriving when the time-out passed, {seen}") from None
        except zlib.error as corrupt:
            raise call.transient(f"{call.host}: corrupt gzip body: {corrupt}") from None
        if decoder and not decoder.eof and received:
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

    def _retry_after(self, headers: Mapping[str, str], failure: ProviderError) -> float | None:
        """Seconds to wait as Retry-After says (a number or an HTTP date), capped; None where absent or not understood.

        Vendors that count requests say instead when the count begins anew (X-Ratelimit-Reset): believed when they refuse one.
        """
        text = headers.get("retry-after", "").strip()
        if not text and isinstance(failure, RateLimitedError):
            text = self._until_reset(headers.get("x-ratelimit-reset", "").strip())
        try:
            seconds = float(text) if _DECIMAL.fullmatch(text) else self._seconds_until(text, headers.get("date", ""))
        except (ValueError, TypeError, OverflowError):
            return None
        return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS)

    def _until_reset(self, text: str) -> str:
        if not _DECIMAL.fullmatch(text) or float(text) < _OLDEST_INSTANT:
            return text
        return str(max(float(text) - self._wall_clock().timestamp(), 0.0))

    def _seconds_until(self, instant: str, sent: str) -> float:
        # Against the server's own Date where it sent one: its clock and ours may differ by more than the wait.
        now = _http_date(sent) if sent else self._wall_clock()
        return (_http_date(instant) - now).total_seconds()


def _headers_of(response: httpcore.Response) -> dict[str, str]:
    found: dict[str, str] = {}
    for name_bytes, text_bytes in response.headers:
        name, text = name_bytes.decode("latin-1").lower(), text_bytes.decode("latin-1")
        found[name] = f"{found[name]}, {text}" if name in found else text
    return found


def _forget_theirs(failure: ProviderError) -> None:
    """Cut the chain: it holds URLs, `from None` only hides it, and error reporters follow __context__ and print notes."""
    failure.__cause__ = failure.__context__ = None
    if hasattr(failure, "__notes__"):
        del failure.__notes__


def _http_date(text: str) -> datetime:
    instant = parsedate_to_datetime(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _decoder(call: _Call, encoding: str) -> zlib._Decompress | None:
    if encoding in {"", "identity"}:
        return None
    if encoding in {"gzip", "x-gzip"}:
        return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    raise PayloadError(f"the body is encoded as {encoding[:40]!r}; we asked for gzip or nothing", provider=call.provider)


def _without(secrets: Collection[str], body: bytes) -> bytes:
    """A body without the keys that a vendor repeats in it ("We have detected your API key as"): parsers quote what they refuse."""
    for secret in secrets:
        # Nothing shorter is a key, and a number in a price could be one.
        if len(secret) >= _SHORTEST_KEY and secret.encode() in body:
            body = body.replace(secret.encode(), HIDDEN.encode())
    return body


def _noted(outcome: str, latency: float, answer: HttpAnswer | None, *, error: str | None = None) -> Attempt:
    body = answer.body if answer else b""
    return Attempt(
        outcome=outcome,
        latency_seconds=latency,
        status=None if answer is None else 304 if answer.is_unchanged else answer.status,
        payload_bytes=len(body),
        payload_sha256=hashlib.sha256(body).hexdigest() if body else None,
        error=error,
    )


def _words(error: Exception) -> str:
    """The class name in words: ConnectTimeout is "connect timeout"."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", type(error).__name__).lower()
