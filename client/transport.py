"""Transports for Anthropic's and OpenAI's SDKs: a streamed answer that is cut goes on after its last event.

    http = anthropic.DefaultHttpxClient(transport=ResumingTransport(gateways=["http://localhost:8001"]))
    client = anthropic.Anthropic(base_url="http://localhost:8000", http_client=http)

The SDK does not see a cut. Any other request, and a server that is not Tailrace, get the wrapped transport as it is.
The classes work with httpx2, and with httpx, which older SDKs use: each request is sent by its own library.
"""

import hashlib
import math
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any, Protocol

import anyio
import httpx2
import msgspec

from tailrace.client.clients import UNLIMITED, drive
from tailrace.client.core import (
    FIRST_TRIES_MAX,
    RETRY_AFTER_S_MAX,
    SILENCE_S,
    STATUSES_TO_RETRY,
    TRIES_MAX,
    backoff_s,
    require_url,
)
from tailrace.client.sdk_streams import HEARTBEATS, Dialect, find_dialect, read_fields

KEY, RETRY_COUNT = "idempotency-key", "x-stainless-retry-count"
# A gateway that drains or a proxy without a gateway: another gateway may accept the same POST.
STATUSES_OF_ABSENCE = (502, 503, 504)
# Headers of the POST that a GET of its turn does not have, or that name the gateway.
OF_THE_POST = ("host", "content-length", "content-type", "transfer-encoding", "accept-encoding", KEY)
# Requests that have failed, whose SDK may repeat them.
KEYS_MAX = 256
# The HTTP libraries of SDKs, each with the other one.
LIBRARIES = {"httpx2": "httpx", "httpx": "httpx2"}


# BROKEN: an error of the wrapped transport is a broken connection, whatever its type. httpx2 does not convert all:
# ssl.SSLError, anyio.EndOfStream (pydantic/httpx2#854), and the AttributeError with which anyio fails if a server dies
# while the connection is made.


class Io(Protocol):
    """A transport, blocking or asynchronous. The coroutines of the blocking one never suspend."""

    async def send(self, request: Any) -> Any: ...
    def body(self, response: Any) -> Any:
        """Returns an iterator of the body, in the pieces that arrive."""

    async def receive(self, body: Any) -> bytes | None:
        """Returns the next piece, or None at the end."""

    async def close(self, stream: Any) -> None: ...
    async def sleep(self, seconds: float) -> None: ...
    def as_stream(self, answer: "Answer") -> Any:
        """Returns the stream of a response whose body is `answer`."""


class BlockingIo:
    def __init__(self, transport: Any) -> None:
        self._transports = Transports(transport, "HTTPTransport", "handle_request")

    async def send(self, request: Any) -> Any:
        return self._transports.of(request).handle_request(request)

    def close_transports(self) -> None:
        for transport in self._transports.take():
            transport.close()

    def body(self, response: Any) -> Iterator[bytes]:
        return iter(response.stream)

    async def receive(self, body: Iterator[bytes]) -> bytes | None:
        return next(body, None)

    async def close(self, stream: Any) -> None:
        stream.close()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # no event loop runs

    def as_stream(self, answer: "Answer") -> Any:
        return stream_type(BlockingStream, answer.library.SyncByteStream)(answer)


class AsyncIo:
    def __init__(self, transport: Any) -> None:
        self._transports = Transports(transport, "AsyncHTTPTransport", "handle_async_request")

    async def send(self, request: Any) -> Any:
        return await self._transports.of(request).handle_async_request(request)

    async def close_transports(self) -> None:
        for transport in self._transports.take():
            await transport.aclose()

    def body(self, response: Any) -> AsyncIterator[bytes]:
        return aiter(response.stream)

    async def receive(self, body: AsyncIterator[bytes]) -> bytes | None:
        return await anext(body, None)

    async def close(self, stream: Any) -> None:
        await stream.aclose()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    def as_stream(self, answer: "Answer") -> Any:
        return stream_type(AsyncStream, answer.library.AsyncByteStream)(answer)


class BlockingStream:
    def __init__(self, answer: "Answer") -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        while (part := drive(self._answer.next())) is not None:
            yield part

    def close(self) -> None:
        drive(self._answer.close())


class AsyncStream:
    def __init__(self, answer: "Answer") -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (part := await self._answer.next()) is not None:
            yield part

    async def aclose(self) -> None:
        await self._answer.close()


@lru_cache
def stream_type(ours: type, theirs: type) -> type:
    """Returns `ours` as a stream of the HTTP library, which checks the type."""
    return type(ours.__name__, (ours, theirs), {})


