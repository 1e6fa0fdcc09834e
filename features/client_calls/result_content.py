"""The content blocks that a `tool_result` may have: the types of Anthropic's Python SDK 2.14 and rules of its API.

A decision cannot be corrected, so a block that the API would refuse must be refused before the decision counts.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from tailrace.gateway.turns.image_types import with_image_types
from tailrace.proto.errors import Refused

OTHER_WAY = "send what a decision cannot carry with POST /v1/turns"
Filled = Annotated[str, Meta(min_length=1)]


class Text(Struct, tag_field="type", tag="text"):
    # The API refuses a text of spaces only.
    text: Annotated[str, Meta(pattern=r"\S")]


class Base64Image(Struct, tag_field="type", tag="base64"):
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: Filled


class Base64Pdf(Struct, tag_field="type", tag="base64"):
    media_type: Literal["application/pdf"]
    data: Filled


class Url(Struct, tag_field="type", tag="url"):
    url: Annotated[str, Meta(pattern="^https?://.")]


class File(Struct, tag_field="type", tag="file"):
    file_id: Filled


class Image(Struct, tag_field="type", tag="image"):
    source: Base64Image | Url | File


class PlainText(Struct, tag_field="type", tag="text"):
    media_type: Literal["text/plain"]
    data: Filled


class Blocks(Struct, tag_field="type", tag="content"):
    content: Filled | Annotated[list[Text | Image], Meta(min_length=1)]


class Document(Struct, tag_field="type", tag="document"):
    source: Base64Pdf | Url | File | PlainText | Blocks


class SearchResult(Struct, tag_field="type", tag="search_result"):
    source: str
    title: str
    content: Annotated[list[Text], Meta(min_length=1)]


class ToolReference(Struct, tag_field="type", tag="tool_reference"):
    tool_name: Filled


class BrowserState(Struct, tag_field="type", tag="browser_state"):
    tabs: list[dict[str, object]]


RESULT = list[Text | Image | Document | SearchResult | ToolReference | BrowserState]


def check_result(blocks: list[dict[str, object]], *, is_error: bool) -> None:
    """Raises Refused for a block that a `tool_result` cannot have; in one with `is_error`, for each that is no text.

    The label of an image does not count: the next turn has the type of its bytes.
    """
    try:
        msgspec.convert(with_image_types(blocks), list[Text] if is_error else RESULT)
    except msgspec.ValidationError as error:
        why = f"a tool's result cannot have this block: {error}; {OTHER_WAY}"
        raise Refused("request_invalid", why, param="result") from error


def without_marks(result: Any) -> Any:
    """Returns a result without marks of the prompt cache.

    A call has at most four, and the results of several decisions, with the tools of the turn, could have more.
    """
    match result:
        case list():
            return [without_marks(one) for one in result]
        case dict():
            return {name: without_marks(one) for name, one in result.items() if name != "cache_control"}
    return result
