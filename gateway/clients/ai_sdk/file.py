"""A file of a UI message as a block of the model's: a picture, a PDF, a text. It fetches nothing. Pure."""

import base64
import binascii
from typing import Any
from urllib.parse import unquote_to_bytes

from tailrace.proto.errors import Refused

PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")
PDF = "application/pdf"


def block_of(media_type: str, url: str, filename: str | None, where: str) -> dict[str, Any]:
    """A file as a block of the model's; raises Refused for what it cannot look at."""
    kind = media_type.partition(";")[0].strip().lower()
    block = "image" if kind.partition("/")[0] == "image" else "document"
    named = {"title": filename} if filename and block == "document" else {}
    if url.startswith("https:") and (kind == PDF or kind.partition("/")[0] == "image"):
        return {"type": block, "source": {"type": "url", "url": url}, **named}
    if url.startswith("data:") and kind in (*PICTURES, PDF):
        source = {"type": "base64", "media_type": kind, "data": base64.b64encode(_content(url, where)).decode()}
        return {"type": block, "source": source, **named}
    if url.startswith("data:") and kind.startswith("text/"):
        text = _content(url, where).decode("utf-8", "replace")
        return {"type": block, "source": {"type": "text", "media_type": "text/plain", "data": text}, **named}
    takes = f"{', '.join(PICTURES)} or {PDF} by `data:` or `https:`, or a text by `data:`"
    raise Refused("request_invalid", f"`{where}` has a file that is not taken here: send {takes}")


def _content(url: str, where: str) -> bytes:
    """What a `data:` URL holds (RFC 2397); raises Refused."""
    head, comma, content = url.partition(",")
    try:
        if not comma:
            raise ValueError("no comma")
        return base64.b64decode(content, validate=True) if head.endswith(";base64") else unquote_to_bytes(content)
    except (binascii.Error, ValueError) as error:
        raise Refused("request_invalid", f"`{where}` has a file whose `data:` URL cannot be read") from error
