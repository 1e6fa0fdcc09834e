"""Each observer of calls keeps nothing of a call while its answer is read, and records how it ended."""

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from tailrace.features.traces.call_span import call_span
from tailrace.generators.backends import Call
from tailrace.generators.backends.measured import ObserveCall, measured
from tailrace.generators.backends.model_event import CloseCall, ModelEvent, Put, from_event
from tailrace.proto.entries import Message
from tailrace.proto.errors import BackendError
from tailrace.proto.events import BlockDelta, TextDelta
from tailrace.proto.runtime import tracing

DELTA = from_event(BlockDelta(0, TextDelta("a")))


class Large:
    """Stands for the long strings of a call."""


@pytest.mark.parametrize("observe", [measured, call_span])
@pytest.mark.parametrize("is_traced", [True, False])
def test_an_observer_keeps_nothing_of_a_call(
    monkeypatch: pytest.MonkeyPatch, observe: ObserveCall, *, is_traced: bool
) -> None:
    monkeypatch.setattr(tracing, "is_on", lambda: is_traced)
    large = Large()
    kept = weakref.ref(large)
    call = Call(model="m", max_tokens=1, messages=[Message("user", "a")], options={"large": large})
    del large
    with observe(ignore, "anthropic", call) as put:
        del call
        assert kept() is None
        put(DELTA)


def ignore(_: ModelEvent) -> None: ...


def close_call(_: ModelEvent) -> None:
    raise CloseCall


async def wait() -> None:
    await asyncio.Event().wait()


async def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("take", "rest", "error_type"),
    [
        (close_call, wait, ""),
        (ignore, wait, "cancelled"),
        (ignore, partial(fail, BackendError("backend_broken", "x")), "backend_broken"),
        (ignore, partial(fail, ZeroDivisionError()), "_OTHER"),
    ],
    ids=["closed by its sink", "stopped at a deadline", "broken off", "internal error"],
)
async def test_a_call_is_recorded_with_what_ended_it(
    monkeypatch: pytest.MonkeyPatch, take: Put, rest: Callable[[], Awaitable[None]], error_type: str
) -> None:
    """The metric and the span agree."""

    def count() -> float:
        labels = {"gen_ai_provider_name": "anthropic", "gen_ai_request_model": "other", "error_type": error_type}
        return REGISTRY.get_sample_value("gen_ai_client_operation_duration_seconds_count", labels) or 0.0

    spans, provider, before = InMemorySpanExporter(), TracerProvider(), count()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(tracing, "is_on", lambda: True)
    monkeypatch.setattr(tracing, "start", provider.get_tracer("test").start_span)
    with suppress(TimeoutError, BackendError, ZeroDivisionError, CloseCall):
        async with asyncio.timeout(0.05):
            call = Call(model="m", max_tokens=1, messages=[])
            with measured(take, "anthropic", call) as put_measured, call_span(put_measured, "anthropic", call) as put:
                put(DELTA)
                await rest()
    (span,) = spans.get_finished_spans()
    assert (span.attributes or {}).get("error.type", "") == error_type
    assert "gen_ai.response.time_to_first_chunk" in (span.attributes or {})
    assert span.status.is_ok == (not error_type)
    assert count() == before + 1
