"""Query parameters: refuses those that a route does not have, or that are repeated."""

import re
from collections import Counter
from collections.abc import Collection

from starlette.requests import Request

from tailrace.gateway.http.last_event_id import QUERY_NAMES
from tailrace.proto.errors import Refused
from tailrace.proto.runtime.did_you_mean import suggest

NAME_CHARS_MAX = 64
# Parameters of earlier versions. For one release they are ignored, and named in the header `tailrace-ignored`.
RETIRED = frozenset({"pace"})
# Parameters that may be repeated, besides those whose names end with `[]`.
LISTS = ("include", *QUERY_NAMES)
# A field of an object, as OpenAPI's style `deepObject` writes it.
METADATA = re.compile(r"metadata\[([^\]]{1,64})\]")


def is_true(request: Request, name: str) -> bool:
    """Returns whether the query parameter `name` is `true`. Raises Refused if it is neither that nor `false`."""
    value = request.query_params.get(name, "false")
    if value not in ("true", "false"):
        raise Refused("request_invalid", f"`{name}` is `true` or `false`", param=name)
    return value == "true"


def require_known(request: Request, known: Collection[str]) -> list[str]:
    """Raises Refused for a query parameter that is not in `known`, or that may not be repeated.

    To ignore an unknown parameter would hide a typing error. Of a repeated parameter, only one value would count.
    Returns the names that are ignored nevertheless: those of RETIRED.
    """
    names = Counter(name for name, _ in request.query_params.multi_items())
    for name, times in names.items():
        if name in RETIRED:
            continue
        if not _is_known(name, known):
            shown = name[:NAME_CHARS_MAX]
            if name == "metadata" and name in known:
                raise Refused(
                    "request_invalid", "`metadata` lacks the name of a field: send `metadata[NAME]=VALUE`", param=name
                )
            # Omit the other names of the cursor, which only libraries send.
            names_shown = sorted(
                "metadata[NAME]" if one == "metadata" else one for one in known if one not in QUERY_NAMES
            )
            allowed = f"there are {', '.join(names_shown)}" if known else "there are none"
            message = f"`{shown}` is not a query parameter of this route{suggest(shown, names_shown)}; {allowed}"
            raise Refused("request_invalid", message, param=shown)
        if times > 1 and not name.endswith("[]") and name not in LISTS:
            raise Refused("request_invalid", f"`{name}` is repeated: send it once", param=name[:NAME_CHARS_MAX])
    return sorted(RETIRED.intersection(names))


def _is_known(name: str, known: Collection[str]) -> bool:
    """Returns whether `known` has the parameter. Its `metadata` stands for `metadata[NAME]`."""
    if name == "metadata":
        return False
    return name in known or ("metadata" in known and METADATA.fullmatch(name) is not None)
