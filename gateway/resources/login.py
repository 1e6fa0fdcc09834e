"""The routes of a page's login: in with an API key, on with a cookie, and out. No script sees the cookie."""

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tailrace.gateway.auth.authenticate import CROSS_ORIGIN_MESSAGE
from tailrace.gateway.auth.cors import is_cross_origin
from tailrace.gateway.auth.login import ACCESS_S, COOKIE, REFRESH_PATH, Tokens, format_cookie
from tailrace.gateway.dependencies import caller_of, gateway_of
from tailrace.gateway.http.json_response import json_response
from tailrace.proto.errors import Refused


class LoggedIn(msgspec.Struct, frozen=True, kw_only=True):
    """An access token, in the words of OAuth (RFC 6749, 5.1). `expires_in`: seconds."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105  # OAuth's word for its kind
    expires_in: int = ACCESS_S


async def post(request: Request) -> Response:
    """`POST /v1/login`: an API key for an access token, and a cookie that gets the next one."""
    refuse_elsewhere(request)
    gateway, caller = gateway_of(request), caller_of(request)
    # Not by what a key was exchanged for: a login would never end.
    if caller.key is None or caller != gateway.door.find_key(caller.key):
        raise Refused(
            "request_invalid", "log in with an API key; where none is asked for there is nothing to log in to"
        )
    return logged_in(await gateway.logins.create(caller.key))


async def refresh(request: Request) -> Response:
    """`POST /v1/login/refresh`: the next access token, and the next cookie; the one that was sent is used up."""
    refuse_elsewhere(request)
    return logged_in(await gateway_of(request).logins.refresh(token_of(request)))


async def logout(request: Request) -> Response:
    """`POST /v1/logout`: the login has ended, and the cookie is gone. An access token ends by itself, in minutes."""
    refuse_elsewhere(request)
    await gateway_of(request).logins.end(token_of(request))
    return Response(status_code=204, headers={"cache-control": "no-store", "set-cookie": format_cookie("", 0)})


def refuse_elsewhere(request: Request) -> None:
    """A cookie is the browser's to send: the page that has it sent must be of this very origin. Raises Refused."""
    if is_cross_origin(request):
        raise Refused("origin_refused", CROSS_ORIGIN_MESSAGE)


def token_of(request: Request) -> bytes:
    return request.cookies.get(COOKIE, "").encode("latin-1", "replace")


def logged_in(tokens: Tokens) -> Response:
    headers = {"set-cookie": format_cookie(tokens.refresh, tokens.refresh_s)}
    return json_response(LoggedIn(access_token=tokens.access), headers=headers)


ROUTES = [
    Route("/v1/login", post, methods=["POST"]),
    Route(REFRESH_PATH, refresh, methods=["POST"]),
    Route("/v1/logout", logout, methods=["POST"]),
]
