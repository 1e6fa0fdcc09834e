"""Converts a tool's output between UI messages (any JSON value) and `tool_result` blocks (text), without loss.

A string stays a string. Any other value becomes one text block of JSON, which cannot be confused with a string.
"""

from typing import Any

import msgspec

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.depth import is_deeper
from tailrace.proto.fold import INPUT_LEVELS_MAX


def encode_output(output: object) -> str | list[dict[str, Any]]:
    """Returns the `content` of the `tool_result` block."""
    if isinstance(output, str):
        return output
    return [{"type": "text", "text": msgspec.json.encode(output).decode()}]


def decode_output(content: object) -> object:
    """Returns the value that the client sent; content that another protocol has stored, unchanged."""
    match content:
        case [{"type": "text", "text": str(text)}]:
            try:
                output: object = msgspec.json.decode(text)
            except DECODE_ERRORS:
                return text
            return text if is_deeper(output, INPUT_LEVELS_MAX) else output
        case _:
            return content
