"""Claude behind Anthropic's Messages API, with Anthropic's own key; it never tries twice.

The SDK opens the stream, with headers and key; the raw bytes are read here, which costs a third of the SDK's own
reading. What that reading would have noticed is therefore noticed here: `error` events and malformed data; and what
even the SDK lets pass: an end without `message_stop` or without a beginning, events that do not fit one another, and a
page of HTML with status 200.
"""

import asyncio
import contextlib
import email.utils
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping

import anthropic
import httpx2
import msgspec

from tailrace.generators.backends import Call
from tailrace.generators.backends.event_order import EventOrder
from tailrace.generators.backends.sse_decoder import EventTooLong, SseDecoder
from tailrace.generators.settings import Settings, require_sound
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import BackendError, SettingsInvalid
from tailrace.proto.model_records import ListedModels, TokenCount

WRITE_TIMEOUT_S = 30.0
# The end of the response follows its last event. Whoever waits for it can use the connection again.
DRAIN_S = 0.2

# Anthropic's docs, "API errors". In a stream only the type can say it: the status is 200 whatever happens.
CODES_BY_TYPE = {
    "rate_limit_error": "backend_rate_limited",
    "overloaded_error": "backend_overloaded",
    "api_error": "backend_failed",
    "timeout_error": "backend_stalled",
    "authentication_error": "backend_refused_key",
    "permission_error": "backend_refused_key",
    "billing_error": "backend_refused_key",
    "invalid_request_error": "backend_refused_request",
    "not_found_error": "backend_refused_request",
    "request_too_large": "backend_refused_request",
}
CODES_BY_STATUS = {
    401: "backend_refused_key",
    402: "backend_refused_key",
    403: "backend_refused_key",
    408: "backend_stalled",
    409: "backend_failed",  # a conflict passes; the SDK, too, would try again
    429: "backend_rate_limited",
    499: "backend_broken",
    504: "backend_stalled",
    529: "backend_overloaded",
}


# Rate limits by their status, but no wait within reason mends them: the money of the month is spent.
SPENT = (anthropic.ContractSpendLimitReachedError, anthropic.EnforcedSpendLimitReachedError)


class Typed(msgspec.Struct, frozen=True):
    type: str


class Reason(msgspec.Struct, frozen=True):
    type: str = ""
    message: str = ""


class ErrorEvent(msgspec.Struct, frozen=True):
    error: Reason = Reason()


type_of = msgspec.json.Decoder(Typed).decode
error_of = msgspec.json.Decoder(ErrorEvent).decode
listed = msgspec.json.Decoder(ListedModels).decode
require_count = msgspec.json.Decoder(TokenCount).decode


class Messages:
    """Answers of a client of the SDK, whoever has the model. One for a process: its connections are kept and shared."""

    client: anthropic.AsyncAnthropic | anthropic.AsyncAnthropicBedrockMantle | anthropic.AsyncAnthropicVertex

    async def answer(self, call: Call) -> AsyncGenerator[bytes, None]:
        """See Backend.answer."""
        lines, grammar = SseDecoder(), EventOrder()
        try:
            async with self._stream(call) as response:
                require_event_stream(response.headers)
                chunks = response.aiter_bytes()
                async for chunk in chunks:
                    for kind, data in events(lines, chunk):
                        grammar.require(kind, data)
                        if kind == "message_stop":
                            await drain(chunks)
                            return
                        yield data
        except (anthropic.AnthropicError, httpx2.HTTPError) as error:
            raise backend_error(error, time.time()) from error
        raise BackendError("backend_broken", "the model's answer ended before it was complete")

    def model_id(self, model: str) -> str:
        """The name by which `model` is known here."""
        return model

    def asked(self, call: Call) -> tuple[str, bytes]:
        """The path to ask at, and the body."""
        return "/v1/messages", body_of(call, model=call.model, stream=True)

    async def post(self, path: str, body: bytes, headers: dict[str, str]) -> httpx2.Response:
        """The response, open, before any of its body."""
        return await self.client.post(
            path, cast_to=httpx2.Response, content=body, options={"headers": headers}, stream=True
        )

    async def close(self) -> None:
        await self.client.close()

    @contextlib.asynccontextmanager
    async def _stream(self, call: Call) -> AsyncIterator[httpx2.Response]:
        # A compressor in between would hold deltas back until it has a block of its own.
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if call.betas:
            headers["anthropic-beta"] = ",".join(call.betas)
        if call.api_version:
            headers["anthropic-version"] = call.api_version
        path, body = self.asked(call)
        response = await self.post(path, body, headers)
        async with contextlib.aclosing(response):
            yield response


class Claude(Messages):
    """The backend `claude`: it also tells what models there are, and counts tokens."""

    client: anthropic.AsyncAnthropic

    def __init__(self, api_key: str, base_url: str, connect_timeout_s: float, stall_timeout_s: float) -> None:
        """`stall_timeout_s` is the longest silence on an open stream; the model's pings are not silence."""
        self.client = anthropic.AsyncAnthropic(
            api_key=api_key,
            base_url=base_url,
            max_retries=0,
            timeout=timeout(connect_timeout_s, stall_timeout_s),
            http_client=anthropic.DefaultAioHttpClient(),
        )

    async def models(self) -> ListedModels:
        """What this key may use, on one page: the API's largest, a thousand. It costs nothing. Raises BackendError."""
        try:
            response = await self.client.models.with_raw_response.list(limit=1000)
            return listed(await response.read())
        except (anthropic.AnthropicError, httpx2.HTTPError) as error:
            raise backend_error(error, time.time()) from error
        except DECODE_ERRORS as error:
            raise BackendError("backend_broken", "what answers lists no models: it is not the API") from error

    async def count_tokens(self, body: bytes, betas: str) -> bytes:
        """The API's own answer for the Messages request in `body`, which goes there as it came. Raises BackendError."""
        headers = {"content-type": "application/json"} | ({"anthropic-beta": betas} if betas else {})
        path = "/v1/messages/count_tokens"
        try:
            response = await self.client.post(path, cast_to=httpx2.Response, content=body, options={"headers": headers})
            counted = await response.aread()
            require_count(counted)
        except (anthropic.AnthropicError, httpx2.HTTPError) as error:
            raise backend_error(error, time.time()) from error
        except DECODE_ERRORS as error:
            raise BackendError("backend_broken", "what answers counts no tokens: it is not the API") from error
        return counted


