"""The content block of a file that a client sends as a URL with its content, or with its address."""

import base64
from typing import Any
from urllib.parse import unquote_to_bytes

from tailrace.gateway.turns.image_types import image_type
from tailrace.proto.errors import Refused
from tailrace.proto.long_strings import PIECE_BYTES, decode_base64
from tailrace.protocols.common.media_types import IMAGES, PDF, accepted_type

Block = dict[str, Any]


def build_file_block(media_type: str, url: str, filename: str | None, where: str) -> Block:
    """Returns the content block of an image, a PDF or a text.

    Raises Refused for a type or URL that the model does not support.
    """
    kind, content = accepted_type(media_type), _decode_data_url(url, where) if url.startswith("data:") else None
    if content is not None:
        kind = image_type(content) or kind
    block = "image" if kind.partition("/")[0] == "image" else "document"
    title = {"title": filename} if filename and block == "document" else {}
    if url.startswith("https:") and (kind == PDF or kind.partition("/")[0] == "image"):
        return {"type": block, "source": {"type": "url", "url": url}, **title}
    if content is not None and kind in (*IMAGES, PDF):
        source = {"type": "base64", "media_type": kind, "data": base64.b64encode(content).decode()}
        return {"type": block, "source": source, **title}
    if content is not None and kind.startswith("text/"):
        text = content.decode("utf-8", "replace")
        return {"type": block, "source": {"type": "text", "media_type": "text/plain", "data": text}, **title}
    supported = f"{', '.join(IMAGES)} or {PDF} as a `data:` or `https:` URL, or a text as a `data:` URL"
    raise Refused("request_invalid", f"`{where}` has a file of an unsupported type: send {supported}")


def _decode_data_url(url: str, where: str) -> bytes:
    """Returns the content of a `data:` URL (RFC 2397). Raises Refused."""
    head, comma, content = url.partition(",")
    try:
        if not comma:
            raise ValueError("no comma")
        return decode_base64(content) if head.endswith(";base64") else _decode_percent(content)
    except ValueError as error:
        raise Refused("request_invalid", f"`{where}` has a file with an invalid `data:` URL") from error


def _decode_percent(text: str) -> bytes:
    """Returns `text` with its escapes decoded, in pieces: each escape takes 100 bytes of memory meanwhile."""
    pieces: list[bytes] = []
    start = 0
    while start < len(text):
        end = start + PIECE_BYTES
        # An escape stays in one piece.
        if end < len(text) and (percent := text.rfind("%", end - 2, end)) > 0:
            end = percent
        pieces.append(unquote_to_bytes(text[start:end]))
        start = end
    return b"".join(pieces)
