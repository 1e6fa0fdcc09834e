"""The container in which the API runs the code of an answer. Pure."""

from collections.abc import Mapping
from typing import Any


def container_of(envelope: Mapping[str, Any]) -> str | None:
    """Returns the id of the container in which an answer has run code; None: it has run none."""
    match envelope.get("delta", {}).get("container") or envelope.get("message", {}).get("container"):
        case {"id": str(name)}:
            return name
    return None


def with_container(options: Mapping[str, Any] | None, container: str) -> dict[str, Any]:
    """Returns the options of a call that goes on in `container`. The option is an id, or an object with skills."""
    options = dict(options or {})
    given = options.get("container")
    return options | {"container": given | {"id": container} if isinstance(given, dict) else container}
