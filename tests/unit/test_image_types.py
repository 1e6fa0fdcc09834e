"""Images have the media types of their bytes, in the messages of every protocol."""

import base64
from typing import Any

import pytest

from tailrace.gateway.turns.image_types import image_type
from tailrace.gateway.turns.request_body import MessageParam, NewTurn, new_messages
from tailrace.protocols.common.file_block import build_file
from tailrace.protocols.common.media_types import IMAGES

CONTENTS = {
    "image/png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "image/jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    "image/gif": b"GIF89a\x01\0\x01\0",
    "image/webp": b"RIFF\x24\0\0\0WEBPVP8 ",
}
LABELS = [*IMAGES, "image/jpg", "image/bmp"]


def image(media_type: str, data: object) -> dict[str, Any]:
    source = {"type": "base64", "media_type": media_type, "data": data}
    return {"type": "image", "source": source, "cache_control": {"type": "ephemeral"}}


def in_history(block: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns blocks with `block` at each position that an image may have."""
    document = {"type": "document", "source": {"type": "content", "content": [block]}, "title": "a"}
    return [block, {"type": "tool_result", "tool_use_id": "c1", "content": [block]}, document]


@pytest.mark.parametrize("media_type", CONTENTS)
def test_an_image_has_the_type_of_its_bytes_whatever_its_label(media_type: str) -> None:
    """In a translated data URL, and in the content blocks of Tailrace's and Anthropic's protocols."""
    data = base64.b64encode(CONTENTS[media_type]).decode()
    for label in LABELS:
        given = [MessageParam("user", in_history(image(label, data)))]
        [message] = new_messages(NewTurn(messages=given))
        assert message.content == in_history(image(media_type, data))
        url = f"data:{label};base64,{data}"
        for file in (build_file(label, url), build_file("", url)):
            assert file[0]["source"]["media_type"] == media_type


@pytest.mark.parametrize("data", ["", "AAAA", "not base64!", "iVBORw==", 7, {"blob": "x"}])
def test_an_image_of_unknown_bytes_keeps_its_label(data: object) -> None:
    """The API decides about it."""
    given = in_history(image("image/png", data))
    [message] = new_messages(NewTurn(messages=[MessageParam("user", given)]))
    assert message.content == given


def test_a_beginning_without_its_end_is_no_image() -> None:
    assert [image_type(content) for content in (b"", b"RIFF\0\0\0\0WAVE", b"\x89PNG", b"GIF88a")] == [None] * 4
