"""The cookie of the tutorials' chat page, which identifies a conversation at `POST /chat`."""

import re
import secrets

from starlette.requests import Request

from tailrace.protocols.common.cookies import cookie_value

COOKIE = "tailrace_chat"
# The format of `secrets.token_urlsafe(24)`. The cookie grants access to its conversation, so it must be unguessable.
COOKIE_VALUE = re.compile(r"[A-Za-z0-9_-]{32}")
COOKIE_AGE_S = 30 * 24 * 3600


def new_cookie() -> str:
    return secrets.token_urlsafe(24)


def cookie_of(request: Request) -> str | None:
    """Returns the cookie of the request's conversation; None if it has none that is valid."""
    cookie = cookie_value(request.headers, COOKIE)
    return cookie if COOKIE_VALUE.fullmatch(cookie) is not None else None


def format_cookie(cookie: str, request: Request) -> str:
    """Returns the value of Set-Cookie. Its path is the page's, `/`, so that a reload keeps the conversation."""
    secure = "; Secure" if request.url.scheme == "https" else ""
    return f"{COOKIE}={cookie}; Path=/; Max-Age={COOKIE_AGE_S}; HttpOnly; SameSite=Lax{secure}"
