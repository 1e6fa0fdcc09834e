"""Exports spans to an OTLP collector, and counts them. Imported only if an endpoint is set."""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import requests
import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import Counter

from tailrace.proto.version import VERSION

logger = structlog.get_logger()

ENDED = Counter("tailrace_spans_ended_total", "Sampled spans that have ended")
EXPORTED = Counter(
    "tailrace_spans_exported_total",
    "Spans that the collector has accepted; the others were lost, except up to 2,048 that wait",
)
REJECTED = Counter("tailrace_spans_rejected_total", "Spans that the collector has rejected in an answer of success")
EXPORTER_LOGGERS = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.exporter.otlp.common.http")
# The longest wait for the collector when a process stops.
STOP_S_MAX = 2.0
ADVICE = "set OTEL_EXPORTER_OTLP_ENDPOINT to the address of the collector itself"
REASON_CHARS_MAX = 300
CREDENTIAL_PROVIDERS = (
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER",
)


class NotAccepted(requests.RequestException):
    """An answer that OpenTelemetry's exporter takes for success, and that no collector gives."""


class CountedExporter(SpanExporter):
    """Exports spans over OTLP and counts them. Of an outage, it logs the first line and the end.

    OpenTelemetry's exporter logs up to four lines for each lost batch, twelve batches a minute. OpenTelemetry's
    exporter takes a redirect, which it does not follow, for success, and does not read which spans the collector has
    rejected.
    """

    def __init__(self) -> None:
        self._exporter: SpanExporter = OTLPSpanExporter(session=self._session())
        self._is_failing = False
        self._is_closed = False
        # `check` runs beside OpenTelemetry's thread.
        self._lock = threading.Lock()
        # Spans of the running export, rejected by the collector.
        self._rejected = 0
        self._has_logged_rejection = False
        for name in EXPORTER_LOGGERS:
            logging.getLogger(name).addFilter(self._is_first_line)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Exports spans, in OpenTelemetry's thread. Returns FAILURE, and logs it once, while the collector is away."""
        with self._lock:
            self._rejected = 0
            result = self._exporter.export(spans)
            if result is SpanExportResult.SUCCESS:
                rejected = min(self._rejected, len(spans))
                EXPORTED.inc(len(spans) - rejected)
                REJECTED.inc(rejected)
                if self._is_failing:
                    self._is_failing = False
                    logger.info("traces are exported again")
            return result

    def check(self) -> None:
        """Sends a request without spans. Logs a warning if the collector does not accept it."""
        if self.export(()) is not SpanExportResult.SUCCESS and not self._is_closed:
            logger.warning("the collector does not accept traces; they are lost until it does", do=ADVICE)

    def shutdown(self) -> None:
        """Closes the connection to the collector."""
        self._is_closed = True
        self._exporter.shutdown()
        for name in EXPORTER_LOGGERS:
            logging.getLogger(name).removeFilter(self._is_first_line)

    def _session(self) -> requests.Session | None:
        """Returns a session that inspects each answer; None if a credential provider brings the session."""
        if any(os.environ.get(name) for name in CREDENTIAL_PROVIDERS):
            return None
        session = requests.Session()
        session.hooks["response"].append(self._inspect)
        return session

    def _inspect(self, response: requests.Response, **_: Any) -> None:
        """Reads how many spans the collector has rejected. Raises NotAccepted for a redirect or a page of HTML."""
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            if 300 <= response.status_code < 400:
                target = urlsplit(response.headers.get("location", ""))
                # Without the user and the query, which may be secret.
                host = target.netloc.rpartition("@")[2]
                where = f"{target.scheme}://{host}{target.path}" if host else target.path
                why = f"the answer is a redirect ({response.status_code}) to {where[:REASON_CHARS_MAX]}"
                raise NotAccepted(f"{why}; {ADVICE}")
            if response.ok and media_type == "text/html" and response.content.lstrip().startswith(b"<"):
                raise NotAccepted(f"the answer is a page of HTML, as no collector gives; {ADVICE}")
        except NotAccepted:
            response.close()
            raise
        if response.ok and media_type == "application/x-protobuf":
            self._read_rejections(response.content)

    def _read_rejections(self, body: bytes) -> None:
        try:
            partial = ExportTraceServiceResponse.FromString(body).partial_success
        except Exception:  # noqa: BLE001  # DecodeError, for which only the cloud backends may import google
            return
        self._rejected = max(0, partial.rejected_spans)
        if (self._rejected or partial.error_message) and not self._has_logged_rejection:
            self._has_logged_rejection = True
            why = partial.error_message[:REASON_CHARS_MAX]
            logger.warning(
                "the collector rejects spans; only this first answer is logged", rejected=self._rejected, why=why
            )

    def _is_first_line(self, _: logging.LogRecord) -> bool:
        was_failing, self._is_failing = self._is_failing, True
        return not was_failing


class _QueuedSpans(BatchSpanProcessor):
    """Counts the spans that have ended, and queues them for the exporter.

    Drops a trace that a library has begun, such as the SDK's `anthropic.models.list` when a generator checks its key:
    it belongs to no request of a client.
    """

    def __init__(self, exporter: SpanExporter, tracer: str) -> None:
        super().__init__(exporter)
        self._tracer = tracer

    def on_end(self, span: ReadableSpan) -> None:
        scope = span.instrumentation_scope
        if span.parent is None and (scope is None or scope.name != self._tracer):
            return
        if span.context is not None and span.context.trace_flags.sampled:
            ENDED.inc()
        super().on_end(span)


def start(role: str, tracer: str) -> Callable[[], None]:
    """Starts the export of the spans of this process; returns a function that sends the waiting spans, and stops.

    Of traces that begin in this process, only those of `tracer` are exported.

    Spans wait in a queue of bounded length for a thread that sends them: a collector that is slow or away costs spans,
    but does not delay a turn. Another thread checks the collector once. The sampler comes from OTEL_TRACES_SAMPLER; by
    default a span is sampled if its parent is.
    """
    name = os.environ.get("OTEL_SERVICE_NAME") or "tailrace"
    resource = Resource.create({"service.name": f"{name}-{role}", "service.version": VERSION})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = CountedExporter()
    provider.add_span_processor(_QueuedSpans(exporter, tracer))
    trace.set_tracer_provider(provider)
    # A collector that is away must not delay the start.
    threading.Thread(target=exporter.check, name="traces-check", daemon=True).start()

    def stop() -> None:
        # Without the thread, a collector that does not answer would hold the process for half a minute.
        stopping = threading.Thread(target=provider.shutdown, name="traces", daemon=True)
        stopping.start()
        stopping.join(STOP_S_MAX)

    return stop
