"""The routes of the guides. They are public, as the documentation is."""

import asyncio
from html import escape

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from tailrace.features.common.plain_page import plain_page
from tailrace.features.guides import guides
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http.route import OPERATION, Route, query
from tailrace.proto.runtime.settings import NoSettings

WANTED_CHARS_MAX = 200
WANTED = query("q", "Words to search for in the sections.")


async def index(request: Request) -> Response:
    """`GET /guides`: the list of the guides; with `q`, the sections that contain all of its words, or the rarest."""
    wanted = request.query_params.get("q", "").strip()[:WANTED_CHARS_MAX]
    if not wanted:
        return _page(await asyncio.to_thread(guides.read, guides.INDEX), "/guides")
    # In a thread: a search takes some milliseconds, which would stop every stream.
    hits = await asyncio.to_thread(guides.search, wanted)
    items = "".join(
        f'<h2><a href="/guides/{one.section.guide}#{escape(one.section.anchor)}">{escape(one.section.heading)}</a></h2>'
        f'<p><span class="quiet">{escape(one.section.title)}</span><br>{escape(one.excerpt)}</p>'
        for one in hits
    )
    has_all = bool(hits) and hits[0].has_all
    rest = "These contain some of them." if hits else ""
    found = items if has_all else f"<p>No section contains all of these words. {rest}</p>{items}"
    return _page(guides.Guide("Search", f"<h1>Search</h1>{found}"), "", wanted)


async def guide(request: Request) -> Response:
    """`GET /guides/{guide}`: a guide, such as `API`, as an HTML page."""
    try:
        return _page(await asyncio.to_thread(guides.read, request.path_params["guide"]), "")
    except KeyError:
        raise HTTPException(404) from None


def _page(shown: guides.Guide, current: str, wanted: str = "") -> Response:
    search = (
        '<form action="/guides" role="search"><input type="search" name="q" maxlength="200" '
        f'placeholder="Search the guides" aria-label="Search the guides" value="{escape(wanted)}"></form>'
    )
    return HTMLResponse(plain_page(f"{shown.title} - Tailrace", shown.html, current, search))


ROUTES = [
    Route("GET", "/guides", index, "public", OPERATION, streams="text/html", parameters=(WANTED,)),
    Route("GET", "/guides/{guide}", guide, "public", OPERATION, streams="text/html"),
]

FEATURE = Feature(NoSettings, lambda _gateway, _settings: Parts(), routes=ROUTES)
