"""Routes of the API reference: the OpenAPI document and an HTML page made of it. Both work offline."""

from functools import cache
from importlib.resources import files

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tailrace.features.api_reference.reference_page import render_page
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http.route import OPERATION, Route
from tailrace.proto.runtime.settings import NoSettings

DOCUMENT = files("tailrace.features.api_reference") / "openapi.json"


@cache
def document() -> bytes:
    return DOCUMENT.read_bytes()


@cache
def page() -> bytes:
    # Rendered once: it takes 5 ms, which would stop every stream, and the route needs no key.
    return render_page(msgspec.json.decode(document())).encode()


async def openapi(_: Request) -> Response:
    """`GET /openapi.json`: this API as an OpenAPI 3.1 document."""
    return Response(document(), media_type="application/json")


async def docs(_: Request) -> Response:
    """`GET /docs`: the API reference as an HTML page. It works offline."""
    return Response(page(), media_type="text/html; charset=utf-8")


ROUTES = [
    Route("GET", "/openapi.json", openapi, "public", OPERATION, result={"openapi": "3.1.1"}),
    Route("GET", "/docs", docs, "public", OPERATION, streams="text/html"),
]

FEATURE = Feature(NoSettings, lambda _gateway, _settings: Parts(), routes=ROUTES)
