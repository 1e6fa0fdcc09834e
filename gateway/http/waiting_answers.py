"""The responses of a gateway whose start waits: 200 for `/healthz`, 503 for all other paths."""

import asyncio

from starlette.types import Receive, Scope, Send

from tailrace.gateway.http import error_responses, server
from tailrace.gateway.http.json_response import json_response
from tailrace.proto.runtime.flag import Flag
from tailrace.proto.runtime.listen_error import listen_error
from tailrace.proto.waiting import HEALTH

HEADERS = {"retry-after": str(error_responses.RETRY_AFTER_S)}


async def serve_meanwhile(host: str, port: int, over: asyncio.Event) -> None:
    """Answers on the gateway's port until `over` is set. Raises AddressInUse, SettingsInvalid."""
    try:
        listening = server.listen(host, port, 0)
    except OSError as error:
        raise listen_error("TAILRACE_PORT", host, port, error) from error
    await server.serve(answer, answer, listening, over, Flag())


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application: says what the start waits for."""
    fault = HEALTH.readiness_fault()
    if scope["path"] == "/healthz":
        response = json_response({"ok": True})
    elif scope["path"] == "/readyz":
        report = {"ok": False, "gateway": {"ok": False, "detail": fault}}
        response = json_response(report, status=503, headers=HEADERS)
    else:
        response = error_responses.response("log_unavailable", f"this gateway is {fault}: retry", scope=scope)
    await response(scope, receive, send)
