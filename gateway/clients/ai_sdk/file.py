"""Converts a file part of a UI message (image, PDF, text) to a content block."""

import base64
import binascii
from typing import Any
from urllib.parse import unquote_to_bytes

from tailrace.proto.errors import Refused

IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
PDF = "application/pdf"


def file_block(media_type: str, url: str, filename: str | None, where: str) -> dict[str, Any]:
    """Returns the content block of a file. Raises Refused for a type or URL that the model does not support."""
    kind = media_type.partition(";")[0].strip().lower()
    block = "image" if kind.partition("/")[0] == "image" else "document"
    title = {"title": filename} if filename and block == "document" else {}
    if url.startswith("https:") and (kind == PDF or kind.partition("/")[0] == "image"):
        return {"type": block, "source": {"type": "url", "url": url}, **title}
    if url.startswith("data:") and kind in (*IMAGES, PDF):
        source = {"type": "base64", "media_type": kind, "data": base64.b64encode(_decode_data_url(url, where)).decode()}
        return {"type": block, "source": source, **title}
    if url.startswith("data:") and kind.startswith("text/"):
        text = _decode_data_url(url, where).decode("utf-8", "replace")
        return {"type": block, "source": {"type": "text", "media_type": "text/plain", "data": text}, **title}
    supported = f"{', '.join(IMAGES)} or {PDF} as a `data:` or `https:` URL, or a text as a `data:` URL"
    raise Refused("request_invalid", f"`{where}` has a file of an unsupported type: send {supported}")


def _decode_data_url(url: str, where: str) -> bytes:
    """Returns the content of a `data:` URL (RFC 2397). Raises Refused."""
    head, comma, content = url.partition(",")
    try:
        if not comma:
            raise ValueError("no comma")
        return base64.b64decode(content, validate=True) if head.endswith(";base64") else unquote_to_bytes(content)
    except (binascii.Error, ValueError) as error:
        raise Refused("request_invalid", f"`{where}` has a file with an invalid `data:` URL") from error
