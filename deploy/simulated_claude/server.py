"""The simulated Claude listens on a port; this file never looks at what is served."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn

from tailrace.deploy.simulated_claude.app import app


class Server(uvicorn.Server):
    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_server((host, port), backlog=2048)
        # Connections inherit it. asyncio does not ask for it where a socket names no protocol, as this one.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = uvicorn.Config(
            app(),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=0,  # an open stream here may be a stall, which never ends by itself
        )
        super().__init__(config)

    @property
    def url(self) -> str:
        host, port = self.socket.getsockname()[:2]
        return f"http://{host}:{port}"


class Guest(Server):
    """A server in somebody else's event loop: the signals are not its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """The address of a simulated Claude that runs in this event loop until the block ends."""
    async with running(Guest(host, port)) as url:
        yield url


@contextlib.asynccontextmanager
async def running(server: Guest) -> AsyncIterator[str]:
    """The same of a server that is there already."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve([server.socket]))
        try:
            yield server.url
        finally:
            server.should_exit = True
