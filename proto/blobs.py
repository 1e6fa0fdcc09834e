"""Claim checks: what is too long for the log is lifted out of a request and referred to (PROTOCOL R33). Pure, no I/O.

Lifted are single strings, wherever they stand in the messages, the system prompt and the tools: the base64 of a picture
or a document, a pasted book. So the entry stays small, and the same picture is one blob however often it is sent.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from tailrace.proto.entries import Message, Request

REFERENCE_KEY = "tailrace:blob"
INLINE_BYTES_MAX = 64 * 1024
SHA256 = re.compile(r"[0-9a-f]{64}")

Content = str | list[dict[str, Any]]


class Blob(NamedTuple):
    """What a reference says: the SHA-256, in hex, of the string's UTF-8, and how long that is."""

    sha256: str
    bytes: int


class Prompt(Protocol):
    """What may hold blobs: a request, and the call that is made for it."""

    @property
    def messages(self) -> list[Message]: ...
    @property
    def system(self) -> Content | None: ...
    @property
    def tools(self) -> list[dict[str, Any]] | None: ...


A = TypeVar("A", bound=Prompt)


def lift(asking: A) -> tuple[A, dict[str, bytes]]:
    """`asking` with references instead of its long strings, and the UTF-8 of those by their SHA-256.

    A long text that is not in a block becomes one: the API takes either for the same.
    """
    lifted: dict[str, bytes] = {}

    def leaf(text: str) -> object:
        if not is_long(text):
            return text
        content = text.encode()
        sha256 = hashlib.sha256(content).hexdigest()
        lifted[sha256] = content
        return reference(Blob(sha256, len(content)))

    return _mapped(asking, leaf, reference), lifted


def resolve(asking: A, texts: Mapping[str, str]) -> A:
    """`asking` with the strings instead of their references; `texts`, by SHA-256, must hold all of them."""
    return _mapped(asking, lambda text: text, lambda blob: texts[blob.sha256])


def references(asking: Prompt) -> list[Blob]:
    """The blobs that `asking` refers to, each as often as it does: so often it will stand in the call."""
    found = (parse_reference(each) for each in _objects([_contents(asking), asking.system, asking.tools]))
    return [blob for blob in found if blob is not None]


def blobs_needed(request: Request) -> set[str]:
    """The SHA-256 of every blob that `request` needs until its turn has ended; a batch's, those of its inputs, too."""
    found = {blob.sha256 for blob in references(request)}
    if (batch := request.batch) is not None:
        found |= {batch.sha256, *(batch.blobs or ())}
    return found


def has_reserved_key(value: object) -> bool:
    """Whether an object somewhere in `value`, which came from outside, has the key that only references may have."""
    return any(REFERENCE_KEY in each for each in _objects(value))


def reference(blob: Blob) -> dict[str, Any]:
    return {REFERENCE_KEY: blob.sha256, "bytes": blob.bytes}


def parse_reference(value: Mapping[str, Any]) -> Blob | None:
    """The blob that `value` refers to, if it is a reference: nothing more and nothing less than `lift` makes."""
    sha256, size = value.get(REFERENCE_KEY), value.get("bytes")
    if len(value) != 2 or not isinstance(sha256, str) or not isinstance(size, int):
        return None
    return Blob(sha256, size) if SHA256.fullmatch(sha256) and size > INLINE_BYTES_MAX else None


def comparison_key(text: str | Mapping[str, Any]) -> str:
    """What a text is compared by: itself, or the name of the blob that it is, or would be."""
    if isinstance(text, str):
        return hashlib.sha256(text.encode()).hexdigest() if is_long(text) else text
    blob = parse_reference(text)
    return blob.sha256 if blob is not None else ""


def is_long(text: str) -> bool:
    # A character is up to four bytes: short texts, which most are, need not be encoded to know.
    return len(text) * 4 > INLINE_BYTES_MAX and len(text.encode()) > INLINE_BYTES_MAX


def _mapped(asking: A, leaf: Callable[[str], object], refer: Callable[[Blob], object]) -> A:
    """`asking` with what `leaf` makes of its strings, and `refer` of its references."""

    def mapped(value: Any) -> Any:
        match value:
            case str():
                return leaf(value)
            case list():
                return [mapped(one) for one in value]
            case dict() if (blob := parse_reference(value)) is not None:
                return refer(blob)
            case dict():
                return {name: mapped(one) for name, one in value.items()}
            case _:
                return value

    changed: A = msgspec.structs.replace(  # type: ignore[type-var]  # a protocol cannot say that it is a Struct
        asking,
        messages=[Message(message.role, mapped(_blocks(message.content))) for message in asking.messages],
        system=mapped(_blocks(asking.system)),
        tools=mapped(asking.tools),
    )
    return changed


def _blocks(content: Content | None) -> Content | None:
    """`content` as blocks if it is a long text: a reference stands in a block, never alone."""
    if isinstance(content, str) and is_long(content):
        return [{"type": "text", "text": content}]
    return content


def _contents(asking: Prompt) -> list[Content]:
    return [message.content for message in asking.messages]


def _objects(value: object) -> Iterator[dict[str, Any]]:
    """Every object in `value`. It goes as deep as the value does, which was bounded before (PROTOCOL R7)."""
    match value:
        case dict():
            yield value
            for one in value.values():
                yield from _objects(one)
        case list():
            for one in value:
                yield from _objects(one)
