"""Backends that observe another one keep nothing of a call while its answer is read, and record how it ended."""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from tailrace.generators.backends import Call
from tailrace.generators.backends.measured import MeasuredBackend
from tailrace.generators.backends.model_event import ModelEvent, from_event
from tailrace.generators.backends.observed import PROVIDERS, ObservedBackend
from tailrace.generators.backends.registry import NAMES
from tailrace.generators.backends.traced import TracedBackend
from tailrace.proto.entries import Message
from tailrace.proto.errors import BackendError
from tailrace.proto.events import BlockDelta, TextDelta
from tailrace.proto.runtime import tracing


class Large:
    """Stands for the long strings of a call."""


class Forgetful:
    """A backend that drops its call before its answer, as that of the Messages API does."""

    def model_id(self, model: str) -> str:
        return model

    async def answer(self, call: Call) -> AsyncGenerator[ModelEvent, None]:
        del call
        yield from_event(BlockDelta(0, TextDelta("a")))
        yield from_event(BlockDelta(0, TextDelta("b")))

    async def close(self) -> None: ...


@pytest.mark.parametrize("observer", [MeasuredBackend, TracedBackend])
async def test_a_call_is_freed_when_its_answer_begins(observer: type[ObservedBackend]) -> None:
    large = Large()
    kept = weakref.ref(large)
    call = Call(model="m", max_tokens=1, messages=[Message("user", "a")], options={"large": large})
    del large
    async with aclosing(observer("claude", Forgetful()).answer(call)) as answer:
        del call
        await anext(answer)
        assert kept() is None
        assert [event.kind async for event in answer] == ["content_block_delta"]


class Ending(Forgetful):
    """A backend that sends one event and then raises `error`; without one it sends nothing more."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    async def answer(self, call: Call) -> AsyncGenerator[ModelEvent, None]:
        async with aclosing(super().answer(call)) as answer:
            yield await anext(answer)
        if self._error is not None:
            raise self._error
        await asyncio.Event().wait()


async def read_first(answer: AsyncGenerator[ModelEvent, None]) -> None:
    await anext(answer)


async def read_all(answer: AsyncGenerator[ModelEvent, None]) -> None:
    async with asyncio.timeout(0.05):
        async for _ in answer:
            pass


@pytest.mark.parametrize(
    ("error", "read", "error_type"),
    [
        (None, read_first, ""),
        (None, read_all, "cancelled"),
        (BackendError("backend_broken", "x"), read_all, "backend_broken"),
        (ZeroDivisionError(), read_all, "_OTHER"),
    ],
    ids=["closed by its caller", "stopped at a deadline", "broken off", "internal error"],
)
async def test_a_call_is_recorded_with_what_ended_it(
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    read: Callable[[AsyncGenerator[ModelEvent, None]], Awaitable[None]],
    error_type: str,
) -> None:
    """The metric and the span agree."""

    def count() -> float:
        labels = {"gen_ai_provider_name": "anthropic", "gen_ai_request_model": "other", "error_type": error_type}
        return REGISTRY.get_sample_value("gen_ai_client_operation_duration_seconds_count", labels) or 0.0

    spans, provider, before = InMemorySpanExporter(), TracerProvider(), count()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(tracing, "start", provider.get_tracer("test").start_span)
    backend = TracedBackend("claude", MeasuredBackend("claude", Ending(error)))
    with suppress(TimeoutError, BackendError, ZeroDivisionError):
        async with aclosing(backend.answer(Call(model="m", max_tokens=1, messages=[]))) as answer:
            await read(answer)
    (span,) = spans.get_finished_spans()
    assert (span.attributes or {}).get("error.type", "") == error_type
    assert span.status.is_ok == (not error_type)
    assert count() == before + 1


def test_every_backend_has_a_provider_name() -> None:
    assert set(PROVIDERS) == set(NAMES)
