"""Runs uvicorn: socket options, limits, and a shutdown that closes the streams first."""

import asyncio
import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message

from tailrace.gateway.http import fd_limit, security_headers
from tailrace.gateway.http.deferred_response import send_deferred
from tailrace.gateway.http.http_protocol import ClientConnection
from tailrace.proto.runtime.flag import Flag
from tailrace.proto.runtime.race import run_until
from tailrace.proto.runtime.tcp_options import keep_alive

# Streams close within milliseconds; this is for POST requests in progress.
GRACE_S = 5
# Requests on connections that were accepted before the stop arrive within this time.
ARRIVAL_S = 0.25
# After that, requests without a response may still be served for this time.
UNANSWERED_S_MAX = 2.0
POLL_S = 0.02
# uvicorn logs it as an error; a stream is truncated on purpose by returning without a last chunk.
EXPECTED = "ASGI callable returned without completing response"
# Options of each connection on Linux, which detect clients that vanish without closing (a laptop that was shut).
KEPT = {
    # Closes a connection whose data is not acknowledged for so many milliseconds. With the heartbeats of a stream, a
    # vanished client is detected after a minute.
    "TCP_USER_TIMEOUT": 45_000,
    # Keep-alive probes of idle connections, in seconds.
    "TCP_KEEPIDLE": 15,
    "TCP_KEEPINTVL": 10,
    # Unsent bytes in the kernel, which would be megabytes otherwise for a client that does not read.
    "TCP_NOTSENT_LOWAT": 128 * 1024,
    # Send each delta at once. uvloop sets this; asyncio does not for a socket without a protocol number, such as this,
    # and then a second small write waits 40 ms for the acknowledgement of the first.
    "TCP_NODELAY": 1,
}


class Server(uvicorn.Server):
    """Handles no signals: the process does, and sets `stop`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    app: ASGIApp,
    overflow: ASGIApp,
    listening: socket.socket,
    stop: asyncio.Event,
    draining: Flag,
    proxies: Sequence[str] = (),
    connection: type[ClientConnection] = ClientConnection,
) -> None:
    """Serves `app` until `stop` is set, and `overflow` to connections above the limit.

    After `stop`, no connection is accepted, and requests that have arrived are served. Then `draining` is set, which
    ends the streams. The X-Forwarded headers of `proxies` are trusted.
    """
    config = uvicorn.Config(
        send_deferred(app, partial(close_connection, stop)),
        # httptools rejects what h11 accepts: CL with TE, folded headers
        http=partial(connection, overflow=overflow, excess_max=fd_limit.excess_max(), idle={}),  # type: ignore[arg-type]
        lifespan="off",
        **connection.SETTINGS,
        log_config=None,
        access_log=False,
        backlog=fd_limit.backlog(),
        server_header=False,
        headers=list(security_headers.HEADERS),
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        limit_concurrency=fd_limit.connections_max(),
        timeout_graceful_shutdown=GRACE_S,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    server = Server(config)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(server.serve(sockets=[listening]))
        await run_until(stop.wait(), serving)
        await _serve_arrived(server)
        draining.set()
        server.should_exit = True


def close_connection(stop: asyncio.Event, message: Message) -> None:
    """After `stop`, adds a header to the start of a response: the client shall use another connection."""
    if stop.is_set():
        message["headers"] = [*message.get("headers", []), (b"connection", b"close")]


async def _serve_arrived(server: uvicorn.Server) -> None:
    """Closes the listening socket and idle connections, and waits until all requests that have arrived are answered."""
    for listener in server.servers:
        listener.close()
    await asyncio.sleep(ARRIVAL_S)
    for connection in list(server.server_state.connections):
        connection.shutdown()
    with suppress(TimeoutError):
        async with asyncio.timeout(UNANSWERED_S_MAX):
            while any(map(_is_unanswered, server.server_state.connections)):  # noqa: ASYNC110  # uvicorn has no event
                await asyncio.sleep(POLL_S)


def _is_unanswered(connection: Any) -> bool:
    cycle = connection.cycle
    return cycle is not None and not cycle.response_started


def listen(host: str, port: int, listen_fd: int) -> socket.socket:
    """Returns the inherited socket, or a new one. Raises OSError when the port is in use."""
    if listen_fd:
        listening = socket.socket(fileno=listen_fd)
    else:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=fd_limit.backlog(), reuse_port=False)
    # Connections inherit these options.
    keep_alive(listening, KEPT)
    return listening


def _is_news(record: logging.LogRecord) -> bool:
    return EXPECTED not in record.getMessage()
