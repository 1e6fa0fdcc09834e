"""Client of Anthropic's Message Batches API: create, retrieve, list, cancel, results. Makes each call once.

The SDK adds address, headers and key. Bodies and results are encoded and decoded here: ten thousand messages as objects
of the SDK take seconds of CPU, in which no lease is renewed.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar

import anthropic
import httpx2
import msgspec
import structlog

from tailrace.generators.backends.anthropic_api import backend_error
from tailrace.generators.backends.api_errors import Reason, error_from_reason
from tailrace.proto import odd_json
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import BackendError
from tailrace.proto.long_strings import PIECE_BYTES

logger = structlog.get_logger()

PATH = "/v1/messages/batches"
# The API responds after it has received all bodies of the batch.
CREATE_TIMEOUT_S = 300.0
# The API's largest page.
PAGE = 1000

T = TypeVar("T")


class MessageBatch(msgspec.Struct, frozen=True):
    """A message batch, with the fields that are used. The single counts are final when the batch has ended."""

    id: str
    created_at: datetime
    processing_status: Literal["in_progress", "canceling", "ended"]
    request_counts: dict[str, int]

    @property
    def request_count(self) -> int:
        """The number of requests in the batch, in any state."""
        return sum(self.request_counts.values())

    @property
    def has_ended(self) -> bool:
        return self.processing_status == "ended"


class Page(msgspec.Struct, frozen=True):
    data: list[MessageBatch]
    has_more: bool = False


class SucceededResult(msgspec.Struct, frozen=True, tag="succeeded"):
    message: dict[str, Any]


class ErroredResult(msgspec.Struct, frozen=True, tag="errored"):
    class Response(msgspec.Struct, frozen=True):
        error: Reason = Reason()

    error: Response = Response()

    @property
    def failure(self) -> BackendError:
        """The error with which the request's turn ends."""
        return error_from_reason(self.error.error)


class CanceledResult(msgspec.Struct, frozen=True, tag="canceled"):
    pass


class ExpiredResult(msgspec.Struct, frozen=True, tag="expired"):
    pass


Result = SucceededResult | ErroredResult | CanceledResult | ExpiredResult


class Line(msgspec.Struct, frozen=True):
    """The result of one request."""

    custom_id: str
    result: Result


_batch = msgspec.json.Decoder(MessageBatch)
_page = msgspec.json.Decoder(Page)
_line = msgspec.json.Decoder(Line)


class MessageBatchesApi:
    """The message batches of one key's workspace. Each method raises BackendError."""

    def __init__(self, client: anthropic.AsyncAnthropic) -> None:
        self._client = client

    async def create(self, requests: Mapping[str, bytes], headers: Mapping[str, str]) -> MessageBatch:
        """Creates a message batch from bodies of Messages requests, by their `custom_id`.

        After a retryable BackendError other than `backend_rate_limited` and `backend_overloaded` the message batch may
        exist.
        """
        length = str(sum(map(len, _pieces(requests))))
        headers = {"content-type": "application/json", "content-length": length, **headers}
        timeout = httpx2.Timeout(CREATE_TIMEOUT_S, connect=self._connect_s)
        sent = self._client.post(
            PATH,
            cast_to=httpx2.Response,
            content=_send(requests),
            options={"headers": headers, "timeout": timeout},
        )
        return _decode(await _receive(sent), _batch)

    async def retrieve(self, name: str) -> MessageBatch:
        """Returns the batch's state. Raises BackendError."""
        return _decode(await _receive(self._client.get(f"{PATH}/{name}", cast_to=httpx2.Response)), _batch)

    async def cancel(self, name: str) -> bool:
        """Cancels a message batch. Running requests may still finish. A batch that has ended stays as it is.

        Returns False if the API refuses the call: the batch has ended, or the API does not know it.
        """
        try:
            _decode(await _receive(self._client.post(f"{PATH}/{name}/cancel", cast_to=httpx2.Response)), _batch)
        except BackendError as error:
            if error.code != "backend_refused_request":
                raise
            return False
        return True

    async def list_since(self, since: datetime) -> list[MessageBatch]:
        """Returns the message batches created since then, newest first. All times are by this process's clock."""
        made: list[MessageBatch] = []
        after = ""
        while True:
            path = f"{PATH}?limit={PAGE}{after}"
            response = await _receive(self._client.get(path, cast_to=httpx2.Response))
            page, ahead = _decode(response, _page), _clock_ahead(response)
            listed = [msgspec.structs.replace(one, created_at=one.created_at - ahead) for one in page.data]
            made += [batch for batch in listed if batch.created_at >= since]
            if not page.has_more or not listed or listed[-1].created_at < since:
                return made
            after = f"&after_id={listed[-1].id}"

    async def results(self, name: str) -> AsyncGenerator[Line, None]:
        """Yields the results of a message batch that has ended, unordered. Skips lines that cannot be decoded."""
        try:
            # The documented URL, not the one in the response: the key must not be sent to an address from a response.
            response = await self._client.get(f"{PATH}/{name}/results", cast_to=httpx2.Response, stream=True)
            try:
                async for line in _lines(response):
                    try:
                        yield _decode_line(line)
                    except DECODE_ERRORS as error:
                        logger.warning("a result cannot be decoded", message_batch=name, error=str(error)[:200])
            finally:
                await response.aclose()
        except (anthropic.AnthropicError, httpx2.HTTPError) as error:
            raise backend_error(error, time.time()) from error

    @property
    def _connect_s(self) -> float | None:
        timeout = self._client.timeout
        return timeout.connect if isinstance(timeout, httpx2.Timeout) else timeout


