"""The backend `claude`: Anthropic's Messages API with an API key. Makes each call once; retry.py repeats calls.

The SDK opens the stream with headers and key. The response body is decoded here, at a third of the CPU of the SDK's own
decoder. Therefore this module and its helpers detect what the SDK would detect: `error` events and malformed data. They
also detect what the SDK accepts: an answer without `message_start` or `message_stop`, events in an impossible order,
and an HTML page with status 200.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from typing import Any

import anthropic
import httpx2
import msgspec
from anthropic._models import FinalRequestOptions  # what `_build_request` receives

from tailrace.generators.backends import Call
from tailrace.generators.backends.api_errors import api_error, code_for
from tailrace.generators.backends.event_order import EventOrder
from tailrace.generators.backends.half_pairs import HalfPairs
from tailrace.generators.backends.http_client import HttpClient, TimedBody
from tailrace.generators.backends.large_events import LARGE_BYTES, LargeEventMemory, cut, restore
from tailrace.generators.backends.model_event import ModelEvent, Put, Wait, await_each, events_lost, read_event
from tailrace.generators.backends.obstacle import find_obstacle
from tailrace.generators.backends.sse_decoder import SseDecoder
from tailrace.generators.settings import PINGS_TIMEOUT_S, Settings, require_sound
from tailrace.proto import long_strings, odd_json
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.entries import Message
from tailrace.proto.errors import BackendError, SettingsInvalid
from tailrace.proto.model_records import ListedModels
from tailrace.proto.runtime.retry_after import parse_retry_after
from tailrace.proto.tool_ids import with_valid_tool_ids

# The response ends shortly after its last event. Reading that end makes the connection reusable.
DRAIN_S = 0.2
# Kinds of requests whose URL and headers are kept. Clients choose the betas and the version of the API.
HEADS_MAX = 32

_decode_models = msgspec.json.Decoder(ListedModels).decode


class MessagesApi:
    """The Messages API through a client of the SDK (Anthropic, Bedrock, Vertex), which pools connections."""

    provider = "anthropic"
    client: anthropic.AsyncAnthropic | anthropic.AsyncAnthropicBedrockMantle | anthropic.AsyncAnthropicVertex
    pings_timeout_s: float = PINGS_TIMEOUT_S
    """How long the model may send only pings or comments, which are not a part of its answer."""
    memory = LargeEventMemory()
    """Of all backends together: one process has one such memory."""

    async def stream(self, call: Call, put: Put) -> None:
        """See Backend.stream."""
        answer = _Answer(put, self.pings_timeout_s, partial(self.memory.reserve, call.tenant))
        try:
            response = await self._open(call)
            async with contextlib.aclosing(_timed(response)), answer.memory:
                require_event_stream(response.headers)
                body = body_of(response)
                # The prompt and the headers of both sides are not needed while the answer is read.
                del call, response
                while (wait := await body.read_until(answer.receive)) is not None:
                    await wait()
                    if answer.is_complete:
                        await drain(body)
                        return
        except (anthropic.AnthropicError, httpx2.HTTPError) as error:
            raise backend_error(error, time.time()) from error
        raise BackendError("backend_broken", "the model's answer ended before it was complete")

    def model_id(self, model: str) -> str:
        """See Backend.model_id."""
        return model

    async def build_request(self, call: Call) -> tuple[str, list[bytes]]:
        """Returns the path and the body of the request, in pieces."""
        return "/v1/messages", await encode_body(call, model=call.model, stream=True)

    async def post(self, path: str, body: list[bytes], headers: dict[str, str]) -> httpx2.Response:
        """Returns the response once its headers have come; the body is still to be read. Empties `body`."""
        return await self._post(path, b"".join(body), headers)

    async def _post(self, path: str, content: bytes | AsyncIterator[bytes], headers: dict[str, str]) -> httpx2.Response:
        return await self.client.post(
            path, cast_to=httpx2.Response, content=content, options={"headers": headers}, stream=True
        )

    async def close(self) -> None:
        await self.client.close()

    async def _open(self, call: Call) -> httpx2.Response:
        """Sends the request. The body of the response is still to be read, and to be closed."""
        # With a compressed body, a proxy would hold deltas back until its compression block is full.
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if call.betas:
            headers["anthropic-beta"] = ",".join(call.betas)
        if call.api_version:
            headers["anthropic-version"] = call.api_version
        path, body = await self.build_request(call)
        # A large body is in memory only until it is sent.
        del call
        return await self.post(path, body, headers)


class _Answer:
    """The state of one answer. Each event is decoded and stored as it arrives."""

    def __init__(
        self, put: Put, pings_timeout_s: float, reserve: Callable[[], AbstractAsyncContextManager[None]]
    ) -> None:
        """`reserve` waits for the memory of a large event."""
        self.memory = AsyncExitStack()
        """Holds the memory of the large event that arrives, until it is stored."""
        self.is_complete = False
        self._put = put
        self._pings_timeout_s = pings_timeout_s
        self._reserve = reserve
        self._now = asyncio.get_running_loop().time
        self._decoder, self._halves, self._order = SseDecoder(), HalfPairs(), EventOrder()
        self._is_large = False
        self._read_count = 0
        """The number of decoded events that were read."""
        self._last_event_at = self._now()

    def receive(self, piece: bytes) -> Wait | None:
        """Puts the events that a piece of the body completes. Returns a wait if one is due or the answer has ended.

        Raises BackendError (`events_lost`) if not all events of earlier pieces were read: those of this piece must not
        be stored behind the gap.
        """
        if self._read_count != self._decoder.decoded:
            raise events_lost("were received and not read")
        found, last_event_at = self._decoder.decode(piece), self._last_event_at
        for number, data in enumerate(found):
            if len(data) > LARGE_BYTES:
                return partial(self._receive_slowly, found[number:])
            following = iter(self._read(data))
            for event in following:
                if (wait := self._put(event)) is not None:
                    return partial(self._receive_slowly, found[number + 1 :], following, wait)
        if self.is_complete or (self._decoder.pending_bytes > LARGE_BYTES) != self._is_large:
            return partial(self._receive_slowly, ())
        if self._last_event_at == last_event_at:
            self._check_progress()
        return None

    def _read(self, data: bytes) -> Sequence[ModelEvent]:
        """Returns the events that are stored for an event of the model; none after its last event."""
        self._read_count += 1
        read = None if self.is_complete else read_event(data)
        if read is None:
            return ()
        self._last_event_at = self._now()
        self.is_complete = read.kind == "message_stop"
        if self._halves.held is None and not read.original:
            return self._order.accept(read)
        return [one for event in self._halves.add(read) for one in self._order.accept(event)]

    async def _receive_slowly(
        self, found: Sequence[bytes], following: Iterable[ModelEvent] = (), wait: Wait | None = None
    ) -> None:
        """Waits, and puts the events `following` and then `found`, with a wait after each that returns one.

        Decodes large events in steps. Changes the reserved memory.
        """
        await await_each(wait)
        for event in following:
            await await_each(self._put(event))
        for data in found:
            rest, strings = await cut(data)
            for event in self._read(rest):
                await await_each(self._put(await restore(event, data, rest, strings)))
        if (self._decoder.pending_bytes > LARGE_BYTES) != self._is_large:
            # A large event has begun, or it is complete and stored.
            self._is_large = not self._is_large
            if self._is_large:
                await self.memory.enter_async_context(self._reserve())
            else:
                await self.memory.aclose()
        self._check_progress()

    def _check_progress(self) -> None:
        """Raises BackendError if the model sends no events for too long: comments and blank lines do not count.

        Complete silence is noticed by the read timeout.
        """
        now = self._now()
        if self._is_large:
            self._last_event_at = now
        elif now - self._last_event_at > self._pings_timeout_s:
            raise BackendError("backend_stalled", "the model sent only pings or comments for too long")


class AsyncAnthropic(anthropic.AsyncAnthropic):
    """The SDK's client, which makes a request from the URL and the headers of an earlier one with the same options.

    Building these took a third of the CPU of a request. The header User-Agent has the name of this class.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.heads: dict[Hashable, tuple[httpx2.URL, httpx2.Headers, dict[str, Any]]] = {}

    def _build_request(self, options: FinalRequestOptions, *, retries_taken: int = 0) -> httpx2.Request:
        content, given = options.content, options.headers
        if not isinstance(content, bytes) or not isinstance(given, Mapping):
            return super()._build_request(options, retries_taken=retries_taken)
        kind = options.method, options.url, retries_taken, *given.items()
        if (head := self.heads.get(kind)) is not None:
            url, headers, extensions = head
            return httpx2.Request(options.method, url, headers=headers, content=content, extensions=dict(extensions))
        built = super()._build_request(options, retries_taken=retries_taken)
        if len(self.heads) == HEADS_MAX:
            self.heads.clear()
        headers = built.headers.copy()
        del headers["content-length"]
        self.heads[kind] = built.url, headers, built.extensions
        return built


