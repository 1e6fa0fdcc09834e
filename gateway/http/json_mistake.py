"""Says what is wrong with a body that is not JSON, and at which byte; replaces halves of surrogate pairs."""

import json
import re

import msgspec

from tailrace.proto.errors import Refused

BOM = b"\xef\xbb\xbf"
# An escape of a JSON string. The group is half of a surrogate pair whose other half is missing.
ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)"
)
REPLACEMENT = rb"\ufffd"
# The fields of a body in which a client repeats what a model has written.
MESSAGES = ("messages", "message")
AT_POSITION = ("invalid character", "object keys must be strings")
POSITION = re.compile(r" \(byte ([0-9]+)\)$")


def replace_halves(body: bytes) -> bytes:
    """Returns `body` with the escape of U+FFFD in place of each half of a surrogate pair in its messages.

    msgspec refuses such halves. If `body` has a half in another field, or is not JSON, it is returned unchanged.
    """
    if (b"\\ud" not in body and b"\\uD" not in body) or all(found[1] is None for found in ESCAPE.finditer(body)):
        return body
    try:
        fields = json.loads(body)
        others = {name: fields[name] for name in fields if name not in MESSAGES}
        json.dumps(others, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError):
        return body
    return ESCAPE.sub(lambda found: found[0] if found[1] is None else REPLACEMENT, body)


def not_json(error: Exception, body: bytes | None) -> Refused:
    """Returns the error for a body that decoding has refused with `error`, one of DECODE_ERRORS.

    `body` is None if it is too long to be searched, or if `error` is about a part of it.
    """
    return Refused("json_invalid", f"the body is not valid JSON (RFC 8259): {_mistake(error, body)}")


def _mistake(error: Exception, body: bytes | None) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    # msgspec says "JSON is malformed: WHY (byte N)" or "Input data was truncated".
    text = str(error).removeprefix("JSON is malformed: ") if isinstance(error, msgspec.DecodeError) else "UTF-8"
    if body is None:
        return "it is not valid UTF-8" if text == "UTF-8" else POSITION.sub("", text)
    if not body.strip():
        return "it is empty; send an object, `{}` if no field is needed"
    if body.startswith(BOM):
        return "it begins with a byte order mark (BOM): send UTF-8 without one"
    try:
        body.decode()
    except UnicodeDecodeError as invalid:
        return f"byte {invalid.start} (0x{body[invalid.start]:02x}) is not valid UTF-8"
    if (half := _half_of_pair(body)) is not None:
        # RFC 8259 allows a half (section 8.2), but no text in UTF-8 can contain it.
        name = body[half : half + 6].decode()
        return f"a string has half of a surrogate pair (`{name}` at byte {half}): an emoji was cut"
    if (found := POSITION.search(text)) is None:
        return f"it ends too early, after {len(body)} bytes: a string, list or object is not closed"
    why, at = text[: found.start()], int(found[1])
    # For other mistakes, msgspec names a later byte.
    return f"{why}{_quote(body[at : at + 4])} at byte {at}" if why in AT_POSITION else f"{why} near byte {at}"


def _half_of_pair(body: bytes) -> int | None:
    return next((found.start() for found in ESCAPE.finditer(body) if found[1] is not None), None)


def _quote(rest: bytes) -> str:
    character = rest.decode(errors="ignore")[:1]
    if character.isprintable():
        return f" `{character}`" if character else ""
    if rest[0] < 0x20:
        return f" 0x{rest[0]:02x}, which a string contains only as an escape such as `\\n`,"
    return f" U+{ord(character):04X}" if character else ""
