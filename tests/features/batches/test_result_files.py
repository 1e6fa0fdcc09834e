"""Result files of batches: their size."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from tailrace.features.batches.result_files import rendered_size
from tailrace.proto.errors import Refused
from tests.unit.test_download import build_reader


async def test_the_size_of_results_is_not_computed_any_further_for_a_client_that_has_disconnected() -> None:
    is_rendering = asyncio.Event()

    async def pieces() -> AsyncGenerator[bytes, None]:
        while True:
            await asyncio.sleep(0)
            is_rendering.set()
            yield b"x"

    async def receive() -> Message:
        await is_rendering.wait()
        return {"type": "http.disconnect"}

    with pytest.raises(Refused):
        await asyncio.wait_for(rendered_size(build_reader(), receive, pieces()), 5)