class AnthropicApi(MessagesApi):
    """The backend `claude`, which also lists models."""

    client: anthropic.AsyncAnthropic

    def __init__(
        self,
        api_key: str,
        base_url: str,
        connect_timeout_s: float,
        stall_timeout_s: float,
        pings_timeout_s: float = PINGS_TIMEOUT_S,
    ) -> None:
        """`stall_timeout_s` is the longest silence on an open stream, without even a ping."""
        self.pings_timeout_s = pings_timeout_s
        self.client = AsyncAnthropic(
            api_key=api_key,
            base_url=base_url,
            max_retries=0,
            timeout=timeout(connect_timeout_s, stall_timeout_s),
            http_client=HttpClient(),
        )

    async def post(self, path: str, body: list[bytes], headers: dict[str, str]) -> httpx2.Response:
        """See MessagesApi.post. Given as bytes, the body would be kept by the response while the answer is read."""
        if len(body) == 1:
            return await super().post(path, body, headers)
        headers["content-length"] = str(sum(map(len, body)))
        return await self._post(path, _pop_pieces(body), headers)

    async def models(self) -> ListedModels:
        """Returns the models that the key may use, at most 1,000 (the API's largest page). Raises BackendError.

        The request is free of charge.
        """
        try:
            response = await self.client.models.with_raw_response.list(limit=1000)
            return _decode_models(await response.read())
        except (anthropic.AnthropicError, httpx2.HTTPError) as error:
            raise backend_error(error, time.time()) from error
        except DECODE_ERRORS as error:
            raise BackendError("backend_broken", "the response is not a list of models: check the API's URL") from error


