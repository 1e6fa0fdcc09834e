"""JSON and base64 with long strings, decoded and encoded in steps: pictures, documents and books of up to 32 MB.

msgspec decodes or encodes 30 MB in 20 to 50 ms, in which the event loop serves no stream, and a thread does not help:
msgspec holds the interpreter lock. So long strings are cut out of the JSON, or left out of it, and processed in pieces
that take about a millisecond each. After each piece the loop runs other tasks. The result is the same.
"""

import asyncio
import base64
import binascii
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from tailrace.proto import odd_json

Unwrap = Callable[[str], str] | None

# Shorter strings stay in the JSON.
LONG_BYTES = 16 * 1024
PIECE_BYTES = 256 * 1024
# The characters of a JSON string. Both escapes of a surrogate pair belong together; a single one is not valid.
CHARACTERS = re.compile(
    rb'[^"\\]*+(?:\\(?:[^u]|u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|u(?![dD][89abAB])[0-9a-fA-F]{4})[^"\\]*+)*+'
)
# How many strings are looked at before the event loop runs other tasks, and in all. The rest stays in the JSON.
FOUND_PER_PIECE = 2000
FOUND_MAX = 400_000

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(str).decode


async def replace_long_strings(raw: bytes) -> tuple[bytes, dict[str, str]]:
    """Returns `raw`, a JSON text, with a name in place of each long string, and the strings by name.

    `put_back` replaces the names in decoded values. Raises a DecodeError or UnicodeError for a long string that is not
    valid. If the JSON around the strings is not valid, the result is not, either.
    """
    token, strings = secrets.token_hex(16), dict[str, str]()
    kept: list[bytes] = []
    after = found = paused_at = 0
    start = raw.find(b'"')
    while start >= 0 and found < FOUND_MAX:
        end = _end_of_piece(raw, start + 1)
        if raw[end : end + 1] != b'"' or end - start > LONG_BYTES:
            text, end = await _read_string(raw, start + 1)
            if raw[end : end + 1] != b'"':
                # Not valid: decoding will find this.
                break
            name = f"{token}-{len(strings)}"
            kept += raw[after : start + 1], name.encode()
            after = end
            strings[name] = text
        found += 1
        if found % FOUND_PER_PIECE == 0 or end - paused_at > PIECE_BYTES:
            paused_at = end
            await asyncio.sleep(0)
        start = raw.find(b'"', end + 1)
    if not strings:
        return raw, strings
    return b"".join([*kept, raw[after:]]), strings


def put_back(value: Any, strings: Mapping[str, str]) -> Any:
    """Returns `value`, decoded from what `replace_long_strings` has returned, with the long strings. Changes `value`.

    Raises ValueError if a long key occurs twice in an object.
    """
    # Without recursion: the depth of `value` is not checked yet. The list allows `value` itself to be a string.
    root = [value]
    unchanged: list[list[Any] | dict[str, Any]] = [root]
    while unchanged:
        one = unchanged.pop()
        if isinstance(one, dict) and not strings.keys().isdisjoint(one):
            items = list(one.items())
            one.clear()
            one.update((strings.get(name, name), inner) for name, inner in items)
            if len(one) < len(items):
                raise ValueError("a key occurs twice")
        for key, inner in one.items() if isinstance(one, dict) else enumerate(one):
            if isinstance(inner, str):
                if inner in strings:
                    one[key] = strings[inner]  # type: ignore[index]  # the key is of this list or dict
            elif isinstance(inner, list | dict):
                unchanged.append(inner)
    return root[0]


