"""Routes of browser logins: log in with an API key, refresh with the HttpOnly cookie, log out."""

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tailrace.features.logins.logins import ACCESS_S, COOKIE, REFRESH_PATH, Logins, Tokens, format_cookie
from tailrace.features.logins.store import LoginStore
from tailrace.gateway.auth.admission import Admissions
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.authenticate import Authenticator
from tailrace.gateway.auth.cors import is_cross_origin
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.route import LOGIN, Route
from tailrace.gateway.services import Gateway
from tailrace.proto.errors import Refused
from tailrace.proto.runtime.settings import NoSettings
from tailrace.protocols.common.cookies import cookie_value

OTHER_ORIGIN = (
    "A page of another origin cannot log in, refresh or log out, even if TAILRACE_ORIGINS lists its origin. "
    "Use a ticket, or call from a server."
)


class LoggedIn(msgspec.Struct, frozen=True, kw_only=True):
    """An access token, in the format of OAuth (RFC 6749, section 5.1). `expires_in`: seconds."""

    access_token: str
    """The token for the header `Authorization: Bearer`."""
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105  # OAuth's word for its kind
    """The type of the token in OAuth."""
    expires_in: int = ACCESS_S
    """The lifetime of the token, in seconds."""


async def post(request: ApiRequest, authenticator: Authenticator, admissions: Admissions, logins: Logins) -> Response:
    """`POST /v1/login`: exchanges an API key for an access token and a refresh cookie.

    For pages in a browser: the page keeps the token in memory, and the cookie is not visible to scripts.
    """
    refuse_cross_origin(request)
    principal = request.principal
    # An access token or a ticket must not create a login: logins would never end.
    own = principal._replace(has_private_users=False)
    if principal.key is None or own != authenticator.find_key(principal.key):
        raise Refused("request_invalid", "Log in with an API key. Where requests need no key, no login is needed.")
    async with admissions.count(principal):
        return login_response(await logins.create(principal.key))


async def refresh(request: ApiRequest, logins: Logins) -> Response:
    """`POST /v1/login/refresh`: exchanges the refresh cookie, once, for the next access token and cookie.

    A cookie that is used twice ends the login, because it may be stolen.
    """
    refuse_cross_origin(request)
    return login_response(await logins.refresh(refresh_token_of(request)))


async def logout(request: ApiRequest, logins: Logins) -> Response:
    """`POST /v1/logout`: ends the login and deletes the cookie. An access token expires within 10 minutes.

    Without a login the response is the same.
    """
    refuse_cross_origin(request)
    await logins.end(refresh_token_of(request))
    return Response(status_code=204, headers={"cache-control": "no-store", "set-cookie": format_cookie("", 0)})


def refuse_cross_origin(request: Request) -> None:
    """Raises Refused for a request of another origin, because a browser adds the cookie by itself."""
    if is_cross_origin(request):
        raise Refused("origin_refused", OTHER_ORIGIN)


def refresh_token_of(request: Request) -> bytes:
    return cookie_value(request.headers, COOKIE).encode("latin-1")


def login_response(tokens: Tokens) -> Response:
    headers = {"set-cookie": format_cookie(tokens.refresh, tokens.refresh_s)}
    return json_response(LoggedIn(access_token=tokens.access), headers=headers)


ROUTES = [
    Route("POST", "/v1/login", post, "read", LOGIN, result=LoggedIn),
    Route("POST", REFRESH_PATH, refresh, "read", LOGIN, result=LoggedIn, cookie=COOKIE),
    Route("POST", "/v1/logout", logout, "public", LOGIN, status=204),
]


def start(gateway: Gateway, _settings: NoSettings) -> Parts:
    """Makes the gateway accept access tokens and login cookies."""
    authenticator = gateway.authenticator
    logins = Logins(gateway.signer, LoginStore(gateway.connection), authenticator.find_key)
    authenticator.add_verifier(logins)
    authenticator.sources.append(logins.source)
    return Parts(services=(logins,))


FEATURE = Feature(NoSettings, start, routes=ROUTES)
