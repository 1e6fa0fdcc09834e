"""Route of the API index: all routes with their methods. It needs no key."""

from collections.abc import Iterable

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from tailrace.gateway.http.chat_cookie import cookie_of, format_cookie, new_cookie
from tailrace.gateway.http.json_response import json_response
from tailrace.proto.version import VERSION

NAME = "Tailrace"
ABOUT = "Resumable streams of Claude's answers that survive the death of any process"
PAGES = "In a browser, /docs describes the routes, and /ops shows how the system is doing."


class Directory(msgspec.Struct, frozen=True, kw_only=True):
    """`endpoints`: every path with its methods."""

    name: str = NAME
    version: str = VERSION
    description: str = ABOUT
    health: str = "/health"
    endpoints: dict[str, list[str]]


async def index(request: Request) -> Response:
    """`GET /`: the routes, as JSON if the client accepts it, else as text. Sets the cookie of the chat page."""
    endpoints = endpoints_of(request.app.routes)
    headers = {} if cookie_of(request) else {"set-cookie": format_cookie(new_cookie(), request)}
    if "application/json" in request.headers.get("accept", ""):
        return json_response(Directory(endpoints=endpoints), headers=headers)
    lines = [f"{' '.join(methods)} {path}" for path, methods in endpoints.items()]
    text = "\n".join([f"{NAME} {VERSION}: {ABOUT}.", PAGES, "", *lines, ""])
    return PlainTextResponse(text, headers={"cache-control": "no-store", **headers})


def endpoints_of(routes: Iterable[BaseRoute]) -> dict[str, list[str]]:
    """Returns every path with its methods, in the order of the routes."""
    endpoints: dict[str, list[str]] = {}
    for route in routes:
        if isinstance(route, Route):
            endpoints.setdefault(route.path, []).extend(sorted((route.methods or set()) - {"HEAD"}))
    return endpoints


ROUTES = [Route("/", index, methods=["GET"])]
