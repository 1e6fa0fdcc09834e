"""The common part of both clients: sends requests, retries them, and reads one answer over several connections.

The functions are coroutines that do I/O only through an `Http`. That of the blocking client never suspends, so `drive`
runs them to their end without an event loop.
"""

import math
import os
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import quote

import httpx2
import msgspec

from tailrace.client.errors import TailraceError
from tailrace.client.events import Delta, Done, End, Failed, Reset, Start, Steered, TurnEvent, decode

T = TypeVar("T")
State = Literal["connecting", "live", "reconnecting", "ended"]
Headers = Mapping[str, str] | Callable[[], Mapping[str, str]]
At = Literal["now", "boundary"]
OnState = Callable[[State], None]
OnRetry = Callable[[TailraceError, int], None]

URL = "http://127.0.0.1:8000"
WAIT_S = 0.25
WAIT_S_MAX = 5.0
# Tries in a row that bring no event: about 45 seconds.
TRIES_MAX = 12
# The same if no gateway was ever reached and no turn runs: about 4 seconds. The address may be wrong.
FIRST_TRIES_MAX = 4
# The gateway sends a comment after 15 seconds of silence. A connection that is silent for longer is lost.
SILENCE_S = 40.0
# The gateway, or a proxy before it, is overloaded or not running.
STATUSES_TO_RETRY = (429, 502, 503, 504)
# Lists with the cursor parameter of Anthropic's API.
AFTER_ID_LISTS = ("/v1/models", "/v1/messages/batches")
RETRY_AFTER_S_MAX = 30.0
# An event has at most one delta of the model (4 MiB) or one text that has left the log.
EVENT_BYTES_MAX = 64 * 1024 * 1024
# A line of a batch's results has one whole answer.
LINE_BYTES_MAX = EVENT_BYTES_MAX
# The rest of a longer error is not read; its status is known.
ERROR_BYTES_MAX = 64 * 1024


class Http(Protocol):
    """An HTTP client. `stream` returns the server-sent events of a response, `body` its bytes; `receive` the next."""

    @property
    def client(self) -> httpx2.Client | httpx2.AsyncClient: ...
    async def send(self, request: httpx2.Request) -> httpx2.Response:
        """Sends a request and returns its response, whose body is unread. Raises httpx2.HTTPError."""

    async def read(self, response: httpx2.Response) -> bytes:
        """Returns the rest of the body. Raises httpx2.HTTPError."""

    def stream(self, response: httpx2.Response) -> Any:
        """Returns an iterator of the server-sent events, each of at most EVENT_BYTES_MAX."""

    def body(self, response: httpx2.Response) -> Any:
        """Returns an iterator of the body, in the pieces that arrive."""

    async def receive(self, stream: Any) -> Any:
        """Returns the next item of `stream` or `body`, or None at the end. Raises httpx2.HTTPError."""

    async def close(self, response: httpx2.Response) -> None:
        """Closes the response, and its connection if the body is unread."""

    async def sleep(self, seconds: float) -> None: ...


class Tries:
    """Counts tries in a row without success, and computes the wait before the next."""

    def __init__(self) -> None:
        self.count = 0

    def wait_s(self, error: TailraceError, tries_max: float) -> float:
        """Returns the wait before the next try: the server's, or a longer one of our own. Raises a final `error`."""
        self.count += 1
        if not error.is_temporary or self.count > tries_max:
            raise error
        return max(backoff_s(self.count), error.retry_after_s)


def backoff_s(tries: int) -> float:
    """Returns the wait after so many tries in a row without success."""
    return min(WAIT_S_MAX, WAIT_S * 2.0 ** min(tries - 1, 10)) * random.uniform(0.5, 1.5)  # noqa: S311


