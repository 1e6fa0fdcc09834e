"""Patches waiting times of this process: of a gateway's stop, and of queries without a process that answers them.

A gateway skips no step of a stop. Many tests have no persistence; queries would wait 4 s for it to be restarted.
"""

import asyncio
from types import ModuleType
from typing import Any

import uvicorn.server

from tailrace.gateway.http import server
from tailrace.proto.nats import rpc

# How often uvicorn checks whether to stop, and whether its connections are closed.
LOOK_EVERY_S = 0.01
RESTART_S_MAX = 0.2


class Asyncio(ModuleType):
    """The `asyncio` of uvicorn's server in tests, which stop thousands of gateways one after the other."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(delay: float) -> None:
        await asyncio.sleep(min(delay, LOOK_EVERY_S))


def hurry() -> None:
    """Patches all servers and clients of queries of this process."""
    uvicorn.server.asyncio = Asyncio("asyncio")  # type: ignore[attr-defined]
    server.ARRIVAL_S = LOOK_EVERY_S
    rpc.RESTART_S_MAX = RESTART_S_MAX
