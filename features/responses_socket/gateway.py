"""`GET /v1/responses` with `Upgrade: websocket`: OpenAI's Responses API over a WebSocket.

OpenAI's guide "WebSocket mode" and the types of its Python SDK 3.57 describe the messages. ADR 34 has the reasons.
"""

from typing import NamedTuple

from starlette.types import ASGIApp

from tailrace.features.responses_socket.socket import ResponsesSocket
from tailrace.features.responses_socket.socket_memory import SocketMemory
from tailrace.features.responses_socket.socket_protocol import is_handshake
from tailrace.features.responses_socket.upgrade import PATH, UpgradableConnection
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.cors import is_cross_origin, parse_origins
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http.route import Route, Section
from tailrace.gateway.services import Gateway
from tailrace.gateway.streaming.reader import Reader, StreamContext, refuse_when_draining
from tailrace.proto.errors import Refused
from tailrace.proto.runtime.settings import NoSettings

NO_UPGRADE = (
    "This opens a WebSocket: send the handshake of RFC 6455, version 13, or create a response with POST /v1/responses."
)
# RFC 9110, 15.5.22 and RFC 6455, 4.4.
UPGRADE = {"upgrade": "websocket", "connection": "upgrade", "sec-websocket-version": "13"}
# WebSockets may hold this part of the memory for large bodies, beside it.
MEMORY_DIVISOR = 4
OTHER_ORIGIN = "A page of another origin may not open a WebSocket. Add the page's origin to TAILRACE_ORIGINS."


class Origins(NamedTuple):
    """The other origins whose pages may open a WebSocket."""

    allowed: frozenset[str]


async def get_socket(request: ApiRequest, streams: StreamContext, origins: Origins, memory: SocketMemory) -> ASGIApp:
    """`GET /v1/responses`: opens a WebSocket on which a client creates, resumes and cancels responses.

    OpenAI's WebSocket mode (`responses.connect()`). Each message has the limits and errors of the HTTP request that it
    stands for, and each event those of its stream.
    """
    if not is_handshake(request.scope):
        request.response_headers.append(UPGRADE)
        raise Refused("upgrade_required", NO_UPGRADE)
    # A browser opens a WebSocket for every page, without a preflight (RFC 6455, 10.2).
    if request.headers.get("origin") not in origins.allowed and is_cross_origin(request):
        raise Refused("origin_refused", OTHER_ORIGIN)
    refuse_when_draining(streams.draining)
    return ResponsesSocket(request, Reader(streams, request), memory)


ROUTES = [
    Route(
        "GET",
        PATH.decode(),
        get_socket,
        "read",
        Section("openai", "https://platform.openai.com/docs/guides/websocket-mode"),
        status=101,
    ),
]


def start(gateway: Gateway, _settings: NoSettings) -> Parts:
    """Makes the gateway accept WebSockets."""
    settings = gateway.settings
    memory = SocketMemory(settings.large_bytes_max // MEMORY_DIVISOR)
    return Parts(services=(Origins(parse_origins(settings.origins)), memory), connection=UpgradableConnection)


FEATURE = Feature(NoSettings, start, routes=ROUTES)
