"""uvicorn, taught to drain: at a stop the streams are told first, and then the server has nothing to wait for."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from gateway.connection import ClientConnection

BACKLOG = 2048
# A stream that is told to close does so in milliseconds; this is for a POST under way.
GRACE_S = 5


class Server(uvicorn.Server):
    """Serves until `stop` is set, which the process's own signal handlers do."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(app: ASGIApp, listening: socket.socket, stop: asyncio.Event) -> None:
    config = uvicorn.Config(
        app,
        http=ClientConnection,  # of httptools, which refuses what h11 lets pass: CL with TE, folded headers (FACTS)
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=GRACE_S,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    server = Server(config)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(server.serve(sockets=[listening]))
        stopping = group.create_task(stop.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        stopping.cancel()


def listen(host: str, port: int, listen_fd: int) -> socket.socket:
    """The socket to serve on: the one that was inherited, or a new one. Raises OSError when the port is taken."""
    if listen_fd:
        return socket.socket(fileno=listen_fd)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=False)


def _is_news(record: logging.LogRecord) -> bool:
    # A stream broken off on purpose is how a body without an end is written; uvicorn takes it for a mistake.
    return "ASGI callable returned without completing response" not in record.getMessage()
