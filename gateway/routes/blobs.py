"""The route of what is too long for the log: told to its tenant as it came."""

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.context import gateway_of, tenant_of
from proto.blobs import Blob
from proto.errors import BlobUnknown, LogUnavailable
from proto.ids import is_token
from proto.log.bodies import UNKNOWN

HEADERS = {
    "content-type": "application/octet-stream",
    "cache-control": "no-store",
    # What a stranger has written must never become a page of this origin.
    "x-content-type-options": "nosniff",
    "content-disposition": "attachment",
}


class Download:
    """The response: chunk by chunk, so that a slow client keeps one of them in memory and not all.

    One that breaks in the middle, or is not what its name says, lacks the last chunk of its body.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None]) -> None:
        self._chunks = chunks

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with aclosing(self._chunks) as chunks:
            with suppress(LogUnavailable):
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body"})


async def get(request: Request) -> ASGIApp:
    """`GET /v1/blobs/{sha256}`: the string that a reference stands for, as UTF-8."""
    bodies, tenant = gateway_of(request).bodies, tenant_of(request)
    sha256 = request.path_params["sha256"]
    if not is_token(sha256):
        raise BlobUnknown(UNKNOWN)
    return Download(bodies.chunks(tenant, Blob(sha256, await bodies.size(tenant, sha256))))


ROUTES = [Route("/v1/blobs/{sha256}", get, methods=["GET"])]
