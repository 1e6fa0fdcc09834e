"""Traces (OpenTelemetry). They are off, and nothing of the SDK runs, unless the environment names an OTLP endpoint.

The standard variables `OTEL_…` configure the export: endpoint, headers, sampler, service name. A turn's trace begins
with the client's `traceparent`. Its context is stored in the turn's log, so that other processes continue it.

Source: W3C Trace Context, and OpenTelemetry's specification of environment variables.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.version import VERSION

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

TRACER = "tailrace"
_tracer = trace.get_tracer(TRACER, VERSION)
_propagator = TraceContextTextMapPropagator()
_stop: Callable[[], None] | None = None


def configure(role: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Exports traces if `environ` names an endpoint; returns whether it does.

    Raises SettingsInvalid if the exporter is not installed.
    """
    global _stop  # noqa: PLW0603  # OpenTelemetry's provider is global, too
    if not any(environ.get(name) for name in ENDPOINTS) or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    try:
        from tailrace.proto.runtime import trace_export  # noqa: PLC0415  # loads the SDK, and an optional package
    except ImportError as error:
        raise SettingsInvalid(
            "an OTLP endpoint is set, but the exporter is not installed: pip install 'tailrace[otlp]', or unset it"
        ) from error
    _stop = trace_export.start(role, TRACER)
    return True


def shutdown() -> None:
    """Sends the spans that wait."""
    if _stop is not None:
        _stop()


def is_on() -> bool:
    """Returns whether spans are recorded and exported."""
    return _stop is not None


@contextmanager
def span(
    name: str,
    *,
    traceparent: str | None = None,
    linked: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Iterator[trace.Span]:
    """Runs the block in a new span, whose status is an error if the block raises.

    Its parent is `traceparent`, or the current span without one. `linked` is the `traceparent` of a related span.
    """
    with _tracer.start_as_current_span(
        name,
        context=parse(traceparent),
        kind=kind,
        attributes=attributes,
        links=_links(linked),
        # The message of an exception could hold text of a conversation.
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except Exception as error:
            fail(current, type(error).__name__)
            raise


def start(
    name: str,
    *,
    traceparent: str | None = None,
    linked: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
) -> trace.Span:
    """Returns a new span that does not become the current one. The caller ends it; otherwise it is not exported."""
    return _tracer.start_span(name, context=parse(traceparent), kind=kind, links=_links(linked))


def _links(linked: str | None) -> list[Link]:
    context = span_context(linked)
    return [] if context is None else [Link(context)]


def fail(current: trace.Span, error_type: str) -> None:
    """Sets the status of a span to an error of a type with few values: the name of a class, or an error code."""
    current.set_attribute("error.type", error_type)
    current.set_status(Status(StatusCode.ERROR))


def traceparent() -> str | None:
    """Returns the context of the current span as the value of a `traceparent` header; None while traces are off."""
    return format_context(trace.get_current_span().get_span_context()) if is_on() else None


def exemplar(traceparent: str | None = None) -> dict[str, str] | None:
    """Returns the exemplar of a measurement: the trace that a histogram's bucket then links to.

    The trace is that of `traceparent`, else of the current span; None while traces are off, or if it is not sampled.
    """
    if _stop is None:
        return None
    context = span_context(traceparent) or trace.get_current_span().get_span_context()
    return {"trace_id": f"{context.trace_id:032x}"} if context.is_valid and context.trace_flags.sampled else None


def format_context(context: trace.SpanContext) -> str | None:
    """Returns `context` as a `traceparent` (W3C Trace Context), or None if it is not valid."""
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & trace.TraceFlags.SAMPLED:02x}"


def parse(value: str | None) -> Context | None:
    """Returns the context of a `traceparent` value; None without one, or if it is malformed."""
    context = span_context(value)
    return None if context is None else trace.set_span_in_context(trace.NonRecordingSpan(context))


def span_context(value: str | None) -> trace.SpanContext | None:
    """Returns the span context in `value`, a `traceparent`; None without a valid one."""
    if not value:
        return None
    found = trace.get_current_span(_propagator.extract({"traceparent": value}, Context())).get_span_context()
    return found if found.is_valid else None
