"""Refuses query parameters that a route does not have."""

import re
from collections.abc import Collection

from starlette.requests import Request

from tailrace.proto.did_you_mean import suggest
from tailrace.proto.errors import Refused

NAME_CHARS_MAX = 64
# A field of an object, as OpenAPI's style `deepObject` writes it.
METADATA = re.compile(r"metadata\[([^\]]{1,64})\]")


def require_known(request: Request, known: Collection[str]) -> None:
    """Raises Refused for a query parameter that is not in `known`. Ignoring it would hide a typing error."""
    if not request.scope["query_string"]:
        return
    for name in request.query_params:
        if not _is_known(name, known):
            shown = name[:NAME_CHARS_MAX]
            allowed = f"there are {', '.join(sorted(known))}" if known else "there are none"
            message = f"`{shown}` is not a query parameter of this route{suggest(shown, known)}; {allowed}"
            raise Refused("request_invalid", message, param=shown)


def _is_known(name: str, known: Collection[str]) -> bool:
    """Returns whether `known` has the parameter. Its `metadata` stands for `metadata[NAME]`."""
    if name == "metadata":
        return False
    return name in known or ("metadata" in known and METADATA.fullmatch(name) is not None)
