"""Which pages' origin a request comes from, and which of them may ask. It reads headers alone.

A browser asks before it sends JSON elsewhere (CORS), and does not ask before it sends `text/plain`, or nothing. Where
no key is needed, that question is what keeps strangers' pages out. The answer is yes for the origins that are listed,
exactly as listed, and never for a page with its cookies.
"""

import re
from collections.abc import Set as AbstractSet
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from tailrace.gateway import error_responses
from tailrace.proto.errors import SettingsInvalid

JSON = "application/json"
# As browsers write one (RFC 6454, 6.2): nothing after the port, which is left out where it is the scheme's own.
ORIGIN = re.compile(r"(https?)://(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
# What a preflight asks for is told back to it.
NAMES = re.compile(r"[\w!#$%&'*+.^`|~, -]*", re.ASCII)
NOT_TOLD = ("content-length", "content-type", "access-control-allow-headers")
OWN_PORT = {"http": "80", "https": "443"}
METHODS = ("GET", "POST", "PATCH", "DELETE")
# How long a browser need not ask again; Chromium's own limit.
ASKED_S = 7200


def listed(text: str) -> frozenset[str]:
    """TAILRACE_ORIGINS; raises SettingsInvalid for what no browser would send, and for `*` and `null`.

    `null` is every sandboxed page's; with `*`, any page could read what is answered here without a key.
    """
    origins = frozenset(filter(None, (origin.strip().lower() for origin in text.split(","))))
    for origin in origins:
        match = ORIGIN.fullmatch(origin)
        if match is None or match[2] == OWN_PORT[match[1]]:
            raise SettingsInvalid(
                f"TAILRACE_ORIGINS: {origin} is no origin as browsers send it: https://app.example, "
                "with a port if it is not the scheme's own, and nothing after it"
            )
    return origins


def cors(origins: AbstractSet[str]) -> list[Middleware]:
    """The answers to a browser that asks whether a page of `origins` may. None listed: it gets none.

    Pages elsewhere send a token, never a cookie, which a browser sends whoever asks. Without cookies `*` exposes
    every header of an answer (the Fetch standard, 3.3.3), those of tomorrow too, and any may be sent, as SDKs do.
    """
    if not origins:
        return []
    return [
        Middleware(
            Cors,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=("*",),
            allow_credentials=False,
            allow_private_network=True,
            expose_headers=("*",),
            max_age=ASKED_S,
        )
    ]


class Cors(CORSMiddleware):
    """Starlette's, whose refusals have our body: a preflight that asks for what nobody may, or from elsewhere."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        are_names = NAMES.fullmatch(request_headers.get("access-control-request-headers", "")) is not None
        if are_names and answer.status_code == HTTPStatus.OK:
            return answer
        told = {name: value for name, value in answer.headers.items() if name not in NOT_TOLD}
        said = bytes(answer.body).decode() if are_names else "these are no names of headers"
        why = f"{said}: TAILRACE_ORIGINS lists whose pages may ask"
        return error_responses.response("preflight_refused", why, headers=told)


def may_be_foreign(request: Request, origins: AbstractSet[str] = frozenset()) -> bool:
    """Whether nobody was asked, and it is not known to come from a page of this server's, of `origins`, or none."""
    if request.method != "POST" or media_type(request) == JSON or request.headers.get("origin") in origins:
        return False
    return is_from_elsewhere(request)


def media_type(request: Request) -> str:
    """What the body is said to be, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_from_elsewhere(request: Request) -> bool:
    """Browsers say where a POST comes from: all of them by `Origin`, all of today's by `Sec-Fetch-Site` as well."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = request.headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower()
    except ValueError:
        # No browser says `http://[::1`.
        return True
