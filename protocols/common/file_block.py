"""The content block of a file that a client sends as a URL with its content, with its address, or by its id."""

import base64
from mimetypes import guess_type
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from tailrace.gateway.turns.image_types import image_type
from tailrace.proto.long_strings import PIECE_BYTES, decode_base64
from tailrace.protocols.common.media_types import IMAGES, PDF, PLAIN, accepted_type

Block = dict[str, Any]

REFUSED = "refused_part"
TYPES = f"{', '.join(IMAGES)} or {PDF}"
UNSUPPORTED = (
    f"has a file of an unsupported type: send {TYPES} as a `data:` or `https:` URL, or a text as a `data:` URL"
)


def refused_part(reason: str, name: str) -> Block:
    """Returns what stands in place of the block of a part that Claude does not take, until `build_messages` reads it.

    `reason`: the end of a sentence that begins with the name of the message. `name`: that of the file, or its type.
    """
    return {"type": REFUSED, "reason": reason, "name": name}


def build_file(media_type: str, url: str, filename: str | None = None) -> list[Block]:
    """Returns the block of an image, a PDF or a text; none for an empty file, which the history leaves out, too.

    `url`: the address of the file, or its content as a `data:` URL, or in base64. Without a `media_type`, it is that of
    the `data:` URL, or that of an image.
    """
    if url and ":" not in url:
        media_type = media_type or (PDF if (filename or "").lower().endswith(".pdf") else "")
        url = f"data:{media_type};base64,{url}"
    head, comma, text = url.partition(",") if url.startswith("data:") else ("", "", "")
    kind = accepted_type(media_type or head.removeprefix("data:") or "image/*")
    source: Block = {"type": "url", "url": url}
    is_taken = url.startswith("https:") and (kind == PDF or kind.partition("/")[0] == "image")
    if head:
        is_base64 = head.endswith(";base64")
        try:
            content = decode_base64(text) if is_base64 else _decode_percent(text)
        except ValueError:
            content, comma = b"", ""
        if not comma:
            return [refused_part("has a file with an invalid `data:` URL", filename or kind)]
        if not content:
            return []
        kind = image_type(content) or kind
        is_taken = kind in (*IMAGES, PDF)
        data = text if is_base64 else base64.b64encode(content).decode()
        source = {"type": "base64", "media_type": kind, "data": data}
        if kind.startswith("text/"):
            is_taken, source = True, {"type": "text", "media_type": PLAIN, "data": content.decode("utf-8", "replace")}
    if not is_taken:
        return [refused_part(UNSUPPORTED, filename or kind)]
    return [_block("image" if kind.partition("/")[0] == "image" else "document", source, filename)]


def build_untyped_file(url: str, filename: str | None) -> list[Block]:
    """Returns the block of a file without a type; its name or its address tells whether it is an image or a PDF."""
    name = filename or urlsplit(url).path
    return build_file("" if ":" not in url or url.startswith("data:") else guess_type(name)[0] or PDF, url, filename)


def file_url(source: Block) -> str:
    """Returns the address of the file in a block's `source`, or its content as a `data:` URL."""
    match source:
        case {"type": "url", "url": str(url)}:
            return url
        case {"type": "text", "data": str(text)}:
            return f"data:{PLAIN};base64,{base64.b64encode(text.encode()).decode()}"
        case _:
            return f"data:{source.get('media_type')};base64,{source.get('data')}"


def uploaded_file(kind: str, file: str, filename: str | None = None) -> Block:
    """Returns the block of an uploaded file, whose content later replaces the id."""
    return _block(kind, {"type": "file", "file_id": file}, filename)


def _block(kind: str, source: Block, filename: str | None) -> Block:
    title = {"title": filename} if filename and kind == "document" else {}
    return {"type": kind, "source": source, **title}


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