def _pieces(requests: Mapping[str, bytes]) -> Iterator[bytes]:
    """Yields the body of a creation: a piece for each request, and the end."""
    before = b'{"requests":['
    for name, params in requests.items():
        yield b'%b{"custom_id":%b,"params":%b}' % (before, msgspec.json.encode(name), params)
        before = b","
    yield b"]}"


async def _send(requests: Mapping[str, bytes]) -> AsyncIterator[bytes]:
    """Yields the body of a creation in larger pieces. The loop runs other tasks in between: the body may have 32 MB."""
    held = bytearray()
    for piece in _pieces(requests):
        held += piece
        if len(held) >= PIECE_BYTES:
            yield bytes(held)
            held.clear()
            await asyncio.sleep(0)
    yield bytes(held)


async def _receive(sent: Awaitable[httpx2.Response]) -> httpx2.Response:
    """Returns the response with its body. Raises BackendError."""
    try:
        response = await sent
        await response.aread()
    except (anthropic.AnthropicError, httpx2.HTTPError) as error:
        raise backend_error(error, time.time()) from error
    return response


def _decode(response: httpx2.Response, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(response.content)
    except DECODE_ERRORS as error:
        raise BackendError("backend_broken", "the response is not a message batch: check the API's URL") from error


def _clock_ahead(response: httpx2.Response) -> timedelta:
    """Returns by how much the API's clock is ahead of this process's, to about a second; 0 without a `Date`."""
    try:
        return parsedate_to_datetime(response.headers["date"]) - datetime.now(UTC)
    except (KeyError, TypeError, ValueError):
        return timedelta()


def _decode_line(line: bytes) -> Line:
    """Decodes a result. Raises one of DECODE_ERRORS."""
    try:
        decoded = _line.decode(line)
        if not odd_json.is_odd(line, msgspec.to_builtins(decoded.result)):
            return decoded
    except DECODE_ERRORS:
        pass
    # JSON that msgspec refuses, for example in a tool's input.
    return _line.decode(odd_json.make_regular(line) or line)


async def _lines(response: httpx2.Response) -> AsyncGenerator[bytes, None]:
    """Yields lines, split at line feeds only: a text may contain other line breaks."""
    pieces: list[bytes] = []
    async for chunk in response.aiter_bytes():
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            yield b"".join([*pieces, piece])
            pieces.clear()
        pieces.append(rest)
    if line := b"".join(pieces):
        yield line
