"""JSON that is valid but that msgspec refuses: kept as its own text in a wrapper (PROTOCOL R125). Pure.

RFC 8259 allows half of a surrogate pair in a string (section 8.2) and numbers of any size (section 6). UTF-8 has no
form of such a half, and msgspec holds no number beyond a double or of more than 4,300 digits. Models write both.

A wrapper is `{"tailrace:json": TEXT}`. Any JSON encoder can write it. `unwrap` replaces it by TEXT, in the bytes that
clients and models receive. No client may send the key; a model's own use of it is wrapped, too.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.depth import LEVELS_MAX, is_deeper

KEY = "tailrace:json"
MARK = b'{"tailrace:json":"'
# The key may be written with escapes.
ESCAPED, ESCAPED_BYTES = re.compile(r"\\u00[2-7]"), re.compile(rb"\\u00[2-7]")
# A wrapper as msgspec encodes it. Its text begins after the mark.
REST_OF_WRAPPER = re.compile(rb'([^"\\]*+(?:\\.[^"\\]*+)*+)"\}', re.DOTALL)
SURROGATE = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\ufffd"
# Marks an object of the model that has the key itself, as R33 does for references to blobs.
NO_WRAPPER = {"is_wrapper": False}

_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_decode_string = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode


class Wrapper(dict[str, Any]):
    """A wrapper that this process has made. One that a client sends is decoded as a plain `dict`."""

    __slots__ = ()


class _Number(str):
    """A number as it was written."""

    __slots__ = ()

    @property
    def is_odd(self) -> bool:
        try:
            msgspec.json.decode(self.encode())
        except DECODE_ERRORS:
            return True
        return False


class _Wrapped(str):
    """The text of a value that becomes a wrapper."""

    __slots__ = ()


def decode_object(text: str, levels_max: int) -> dict[str, Any]:
    """Returns the object in `text`, or its wrapper if msgspec refuses valid JSON.

    Raises one of DECODE_ERRORS, also for an object that is nested more than `levels_max` deep.
    """
    decoded: Any = None
    try:
        decoded = _decode_object(text)
        is_plain = not (KEY in text or ESCAPED.search(text)) or not has_key(decoded)
    except DECODE_ERRORS:
        decoded, is_plain = _parse(text), False
        if not isinstance(decoded, dict):
            raise
    if is_deeper(decoded, levels_max):
        raise ValueError(f"nested more than {levels_max} levels deep")
    return decoded if is_plain else wrap(text)


def wrap(text: str) -> dict[str, Any]:
    """Returns the wrapper of a JSON text."""
    return Wrapper({KEY: text})


def text_in(value: object) -> str | None:
    """Returns the JSON text in a wrapper; None if `value` is not one."""
    match value:
        case {"tailrace:json": str(text), **rest} if not rest:
            return text
    return None


def has_key(value: object) -> bool:
    """Returns whether an object anywhere in `value` has the key of wrappers, and is not a wrapper of this process."""
    match value:
        case Wrapper():
            return False
        case dict():
            return KEY in value or any(map(has_key, value.values()))
        case list():
            return any(map(has_key, value))
    return False


def is_odd(data: bytes, value: object) -> bool:
    """Returns whether `data`, from which msgspec decoded `value`, must be made regular, because it has the key."""
    return (KEY.encode() in data or ESCAPED_BYTES.search(data) is not None) and has_key(value)


def encode(value: object) -> bytes:
    """Returns `value` as JSON, with the texts in place of wrappers."""
    return unwrap(_encode(value))


def unwrap(encoded: bytes, change: Callable[[str], str] | None = None) -> bytes:
    """Returns JSON that msgspec has encoded, with the texts in place of wrappers. `change` is applied to each text."""
    if MARK not in encoded:
        return encoded
    pieces, after = list[bytes](), 0
    while (at := encoded.find(MARK, after)) >= 0:
        found = REST_OF_WRAPPER.match(encoded, at + len(MARK))
        text = None if found is None else _checked(_decode_string(b'"%b"' % found[1]), change)
        if found is None or text is None:
            pieces.append(encoded[after : at + len(MARK)])
            after = at + len(MARK)
            continue
        pieces += encoded[after:at], text
        after = found.end()
    return b"".join([*pieces, encoded[after:]])


def raw_of(value: object, change: Callable[[str], str] | None = None) -> msgspec.Raw | None:
    """Returns the text in a wrapper for an encoder; None if `value` is not one."""
    text = text_in(value)
    checked = None if text is None else _checked(text, change)
    return None if checked is None else msgspec.Raw(checked)


def accepted_by_models(text: str) -> str:
    """Returns a JSON text as Anthropic's API accepts it: with U+FFFD in place of each half of a surrogate pair."""
    return _text_of(_replace_halves(_parse(text)))


