"""What there is to ask: the API's directory, made of its routes, so that it lists what is there. It asks for no key."""

from collections.abc import Iterable

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from tailrace.gateway.http.json_response import json_response
from tailrace.proto.version import VERSION

NAME = "Tailrace"
ABOUT = "Claude's answers, to everybody who is reading them, with none of it lost half-way"


class Directory(msgspec.Struct, frozen=True, kw_only=True):
    """`endpoints`: every path with its methods."""

    name: str = NAME
    version: str = VERSION
    description: str = ABOUT
    health: str = "/health"
    endpoints: dict[str, list[str]]


async def directory(request: Request) -> Response:
    """`GET /`: JSON for who accepts it, else a short text."""
    endpoints = endpoints_of(request.app.routes)
    if "application/json" in request.headers.get("accept", ""):
        return json_response(Directory(endpoints=endpoints))
    lines = [f"{' '.join(methods)} {path}" for path, methods in endpoints.items()]
    return PlainTextResponse("\n".join([f"{NAME} {VERSION}: {ABOUT}.", "", *lines, ""]))


def endpoints_of(routes: Iterable[BaseRoute]) -> dict[str, list[str]]:
    """Every path with its methods, in the order of the routes."""
    endpoints: dict[str, list[str]] = {}
    for route in routes:
        if isinstance(route, Route):
            endpoints.setdefault(route.path, []).extend(sorted((route.methods or set()) - {"HEAD"}))
    return endpoints


ROUTES = [Route("/", directory, methods=["GET"])]
