"""Which spans count as exported: the pinned exporter of OpenTelemetry against a real HTTP server."""

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from tailrace.proto.runtime import tracing
from tailrace.proto.runtime.trace_export import CountedExporter
from tests.harness.otlp_receiver import OtlpReceiver, otlp_receiver
from tests.harness.until import until

PROTOBUF = {"content-type": "application/x-protobuf"}
HTML = {"content-type": "text/html; charset=utf-8"}
FAILURE, SUCCESS = SpanExportResult.FAILURE, SpanExportResult.SUCCESS


class Counted(NamedTuple):
    exported: float
    rejected: float


def count() -> Counted:
    values = (REGISTRY.get_sample_value(f"tailrace_spans_{name}_total") for name in ("exported", "rejected"))
    return Counted(*(value or 0 for value in values))


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    with otlp_receiver() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        yield running


@pytest.fixture
def exporter(receiver: OtlpReceiver) -> Iterator[CountedExporter]:  # the endpoint
    created = CountedExporter()
    yield created
    created.shutdown()


@pytest.fixture
def spans() -> list[ReadableSpan]:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    started = [tracer.start_span(f"turn {number}") for number in range(5)]
    for span in started:
        span.end()
    return [span for span in started if isinstance(span, ReadableSpan)]


def rejection(spans: int, why: str = "") -> bytes:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = spans
    response.partial_success.error_message = why
    return bytes(response.SerializeToString())


@pytest.mark.parametrize(
    ("status", "headers", "body", "counted"),
    [
        (200, {}, b"", Counted(5, 0)),
        (200, PROTOBUF, b"", Counted(5, 0)),
        (202, PROTOBUF, rejection(0), Counted(5, 0)),
        (200, PROTOBUF, rejection(2, "the rate limit"), Counted(3, 2)),
        (200, PROTOBUF, rejection(5, "the rate limit"), Counted(0, 5)),
        (200, PROTOBUF, rejection(99), Counted(0, 5)),
        (200, PROTOBUF, rejection(-1), Counted(5, 0)),
        (200, PROTOBUF, b"\xff\xff no protobuf", Counted(5, 0)),
        # A collector may answer so, although no specification allows it.
        (200, {"content-type": "application/json"}, b"{}", Counted(5, 0)),
        (200, HTML, b"OK", Counted(5, 0)),
    ],
)
def test_spans_that_the_collector_rejects_do_not_count_as_exported(
    receiver: OtlpReceiver,
    exporter: CountedExporter,
    spans: list[ReadableSpan],
    status: int,
    headers: dict[str, str],
    body: bytes,
    counted: Counted,
) -> None:
    receiver.status, receiver.headers, receiver.body = status, headers, body
    before = count()
    assert exporter.export(spans) is SUCCESS
    after = count()
    assert Counted(after.exported - before.exported, after.rejected - before.rejected) == counted


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_a_redirect_is_an_error(
    receiver: OtlpReceiver,
    exporter: CountedExporter,
    spans: list[ReadableSpan],
    caplog: pytest.LogCaptureFixture,
    status: int,
) -> None:
    """The log names its target without the secrets that it may have."""
    receiver.status = status
    receiver.headers = {"location": "https://user:secret@otlp.example/v1/traces?key=secret"}
    before = count()
    assert [exporter.export(spans) for _ in range(2)] == [FAILURE] * 2
    assert count() == before
    [line] = [record.getMessage() for record in caplog.records]
    assert f"a redirect ({status}) to https://otlp.example/v1/traces; set OTEL_EXPORTER_OTLP_ENDPOINT to" in line
    assert "secret" not in line
    assert receiver.requests == 2, "a redirect is not repeated"
    receiver.status = 200
    assert exporter.export(spans) is SUCCESS
    assert count().exported == before.exported + 5


def test_a_page_of_html_is_an_error(
    receiver: OtlpReceiver, exporter: CountedExporter, spans: list[ReadableSpan], caplog: pytest.LogCaptureFixture
) -> None:
    """Such as the page of a login, or that of an app which answers every path."""
    receiver.headers, receiver.body = HTML, b"\n<!doctype html><title>Log in</title>"
    before = count()
    assert exporter.export(spans) is FAILURE
    assert count() == before
    assert "a page of HTML" in caplog.text


def test_rejections_are_logged_once(
    receiver: OtlpReceiver, exporter: CountedExporter, spans: list[ReadableSpan]
) -> None:
    receiver.headers, receiver.body = PROTOBUF, rejection(2, "the rate limit " + "x" * 9000)
    with capture_logs() as ours:
        for _ in range(3):
            exporter.export(spans)
    [line] = ours
    assert (line["log_level"], line["rejected"], line["why"][:14]) == ("warning", 2, "the rate limit")
    assert len(line["why"]) < 500


def answer_redirect(receiver: OtlpReceiver) -> None:
    receiver.status, receiver.headers = 301, {"location": "/elsewhere"}


def answer_error(receiver: OtlpReceiver) -> None:
    receiver.status = 404


@pytest.mark.parametrize("fault", [answer_redirect, answer_error])
def test_a_collector_that_accepts_nothing_is_reported_at_the_start(
    receiver: OtlpReceiver, exporter: CountedExporter, fault: Callable[[OtlpReceiver], None]
) -> None:
    fault(receiver)
    with capture_logs() as ours:
        exporter.check()
    [line] = ours
    assert (line["log_level"], line["event"][:37]) == ("warning", "the collector does not accept traces;")
    assert (receiver.requests, receiver.spans) == (1, [])


def test_a_collector_that_accepts_spans_gets_one_request_without_any_at_the_start(
    receiver: OtlpReceiver, exporter: CountedExporter
) -> None:
    with capture_logs() as ours:
        exporter.check()
    assert (ours, receiver.requests, receiver.spans) == ([], 1, [])


@pytest.mark.parametrize("is_listening", [False, True])
async def test_a_collector_that_does_not_answer_delays_no_start_and_is_reported(
    monkeypatch: pytest.MonkeyPatch, *, is_listening: bool
) -> None:
    """No process listens at its port, or one that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if not is_listening:
            silent.close()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        monkeypatch.setattr(tracing, "_stop", None)
        monkeypatch.setattr("opentelemetry.trace.set_tracer_provider", lambda _: None)
        with capture_logs() as ours:
            began = time.monotonic()
            assert tracing.configure("gateway")
            assert time.monotonic() - began < 0.8
            await until(lambda: is_reported(ours))
            tracing.shutdown()


def is_reported(lines: list[Any]) -> bool:
    return any(line["event"].startswith("the collector does not accept traces") for line in lines)