class Core:
    """The address, credentials and limits of a client, and its requests."""

    def __init__(
        self,
        http: Http,
        url: str | None,
        key: str | None,
        headers: Headers,
        tries_max: float | None,
        silence_s: float,
        on_retry: OnRetry | None,
    ) -> None:
        self.http = http
        self._tries_max = tries_max
        self._is_reached = False
        self._on_retry = on_retry
        self._timeout = httpx2.Timeout(silence_s)
        self.url = (url or os.environ.get("TAILRACE_URL") or URL).rstrip("/")
        self._key = key or os.environ.get("TAILRACE_KEY")
        self._headers = headers
        require_url(self.url)
        if self._key and not is_header_value(self._key):
            raise TailraceError(
                "the API key has a line break, a space at an end, or a non-ASCII character: copy it again"
            )

    async def open(
        self, method: str, path: str, headers: Mapping[str, str], content: bytes | None = None
    ) -> httpx2.Response:
        """Returns a response with a status of success, whose body was not read. Raises TailraceError."""
        own = self._headers() if callable(self._headers) else self._headers
        key = {"authorization": f"Bearer {self._key}"} if self._key else {}
        # With both spellings of a name, both headers would be sent.
        merged = {**key, **{name.lower(): value for name, value in own.items()}, **headers}
        for name, value in merged.items():
            if not is_header_value(value):
                raise TailraceError(f"the value of the header {name} has a character that HTTP does not allow")
        request = self.http.client.build_request(
            method, self.url + path, headers=merged, content=content, timeout=self._timeout
        )
        try:
            response = await self._send(request)
            self._is_reached = True
            if response.is_success:
                return response
            try:
                body = await self._read_error(response)
            finally:
                await self.http.close(response)
        except httpx2.HTTPError as error:
            raise self.connection_error(error) from error
        raise status_error(response, body)

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        """Follows redirects within the origin only: no other host receives the headers and the question."""
        for _ in range(self.http.client.max_redirects + 1):
            response = await self.http.send(request)
            following = response.next_request
            if following is None:
                return response
            await self.http.close(response)
            if following.url.origin != request.url.origin:
                other = f"{following.url.scheme}://{following.url.netloc.decode()}"
                raise TailraceError(f"the gateway redirects to {other}: if you trust it, use that URL")
            request = following
        raise TailraceError(f"the gateway redirects more than {self.http.client.max_redirects} times")

    async def _read_error(self, response: httpx2.Response) -> bytes:
        """Returns the body of a refusal, or the start of a long one."""
        body, read = self.http.body(response), b""
        while len(read) <= ERROR_BYTES_MAX and (received := await self.http.receive(body)) is not None:
            read += received
        return read

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        params: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Returns the decoded JSON of a response. Raises TailraceError.

        A request that may have been accepted is repeated, except a POST without an idempotency key.
        """
        headers = {} if body is None else {"content-type": "application/json"}
        if idempotency_key:
            headers["idempotency-key"] = idempotency_key
        is_repeatable = method.upper() != "POST" or idempotency_key is not None or path.endswith("/cancel")
        query = f"{'&' if '?' in path else '?'}{httpx2.QueryParams(params)}" if params else ""
        content = None if body is None else msgspec.json.encode(body)
        status, received = await self._fetch(method, path + query, headers, content, is_repeatable=is_repeatable)
        try:
            return msgspec.json.decode(received) if received else None
        except (msgspec.MsgspecError, ValueError) as error:
            raise TailraceError("the gateway sent no JSON", status=status) from error

    async def blob(self, sha256: str) -> str:
        """Returns a string that the gateway has stored as a blob. Raises TailraceError."""
        _, received = await self._fetch("GET", f"/v1/blobs/{path_segment(sha256)}", {}, None, is_repeatable=True)
        return received.decode()

    async def _fetch(
        self, method: str, path: str, headers: Mapping[str, str], content: bytes | None, *, is_repeatable: bool
    ) -> tuple[int, bytes]:
        """Returns the status and the body of a response. Raises TailraceError."""

        async def work() -> tuple[int, bytes]:
            try:
                response = await self.open(method, path, headers, content)
            except TailraceError as error:
                error.is_temporary &= is_repeatable or error.status == httpx2.codes.TOO_MANY_REQUESTS
                raise
            try:
                return response.status_code, await self.http.read(response)
            except httpx2.HTTPError as error:
                raise self.connection_error(error, is_temporary=is_repeatable) from error
            finally:
                await self.http.close(response)

        return await self.repeat(work)

    async def repeat(self, work: Callable[[], Awaitable[T]]) -> T:
        """Returns what `work` returns, after as many tries as it takes. Raises TailraceError."""
        tries = Tries()
        while True:
            try:
                return await work()
            except TailraceError as error:
                await self.wait(tries, error)

    async def wait(self, tries: Tries, error: TailraceError, *, is_running: bool = False) -> None:
        """Waits before the next try; longer if a turn is running. Raises a final `error`."""
        is_first = error.is_unreachable and not self._is_reached and not is_running
        default = FIRST_TRIES_MAX if is_first else TRIES_MAX
        wait_s = tries.wait_s(error, default if self._tries_max is None else self._tries_max)
        if self._on_retry is not None:
            self._on_retry(error, tries.count)
        await self.http.sleep(wait_s)

    async def items(self, path: str, params: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
        """Yields the items of a list, and requests its pages as they are needed."""
        after: dict[str, str] = {}
        while True:
            page = await self.request("GET", path, params={**params, **after})
            # In an older gateway, the list of a session's turns has `turns` instead of `data`.
            found = page.get("data", page.get("turns")) if isinstance(page, dict) else None
            if not isinstance(found, list):
                raise TailraceError("the gateway sent no list: is the URL that of Tailrace?")
            for item in found:
                yield item
            name, cursor = "after", page.get("next")
            if "next" not in page and page.get("has_more"):
                # A list in OpenAI's or Anthropic's format: the id of an item is the cursor after it.
                name = "after_id" if path.partition("?")[0] in AFTER_ID_LISTS else "after"
                cursor = found[-1]["id"]
            if cursor is None:
                return
            after = {name: cursor}

    async def results(self, batch: str) -> AsyncIterator[dict[str, Any]]:
        """Yields each result of a batch once. After a lost connection, requests the results after the last one
        received."""
        last, tries = None, Tries()
        while True:
            after = "" if last is None else f"?after={last}"
            try:
                response = await self.open("GET", f"/v1/turn-batches/{path_segment(batch)}/results{after}", {})
                try:
                    async for line in self._lines(response):
                        try:
                            result = msgspec.json.decode(line)
                            last, tries.count = result["index"], 0
                        except (msgspec.MsgspecError, ValueError, TypeError, KeyError) as error:
                            raise TailraceError("the gateway sent a line that is not a result") from error
                        yield result
                    return
                finally:
                    await self.http.close(response)
            except httpx2.HTTPError as error:
                await self.wait(tries, self.connection_error(error))
            except TailraceError as error:
                await self.wait(tries, error)

    async def _lines(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        """Yields the lines of a body. httpx2's iter_lines would also split at U+2028, which JSON may contain."""
        body, pieces, pieces_bytes = self.http.body(response), list[bytes](), 0
        while (received := await self.http.receive(body)) is not None:
            *ends, rest = received.split(b"\n")
            for end in ends:
                yield b"".join([*pieces, end])
                pieces, pieces_bytes = [], 0
            pieces.append(rest)
            pieces_bytes += len(rest)
            if pieces_bytes > LINE_BYTES_MAX:
                raise TailraceError(f"the gateway sent a line of more than {LINE_BYTES_MAX} bytes")
        if pieces_bytes:
            raise TailraceError("the body ended within a line", is_temporary=True)

    def connection_error(
        self, error: httpx2.HTTPError, *, is_temporary: bool = True, retry_after_s: float = 0.0
    ) -> TailraceError:
        """Returns the error for a connection that failed: temporary, unless no later try can succeed."""
        is_unreachable = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
        what = f"cannot connect to {self.url}" if is_unreachable else f"the connection to {self.url} is lost"
        return TailraceError(
            f"{what} ({reason(error)})",
            is_temporary=is_temporary and isinstance(error, httpx2.TransportError),
            is_unreachable=is_unreachable,
            retry_after_s=retry_after_s,
        )

    async def cancel(self, turn: str) -> dict[str, Any]:
        """Ends a turn and returns the gateway's response, with `turn` and `outcome`. Raises TailraceError."""
        cancelled: dict[str, Any] = await self.request("POST", f"/v1/turns/{path_segment(turn)}/cancel")
        return cancelled

    async def steer(self, turn: str, message: object, at: At) -> dict[str, Any]:
        """Puts a message into a turn; returns the response, whose `turn` answers it. Raises TailraceError."""
        path, key = f"/v1/turns/{path_segment(turn)}/steer", secrets.token_hex(16)
        steered: dict[str, Any] = await self.request("POST", path, {"message": message, "at": at}, idempotency_key=key)
        return steered