def backend(settings: Settings) -> AnthropicApi:
    """Opens the backend. Raises SettingsInvalid without a key."""
    if not settings.anthropic_api_key:
        raise SettingsInvalid("ANTHROPIC_API_KEY is not set: give a key, or run `tailrace up`, which simulates Claude")
    require_sound(settings)
    return AnthropicApi(
        settings.anthropic_api_key,
        settings.anthropic_base_url,
        connect_timeout_s=settings.connect_timeout_s,
        stall_timeout_s=settings.stall_timeout_s,
        pings_timeout_s=settings.pings_timeout_s,
    )


def timeout(connect_timeout_s: float, stall_timeout_s: float) -> httpx2.Timeout:
    """Returns the timeouts of a request. `stall_timeout_s` is the longest silence between two reads of its answer."""
    return httpx2.Timeout(stall_timeout_s, connect=connect_timeout_s, pool=connect_timeout_s)


async def _pop_pieces(pieces: list[bytes]) -> AsyncIterator[bytes]:
    """Yields the pieces in order and drops each one, so that a sent piece uses no memory."""
    pieces.reverse()
    while pieces:
        yield pieces.pop()


async def encode_body(call: Call, **more: object) -> list[bytes]:
    """Returns the body of a Messages request, with the fields `more`, in pieces; a body that is not large is one piece.

    Tool call ids of other vendors become ids that Claude accepts (PROTOCOL R130). The SDK's encoder is so slow on many
    small values that leases expire meanwhile.
    """
    named = {field: getattr(call, field) for field in ("max_tokens", "messages", "system", "tools")}
    given = {field: value for field, value in named.items() if value is not None}
    given["messages"] = list(map(_as_sent, with_valid_tool_ids(call.messages)))
    # Options are sent unchanged: only the API knows its newest fields.
    fields = more | given | (call.options or {})
    if call.is_large:
        return await long_strings.encode(fields, unwrap=odd_json.accepted_by_models)
    return [odd_json.unwrap(msgspec.json.encode(fields), odd_json.accepted_by_models)]


