"""A tenant that posts more turns than its limits, or its share of the generators, allow."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.checker.history import Overload
from tests.checker.recorded_client import Client
from tests.checker.recorded_system import OVERLOADER, RecordedSystem

CLIENTS = 2
# Between two posts of a client: without a pause it would mostly take CPU from the system under test.
PAUSE_S = 0.02


@asynccontextmanager
async def overload(system: RecordedSystem, prompt: str) -> AsyncIterator[None]:
    """Another tenant posts `prompt` again and again while the block runs. The gateways must know `tenant_keys()`."""
    clients = [system.client(f"overloader {number} of {prompt}", OVERLOADER) for number in range(CLIENTS)]

    async def post(client: Client) -> None:
        while True:
            await client.post(prompt)
            await asyncio.sleep(PAUSE_S)

    with system.recorder(f"overload of {prompt}").recording(Overload(tenant=OVERLOADER)) as recording:
        posting = [asyncio.create_task(post(client)) for client in clients]
        try:
            yield
        finally:
            for one in posting:
                one.cancel()
            await asyncio.gather(*posting, return_exceptions=True)
        recording.ok()