class Reading:
    """One answer: its state, and the connections that read it. The POST is repeated until its turn is known."""

    def __init__(self, core: Core, on_state: OnState | None, post: "Post | None", turn: str | None, after: str) -> None:
        self._core = core
        self._on_state = on_state
        self._post = post
        self.turn = turn
        self.session: str | None = None
        self.model: str | None = None
        self.text = ""
        self._texts: dict[int, str] = {}
        self.state: State = "connecting"
        self.cursor = after
        self.end: End | None = None
        self._tries = Tries()
        self._retry_s = 0.0
        self._response: httpx2.Response | None = None
        self._stream: Any = None
        self._is_closed = False

    async def start(self) -> None:
        """Connects to the gateway. Raises TailraceError if the turn is refused, or the gateway does not answer."""
        while self._response is None and self.end is None:
            try:
                await self._connect()
            except TailraceError as error:
                await self._wait(error)

    async def next(self) -> TurnEvent | None:
        """Returns the next event, after as many connections as it takes; None after the end. Raises TailraceError."""
        while self.end is None:
            if self._is_closed:
                # Another task has closed the answer, perhaps while this one opened a connection.
                await self.close()
                raise TailraceError("the answer was closed: `resume(turn, after=cursor)` reads the rest")
            try:
                if self._response is None:
                    await self._connect()
                elif (event := await self._receive()) is not None:
                    await self._apply(event)
                    return event
            except TailraceError as error:
                if not self._is_closed:
                    await self._wait(error)
        return None

    async def done(self) -> End:
        """Reads to the end, and returns it. Raises TailraceError."""
        while self.end is None:
            await self.next()
        return self.end

    async def close(self) -> None:
        """Stops reading. The turn goes on."""
        self._is_closed = True
        await self._disconnect()
        self._become("ended")

    async def cancel(self) -> dict[str, Any]:
        """Ends the turn, and returns it. Raises TailraceError, also if the turn's id is not known yet."""
        return await self._core.cancel(self._started_turn())

    async def steer(self, message: object, at: At) -> dict[str, Any]:
        """Puts a message into the answer. Raises TailraceError, also if the turn's id is not known yet."""
        return await self._core.steer(self._started_turn(), message, at)

    def _started_turn(self) -> str:
        if self.turn is None:
            raise TailraceError("the turn has not started")
        return self.turn

    async def _connect(self) -> None:
        accept = {"accept": "text/event-stream"}
        if self.turn is None and self._post is not None:
            response = await self._core.open("POST", "/v1/turns", accept | self._post.headers, self._post.content)
        else:
            cursor = {"last-event-id": self.cursor} if self.cursor else {}
            response = await self._core.open(
                "GET", f"/v1/turns/{path_segment(self.turn or '')}/events", accept | cursor
            )
        self.turn = response.headers.get("tailrace-turn") or self.turn
        self._response, self._stream, self._retry_s = response, self._core.http.stream(response), 0.0
        self._become("live")
        if response.status_code == httpx2.codes.NO_CONTENT:
            await self._disconnect()
            await self._finish(await self._read_end())

    async def _receive(self) -> TurnEvent | None:
        """Returns the next event of this connection; None for what is not an event, or of an unknown type."""
        try:
            sent = await self._core.http.receive(self._stream)
        except httpx2.HTTPError as error:
            raise self._core.connection_error(error, retry_after_s=self._retry_s) from error
        if sent is None:
            raise TailraceError("the stream ended before the answer", is_temporary=True, retry_after_s=self._retry_s)
        if sent.retry is not None:
            # A gateway that is busy sends nothing but the delay, and closes.
            self._retry_s = sent.retry / 1000
        if not sent.data:
            return None
        self._retry_s, self._tries.count = 0.0, 0
        self.cursor = sent.id or self.cursor
        try:
            return decode(sent.data, self.cursor)
        except (msgspec.MsgspecError, ValueError) as error:
            await self._disconnect()
            raise TailraceError(f"the gateway sent an event that cannot be read: {error}") from error

    async def _apply(self, event: TurnEvent) -> None:
        match event:
            case Start():
                self.turn, self.session, self.model = event.turn, event.session, event.model
            case Delta():
                self._add(event)
            case Reset() | Steered():
                self.text = ""
                self._texts.clear()
                if isinstance(event, Steered):
                    self.turn = event.turn
            case Done() | Failed():
                await self._finish(event)
            case _:
                pass

    def _add(self, delta: Delta) -> None:
        """Adds text to its block. The text of the answer is that of its blocks in order."""
        is_last = delta.index >= max(self._texts, default=0)
        self._texts[delta.index] = self._texts.get(delta.index, "") + delta.text
        if is_last:
            self.text += delta.text
        else:
            # Several blocks are open at the same time.
            self.text = "".join(self._texts[index] for index in sorted(self._texts))

    async def _read_end(self) -> Done | Failed | None:
        """Returns the end of a turn whose stream has nothing after the cursor; None if the turn cannot be read.

        A proxy may pass the streams alone.
        """
        try:
            record = await self._core.request("GET", f"/v1/turns/{path_segment(self.turn or '')}")
            self.session, self.model = record["session"], record["model"]
            fields = {**record, **(record["error"] or {}), "cursor": self.cursor}
            kind: type[Done | Failed] = Failed if record["outcome"] == "failed" else Done
            return msgspec.convert(fields, kind)
        except TailraceError as error:
            if error.is_temporary:
                raise
        except (msgspec.MsgspecError, LookupError, TypeError):
            pass
        return None

    async def _finish(self, event: Done | Failed | None) -> None:
        ending = {} if event is None else {name: getattr(event, name) for name in event.__struct_fields__}
        ending.pop("type", None)
        if isinstance(event, Failed):
            ending["outcome"] = "failed"
        own = {"turn": self.turn or "", "session": self.session, "model": self.model, "text": self.text}
        self.end = End(**{"outcome": None, "cursor": self.cursor, **own, **ending})
        # The wait for the closed connection may be cancelled: the end is not sent again.
        await self._disconnect()
        self._become("ended")

    async def _wait(self, error: TailraceError) -> None:
        """Waits before the next connection. Raises `error` if it is final."""
        await self._disconnect()
        self._become("reconnecting" if error.is_temporary else "ended")
        try:
            await self._core.wait(self._tries, error, is_running=self.turn is not None)
        except TailraceError:
            self._become("ended")
            raise

    async def _disconnect(self) -> None:
        response, self._response, self._stream = self._response, None, None
        if response is not None:
            await self._core.http.close(response)

    def _become(self, state: State) -> None:
        if self.state != state:
            self.state = state
            if self._on_state is not None:
                self._on_state(state)