def _as_sent(message: Message) -> Message | dict[str, object]:
    """Returns a message for the API, which refuses an empty `content`, and accepts a system message without it."""
    if message.role == "system" and not message.content:
        return {"role": "system", "output_config": message.output_config}
    return message


def require_event_stream(headers: Mapping[str, str]) -> None:
    """Raises BackendError for a response that is not an event stream."""
    content_type = headers.get("content-type", "no content type")
    if not content_type.lower().startswith("text/event-stream"):
        raise BackendError("backend_broken", f"the model's address answered with {content_type}, not with events")


def body_of(response: httpx2.Response) -> TimedBody:
    """Returns the body as it arrives. httpx2's own iterators add a quarter to the time of reading a delta."""
    body = _timed(response)
    is_plain = response.headers.get("content-encoding", "identity") == "identity"
    return body if is_plain else TimedBody(response.aiter_bytes(), body.silence_s)


def _timed(response: httpx2.Response) -> TimedBody:
    assert isinstance(response.stream, TimedBody)  # noqa: S101  # HttpClient sets it
    return response.stream


async def drain(body: TimedBody) -> None:
    """Reads a response to its end after the last event. Errors here do not affect the answer."""
    with contextlib.suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(DRAIN_S):
            await body.read_until(lambda _: None)


def backend_error(error: Exception, now: float) -> BackendError:
    """Maps an exception of anthropic or httpx2 to a BackendError. `now` is Unix time, for a Retry-After with a date.

    Observed with aiohttp underneath: a connection that is refused or reset is an APIConnectionError caused by
    httpx2.ConnectError; a peer that does not speak HTTP is an APIConnectionError caused by an aiohttp error; a stream
    that is cut is a bare httpx2.ReadError, and a silent stream a bare httpx2.ReadTimeout.
    """
    match error:
        case anthropic.APIStatusError():
            return _error_of_status(error, now)
        case anthropic.APIConnectionError():
            return _error_of_connection(error.__cause__)
        case anthropic.CredentialsError() | anthropic.WorkloadIdentityError():
            return BackendError("backend_refused_key", "the model's credentials could not be loaded")
        case anthropic.RetryableError():
            return BackendError("backend_failed", "the call to the model failed")
        case httpx2.TimeoutException():
            return BackendError("backend_stalled", "the model sent nothing for too long")
        case _:
            return BackendError("backend_broken", f"the model's answer broke off: {type(error).__name__}")


def _error_of_connection(cause: BaseException | None) -> BackendError:
    match cause:
        case httpx2.ConnectTimeout() | httpx2.PoolTimeout():
            return BackendError(
                "backend_unreachable",
                "no connection to the model in time",
                reason=str(cause),
                obstacle="no connection in time",
            )
        case httpx2.TimeoutException():
            return BackendError("backend_stalled", "the model did not begin to answer in time")
        case None | httpx2.TransportError():
            return BackendError(
                "backend_unreachable",
                "no connection to the model",
                reason=str(cause or ""),
                obstacle=find_obstacle(cause),
            )
        case _:
            return BackendError("backend_broken", "the model's address does not answer with HTTP")


def _error_of_status(error: anthropic.APIStatusError, now: float) -> BackendError:
    status, headers = error.status_code, error.response.headers
    # The SDK passes on whatever the body contains.
    kind = error.type if isinstance(error.type, str) else None
    # A used-up monthly budget, for example, has status 429, but waiting does not help.
    code = code_for(status, kind, error.error_code)
    message = error.api_message if isinstance(error.api_message, str) else f"the model answered with status {status}"
    return api_error(code, message, parse_retry_after(headers, now), details=_details(error.body))


def _details(body: object) -> object:
    """Returns `error.details` of an error's body, None if it has none."""
    match body:
        case {"error": {"details": details}}:
            return details
        case _:
            return None
