"""uvicorn, hurried: at a stop it looks at once, not in a tenth of a second, and then in another. It skips nothing."""

import asyncio
from types import ModuleType
from typing import Any

import uvicorn.server

# uvicorn asks itself this often whether it is to stop, and then whether its connections are gone.
LOOK_EVERY_S = 0.01


class Asyncio(ModuleType):
    """asyncio as uvicorn's server has it in a test: thousands of gateways are stopped there, one after the other."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(delay: float) -> None:
        await asyncio.sleep(min(delay, LOOK_EVERY_S))


def hurry() -> None:
    """For every server of this process. As a patch, for the product is not to know."""
    uvicorn.server.asyncio = Asyncio("asyncio")  # type: ignore[attr-defined]
