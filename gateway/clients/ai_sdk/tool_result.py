"""What a tool has brought: in a UI message any JSON, to the model a text. There and back, and nothing is lost. Pure.

A text stays one. Anything else is told as one block of JSON, and so can be told from a text that looks like it.
"""

from typing import Any

import msgspec

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.depth import is_deeper
from tailrace.proto.fold import INPUT_LEVELS_MAX


def told(output: object) -> str | list[dict[str, Any]]:
    """As the `content` of a `tool_result`."""
    if isinstance(output, str):
        return output
    return [{"type": "text", "text": msgspec.json.encode(output).decode()}]


def shown(content: object) -> object:
    """As a client gave it, or the text that it has become by another protocol."""
    match content:
        case [{"type": "text", "text": str(text)}]:
            try:
                output: object = msgspec.json.decode(text)
            except DECODE_ERRORS:
                return text
            return text if is_deeper(output, INPUT_LEVELS_MAX) else output
        case _:
            return content
