"""Reads a request's body: media type, size, arrival rate, memory for large bodies, and JSON as a msgspec type.

A request is refused before its body is read where that is possible.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Message, Receive

from tailrace.gateway.http.duplicate_keys import require_unique_keys
from tailrace.gateway.http.json_mistake import not_json
from tailrace.gateway.http.large_bodies import SMALL_BYTES_MAX, LargeBodies
from tailrace.gateway.http.media_type import JSON, media_type
from tailrace.gateway.http.validation_hints import advise, allowed_names, with_key, wrong_field
from tailrace.proto import long_strings
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.runtime.did_you_mean import suggest

B = TypeVar("B")

QUOTED_CHARS_MAX = 200
MEDIUM_BYTES = 64 * 1024
# The minimum rate is measured over this time: a phone that moves between two cells is silent for some seconds.
RATE_WINDOW_S = 15.0
# Gateway, generators and persistence visit values one by one: a million of them, which fit into 2 MB, would block the
# event loop, and with it every stream and lease, for seconds. A conversation of 10,000 messages has fewer than this.
VALUES_MAX = 100_000
ONLY_JSON = frozenset({JSON})
JSON_OR_TEXT = ONLY_JSON | {"text/plain"}


class BodyReader:
    """Reads bodies of up to `bytes_max` bytes that arrive within `timeout_s` and at `rate_min` bytes a second."""

    def __init__(self, large_bodies: LargeBodies, *, bytes_max: int, timeout_s: float, rate_min: int) -> None:
        self.large_bodies = large_bodies
        self._bytes_max = bytes_max
        self._timeout_s = timeout_s
        self._rate_min = rate_min

    async def read(
        self, request: Request, tenant: Tenant, holder: AsyncExitStack, types: frozenset[str] = ONLY_JSON
    ) -> bytes:
        """Returns the body. Raises Refused for another media type, and for a compressed, too large or too slow body.

        Memory for a large body is reserved for `tenant` until `holder` is closed.
        """
        if media_type(request) not in types:
            # This also rejects cross-site form posts, for which browsers send no CORS preflight.
            expected = JSON if JSON in types else min(types)
            raise Refused("content_type_unsupported", f"send the body as `Content-Type: {expected}`")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused("content_type_unsupported", "send the body uncompressed")
        if (declared_bytes(request.headers) or 0) > self._bytes_max:
            raise self._too_large()
        pieces: list[bytes] = []
        size = 0
        is_large, has_more = False, True
        rate = MinimumRate(self._rate_min)
        try:
            async with asyncio.timeout(self._timeout_s):
                # Not `request.stream()`, which yields an empty piece at the end: each piece costs a timeout of the
                # event loop.
                while has_more:
                    message = await rate.next(request.receive)
                    if message["type"] == "http.disconnect":
                        raise Refused("request_invalid", "the client disconnected while it sent the body")
                    piece, has_more = message.get("body", b""), message.get("more_body", False)
                    size += len(piece)
                    if size > self._bytes_max:
                        raise self._too_large()
                    if size > MEDIUM_BYTES >= size - len(piece):
                        # Bodies below SMALL_BYTES_MAX reserve nothing, and thousands of them can fill the memory.
                        self.large_bodies.require_memory()
                    if size > SMALL_BYTES_MAX and not is_large:
                        is_large, declared = True, declared_bytes(request.headers)
                        size_max = self._bytes_max if declared is None else declared
                        await self.large_bodies.reserve(holder, tenant, size_max)
                    pieces.append(piece)
                if is_large:
                    await self.large_bodies.reserve_copies(holder, tenant, size)
        except TimeoutError as error:
            raise Refused("body_timeout", f"the body did not arrive within {self._timeout_s:.0f} s") from error
        return b"".join(pieces)

    async def decode(self, body: bytes, kind: type[B]) -> B:
        """Returns `body` as a `kind`; see `decode` below. Large bodies are decoded in steps, one after the other."""
        if len(body) <= SMALL_BYTES_MAX:
            # Each value takes a byte or more.
            if len(body) > VALUES_MAX:
                require_few_values(body)
            value = decode(body, kind)
            require_unique_keys(body)
            return value
        async with self.large_bodies.decoding:
            try:
                rest, strings = await long_strings.replace_long_strings(body)
            except DECODE_ERRORS as error:
                raise not_json(error, None) from error
            # Searching 30 MB takes 60 ms.
            await asyncio.to_thread(require_few_values, rest)
            value = decode(rest, kind, strings)
            await asyncio.to_thread(require_unique_keys, rest)
            return value

    def _too_large(self) -> Refused:
        return Refused("body_too_large", f"the body is larger than {self._bytes_max} bytes")


@dataclass
class MinimumRate:
    """The clock of one body. Each `rate_min * RATE_WINDOW_S` bytes must arrive within RATE_WINDOW_S seconds.

    A client that stops or drips would otherwise hold the memory that is reserved for its body as long as
    `body_timeout_s`, which must allow large bodies over slow lines. Only the time that is spent waiting for the client
    counts, not the time that the body waits for memory.
    """

    rate_min: int
    """Bytes a second."""
    _waited_s: float = 0
    _arrived_bytes: int = 0

    async def next(self, receive: Receive) -> Message:
        """Returns the next message of `receive`. Raises Refused when the body arrives too slowly."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            async with asyncio.timeout(RATE_WINDOW_S - self._waited_s):
                arrived = await receive()
        except TimeoutError as error:
            message = f"the body arrives too slowly: send {self.rate_min} bytes a second, without a pause"
            raise Refused("body_timeout", message) from error
        self._waited_s += loop.time() - began_s
        self._arrived_bytes += len(arrived.get("body", b""))
        if self._arrived_bytes >= RATE_WINDOW_S * self.rate_min:
            self._waited_s = self._arrived_bytes = 0
        return arrived


