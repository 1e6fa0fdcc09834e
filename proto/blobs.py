"""Claim check: replaces long strings of a request by references to blobs, and back (PROTOCOL R33). Pure.

Single strings of the messages, the system prompt and the tools become blobs: the base64 of a picture or document, a
pasted book. The log entry stays small, and the same picture is one blob however often it is sent.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from tailrace.proto import odd_json
from tailrace.proto.entries import Message, Request

REFERENCE_KEY = "tailrace:blob"
INLINE_BYTES_MAX = 64 * 1024
PIECE_CHARS = 256 * 1024
SHA256 = re.compile(r"[0-9a-f]{64}")

Content = str | list[dict[str, Any]]


class Blob(NamedTuple):
    """A reference to a blob: the SHA-256 (hex) and the length of the string's UTF-8 bytes."""

    sha256: str
    bytes: int


class Prompt(Protocol):
    """The fields that may contain blobs, in a request entry and in a call to a model."""

    @property
    def messages(self) -> list[Message]:
        """The messages of the conversation."""

    @property
    def system(self) -> Content | None:
        """The system prompt."""

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """The definitions of the tools."""


P = TypeVar("P", bound=Prompt)


def lift(prompt: P) -> tuple[P, dict[str, bytes]]:
    """Returns `prompt` with references in place of its long strings, and the strings' UTF-8 bytes by SHA-256.

    A long text outside of a content block becomes a text block, which means the same to the API.
    """
    lifted: dict[str, bytes] = {}

    def leaf(text: str) -> object:
        if not is_long(text):
            return text
        content, sha256 = _encode(text)
        lifted[sha256] = content
        return reference(Blob(sha256, len(content)))

    return _map_prompt(prompt, leaf, reference), lifted


def resolve(prompt: P, texts: Mapping[str, str]) -> P:
    """Returns `prompt` with the strings in place of their references. `texts` must have all of them, by SHA-256."""
    return _map_prompt(prompt, lambda text: text, lambda blob: texts[blob.sha256])


def references(prompt: Prompt) -> list[Blob]:
    """Returns the blobs that `prompt` refers to: one for each reference."""
    found = (parse_reference(each) for each in _objects([_contents(prompt), prompt.system, prompt.tools]))
    return [blob for blob in found if blob is not None]


def has_no_blobs(encoded: bytes) -> bool:
    """Returns whether an encoded entry is certain to have no long string and no reference. Much faster than `lift`."""
    return len(encoded) <= INLINE_BYTES_MAX and REFERENCE_KEY.encode() not in encoded


def blobs_needed(request: Request) -> set[str]:
    """Returns the SHA-256 of each blob that `request`, or an input of its batch, needs until the turn has ended."""
    found = {blob.sha256 for blob in references(request)}
    if (batch := request.batch) is not None:
        found |= {batch.sha256, *(batch.blobs or ())}
    return found


def has_reserved_key(value: object) -> bool:
    """Returns whether an object anywhere in `value`, which a client sent, has a key that only Tailrace may store."""
    return odd_json.has_key(value) or any(REFERENCE_KEY in each for each in _objects(value))


def reference(blob: Blob) -> dict[str, Any]:
    """Returns the content that stands in the request for the text or file of `blob`."""
    return {REFERENCE_KEY: blob.sha256, "bytes": blob.bytes}


def parse_reference(value: Mapping[str, Any]) -> Blob | None:
    """Returns the blob that `value` refers to, or None if `value` is not exactly what `reference` makes."""
    sha256, size = value.get(REFERENCE_KEY), value.get("bytes")
    if len(value) != 2 or not isinstance(sha256, str) or not isinstance(size, int):
        return None
    return Blob(sha256, size) if SHA256.fullmatch(sha256) and size > INLINE_BYTES_MAX else None


def comparison_key(text: str | Mapping[str, Any]) -> str:
    """Returns the key by which texts are compared: a short text itself; for a long text or a reference, the SHA-256."""
    if isinstance(text, str):
        return _encode(text)[1] if is_long(text) else text
    blob = parse_reference(text)
    return blob.sha256 if blob is not None else ""


def is_long(text: str) -> bool:
    """Returns whether `text` has more than INLINE_BYTES_MAX bytes in UTF-8, and is therefore stored as a blob."""
    # A character has one to four bytes in UTF-8, so that most texts need not be encoded.
    if len(text) > INLINE_BYTES_MAX:
        return True
    return len(text) * 4 > INLINE_BYTES_MAX and len(text.encode()) > INLINE_BYTES_MAX


def _encode(text: str) -> tuple[bytes, str]:
    """Returns the UTF-8 bytes of a long text, and their SHA-256.

    Runs in a thread: encoding holds the interpreter lock, so it is done in pieces; hashing releases the lock after each
    piece.
    """
    digest, pieces = hashlib.sha256(), list[bytes]()
    for start in range(0, len(text), PIECE_CHARS):
        pieces.append(text[start : start + PIECE_CHARS].encode())
        digest.update(pieces[-1])
    return b"".join(pieces), digest.hexdigest()


def _map_prompt(prompt: P, leaf: Callable[[str], object], refer: Callable[[Blob], object]) -> P:
    """Returns `prompt` with `leaf` applied to each string and `refer` to each reference."""
    changed: P = msgspec.structs.replace(  # type: ignore[type-var]  # a protocol cannot say that it is a Struct
        prompt,
        messages=[
            msgspec.structs.replace(message, content=_map(_blocks(message.content), leaf, refer))
            for message in prompt.messages
        ],
        system=_map(_blocks(prompt.system), leaf, refer),
        tools=_map(prompt.tools, leaf, refer),
    )
    return changed


def _map(value: Any, leaf: Callable[[str], object], refer: Callable[[Blob], object]) -> Any:
    # Not a recursive function within `_map_prompt`: its reference cycle would keep the contents of the blobs until a
    # full garbage collection.
    match value:
        case str():
            return leaf(value)
        case list():
            return [_map(one, leaf, refer) for one in value]
        case dict() if (blob := parse_reference(value)) is not None:
            return refer(blob)
        case dict():
            return {name: _map(one, leaf, refer) for name, one in value.items()}
        case _:
            return value


def _blocks(content: Content | None) -> Content | None:
    """Returns a long text as a list with one text block: a reference is only valid inside a block."""
    if isinstance(content, str) and is_long(content):
        return [{"type": "text", "text": content}]
    return content


def _contents(prompt: Prompt) -> list[Content]:
    return [message.content for message in prompt.messages]


def _objects(value: object) -> Iterator[dict[str, Any]]:
    """Yields each JSON object in `value`. Recursion is bounded: the depth was checked before (PROTOCOL R7)."""
    match value:
        case dict():
            yield value
            for one in value.values():
                yield from _objects(one)
        case list():
            for one in value:
                yield from _objects(one)
