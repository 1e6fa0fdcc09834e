"""A request's body: its type, its size, its JSON. Refused before it is read where that is possible."""

import asyncio
import re
from typing import TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from tailrace.gateway.auth.cors import JSON, media_type
from tailrace.gateway.turns.validation_hints import fitting
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import Refused

B = TypeVar("B")

QUOTED_CHARS_MAX = 200
# Values are looked at one by one, here, in generators and in persistence: a million of them, which fit into 2 MB, stop
# every stream and lease for seconds. A conversation of ten thousand messages has fewer than this.
VALUES_MAX = 100_000
# What most APIs of models take, and people send first.
SAMPLING = re.compile(r"unknown field `(temperature|top_p|top_k)`$")
ONLY_JSON = frozenset({JSON})
JSON_OR_TEXT = ONLY_JSON | {"text/plain"}


async def read(request: Request, types: frozenset[str] = ONLY_JSON, *, bytes_max: int, timeout_s: float) -> bytes:
    """The body; raises Refused for another type than JSON's, a compressed body, one too large, or one too slow."""
    if media_type(request) not in types:
        # Also keeps out the cross-site form posts that a browser makes without asking.
        raise Refused("content_type_unsupported", "send the body as `Content-Type: application/json`")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused("content_type_unsupported", "send the body uncompressed")
    too_large = Refused("body_too_large", f"the body is larger than {bytes_max} bytes")
    if (declared_bytes(request.headers) or 0) > bytes_max:
        raise too_large
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for piece in request.stream():
                size += len(piece)
                if size > bytes_max:
                    raise too_large
                pieces.append(piece)
    except TimeoutError as error:
        raise Refused("body_timeout", f"the body did not arrive within {timeout_s:.0f} s") from error
    except ClientDisconnect as error:
        raise Refused("request_invalid", "the client went away while it sent the body") from error
    return b"".join(pieces)


def declared_bytes(headers: Headers) -> int | None:
    """What `Content-Length` says; None: nothing, the body comes in chunks."""
    digits = headers.get("content-length", "")
    # The parser has counted no more than 2⁶⁴, but zeros may stand before it, and int() takes 4300 digits at the most.
    return int(digits.lstrip("0") or "0") if digits.isdecimal() else None


def decode(body: bytes, kind: type[B]) -> B:
    """`body` as a `kind`; raises Refused that names what is unknown, missing or wrong, and what would have fitted."""
    if values_in(body) > VALUES_MAX:
        raise Refused("body_too_large", f"the body has more than {VALUES_MAX} JSON values")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        # It quotes the client's own field, which may be as long as the body.
        problem, names = str(error), fitting(kind, str(error))
        hint = f"; there are {', '.join(names)}" if names else ""
        if "options" in names and SAMPLING.search(problem) is not None:
            hint += ". The current models refuse sampling; `options` passes it on to those that take it"
        raise Refused("request_invalid", problem[:QUOTED_CHARS_MAX] + hint) from error
    except DECODE_ERRORS as error:
        raise Refused("json_invalid", "the body is not JSON as RFC 8259 has it, or is nested too deeply") from error


def values_in(raw: bytes) -> int:
    """How many values stand in the lists and objects of some JSON; an empty one counts as if it held one.

    Far above VALUES_MAX it is the number of strings. What follows an error of syntax may be counted wrongly.
    """
    count = _marks(raw)
    if count <= VALUES_MAX:
        return count
    # Many marks may stand in a long text: what is in strings does not count.
    bare = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    if (quotes := bare.count(b'"')) > 4 * VALUES_MAX:
        # Two strings at the most are one value, with its name. So many are not even taken apart.
        return quotes // 2
    return _marks(b"".join(bare.split(b'"')[::2]))


def _marks(raw: bytes) -> int:
    # One opens each list or object, and stands for its first value; a comma stands before each other.
    return raw.count(b"[") + raw.count(b"{") + raw.count(b",")