class Post:
    """The POST of a turn. With its key, a POST that is repeated after a cut starts no second turn."""

    def __init__(self, question: str | Mapping[str, Any], fields: Mapping[str, Any], key: str | None) -> None:
        body = {"message": question} if isinstance(question, str) else dict(question)
        self.content = msgspec.json.encode({**body, **fields})
        self.headers = {"content-type": "application/json", "idempotency-key": key or secrets.token_hex(16)}


def require_url(text: str) -> None:
    """Raises TailraceError, whose message never has a password."""
    if "@" in text:
        raise TailraceError("the URL of the gateway has a user or a password: remove it, and give an API key")
    try:
        url = httpx2.URL(text)
        is_url = url.scheme in ("http", "https") and bool(url.host)
    except httpx2.InvalidURL:
        is_url = False
    if not is_url:
        hint = f"such as {URL}" if "://" in text else f"because it has no scheme: write http://{text}"
        raise TailraceError(f"{text!r} is not a URL of a gateway, {hint}")


def is_header_value(text: str) -> bool:
    """Returns whether `text` can be sent as an HTTP header: printable ASCII without spaces at its ends."""
    return text.isascii() and text.isprintable() and text == text.strip()


def path_segment(name: str) -> str:
    """Returns a name, quoted as one segment of a path."""
    return quote(name, safe="")


def reason(error: BaseException) -> str:
    """Returns the message of the OSError that caused `error`, such as "Connection refused", else its own."""
    if isinstance(error, httpx2.RemoteProtocolError):
        return "it was closed before the end of the response"
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "strerror", None) is None:
        cause = cause.__cause__ or cause.__context__
    return str(getattr(cause, "strerror", None) or error or type(error).__name__)


def status_error(response: httpx2.Response, body: bytes) -> TailraceError:
    """Returns the error for a response with a status of failure."""
    status = response.status_code
    try:
        retry_after_s = float(response.headers.get("retry-after", 0))
    except ValueError:
        retry_after_s = 0.0
    if not math.isfinite(retry_after_s):
        retry_after_s = 0.0
    try:
        error = msgspec.json.decode(body)["error"]
        code, message = str(error["code"]), str(error["message"])
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError):
        code, message = None, f"the gateway answered with status {status}"
    # A full log stays full for longer than a reader waits.
    is_temporary = status in STATUSES_TO_RETRY and code != "log_full" and retry_after_s <= RETRY_AFTER_S_MAX
    return TailraceError(message, status=status, code=code, retry_after_s=retry_after_s, is_temporary=is_temporary)