def make_regular(data: bytes) -> bytes | None:
    """Returns an event, or a result of a batch, that msgspec refuses, in a form that msgspec accepts. None if it is
    not valid.

    In a content block, a list or an object with a value that msgspec refuses becomes a wrapper as a whole. Elsewhere a
    number becomes a wrapper, and half of a surrogate pair becomes U+FFFD.
    """
    try:
        fields = _parse(data.decode())
    except UnicodeDecodeError:
        return None
    # The wrapper hides the depth, which the reader of an event checks.
    if not isinstance(fields, dict) or is_deeper(fields, LEVELS_MAX) or _has_odd_type(fields):
        return None
    for block in _blocks_of(fields):
        block.update({name: _wrap_odd(value) for name, value in block.items()})
    return _encode(_regular(fields))


def join_halves(text: str) -> str:
    """Returns `text` with each pair of surrogates as one character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _parse(text: str) -> Any:
    """Returns the value of a valid JSON text, with numbers as they are written; None if it is not valid."""
    try:
        return json.loads(text, parse_int=_Number, parse_float=_Number, parse_constant=_refuse)
    except DECODE_ERRORS:
        return None


def _refuse(name: str) -> None:
    # Python accepts NaN and Infinity, which JSON does not have.
    raise ValueError(f"{name} is not JSON")


def _checked(text: str, change: Callable[[str], str] | None) -> bytes | None:
    """Returns a wrapper's text, changed; None if it is not JSON, as it could end the JSON around it."""
    if _parse(text) is None:
        return None
    return (text if change is None else change(text)).encode()


def _has_odd(value: Any) -> bool:
    match value:
        case _Number():
            return value.is_odd
        case str():
            return SURROGATE.search(value) is not None
        case dict():
            return KEY in value or any(_has_odd(name) or _has_odd(inner) for name, inner in value.items())
        case list():
            return any(map(_has_odd, value))
    return False


def _has_odd_type(fields: dict[str, Any]) -> bool:
    """Returns whether the type of an event, its delta or its block has half of a surrogate pair: no type has one."""
    typed = [fields, fields.get("delta"), fields.get("content_block")]
    return any(isinstance(one, dict) and _has_odd(one.get("type")) for one in typed)


def _blocks_of(fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the content blocks of an event, of a message in it, and of a line of a message batch's results."""
    match fields:
        case {"content_block": dict(block)}:
            yield block
        case {"message": {"content": list(blocks)}} | {"result": {"message": {"content": list(blocks)}}}:
            yield from (block for block in blocks if isinstance(block, dict))


def _wrap_odd(value: Any) -> Any:
    """Returns a field of a content block: a wrapper if it is a list or an object that has something odd."""
    return _Wrapped(_text_of(value)) if isinstance(value, dict | list) and _has_odd(value) else value


def _regular(value: Any) -> Any:
    match value:
        case _Wrapped():
            return wrap(str(value))
        case _Number():
            return wrap(str(value)) if value.is_odd else msgspec.Raw(value.encode())
        case str():
            return SURROGATE.sub(REPLACEMENT, value)
        case dict():
            fields = {SURROGATE.sub(REPLACEMENT, name): _regular(inner) for name, inner in value.items()}
            return fields | NO_WRAPPER if KEY in fields else fields
        case list():
            return [_regular(inner) for inner in value]
    return value


def _replace_halves(value: Any) -> Any:
    match value:
        case _Number():
            return value
        case str():
            return SURROGATE.sub(REPLACEMENT, value)
        case dict():
            return {SURROGATE.sub(REPLACEMENT, name): _replace_halves(inner) for name, inner in value.items()}
        case list():
            return [_replace_halves(inner) for inner in value]
    return value


def _text_of(value: Any) -> str:
    """Returns the JSON text of what `_parse` has returned: numbers as they were written, other characters in ASCII."""
    match value:
        case _Number():
            return str(value)
        case dict():
            fields = ",".join(f"{json.dumps(name)}:{_text_of(inner)}" for name, inner in value.items())
            return f"{{{fields}}}"
        case list():
            return f"[{','.join(map(_text_of, value))}]"
    return json.dumps(value)
