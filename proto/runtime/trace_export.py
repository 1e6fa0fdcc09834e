"""Exports spans to an OTLP collector, and counts them. Imported only if an endpoint is set."""

import os
import threading
from collections.abc import Callable, Sequence

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import Counter

from tailrace.proto.version import VERSION

ENDED = Counter("tailrace_spans_ended_total", "Sampled spans that have ended")
EXPORTED = Counter(
    "tailrace_spans_exported_total",
    "Spans that the collector has accepted; the others were lost, except up to 2,048 that wait",
)
# The longest wait for the collector when a process stops.
STOP_S_MAX = 2.0


class _CountedExporter(SpanExporter):
    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            EXPORTED.inc(len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


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
    provider.add_span_processor(BatchSpanProcessor(_CountedExporter(OTLPSpanExporter())))
    trace.set_tracer_provider(provider)

    def stop() -> None:
        # Without the thread, a collector that does not answer would hold the process for half a minute.
        stopping = threading.Thread(target=provider.shutdown, name="traces", daemon=True)
        stopping.start()
        stopping.join(STOP_S_MAX)

    return stop
