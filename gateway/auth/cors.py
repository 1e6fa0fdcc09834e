"""Cross-origin requests: the CORS middleware and the check of POSTs that browsers send without a preflight.

A browser sends a preflight before a page sends JSON to another origin, and none before `text/plain` or an empty POST.
Where no key is needed, the preflight is what keeps pages of other origins out. Only origins in TAILRACE_ORIGINS are
allowed, exactly as they are listed, and never with cookies.
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

from tailrace.gateway.http import error_responses
from tailrace.gateway.http.media_type import JSON, media_type
from tailrace.proto.errors import SettingsInvalid

# The serialized form of RFC 6454, section 6.2: nothing after the port, and no port if it is the scheme's default.
ORIGIN = re.compile(r"(https?)://(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
# Header names in a preflight, which the answer repeats.
HEADER_NAMES = re.compile(r"[\w!#$%&'*+.^`|~, -]*", re.ASCII)
DROPPED_HEADERS = ("content-length", "content-type", "access-control-allow-headers")
DEFAULT_PORTS = {"http": "80", "https": "443"}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
# How long a browser may cache the answer to a preflight; Chromium caps it at this value.
PREFLIGHT_CACHE_S = 7200


def parse_origins(text: str) -> frozenset[str]:
    """Parses TAILRACE_ORIGINS. Raises SettingsInvalid for `*`, `null` and texts that no browser sends as an origin.

    `null` is the origin of every sandboxed page; with `*` any page could read answers that need no key.
    """
    origins = frozenset(filter(None, (origin.strip().lower() for origin in text.split(","))))
    for origin in origins:
        match = ORIGIN.fullmatch(origin)
        if match is None or match[2] == DEFAULT_PORTS[match[1]]:
            raise SettingsInvalid(
                f"TAILRACE_ORIGINS: {origin} is not an origin as browsers send it; write https://app.example, "
                "with a port only if it is not the scheme's default, and nothing after it"
            )
    return origins


def cors_middleware(origins: AbstractSet[str]) -> list[Middleware]:
    """Returns the middleware that answers preflights for `origins`; an empty list if there are none.

    Pages of other origins send a token, never a cookie. Without credentials `*` exposes every response header (Fetch
    standard, section 3.3.3), and any request header may be sent, as SDKs do.
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
            max_age=PREFLIGHT_CACHE_S,
        )
    ]


class Cors(CORSMiddleware):
    """Starlette's CORS middleware, which refuses a preflight with Tailrace's error body."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        are_names = HEADER_NAMES.fullmatch(request_headers.get("access-control-request-headers", "")) is not None
        if are_names and answer.status_code == HTTPStatus.OK:
            return answer
        headers = {name: value for name, value in answer.headers.items() if name not in DROPPED_HEADERS}
        reason = bytes(answer.body).decode() if are_names else "Access-Control-Request-Headers holds no header names"
        message = f"{reason}. TAILRACE_ORIGINS lists the origins whose pages may send requests."
        return error_responses.response("preflight_refused", message, headers=headers)


def is_cross_origin_simple_post(request: Request, origins: AbstractSet[str] = frozenset()) -> bool:
    """Returns whether `request` is a POST that a page of an origin not in `origins` can send without a preflight."""
    if request.method != "POST" or media_type(request) == JSON or request.headers.get("origin") in origins:
        return False
    return is_cross_origin(request)


def is_cross_origin(request: Request) -> bool:
    """Returns whether a browser says that the POST comes from another origin.

    All browsers send `Origin` with a POST, all current ones `Sec-Fetch-Site` as well.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = request.headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower()
    except ValueError:
        # No browser sends such an origin, for example `http://[::1`.
        return True
