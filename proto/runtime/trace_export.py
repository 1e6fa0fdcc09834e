"""Exports spans to an OTLP collector, and counts them. Imported only if an endpoint is set."""

import logging
import os
import threading
from collections.abc import Callable, Sequence

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import Counter

from tailrace.proto.version import VERSION

logger = structlog.get_logger()

ENDED = Counter("tailrace_spans_ended_total", "Sampled spans that have ended")
EXPORTED = Counter(
    "tailrace_spans_exported_total",
    "Spans that the collector has accepted; the others were lost, except up to 2,048 that wait",
)
EXPORTER_LOGGERS = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.exporter.otlp.common.http")
# The longest wait for the collector when a process stops.
STOP_S_MAX = 2.0


class CountedExporter(SpanExporter):
    """Exports spans over OTLP and counts them. Of an outage, it logs the first line and the end.

    OpenTelemetry's exporter logs up to four lines for each lost batch, twelve batches a minute.
    """

    def __init__(self) -> None:
        self._exporter: SpanExporter = OTLPSpanExporter()
        self._is_failing = False
        for name in EXPORTER_LOGGERS:
            logging.getLogger(name).addFilter(self._is_first_line)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Exports spans, in OpenTelemetry's thread. Returns FAILURE, and logs it once, while the collector is away."""
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            EXPORTED.inc(len(spans))
            if self._is_failing:
                self._is_failing = False
                logger.info("traces are exported again")
        return result

    def shutdown(self) -> None:
        """Closes the connection to the collector."""
        self._exporter.shutdown()
        for name in EXPORTER_LOGGERS:
            logging.getLogger(name).removeFilter(self._is_first_line)

    def _is_first_line(self, _: logging.LogRecord) -> bool:
        was_failing, self._is_failing = self._is_failing, True
        return not was_failing


class _CountedSpans(SpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            ENDED.inc()


def start(role: str) -> Callable[[], None]:
    """Starts the export of the spans of this process; returns the function that sends those that wait, and stops.

    Spans wait in a queue of bounded length for a thread that sends them: a collector that is slow or away costs spans,
    and no time of a turn. The sampler comes from OTEL_TRACES_SAMPLER; by default a span is sampled if its parent is.
    """
    name = os.environ.get("OTEL_SERVICE_NAME") or "tailrace"
    resource = Resource.create({"service.name": f"{name}-{role}", "service.version": VERSION})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(_CountedSpans())
    provider.add_span_processor(BatchSpanProcessor(CountedExporter()))
    trace.set_tracer_provider(provider)

    def stop() -> None:
        # Without the thread, a collector that does not answer would hold the process for half a minute.
        stopping = threading.Thread(target=provider.shutdown, name="traces", daemon=True)
        stopping.start()
        stopping.join(STOP_S_MAX)

    return stop
