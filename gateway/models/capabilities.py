"""Converts the `capabilities` of Anthropic's model list to the fields of proto.models.Supports."""

import msgspec

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.models import Supports


class Flag(msgspec.Struct, frozen=True):
    supported: bool


class ThinkingTypes(msgspec.Struct, frozen=True):
    adaptive: Flag | None = None
    between_tools: Flag | None = None
    enabled: Flag | None = None
    disabled: Flag | None = None


class Thinking(msgspec.Struct, frozen=True):
    types: ThinkingTypes | None = None


class Effort(msgspec.Struct, frozen=True):
    low: Flag | None = None
    medium: Flag | None = None
    high: Flag | None = None
    xhigh: Flag | None = None
    max: Flag | None = None


class ServerTools(msgspec.Struct, frozen=True):
    web_search: Flag | None = None
    code_execution: Flag | None = None


class Capabilities(msgspec.Struct, frozen=True):
    """The fields of `capabilities` in Anthropic's ModelInfo that are used."""

    image_input: Flag | None = None
    pdf_input: Flag | None = None
    citations: Flag | None = None
    structured_outputs: Flag | None = None
    thinking: Thinking | None = None
    effort: Effort | None = None
    server_tools: ServerTools | None = None


def update_supports(supports: Supports, capabilities: bytes) -> Supports:
    """Returns `supports` with the values in `capabilities`, Anthropic's JSON. Invalid JSON changes nothing."""
    try:
        given = msgspec.json.decode(capabilities, type=Capabilities | None) or Capabilities()
    except DECODE_ERRORS:
        return supports
    thinking = given.thinking.types if given.thinking is not None else None
    values = {
        "vision": _flag(given.image_input),
        "pdf": _flag(given.pdf_input),
        "citations": _flag(given.citations),
        "structured_outputs": _flag(given.structured_outputs),
        "thinking": _flag_names(thinking),
        "effort": _flag_names(given.effort),
        "server_tools": _flag_names(given.server_tools),
    }
    return msgspec.structs.replace(supports, **{name: value for name, value in values.items() if value is not None})


def _flag(flag: Flag | None) -> bool | None:
    return flag.supported if flag is not None else None


def _flag_names(flags: ThinkingTypes | Effort | ServerTools | None) -> tuple[str, ...] | None:
    """Returns the names of the flags that are set; None if there are no flags."""
    if flags is None:
        return None
    return tuple(name for name in flags.__struct_fields__ if _flag(getattr(flags, name)))
