"""Reads the answer of a backend as an async iterator."""

import asyncio
from collections.abc import AsyncGenerator

from tailrace.generators.backends import Backend, Call
from tailrace.generators.backends.model_event import ModelEvent


async def answer_of(backend: Backend, call: Call) -> AsyncGenerator[ModelEvent, None]:
    """Yields the events of an answer, and raises what ends it. Closing the iterator cancels the call."""
    arrived = asyncio.Queue[ModelEvent | None]()
    streaming = asyncio.create_task(backend.stream(call, arrived.put_nowait))
    del call
    streaming.add_done_callback(lambda _: arrived.put_nowait(None))
    try:
        while (event := await arrived.get()) is not None:
            yield event
        await streaming
    finally:
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)
