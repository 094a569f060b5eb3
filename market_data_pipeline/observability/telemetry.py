"""Spans for an OTLP collector: the tracer that MDP_OTEL_ENDPOINT asks for. Without it OpenTelemetry is not even imported."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from market_data_pipeline import __version__
from market_data_pipeline.domain.errors import ConfigurationError
from market_data_pipeline.domain.redaction import redact
from market_data_pipeline.domain.tracing import NO_TRACER
from market_data_pipeline.settings import secrets_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    from market_data_pipeline.domain.tracing import Span, Tracer, Value
    from market_data_pipeline.settings import Settings

# A collector that does not answer costs a run no more than this at its end; while it works, nothing.
_PATIENCE_SECONDS = 2.0
# A run of 8,000 symbols makes some tens of thousands of spans. What does not fit is dropped, and that is said.
_MOST_WAITING, _SENT_TOGETHER, _SECONDS_BETWEEN = 20_000, 512, 1.0
_TRACES_PATH = "/v1/traces"
_LONGEST_TEXT = 200
# They log every batch that is lost, with its stack; we say it once.
_TALKERS = ("opentelemetry.exporter", "opentelemetry.sdk", "opentelemetry.context", "opentelemetry.trace")

logger = logging.getLogger(__name__)


@contextmanager
def tracer_of(settings: Settings) -> Iterator[Tracer]:
    """The tracer that ``settings`` ask for; what it has recorded is sent when the block is left, within two seconds.

    Spans are sent in batches by a thread of their own. Where the collector does not answer they are dropped, which is logged once:
    neither costs the work anything. Which traces are recorded, and headers for the collector, are told by OpenTelemetry's own
    variables (OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, OTEL_RESOURCE_ATTRIBUTES). ConfigurationError where the extra
    ``telemetry`` is not installed.
    """
    if settings.otel_endpoint is None:
        yield NO_TRACER
        return
    # Only here: a third of a second, and most people have no collector.
    try:
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult  # noqa: PLC0415
    except ImportError as missing:
        told = "MDP_OTEL_ENDPOINT is set, and spans need the extra `telemetry`: pip install 'market-data-pipeline[telemetry]'"
        raise ConfigurationError(f"{told} ({missing})") from missing
    for name in _TALKERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    secrets = secrets_of(settings)
    endpoint = settings.otel_endpoint if settings.otel_endpoint.endswith(_TRACES_PATH) else settings.otel_endpoint + _TRACES_PATH
    exporter = OTLPSpanExporter(endpoint, timeout=_PATIENCE_SECONDS)
    # No hook at exit: a process that is ending must not wait for a collector once more.
    provider = TracerProvider(
        resource=Resource.create({"service.name": "market_data_pipeline", "service.version": __version__}),
        shutdown_on_exit=False,
    )
    exports = _Once(exporter, redact(endpoint, secrets), SpanExportResult.SUCCESS)
    processor = BatchSpanProcessor(
        cast("SpanExporter", exports),
        max_queue_size=_MOST_WAITING,
        schedule_delay_millis=_SECONDS_BETWEEN * 1000,
        max_export_batch_size=_SENT_TOGETHER,
    )
    provider.add_span_processor(processor)
    try:
        yield _OtelTracer(trace, provider.get_tracer("market_data_pipeline", __version__), secrets)
    finally:
        # Who has not taken the last spans need not be waited for.
        _shut_down(processor, 0.1 if exports.is_losing else _PATIENCE_SECONDS)


def _shut_down(processor: BatchSpanProcessor, patience_seconds: float) -> None:
    # The public shutdown() waits for thirty seconds; the one inside takes the time-out.
    inner: Any = getattr(processor, "_batch_processor", processor)
    try:
        inner.shutdown(timeout_millis=int(patience_seconds * 1000))
    except Exception:
        logger.warning("spans of the last seconds may be lost", exc_info=True)


class _Once:
    """An exporter that says once that spans are being lost, and once that they arrive again; what fails once is not tried again."""

    def __init__(self, exporter: SpanExporter, endpoint: str, success: SpanExportResult) -> None:
        self._exporter, self._endpoint, self._success = exporter, endpoint, success
        self.is_losing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """As the exporter does."""
        result = self._exporter.export(spans)
        if result is not self._success and not self.is_losing:
            logger.warning("spans are lost: the collector at %s does not take them", self._endpoint)
        elif result is self._success and self.is_losing:
            logger.info("the collector at %s takes spans again", self._endpoint)
        self.is_losing = result is not self._success
        return result

    def shutdown(self) -> None:
        """End a request that is under way."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Nothing waits here."""
        return self._exporter.force_flush(timeout_millis)


class _OtelSpan:
    """A span of OpenTelemetry's, with texts redacted."""

    def __init__(self, api: ModuleType, real: Any, secrets: frozenset[str]) -> None:  # noqa: ANN401 - a Span of ``api``
        self._api, self.real, self._secrets = api, real, secrets

    def note(self, **attributes: Value) -> None:
        """Add to its attributes, each under ``mdp.`` unless its name has a domain of its own (``http__method``: http.method)."""
        for name, value in attributes.items():
            self.real.set_attribute(_name(name), redact(value, self._secrets) if isinstance(value, str) else value)

    def failed(self, error: Exception) -> None:
        """Its class and its text; not ``record_exception``, which writes the stack and other people's messages as they are."""
        said = redact(" ".join(str(error).split()), self._secrets)[:_LONGEST_TEXT]
        self.real.set_attribute("error.type", type(error).__name__)
        self.real.set_status(self._api.Status(self._api.StatusCode.ERROR, said))


class _OtelTracer:
    """Spans of OpenTelemetry's. The span around is kept in a context variable, so threads take it along with their context."""

    def __init__(self, api: ModuleType, tracer: Any, secrets: frozenset[str]) -> None:  # noqa: ANN401 - as above
        self._api, self._tracer, self._secrets = api, tracer, secrets

    @contextmanager
    def span(self, name: str, *, parent: Span | None = None, after: Sequence[Span] = (), **attributes: Value) -> Iterator[Span]:
        """As in ``domain.tracing``."""
        api = self._api
        real = self._tracer.start_span(
            name,
            context=api.set_span_in_context(parent.real) if isinstance(parent, _OtelSpan) else None,
            links=[api.Link(one.real.get_span_context()) for one in after if isinstance(one, _OtelSpan)],
        )
        span = _OtelSpan(api, real, self._secrets)
        span.note(**attributes)
        with api.use_span(real, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield span
            except Exception as error:
                span.failed(error)
                raise


def _name(name: str) -> str:
    return name.replace("__", ".") if "__" in name else f"mdp.{name}"
