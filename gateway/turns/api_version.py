"""The version of Anthropic's API that a request needs, if its client names none. Pure.

The version 2026-10-21, which Anthropic's SDKs send by default, has removed what the version before it accepts: sampling
parameters, documents in messages of the assistant, and citations of a user's texts. Source:
platform.claude.com/docs/en/api/versioning.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tailrace.proto.entries import Message
from tailrace.proto.models import Model

SAMPLING = ("temperature", "top_p", "top_k")
# The last version with sampling parameters.
WITH_SAMPLING = "2023-06-01"

Options = dict[str, Any]


def choose_version(
    options: Options | None, messages: Iterable[Message], model: Model, named: str | None
) -> tuple[Options | None, str | None]:
    """Returns the options and the API version of a call; None: the version that the SDK sends by default.

    A version that the client has `named` stays, with its options: the API decides. Otherwise sampling parameters
    are removed for a model that refuses them in every version.
    """
    if named is not None:
        return options, named
    if options is not None and sampling_of(options):
        if model.supports.sampling is not False:
            return options, WITH_SAMPLING
        options = {name: value for name, value in options.items() if name not in SAMPLING} or None
    blocks = [(one.role, one.content) for one in messages if not isinstance(one.content, str)]
    return options, version_for(blocks) if blocks else None


def version_for(messages: Iterable[tuple[object, object]]) -> str | None:
    """Returns the API version for messages, pairs of role and content; None: the SDK's default."""
    return WITH_SAMPLING if any(_is_removed(role, content) for role, content in messages) else None


def sampling_of(options: Mapping[str, Any] | None) -> list[str]:
    """Returns the names of the sampling parameters in `options`."""
    return [name for name in SAMPLING if name in (options or {})]


def _is_removed(role: object, content: object) -> bool:
    """Returns whether a message has what the version 2026-10-21 refuses."""
    if not isinstance(content, list):
        return False
    return any(map(_is_document if role == "assistant" else _has_citations, content))


def _is_document(block: object) -> bool:
    return isinstance(block, dict) and block.get("type") == "document"


def _has_citations(block: object) -> bool:
    match block:
        case {"type": "text", "citations": [_, *_]}:
            return True
        case {"type": "search_result", "content": list(inner)}:
            return any(map(_has_citations, inner))
        case _:
            return False
