"""The content blocks that a `tool_result` may have: the types of Anthropic's Python SDK 2.14 and rules of its API.

A decision cannot be corrected, so a block that the API would refuse must be refused before the decision counts.
"""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from tailrace.proto.errors import Refused

OTHER_WAY = "send what a decision cannot carry with POST /v1/turns"


class Text(Struct, tag_field="type", tag="text"):
    # The API refuses a text of spaces only.
    text: Annotated[str, Meta(pattern=r"\S")]


class Base64(Struct, tag_field="type", tag="base64"):
    media_type: str
    data: str


class Url(Struct, tag_field="type", tag="url"):
    url: str


class File(Struct, tag_field="type", tag="file"):
    file_id: str


class Image(Struct, tag_field="type", tag="image"):
    source: Base64 | Url | File


class PlainText(Struct, tag_field="type", tag="text"):
    media_type: str
    data: str


class Blocks(Struct, tag_field="type", tag="content"):
    content: str | list[Text | Image]


class Document(Struct, tag_field="type", tag="document"):
    source: Base64 | Url | File | PlainText | Blocks


class SearchResult(Struct, tag_field="type", tag="search_result"):
    source: str
    title: str
    content: list[Text]


class ToolReference(Struct, tag_field="type", tag="tool_reference"):
    tool_name: str


class BrowserState(Struct, tag_field="type", tag="browser_state"):
    tabs: list[dict[str, object]]


RESULT = list[Text | Image | Document | SearchResult | ToolReference | BrowserState]


def check_result(blocks: list[dict[str, object]], *, is_error: bool) -> None:
    """Raises Refused for a block that a `tool_result` cannot have; in one with `is_error`, for each that is no text."""
    try:
        msgspec.convert(blocks, list[Text] if is_error else RESULT)
    except msgspec.ValidationError as error:
        why = f"a tool's result cannot have this block: {error}; {OTHER_WAY}"
        raise Refused("request_invalid", why, param="result") from error
