"""The uvicorn server of the simulated Claude."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn

from tailrace.deploy.local import ports
from tailrace.deploy.simulated_claude.app import app
from tailrace.deploy.simulated_claude.settings import Settings


class Server(uvicorn.Server):
    """A server that binds its address when it is created."""

    def __init__(self, host: str, port: int, *, shows_calls: bool = False, settings: Settings | None = None) -> None:
        """Raises UpRefused if the address cannot be bound."""
        self.socket = ports.listen(host, port)
        # Connections inherit this. asyncio does not set it for sockets without a protocol number, such as this one.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = uvicorn.Config(
            app(host, shows_calls=shows_calls, settings=settings),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=0,  # an open stream may be a `stall`, which never ends
        )
        super().__init__(config)

    @property
    def url(self) -> str:
        """The address with the port that was bound, also if port 0 was requested."""
        host, port = self.socket.getsockname()[:2]
        return f"http://{host}:{port}"


class EmbeddedServer(Server):
    """A server in another program's event loop, which does not handle signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def run_simulated_claude(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Runs a simulated Claude, which shows its calls, in this event loop until the block ends; yields its URL."""
    async with run_embedded(EmbeddedServer(host, port, shows_calls=True)) as url:
        yield url


@contextlib.asynccontextmanager
async def run_embedded(server: EmbeddedServer) -> AsyncIterator[str]:
    """Like `run_simulated_claude`, for an existing server."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve([server.socket]))
        try:
            yield server.url
        finally:
            server.should_exit = True
