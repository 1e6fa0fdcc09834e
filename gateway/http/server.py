"""uvicorn, taught to drain: at a stop the streams are told first, and then the server has nothing to wait for."""

import asyncio
import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from tailrace.gateway.http import fd_limit, security_headers
from tailrace.gateway.http.http_protocol import ClientConnection

# Connections that wait to be accepted: the kernel takes net.core.somaxconn at the most, and resets others in a while.
BACKLOG = 16_384
# A stream that is told to close does so in milliseconds; this is for a POST under way.
GRACE_S = 5
# What the kernel does for each connection, where it is Linux. A laptop that was shut sends no word that it has gone.
KEPT = {
    # Who acknowledges nothing of what is sent, or takes nothing, for so long, has gone: with the heartbeats of a stream
    # it is found a minute after it went.
    "TCP_USER_TIMEOUT": 45_000,
    # Whom there is nothing to send to is asked, every so many seconds, whether it is there.
    "TCP_KEEPIDLE": 15,
    "TCP_KEEPINTVL": 10,
    # Bytes that wait in the kernel, which takes megabytes otherwise for somebody who does not read.
    "TCP_NOTSENT_LOWAT": 128 * 1024,
    # A delta leaves when it is written. uvloop sees to that; asyncio does not where a socket names no protocol, as this
    # one does not, and then a second small write waits 40 ms for an acknowledgement of the first.
    "TCP_NODELAY": 1,
}


class Server(uvicorn.Server):
    """Serves until `stop` is set, which the process's own signal handlers do."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(app: ASGIApp, listening: socket.socket, stop: asyncio.Event, proxies: Sequence[str] = ()) -> None:
    """Serves `app` until `stop` is set. `proxies` are believed who it is that they ask for."""
    config = uvicorn.Config(
        app,
        http=ClientConnection,  # of httptools, which refuses what h11 lets pass: CL with TE, folded headers
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        backlog=BACKLOG,
        server_header=False,
        headers=list(security_headers.HEADERS),
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        limit_concurrency=fd_limit.connections_max(),
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
        listening = socket.socket(fileno=listen_fd)
    else:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=False)
    # Connections inherit them.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEPT.items():
        if hasattr(socket, name):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return listening


def _is_news(record: logging.LogRecord) -> bool:
    # A stream broken off on purpose is how a body without an end is written; uvicorn takes it for a mistake.
    return "ASGI callable returned without completing response" not in record.getMessage()