def library_of(request: Any) -> ModuleType:
    """Returns httpx2 or httpx, to which the request belongs. Raises TypeError."""
    for base in type(request).__mro__:
        if (name := base.__module__.partition(".")[0]) in LIBRARIES:
            return sys.modules[name]
    raise TypeError(f"a request of {type(request).__module__} is neither one of httpx2 nor one of httpx")


class Transports:
    """The transports that send the requests: the given one, or one of each HTTP library that has a request.

    `name`: the library's class of transports. `method`: the method of it that sends a request.
    """

    def __init__(self, given: Any, name: str, method: str) -> None:
        if given is not None and not hasattr(given, method):
            raise TypeError(f"{type(given).__name__} cannot send these requests: give a transport like httpx2.{name}")
        self._given = given
        self._name = name
        self._lock = threading.Lock()
        self._made: dict[ModuleType, Any] = {}

    def of(self, request: Any) -> Any:
        """Returns the transport for a request. Raises TypeError if the given one belongs to the other library."""
        library = library_of(request)
        if self._given is not None:
            own, other = library.__name__, LIBRARIES[library.__name__]
            if any((base.__module__, base.__name__) == (other, self._name) for base in type(self._given).__mro__):
                right = f"give {own}.{self._name}(), or no transport"
                raise TypeError(f"the client uses {own}, and the transport is of {other}: {right}")
            return self._given
        with self._lock:
            if library not in self._made:
                limits = library.Limits(max_connections=UNLIMITED.max_connections)
                self._made[library] = getattr(library, self._name)(limits=limits)
            return self._made[library]

    def take(self) -> list[Any]:
        """Returns the transports to close. A later request gets a new one."""
        with self._lock:
            made, self._made = self._made, {}
        return list(made.values()) if self._given is None else [self._given]


class Keys:
    """The idempotency keys of requests without a response, for the repetitions of the SDK.

    An SDK builds each repetition anew, and counts it in a header: a repetition is known by its count and its content.
    """

    def __init__(self) -> None:
        self._unanswered: deque[tuple[bytes, str]] = deque(maxlen=KEYS_MAX)

    def choose(self, request: Any, fingerprint: bytes) -> str:
        """Returns the key of the first request for its repetition, and a new key for any other request."""
        if request.headers.get(RETRY_COUNT, "0") != "0":
            for found in tuple(self._unanswered):
                if found[0] == fingerprint:
                    self._unanswered.remove(found)
                    return found[1]
        return secrets.token_hex(16)

    def remember(self, fingerprint: bytes, key: str) -> None:
        self._unanswered.append((fingerprint, key))


class Resumer:
    """Sends the requests of an SDK, and the same request to other gateways. Replaces the stream of an answer."""

    def __init__(self, io: Io, gateways: Sequence[str], tries_max: int) -> None:
        self.io = io
        self.tries_max = tries_max
        self._gateways = tuple(url.rstrip("/").removesuffix("/v1") for url in gateways)
        for url in self._gateways:
            require_url(url)
        self._keys = Keys()

    async def send(self, request: Any) -> Any:
        """Returns the response. Raises the errors of the HTTP library."""
        library = library_of(request)
        try:
            content = request.content
        except library.RequestNotRead:
            # An iterator, which cannot be sent twice.
            return await self.io.send(request)
        url, target = request.url, request.url.raw_path.decode()
        found = find_dialect(request.method, target, content)
        if found is None:
            return await self.io.send(request)
        prefix, dialect = found
        own = f"{url.scheme}://{url.netloc.decode()}{prefix}"
        gateways = [own, *(one for one in self._gateways if one != own)]
        request.headers["accept-encoding"] = "identity"
        is_post, fingerprint = request.method == "POST", _fingerprint(request, content)
        is_ours = is_post and KEY not in request.headers
        if is_ours:
            request.headers[KEY] = self._keys.choose(request, fingerprint)
        is_answered = False
        try:
            gateway, response = await self._open(library, request, content, gateways, target.removeprefix(prefix))
            is_answered = response.status_code < 400
        finally:
            if is_ours and not is_answered:
                self._keys.remember(fingerprint, request.headers[KEY])
        turn = response.headers.get("tailrace-turn")
        if turn is None or not _is_stream(response):
            return response
        answer = Answer(self, library, request, dialect, turn, gateways[gateway:] + gateways[:gateway])
        answer.begin(response)
        response.stream = self.io.as_stream(answer)
        return response

    async def _open(
        self, library: ModuleType, request: Any, content: bytes, gateways: list[str], target: str
    ) -> tuple[int, Any]:
        """Returns the response and the number of its gateway. Raises the error of the first gateway."""
        first: Exception | None = None
        rounds = max(1, min(self.tries_max, FIRST_TRIES_MAX))
        for tries in range(1, rounds + 1):
            for number, gateway in enumerate(gateways):
                sent = request
                if tries > 1 or number:
                    sent = _request(library, request, request.method, gateway + target, {}, content)
                try:
                    response = await self.io.send(sent)
                except Exception as error:  # see BROKEN
                    # The SDK repeats a request after an error of its HTTP library only.
                    first = first if isinstance(first, library.TransportError) else error
                    if isinstance(error, library.TimeoutException) and not isinstance(error, library.ConnectTimeout):
                        # The gateway is there: the SDK decides whether it waits as long again.
                        raise
                    continue
                if response.status_code in STATUSES_OF_ABSENCE and number + 1 < len(gateways):
                    await self.io.close(response.stream)
                    continue
                return number, response
            if tries < rounds:
                await self.io.sleep(backoff_s(tries))
        assert first is not None  # noqa: S101  # a gateway that answers is returned
        raise first


