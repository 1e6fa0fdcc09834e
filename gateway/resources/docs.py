"""The routes that tell what the API is: the document, and a page of it for people. Both need nothing from elsewhere."""

from functools import cache
from importlib.resources import files

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tailrace.gateway.openapi.reference_page import render_page

DOCUMENT = files("tailrace.gateway.openapi") / "openapi.json"


@cache
def document() -> bytes:
    return DOCUMENT.read_bytes()


@cache
def page() -> bytes:
    # Made once: it takes 5 ms, in which every stream stands still, and anybody may ask for it.
    return render_page(msgspec.json.decode(document())).encode()


async def openapi(_: Request) -> Response:
    """`GET /openapi.json`: this API as an OpenAPI 3.1 document."""
    return Response(document(), media_type="application/json")


async def docs(_: Request) -> Response:
    """`GET /docs`: the same, to read. It works offline."""
    return Response(page(), media_type="text/html; charset=utf-8")


ROUTES = [
    Route("/openapi.json", openapi, methods=["GET"]),
    Route("/docs", docs, methods=["GET"]),
]
