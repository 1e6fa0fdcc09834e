"""The cookie of `POST /chat`: the feature sets it on the page `/`, which does not know it."""

import httpx2
import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from tailrace.gateway.http.route import OPERATION, Route
from tailrace.protocols.tutorials.chat_cookie import COOKIE, COOKIE_VALUE
from tailrace.protocols.tutorials.gateway import wrap

ROUTE = Route("GET", "/", lambda _: None, "public", OPERATION)


async def page(_: Request) -> Response:
    return PlainTextResponse("page", headers={"vary": "accept"})


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    route = wrap(msgspec.structs.replace(ROUTE, endpoint=page))
    await (await route.endpoint(Request(scope)))(scope, receive, send)


async def test_the_page_sets_the_cookie_of_a_browser_that_has_none() -> None:
    """A cookie that was not made here could be guessed, and is replaced."""
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        first = await client.get("/")
        name, _, value = first.headers["set-cookie"].partition(";")[0].partition("=")
        assert (name, COOKIE_VALUE.fullmatch(value) is not None, first.headers["vary"]) == (COOKIE, True, "accept")
        client.cookies.clear()
        again = await client.get("/", headers={"cookie": f"{COOKIE}={value}"})
        assert ("set-cookie" in again.headers, again.text) == (False, "page")
        guessable = await client.get("/", headers={"cookie": f"{COOKIE}=1"})
        assert guessable.headers["set-cookie"].startswith(f"{COOKIE}=")


def test_no_other_route_sets_the_cookie() -> None:
    other = msgspec.structs.replace(ROUTE, path="/docs")
    assert wrap(other) is other
