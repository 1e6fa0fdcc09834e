"""The static files of pages, which are part of the package. Browsers receive them again after each release."""

import gzip
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from types import MappingProxyType

from starlette.requests import Request
from starlette.responses import Response

from tailrace.features.common.page_header import page_header

MEDIA_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
NO_STORE = {"cache-control": "no-store"}
# The place of the header in a page.
HEADER = b"<!-- header -->"


def page_file(package: str, name: str) -> Response:
    """Returns the file `name` of a package. Raises FileNotFoundError."""
    media_type = f"{MEDIA_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
    return Response(_read(package, name), headers=NO_STORE, media_type=media_type)


def html_page(package: str, name: str, current: str, headers: Mapping[str, str] = MappingProxyType({})) -> Response:
    """Returns the page `name` of a package, with the header for the path `current`. Raises FileNotFoundError."""
    content = _read(package, name).replace(HEADER, page_header(current).encode(), 1)
    return Response(content, headers={**NO_STORE, **headers}, media_type="text/html; charset=utf-8")


def kept_file(request: Request, package: str, name: str) -> Response:
    """Returns a script, style sheet or icon, compressed; 304 to a browser that has it. Raises FileNotFoundError."""
    content, compressed, tag = _read_compressed(package, name)
    headers = {"cache-control": "no-cache", "etag": tag, "vary": "accept-encoding"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        content, headers = compressed, headers | {"content-encoding": "gzip"}
    return Response(content, headers=headers, media_type=f"{MEDIA_TYPES[name.rpartition('.')[2]]}; charset=utf-8")


@cache
def _read_compressed(package: str, name: str) -> tuple[bytes, bytes, str]:
    """Returns the content, the content compressed, and an ETag, which is weak because both share it."""
    content = _read(package, name)
    return content, gzip.compress(content, mtime=0), f'W/"{sha256(content).hexdigest()[:32]}"'


@cache
def _read(package: str, name: str) -> bytes:
    return (files(package) / name).read_bytes()