async def encode(value: Any, *, is_sorted: bool = False, unwrap: Unwrap = None) -> list[bytes]:
    """Returns `value`, which may contain Structs, as pieces of JSON. `is_sorted`: the names in objects are sorted.

    The text of each wrapper (odd_json.py), changed by `unwrap`, replaces it.
    """
    token, strings = secrets.token_hex(16), list[str]()
    # In a thread, because `_replace_strings`, Python code that other threads interrupt, takes 100 ms for a chat of
    # 24,000 messages.
    rest = await asyncio.to_thread(_encode_rest, value, token, strings, unwrap, is_sorted=is_sorted)
    pieces: list[bytes] = []
    for number, part in enumerate(re.split(rb"%b-([0-9]+)" % token.encode(), rest)):
        if number % 2 == 0:
            pieces.append(part)
            continue
        text = strings[int(part)]
        for start in range(0, len(text), PIECE_BYTES):
            pieces.append(_encode(text[start : start + PIECE_BYTES])[1:-1])
            await asyncio.sleep(0)
    return pieces


async def decode_text(content: bytes) -> str:
    """Returns UTF-8 as text. Raises UnicodeError."""
    pieces: list[str] = []
    start = 0
    while start < len(content):
        end = min(start + PIECE_BYTES, len(content))
        while end < len(content) and content[end] & 0xC0 == 0x80:
            end -= 1
        pieces.append(str(memoryview(content)[start:end], "utf-8"))
        start = end
        await asyncio.sleep(0)
    return "".join(pieces)


def decode_base64(text: str) -> bytes:
    """Returns the content of `text`. Runs in a thread: gives up the interpreter lock after each piece.

    Raises ValueError.
    """
    # Padding alone is no piece: the standard library accepts any amount of it, but only after other characters.
    *starts, last = range(0, max(1, len(text.rstrip("="))), PIECE_BYTES)
    pieces = [base64.b64decode(text[start : start + PIECE_BYTES], validate=True) for start in starts]
    pieces.append(base64.b64decode(text[last:], validate=True))
    if any(len(piece) * 4 < PIECE_BYTES * 3 for piece in pieces[:-1]):
        raise binascii.Error("padding before the end")
    return b"".join(pieces)


async def _read_string(raw: bytes, start: int) -> tuple[str, int]:
    """Returns the string whose characters begin at `start`, and its end: a quote, if the string is valid."""
    pieces: list[str] = []
    while (end := _end_of_piece(raw, start)) > start:
        pieces.append(_decode(b'"%b"' % raw[start:end]))
        start = end
        await asyncio.sleep(0)
    return "".join(pieces), start


def _encode_rest(value: Any, token: str, strings: list[str], unwrap: Unwrap, *, is_sorted: bool) -> bytes:
    """Returns the JSON of `value` with a name in place of each long string. Adds these to `strings`."""
    whole = msgspec.to_builtins(value, builtin_types=(msgspec.Raw,), order="sorted" if is_sorted else None)
    return _encode(_replace_strings(whole, token, strings, unwrap))


def _replace_strings(value: Any, token: str, strings: list[str], unwrap: Unwrap) -> Any:
    """Returns `value` with a name in place of each long string. Adds these to `strings`."""
    match value:
        case str() if len(value) > LONG_BYTES:
            strings.append(value)
            return f"{token}-{len(strings) - 1}"
        case list() | tuple():
            return [_replace_strings(one, token, strings, unwrap) for one in value]
        case dict() if odd_json.KEY in value and (raw := odd_json.raw_of(value, unwrap)) is not None:
            return raw
        case dict():
            return {
                _replace_strings(name, token, strings, unwrap): _replace_strings(one, token, strings, unwrap)
                for name, one in value.items()
            }
        case _:
            return value


def _end_of_piece(raw: bytes, start: int) -> int:
    """Returns the end of the characters from `start` on, at most PIECE_BYTES later; not within a character."""
    most = start + PIECE_BYTES
    end = raw.find(b'"', start, most)
    end = min(most, len(raw)) if end < 0 else end
    if raw.find(b"\\", start, end) >= 0:
        found = CHARACTERS.match(raw, start, most)
        assert found is not None  # noqa: S101  # it also matches no characters
        end = found.end()
    if end == most < len(raw):
        for _ in range(3):
            if raw[end] & 0xC0 == 0x80:
                end -= 1
    return end
