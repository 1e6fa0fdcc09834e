"""The media types of images by their first bytes, which count more than their labels. Pure.

Claude's API refuses an image whose label names another type than its bytes ("The image was specified using the
image/jpeg media type, but the image appears to be a image/png image"); OpenAI's API reads only the bytes.
"""

import base64
from typing import Any

# Sources: PNG (3rd edition), 5.2; ITU-T T.81, B.1.1.3; GIF89a, 17; RFC 9649, 2.4.
BEGINNINGS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
# 12 bytes, the longest beginning (of WebP), in base64.
CHARS = 16

Block = dict[str, Any]


def image_type(content: bytes) -> str | None:
    """Returns the media type of an image that Claude reads; None for any other content."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((media_type for beginning, media_type in BEGINNINGS if content.startswith(beginning)), None)


def with_image_types(blocks: list[Block]) -> list[Block]:
    """Returns content blocks whose images, also those in tool results and documents, have the types of their bytes.

    An image of an unknown type keeps its label.
    """
    return [_with_type(block) for block in blocks]


def _with_type(block: Block) -> Block:
    match block:
        case {"type": "image", "source": {"type": "base64", "data": str(data), "media_type": label} as source}:
            found = _type_of_base64(data)
            return block if found in (None, label) else {**block, "source": {**source, "media_type": found}}
        case {"type": "tool_result", "content": list(inner)}:
            return {**block, "content": with_image_types(inner)}
        case {"type": "document", "source": {"type": "content", "content": list(inner)} as source}:
            return {**block, "source": {**source, "content": with_image_types(inner)}}
        case _:
            return block


def _type_of_base64(data: str) -> str | None:
    try:
        return image_type(base64.b64decode(data[:CHARS], validate=True))
    except ValueError:
        return None
