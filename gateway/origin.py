"""Whether a page of somebody else may have sent a POST without its browser asking first. It reads headers alone.

A browser asks before it sends JSON elsewhere, and does not ask before it sends `text/plain`, or nothing. Where no key
is needed, that question is what keeps strangers' pages out.
"""

from urllib.parse import urlsplit

from starlette.requests import Request

JSON = "application/json"


def may_be_foreign(request: Request) -> bool:
    """Whether nobody was asked, and it is not known to come from a page of this server's, or from no page at all."""
    return request.method == "POST" and media_type(request) != JSON and _is_from_elsewhere(request)


def media_type(request: Request) -> str:
    """What the body is said to be, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _is_from_elsewhere(request: Request) -> bool:
    """Browsers say where a POST comes from: all of them by `Origin`, all of today's by `Sec-Fetch-Site` as well."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = request.headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower()
    except ValueError:
        # No browser says `http://[::1`.
        return True
