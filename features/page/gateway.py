"""The route `/`, without a key: a page with chats for browsers, all routes with their methods for other clients.

The page is static and public. It reads and changes data only through the API, with the API's own authentication.
"""

from collections.abc import Iterable
from html import escape
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette import routing
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from tailrace.features.common.page_file import NO_STORE, html_page, kept_file
from tailrace.features.page.demo import demo_middleware
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.media_type import accept_header
from tailrace.gateway.http.route import OPERATION, Route
from tailrace.gateway.services import Gateway
from tailrace.proto.version import VERSION

NAME = "Tailrace"
ABOUT = "Resumable streams of Claude's answers that survive the death of any process"
PAGES = "In a browser, / is a page with chats, /docs describes the routes, and /ops shows how the system is doing."
FILES = frozenset(
    {
        *(
            "calls.js",
            "demo.css",
            "demo.js",
            "dom.js",
            "icon.svg",
            "libraries.js",
            "markdown.js",
            "math.js",
        ),
        *("page.css", "page.js", "requests.js", "timeline.css", "timeline.js", "turn.js"),
    }
)
COMMON_FILES = frozenset({"base.css", "controls.css"})
VARY = {"vary": "accept"}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of the page."""

    demo: Annotated[
        str,
        Meta(description="Unix socket of `tailrace up`, which kills processes for the demo on the page `/`"),
    ] = ""
    page_titles_model: Annotated[
        str,
        Meta(
            description="model that writes the title of a chat of the page `/`, once, after its first answer, at the "
            "cost of the chat's key; without it, the title is the beginning of the question",
            examples=["claude-haiku-5-5"],
        ),
    ] = ""


class Directory(msgspec.Struct, frozen=True, kw_only=True):
    """`endpoints`: every path with its methods."""

    name: str = NAME
    """The name of the product."""
    version: str = VERSION
    """The version of the gateway."""
    description: str = ABOUT
    """The purpose of the product."""
    health: str = "/health"
    """The path that reports the health."""
    endpoints: dict[str, list[str]]
    """Every path with its methods."""


async def index(request: Request, settings: Settings) -> Response:
    """`GET /`: a page with chats if the client accepts HTML; the routes, as JSON if it accepts that, else as text."""
    types = accept_header(request.headers)
    if "text/html" in types:
        page = html_page("tailrace.features.page", "page.html", "/", VARY)
        return page if not settings.page_titles_model else _with_titles(page, settings.page_titles_model)
    endpoints = endpoints_of(request.app.routes)
    if "application/json" in types:
        return json_response(Directory(endpoints=endpoints), headers=VARY)
    lines = [f"{' '.join(methods)} {path}" for path, methods in endpoints.items()]
    text = "\n".join([f"{NAME} {VERSION}: {ABOUT}.", PAGES, "", *lines, ""])
    return PlainTextResponse(text, headers=NO_STORE | VARY)


def _with_titles(page: Response, model: str) -> Response:
    """Returns the page, set to request titles from `model`."""
    body = bytes(page.body).replace(b"<body>", f'<body data-titles-model="{escape(model)}">'.encode())
    return Response(body, headers={name: page.headers[name] for name in page.headers if name != "content-length"})


async def turn(_: Request) -> Response:
    """`GET /turns/{turn}`: a page with the timeline of a turn. The page reads `/v1/turns/{turn}` and the timeline
    with a key.

    The page has an address of its own, so that `/v1/turns/{turn}` is JSON for every client.
    """
    return html_page("tailrace.features.page", "timeline.html", "")


async def file(request: Request) -> Response:
    """`GET /page/{file}`: a script or style sheet, or the icon, of the pages.

    All pages load them. They change only with the version of the gateway.
    """
    name = request.path_params["file"]
    if name in COMMON_FILES:
        return kept_file(request, "tailrace.features.common", name)
    if name not in FILES:
        raise HTTPException(404)
    return kept_file(request, "tailrace.features.page", name)


def endpoints_of(routes: Iterable[routing.BaseRoute]) -> dict[str, list[str]]:
    """Returns every path with its methods, in the order of the routes."""
    endpoints: dict[str, list[str]] = {}
    for route in routes:
        if isinstance(route, routing.Route):
            endpoints.setdefault(route.path, []).extend(sorted((route.methods or set()) - {"HEAD"}))
    return endpoints


ROUTES = [
    Route("GET", "/", index, "public", OPERATION, result=Directory, streams="text/plain"),
    Route("GET", "/turns/{turn}", turn, "public", OPERATION, streams="text/html"),
    Route("GET", "/page/{file}", file, "public", OPERATION, streams="text/javascript"),
]


def start(_gateway: Gateway, settings: Settings) -> Parts:
    """Makes the middleware of the demo, which only `tailrace up` turns on."""
    return Parts(services=(settings,), middleware=tuple(demo_middleware(settings.demo)))


FEATURE = Feature(Settings, start, routes=ROUTES)