class Answer:
    """The body of a streamed answer, read over as many connections as it takes.

    It passes whole events on, with all events up to the next cursor at once: what a cut has split is read again.
    """

    def __init__(
        self, resumer: Resumer, library: ModuleType, request: Any, dialect: Dialect, turn: str, gateways: list[str]
    ) -> None:
        self.library = library
        self._io = resumer.io
        self._tries_max = resumer.tries_max
        self._request = request
        self._dialect = dialect
        self._turn = turn
        self._gateways = gateways
        self._refusing: set[str] = set()
        self._stream: Any = None
        self._body: Any = None
        self._unread = b""
        """The start of an event whose end has not arrived."""
        self._held = b""
        """Whole events without a cursor after them."""
        self._cursor: str | None = request.url.params.get("starting_after")
        self._is_begun = self._cursor is not None
        self._end: str | None = None
        self._cut: Exception | None = None
        """The first error since the last event."""
        self._lost: Exception | None = None
        """The error of a cut that cannot be healed."""
        self._tries = 0
        self._retry_after_s = 0.0
        self._is_closed = False

    def begin(self, response: Any) -> None:
        # The gateway sends a comment after 15 seconds. The dict is read when the body is.
        timeout = self._request.extensions.get("timeout")
        if timeout is not None:
            timeout["read"] = min(timeout.get("read") or math.inf, SILENCE_S)
        self._stream, self._body = response.stream, self._io.body(response)

    async def next(self) -> bytes | None:
        """Returns the next events, None at the end of the answer. Raises the error of a cut that cannot be healed."""
        while not self._is_closed and self._lost is None:
            if self._stream is None:
                if self._end == "whole":
                    return None
                if (rest := await self._reconnect()) is not None:
                    return rest
                continue
            try:
                received = await self._io.receive(self._body)
                if received is None and self._end is None:
                    raise self.library.RemoteProtocolError("the stream ended before the end of the answer")
            except Exception as error:  # see BROKEN
                await self._disconnect()
                if self._end == "failed":
                    raise
                self._cut = self._cut or error
                continue
            if received is None:
                break
            if passed := self._read(received):
                return passed
        await self._disconnect()
        if self._lost is not None and not self._is_closed:
            raise self._lost
        return None

    async def close(self) -> None:
        """Stops reading."""
        self._is_closed = True
        await self._disconnect()

    def _read(self, received: bytes) -> bytes:
        """Returns the events up to the last cursor, in the bytes of the gateway. A restart of the answer ends it."""
        *frames, self._unread = (self._unread + received).split(b"\n\n")
        passed = b""
        for frame in frames:
            event = frame + b"\n\n"
            if frame.startswith(HEARTBEATS) and b"\nid: " not in frame:
                passed += event
                continue
            try:
                cursor, kind = self._dialect.meaning(read_fields(frame))
            except (msgspec.MsgspecError, ValueError):
                # The SDK decides what it does with such an event.
                cursor, kind = None, None
            if kind == "begin":
                if self._is_begun and self._cut is not None:
                    # The SDK has a part of the old answer.
                    self._lost = self._cut
                    self._lost.add_note("The answer has begun again: repeat the request to get the new one.")
                    break
                self._is_begun = True
            elif kind is not None:
                self._end = kind
            self._held += event
            if cursor is not None or self._end is not None:
                passed, self._held = passed + self._held, b""
                self._cursor, self._cut, self._tries = cursor or self._cursor, None, 0
        return passed

    async def _reconnect(self) -> bytes | None:
        """Continues after the cursor at the next gateway that has the turn. Returns the rest if nothing follows.

        Raises the error of the cut if no gateway has the turn, or after `tries_max` tries at each.
        """
        cut = self._cut or self.library.RemoteProtocolError("the stream was cut")
        self._unread = self._held = b""
        reasons: dict[str, str] = {}
        while len(self._refusing) < len(self._gateways) and not self._is_closed:
            turns, number = divmod(self._tries, len(self._gateways))
            if turns >= self._tries_max:
                break
            if number == 0 and turns:
                await self._io.sleep(max(backoff_s(turns), self._retry_after_s))
                self._retry_after_s = 0.0
            self._tries += 1
            # The gateway that was read last comes last.
            gateway = self._gateways[number + 1 - len(self._gateways)]
            if gateway in self._refusing:
                continue
            try:
                response = await self._io.send(self._resuming_request(gateway))
            except Exception as error:  # noqa: BLE001  # see BROKEN
                reasons[gateway] = str(error) or type(error).__name__
                continue
            if response.status_code == 200 and _is_stream(response):
                self._gateways.remove(gateway)
                self._gateways.insert(0, gateway)
                self._stream, self._body = response.stream, self._io.body(response)
                return None
            await self._io.close(response.stream)
            if response.status_code == 204 and self._dialect.rest:
                self._end = "whole"
                return self._dialect.rest
            reasons[gateway] = f"status {response.status_code}"
            if response.status_code in STATUSES_TO_RETRY:
                self._retry_after_s = max(self._retry_after_s, _retry_after_s(response))
            else:
                self._refusing.add(gateway)
        self._lost = cut
        said = "; ".join(f"{gateway}: {reason}" for gateway, reason in reasons.items())
        cut.add_note(f"The rest of the answer could not be read: {said}")
        return b"" if self._is_closed else None

    def _resuming_request(self, gateway: str) -> Any:
        target = gateway + self._dialect.path_after(self._turn, self._cursor)
        return _request(self.library, self._request, "GET", target, {"accept": "text/event-stream"}, None)

    async def _disconnect(self) -> None:
        stream, self._stream, self._body = self._stream, None, None
        if stream is not None:
            await self._io.close(stream)