def declared_bytes(headers: Headers) -> int | None:
    """Returns the value of Content-Length; None for a chunked body."""
    digits = headers.get("content-length", "")
    # The HTTP parser rejects more than 2⁶⁴, but allows leading zeros, and int() takes at most 4,300 digits.
    return int(digits.lstrip("0") or "0") if digits.isdecimal() else None


def decode(body: bytes, kind: type[B], strings: Mapping[str, str] | None = None) -> B:
    """Returns `body` as a `kind`. Raises Refused, which names the unknown, missing or wrong field and what is allowed.

    `strings` are those that long_strings.py has cut out of the body.
    """
    try:
        if not strings:
            return msgspec.json.decode(body, type=kind)
        return msgspec.convert(long_strings.put_back(msgspec.json.decode(body), strings), kind)
    except DECODE_ERRORS as error:
        raise _invalid(error, kind, None if strings or len(body) > SMALL_BYTES_MAX else body) from error


def convert(value: object, kind: type[B]) -> B:
    """Like `decode`, for a body that is decoded already."""
    try:
        return msgspec.convert(value, kind)
    except DECODE_ERRORS as error:
        raise _invalid(error, kind) from error


def _invalid(error: Exception, kind: type, body: bytes | None = None) -> Refused:
    """Returns the refusal of a body that is not a `kind`. `body`: only if it is small."""
    if not isinstance(error, msgspec.ValidationError):
        return not_json(error, body)
    # The message quotes the client's own field, which may be as long as the body.
    problem, names = str(error), allowed_names(kind, str(error))
    if body is not None:
        problem = with_key(kind, problem, body)
    param = wrong_field(problem)
    hint = f"; there are {', '.join(names)}" if names else ""
    if "unknown field" in problem[:QUOTED_CHARS_MAX] and param is not None:
        field = param.rpartition(".")[2]
        hint = (advise(field, names) or suggest(field, names)) + hint
    # Fields are named as in all other errors: `messages[0]`, not `$.messages[0]`.
    shown = problem[:QUOTED_CHARS_MAX].replace(" - at `$.", " - at `")
    return Refused("request_invalid", shown + hint, param=param)


def require_few_values(body: bytes) -> None:
    """Raises Refused for a body with more than VALUES_MAX values."""
    if count_values(body) > VALUES_MAX:
        raise Refused("body_too_large", f"the body has more than {VALUES_MAX} JSON values: send fewer")


def count_values(raw: bytes) -> int:
    """Counts the values in the lists and objects of a JSON text; an empty list or object counts as one.

    Far above VALUES_MAX it returns the number of strings. After a syntax error the count may be wrong.
    """
    count = _count_marks(raw)
    if count <= VALUES_MAX:
        return count
    # A long text may contain many marks: those inside of strings do not count.
    bare = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    if (quotes := bare.count(b'"')) > 4 * VALUES_MAX:
        # A value with its name has at most two strings. A text with too many strings is not split.
        return quotes // 2
    return _count_marks(b"".join(bare.split(b'"')[::2]))


def _count_marks(raw: bytes) -> int:
    # An opening bracket stands for the first value of its list or object, a comma for each further one. In pieces: a
    # search holds the interpreter lock.
    size = long_strings.PIECE_BYTES
    starts = range(0, len(raw), size)
    return sum(raw.count(mark, start, start + size) for mark in (b"[", b"{", b",") for start in starts)
