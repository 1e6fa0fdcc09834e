"""The static files of pages, which are part of the package. Browsers ask for them again after each release."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from starlette.responses import Response

MEDIA_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
NO_STORE = {"cache-control": "no-store"}


def page_file(package: str, name: str, headers: Mapping[str, str] = MappingProxyType({})) -> Response:
    """Returns the file `name` of a package. Raises FileNotFoundError."""
    media_type = f"{MEDIA_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
    return Response(_read(package, name), headers={**NO_STORE, **headers}, media_type=media_type)


@cache
def _read(package: str, name: str) -> bytes:
    return (files(package) / name).read_bytes()