def _request(
    library: ModuleType, asked: Any, method: str, url: str, headers: dict[str, str], content: bytes | None
) -> Any:
    """Returns a request to a gateway with the credentials, the other headers and the timeouts of an SDK's request."""
    left_out = ("host",) if content is not None else OF_THE_POST
    kept = [(name, value) for name, value in asked.headers.multi_items() if name not in (*left_out, *headers)]
    return library.Request(method, url, headers=[*kept, *headers.items()], content=content, extensions=asked.extensions)


def _fingerprint(request: Any, content: bytes) -> bytes:
    """Returns the same bytes for a request and for its repetitions by the SDK."""
    credentials = [request.headers.get(name, "") for name in ("authorization", "x-api-key")]
    return hashlib.sha256("\n".join([str(request.url), *credentials, ""]).encode() + content).digest()


def _is_stream(response: Any) -> bool:
    """Returns whether the body is a stream of events, whose bytes are those of the gateway."""
    headers = response.headers
    is_plain = headers.get("content-encoding", "identity") == "identity"
    return bool(is_plain and headers.get("content-type", "").startswith("text/event-stream"))


def _retry_after_s(response: Any) -> float:
    try:
        seconds = float(response.headers.get("retry-after", 0))
    except ValueError:
        return 0.0
    return min(seconds, RETRY_AFTER_S_MAX) if math.isfinite(seconds) else 0.0


# Of type Any, so that type checkers accept the transports in clients of both libraries.
BaseTransport: Any = httpx2.BaseTransport
AsyncBaseTransport: Any = httpx2.AsyncBaseTransport


class ResumingTransport(BaseTransport):  # type: ignore[misc]
    """A transport for `httpx2.Client` and `httpx.Client`: heals the streams of SDKs.

    `transport` sends the requests: by default an `HTTPTransport()` of the client's library, made at its first request.
    It is closed with this one. `gateways` are the base URLs of other gateways with the same log; they receive the
    credentials of the requests. `tries_max`: after so many tries in a row without an event, the SDK gets the error of
    the cut.
    """

    def __init__(self, transport: Any = None, *, gateways: Sequence[str] = (), tries_max: int = TRIES_MAX) -> None:
        self._io = BlockingIo(transport)
        self._resumer = Resumer(self._io, gateways, tries_max)

    def handle_request(self, request: Any) -> Any:
        return drive(self._resumer.send(request))

    def close(self) -> None:
        self._io.close_transports()


class AsyncResumingTransport(AsyncBaseTransport):  # type: ignore[misc]
    """A transport for `httpx2.AsyncClient` and `httpx.AsyncClient`, with the parameters of `ResumingTransport`."""

    def __init__(self, transport: Any = None, *, gateways: Sequence[str] = (), tries_max: int = TRIES_MAX) -> None:
        self._io = AsyncIo(transport)
        self._resumer = Resumer(self._io, gateways, tries_max)

    async def handle_async_request(self, request: Any) -> Any:
        return await self._resumer.send(request)

    async def aclose(self) -> None:
        await self._io.close_transports()
