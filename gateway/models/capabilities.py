"""What Anthropic says that a model takes, in the words of proto.models. Pure; what it does not say stays as it was."""

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


class Capabilities(msgspec.Struct, frozen=True):
    """As much as we look at of the `capabilities` of Anthropic's ModelInfo."""

    image_input: Flag | None = None
    pdf_input: Flag | None = None
    citations: Flag | None = None
    structured_outputs: Flag | None = None
    thinking: Thinking | None = None
    effort: Effort | None = None


def updated(supports: Supports, capabilities: bytes) -> Supports:
    """`supports`, and over it what `capabilities`, Anthropic's JSON, says. What cannot be read says nothing."""
    try:
        told = msgspec.json.decode(capabilities, type=Capabilities | None) or Capabilities()
    except DECODE_ERRORS:
        return supports
    thinking = told.thinking.types if told.thinking is not None else None
    said = {
        "vision": _flag(told.image_input),
        "pdf": _flag(told.pdf_input),
        "citations": _flag(told.citations),
        "structured_outputs": _flag(told.structured_outputs),
        "thinking": _supported(thinking),
        "effort": _supported(told.effort),
    }
    return msgspec.structs.replace(supports, **{name: value for name, value in said.items() if value is not None})


def _flag(flag: Flag | None) -> bool | None:
    return flag.supported if flag is not None else None


def _supported(flags: ThinkingTypes | Effort | None) -> tuple[str, ...] | None:
    """The names of those that are supported; None when nothing was said."""
    if flags is None:
        return None
    return tuple(name for name in flags.__struct_fields__ if _flag(getattr(flags, name)))
