"""Backends that observe another one keep nothing of a call while its answer is read."""

import weakref
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from tailrace.generators.backends import Call
from tailrace.generators.backends.measured import MeasuredBackend
from tailrace.generators.backends.model_event import ModelEvent, from_event
from tailrace.generators.backends.observed import PROVIDERS, ObservedBackend
from tailrace.generators.backends.registry import NAMES
from tailrace.generators.backends.traced import TracedBackend
from tailrace.proto.entries import Message
from tailrace.proto.events import BlockDelta, TextDelta


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


def test_every_backend_has_a_provider_name() -> None:
    assert set(PROVIDERS) == set(NAMES)