def backend(settings: Settings) -> Claude:
    """Raises SettingsInvalid without a key."""
    if not settings.anthropic_api_key:
        raise SettingsInvalid(
            "ANTHROPIC_API_KEY is not set: give a key, or start `tailrace up`, which simulates Claude"
        )
    require_sound(settings)
    return Claude(
        settings.anthropic_api_key,
        settings.anthropic_base_url,
        connect_timeout_s=settings.connect_timeout_s,
        stall_timeout_s=settings.stall_timeout_s,
    )


def timeout(connect_timeout_s: float, stall_timeout_s: float) -> httpx2.Timeout:
    return httpx2.Timeout(
        connect=connect_timeout_s, read=stall_timeout_s, write=WRITE_TIMEOUT_S, pool=connect_timeout_s
    )


def body_of(call: Call, **more: object) -> bytes:
    """The body of a Messages request. The SDK's own encoding of many small values lets leases run out meanwhile."""
    named = {field: getattr(call, field) for field in ("max_tokens", "messages", "system", "tools")}
    given = {field: value for field, value in named.items() if value is not None}
    # The options as they were given: a field that is newer than we are is the API's to judge.
    return msgspec.json.encode(more | given | (call.options or {}))


def require_event_stream(headers: Mapping[str, str]) -> None:
    content_type = headers.get("content-type", "no content type")
    if not content_type.startswith("text/event-stream"):
        raise BackendError("backend_broken", f"the model's address answered with {content_type}, not with events")


def events(lines: SseDecoder, chunk: bytes) -> Iterator[tuple[str, bytes]]:
    """Type and data of each event that `chunk` completes, but for pings; raises BackendError at an `error` event."""
    try:
        for data in lines.feed(chunk):
            kind = type_of(data).type
            if kind == "error":
                raise error_of_reason(error_of(data).error)
            if kind != "ping":
                yield kind, data
    except (EventTooLong, *DECODE_ERRORS) as error:
        raise BackendError("backend_broken", "the model sent an event that cannot be read") from error


async def drain(chunks: AsyncIterator[bytes]) -> None:
    """Reads the end of a response whose last event has come. Nothing that happens here spoils the answer."""
    with contextlib.suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(DRAIN_S):
            async for _ in chunks:
                pass


def backend_error(error: Exception, now: float) -> BackendError:
    """What an exception of anthropic or httpx2 is to us. `now` is Unix time, for a retry-after that is a date.

    Tried with aiohttp underneath: a connection that is refused, reset or slammed is an APIConnectionError caused by
    httpx2.ConnectError; what is not HTTP is one caused by an error of aiohttp that httpx2 does not know; a stream that
    is cut is a bare httpx2.ReadError, and a silent one a bare httpx2.ReadTimeout.
    """
    match error:
        case anthropic.APIStatusError():
            return error_of_status(error, now)
        case anthropic.APIConnectionError():
            return error_of_connection(error.__cause__)
        case anthropic.CredentialsError() | anthropic.WorkloadIdentityError():
            return BackendError("backend_refused_key", "the model's credentials could not be loaded")
        case anthropic.RetryableError():
            return BackendError("backend_failed", "the call to the model failed")
        case httpx2.TimeoutException():
            return BackendError("backend_stalled", "the model fell silent")
        case _:
            return BackendError("backend_broken", f"the model's answer broke off: {type(error).__name__}")


def error_of_connection(cause: BaseException | None) -> BackendError:
    match cause:
        case httpx2.ConnectTimeout() | httpx2.PoolTimeout():
            return BackendError("backend_unreachable", "no connection to the model in time")
        case httpx2.TimeoutException():
            return BackendError("backend_stalled", "the model did not begin to answer in time")
        case None | httpx2.TransportError():
            return BackendError("backend_unreachable", "no connection to the model")
        case _:
            return BackendError("backend_broken", "the model's address does not answer with HTTP")


def error_of_status(error: anthropic.APIStatusError, now: float) -> BackendError:
    status = error.status_code
    code = code_of(status, error.type)
    if isinstance(error, SPENT):
        code = "backend_refused_key"
    message = error.api_message if isinstance(error.api_message, str) else f"the model answered with status {status}"
    return BackendError(code, message, retry_after_s=retry_after_s(error.response.headers, now))


def code_of(status: int, kind: str | None) -> str:
    """The code of an error of the API, by its status and its type."""
    return CODES_BY_STATUS.get(status) or CODES_BY_TYPE.get(kind or "") or code_of_range(status)


def code_of_range(status: int) -> str:
    if status >= 500:
        return "backend_failed"
    return "backend_refused_request" if status >= 400 else "backend_broken"


def error_of_reason(reason: Reason) -> BackendError:
    return BackendError(CODES_BY_TYPE.get(reason.type, "backend_failed"), reason.message or "the model failed")


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """The server's wish in milliseconds, seconds or as a date (RFC 9110, 10.2.3); None when it has none."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wish_s = float(headers.get(name, "")) * unit_s
        except ValueError:
            continue
        return max(0.0, wish_s) if math.isfinite(wish_s) else None
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - now)
    except ValueError:
        return None
