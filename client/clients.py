"""`Client` and `AsyncClient`: the core with blocking and with asynchronous HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from typing import Any, Self, TypeVar

import httpx2

from tailrace.client.core import (
    EVENT_BYTES_MAX,
    SILENCE_S,
    At,
    Core,
    Headers,
    OnRetry,
    OnState,
    Post,
    Reading,
    State,
    path_segment,
)
from tailrace.client.events import End, TurnEvent

T = TypeVar("T")
# Each answer that is read holds a connection. By default the 101st would wait for the end of another.
UNLIMITED = httpx2.Limits(max_connections=None)
# A proxy of the environment cannot reach the loopback addresses of this machine.
WITHOUT_PROXY = dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]"))


def drive(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never suspends, and returns its result."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise RuntimeError("a coroutine of the blocking client has suspended")


def require_client(http: object, kind: type) -> None:
    """Raises TypeError if `http` is not the kind of client: one of httpx, or an asynchronous one for a blocking one."""
    if not isinstance(http, kind):
        given = f"{type(http).__module__.partition('.')[0]}.{type(http).__qualname__}"
        raise TypeError(f"http is of {given}: give a client of httpx2.{kind.__name__}")


class BlockingHttp:
    """An `Http` over `httpx2.Client`. Its coroutines block and never suspend, so `drive` can run them."""

    def __init__(self, client: httpx2.Client) -> None:
        require_client(client, httpx2.Client)
        self.client = client

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        return self.client.send(request, stream=True, follow_redirects=False)

    async def read(self, response: httpx2.Response) -> bytes:
        return response.read()

    def stream(self, response: httpx2.Response) -> Iterator[httpx2.ServerSentEvent]:
        return iter(httpx2.EventSource(response, EVENT_BYTES_MAX))

    def body(self, response: httpx2.Response) -> Iterator[bytes]:
        return response.iter_bytes()

    async def receive(self, stream: Iterator[T]) -> T | None:
        return next(stream, None)

    async def close(self, response: httpx2.Response) -> None:
        response.close()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # no event loop runs


class AsyncHttp:
    """An `Http` over `httpx2.AsyncClient`, for a program with an event loop."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        require_client(client, httpx2.AsyncClient)
        self.client = client

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        return await self.client.send(request, stream=True, follow_redirects=False)

    async def read(self, response: httpx2.Response) -> bytes:
        return await response.aread()

    def stream(self, response: httpx2.Response) -> AsyncIterator[httpx2.ServerSentEvent]:
        return aiter(httpx2.EventSource(response, EVENT_BYTES_MAX))

    def body(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        return response.aiter_bytes()

    async def receive(self, stream: AsyncIterator[T]) -> T | None:
        return await anext(stream, None)

    async def close(self, response: httpx2.Response) -> None:
        await response.aclose()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class AnswerState:
    """The part of an answer that was read so far."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @property
    def turn(self) -> str:
        """The id of the turn; '' until the gateway has sent it."""
        return self._reading.turn or ""

    @property
    def session(self) -> str | None:
        """The session of the turn; None until the gateway has sent it."""
        return self._reading.session

    @property
    def model(self) -> str | None:
        """The model of the answer; None until the gateway has sent it."""
        return self._reading.model

    @property
    def text(self) -> str:
        """The text that was read so far: after `resume` with a cursor, the text after it."""
        return self._reading.text

    @property
    def state(self) -> State:
        """The state of the connection. `on_state` is called with each new state."""
        return self._reading.state

    @property
    def cursor(self) -> str:
        """The cursor of the last event that was read, at first the `after` of `resume`. `resume` continues after it."""
        return self._reading.cursor


class Answer(AnswerState):
    """An answer. Iterate it for its events, each of which it yields once, or call `done` for its end."""

    def __iter__(self) -> Iterator[TurnEvent]:
        """Leaving the loop stops reading; the turn goes on. Raises TailraceError."""
        try:
            while (event := drive(self._reading.next())) is not None:
                yield event
        finally:
            self.close()

    def done(self) -> End:
        """Reads to the end, and returns it. Raises TailraceError."""
        return drive(self._reading.done())

    def cancel(self) -> dict[str, Any]:
        """Ends the turn, and returns it as `GET /v1/turns/{turn}` does. Its text so far remains."""
        return drive(self._reading.cancel())

    def steer(self, message: str | list[dict[str, Any]], *, at: At = "now") -> dict[str, Any]:
        """Puts a message into the answer, which is read on here: after `Steered`, the events are those of its answer.

        `boundary` waits for the end of the content block.
        """
        return drive(self._reading.steer(message, at))

    def close(self) -> None:
        """Stops reading. The turn goes on, and `resume(turn, after=cursor)` reads the rest."""
        drive(self._reading.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncAnswer(AnswerState):
    """An answer. Iterate it for its events, each of which it yields once, or await `done()` for its end."""

    async def __aiter__(self) -> AsyncIterator[TurnEvent]:
        """Leaving the loop stops reading; the turn goes on. Raises TailraceError."""
        try:
            while (event := await self._reading.next()) is not None:
                yield event
        finally:
            await self.close()

    async def done(self) -> End:
        """Reads to the end, and returns it. Raises TailraceError."""
        return await self._reading.done()

    async def cancel(self) -> dict[str, Any]:
        """Ends the turn, and returns it as `GET /v1/turns/{turn}` does. Its text so far remains."""
        return await self._reading.cancel()

    async def steer(self, message: str | list[dict[str, Any]], *, at: At = "now") -> dict[str, Any]:
        """Puts a message into the answer, which is read on here: after `Steered`, the events are those of its answer.

        `boundary` waits for the end of the content block.
        """
        return await self._reading.steer(message, at)

    async def close(self) -> None:
        """Stops reading. The turn goes on, and `resume(turn, after=cursor)` reads the rest."""
        await self._reading.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Client:
    """A client that blocks. `url` is by default TAILRACE_URL or http://127.0.0.1:8000, and `key` TAILRACE_KEY.

    `headers` may be a function, which is called for each connection, so that an expired token can be replaced.
    `on_retry` is called with the error and the number of tries in a row before each wait.
    `http` is an own httpx2 client, which the caller closes.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        headers: Headers | None = None,
        tries_max: float | None = None,
        silence_s: float = SILENCE_S,
        on_retry: OnRetry | None = None,
        http: httpx2.Client | None = None,
    ) -> None:
        self._is_own = http is None
        self._http = http or httpx2.Client(limits=UNLIMITED, mounts=WITHOUT_PROXY)
        self._core = Core(BlockingHttp(self._http), url, key, headers or {}, tries_max, silence_s, on_retry)

    @property
    def url(self) -> str:
        return self._core.url

    def ask(
        self,
        question: str | Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        on_state: OnState | None = None,
        **fields: Any,
    ) -> Answer:
        """Starts a turn. `question` is the message, or the body of `POST /v1/turns`; `fields` are added to the body.

        Raises TailraceError.
        """
        reading = Reading(self._core, on_state, Post(question, fields, idempotency_key), None, "")
        drive(reading.start())
        return Answer(reading)

    def resume(self, turn: str, *, after: str = "", on_state: OnState | None = None) -> Answer:
        """Reads a turn from its start, or after the `cursor` of an event. Raises TailraceError."""
        reading = Reading(self._core, on_state, None, turn, after)
        drive(reading.start())
        return Answer(reading)

    def cancel(self, turn: str) -> dict[str, Any]:
        """Ends a turn, and returns it. Raises TailraceError."""
        return drive(self._core.cancel(turn))

    def decide(self, session: str, call: str, **decision: object) -> dict[str, Any]:
        """Sends `result=…` of a tool call, or `decision="denied"` with a `reason`. Raises TailraceError.

        Returns the calls of the turn, and in `next` the turn that continues it when all calls are decided.
        """
        found: dict[str, Any] = self.request("POST", call_path(session, call), decision, idempotency_key=call)
        return found

    def turn(self, turn: str) -> dict[str, Any]:
        """Returns a turn as `GET /v1/turns/{turn}` does. Raises TailraceError."""
        return drive(self._core.request("GET", f"/v1/turns/{path_segment(turn)}"))

    def turns(self, session: str | None = None) -> Iterator[dict[str, Any]]:
        """Yields the turns of a session, oldest first; without one, the running turns. Raises TailraceError."""
        return self.items(*turns_of(session))

    def sessions(self) -> Iterator[dict[str, Any]]:
        """Yields the sessions, newest first. Raises TailraceError."""
        return self.items("/v1/sessions")

    def items(self, path: str, params: Mapping[str, str] | None = None) -> Iterator[dict[str, Any]]:
        """Yields the items of any list of docs/API.md, and requests its pages as needed. Raises TailraceError."""
        return drive_all(self._core.items(path, params or {}))

    def results(self, batch: str) -> Iterator[dict[str, Any]]:
        """Yields the results of a batch that has ended, in the order of its inputs. Raises TailraceError."""
        return drive_all(self._core.results(batch))

    def blob(self, sha256: str) -> str:
        """Returns a long string, instead of which a turn has `{"tailrace:blob": sha256}`. Raises TailraceError."""
        return drive(self._core.blob(sha256))

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Sends any other request of docs/API.md, and returns the JSON of the response. Raises TailraceError."""
        return drive(self._core.request(method, path, body, params, idempotency_key))

    def close(self) -> None:
        """Closes the connections. A client that was passed as `http` stays open."""
        if self._is_own:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    """A client for asyncio, with the parameters and functions of `Client`."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        headers: Headers | None = None,
        tries_max: float | None = None,
        silence_s: float = SILENCE_S,
        on_retry: OnRetry | None = None,
        http: httpx2.AsyncClient | None = None,
    ) -> None:
        self._is_own = http is None
        self._http = http or httpx2.AsyncClient(limits=UNLIMITED, mounts=WITHOUT_PROXY)
        self._core = Core(AsyncHttp(self._http), url, key, headers or {}, tries_max, silence_s, on_retry)

    @property
    def url(self) -> str:
        return self._core.url

    async def ask(
        self,
        question: str | Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        on_state: OnState | None = None,
        **fields: Any,
    ) -> AsyncAnswer:
        """Starts a turn and returns its answer; `fields` are added to the body. Raises TailraceError for a refusal."""
        reading = Reading(self._core, on_state, Post(question, fields, idempotency_key), None, "")
        await reading.start()
        return AsyncAnswer(reading)

    async def resume(self, turn: str, *, after: str = "", on_state: OnState | None = None) -> AsyncAnswer:
        """Reads a turn from its start, or after the `cursor` of an event. Raises TailraceError."""
        reading = Reading(self._core, on_state, None, turn, after)
        await reading.start()
        return AsyncAnswer(reading)

    async def cancel(self, turn: str) -> dict[str, Any]:
        """Ends a turn, and returns it. Raises TailraceError."""
        return await self._core.cancel(turn)

    async def decide(self, session: str, call: str, **decision: object) -> dict[str, Any]:
        """Sends a decision about a tool call, see Client.decide. Raises TailraceError."""
        found: dict[str, Any] = await self.request("POST", call_path(session, call), decision, idempotency_key=call)
        return found

    async def turn(self, turn: str) -> dict[str, Any]:
        """Returns a turn as `GET /v1/turns/{turn}` does. Raises TailraceError."""
        found: dict[str, Any] = await self._core.request("GET", f"/v1/turns/{path_segment(turn)}")
        return found

    def turns(self, session: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """Yields the turns of a session, oldest first; without one, the running turns. Raises TailraceError."""
        return self.items(*turns_of(session))

    def sessions(self) -> AsyncIterator[dict[str, Any]]:
        """Yields the sessions, newest first. Raises TailraceError."""
        return self.items("/v1/sessions")

    def items(self, path: str, params: Mapping[str, str] | None = None) -> AsyncIterator[dict[str, Any]]:
        """Yields the items of any list of docs/API.md, and requests its pages as needed. Raises TailraceError."""
        return self._core.items(path, params or {})

    def results(self, batch: str) -> AsyncIterator[dict[str, Any]]:
        """Yields the results of a batch that has ended, in the order of its inputs. Raises TailraceError."""
        return self._core.results(batch)

    async def blob(self, sha256: str) -> str:
        """Returns a long string, instead of which a turn has `{"tailrace:blob": sha256}`. Raises TailraceError."""
        return await self._core.blob(sha256)

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Sends a request and returns its JSON. Repeats a POST only with an `idempotency_key`. Raises TailraceError."""
        return await self._core.request(method, path, body, params, idempotency_key)

    async def close(self) -> None:
        """Closes the connections. A client that was passed as `http` stays open."""
        if self._is_own:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def call_path(session: str, call: str) -> str:
    """Returns the path of a tool call. A decision may be sent again: the same one changes nothing."""
    return f"/v1/sessions/{path_segment(session)}/calls/{path_segment(call)}"


def turns_of(session: str | None) -> tuple[str, dict[str, str]]:
    """Returns the path and the parameters of a list of turns."""
    return (
        ("/v1/turns", {"status": "running"}) if session is None else (f"/v1/sessions/{path_segment(session)}/turns", {})
    )


def drive_all(items: AsyncIterator[T]) -> Iterator[T]:
    """Yields what an asynchronous iterator yields that never suspends."""

    async def step() -> T:
        return await anext(items)

    while True:
        try:
            item = drive(step())
        except StopAsyncIteration:
            return
        yield item
