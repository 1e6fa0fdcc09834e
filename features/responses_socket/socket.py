"""The response that is a WebSocket: reads its messages, and closes it."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from starlette.types import Message, Receive, Scope, Send

from tailrace.features.responses_socket.inner_requests import InnerRequests
from tailrace.features.responses_socket.kept_input import KeptInput
from tailrace.features.responses_socket.lanes import Lanes
from tailrace.features.responses_socket.messages import (
    AGE_REACHED,
    Cancel,
    Create,
    Resume,
    Steer,
    error_event,
    parse_fields,
    parse_message,
    refusal_event,
    take_stream_id,
)
from tailrace.features.responses_socket.socket_memory import SocketMemory
from tailrace.features.responses_socket.socket_protocol import limit_memory
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.authenticate import credential_invalid
from tailrace.gateway.http.deferred_response import StreamedResponse
from tailrace.gateway.http.error_responses import Problem
from tailrace.gateway.http.large_bodies import convert_body
from tailrace.gateway.streaming.reader import Reader, random_life_s
from tailrace.proto.errors import Refused
from tailrace.proto.runtime.flag import Flag

# Of one message. A frame may have twice as many bytes before the connection is closed.
MESSAGE_BYTES_MAX = 8 * 1024 * 1024
# Close codes of RFC 6455 and its registry. Clients connect again after the last two.
POLICY, GOING_AWAY, SERVICE_RESTART = 1008, 1001, 1012
# For the streams of a draining gateway, which end by themselves.
END_S_MAX = 2.0
AGED = Problem(
    "this connection has reached its age limit: open another one, which may resume its responses",
    "invalid_request_error",
    AGE_REACHED,
)


class ResponsesSocket(StreamedResponse):
    """A WebSocket of OpenAI's Responses API."""

    def __init__(self, request: ApiRequest, reader: Reader, memory: SocketMemory) -> None:
        super().__init__({})
        self._hold = partial(memory.hold, request.access.tenant)
        self._reader = reader
        self._streams = reader.streams
        self._gone = Flag()
        """Whether the client has disconnected."""
        self._requests = InnerRequests(request, self._gone)
        self._is_aged = False
        self._is_closed = False

    async def respond(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Accepts the WebSocket, and answers its messages until it is closed.

        Raises Refused above a limit of streams: a WebSocket counts as one, and each of its responses as another.
        """
        async with self._reader.open(self._wait_for_disconnect, self._streams.draining):
            await self._reader.acquire()
            await receive()  # `websocket.connect`
            await self.begin(send, 101)
            self._send = send
            with self._hold() as of_arriving, self._hold() as of_messages, self._hold(is_optional=True) as of_kept:
                limit_memory(receive, of_arriving)
                async with asyncio.TaskGroup() as group:
                    self._lanes = Lanes(self._requests, self._emit, group, of_messages, KeptInput(of_kept))
                    try:
                        await self._serve(receive, group)
                    finally:
                        # The responses end as over HTTP. The group waits for them.
                        self._gone.set()

    async def _serve(self, receive: Receive, group: asyncio.TaskGroup) -> None:
        """Reads messages until the client disconnects, or the connection must end, and closes it."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            if not ended.done():
                ended.set_result(None)

        def end_if_aged() -> None:
            if self._is_aged and self._lanes.is_idle:
                end()

        def note_age() -> None:
            self._is_aged = True
            end_if_aged()

        self._lanes.interruption = self._interruption
        self._lanes.when_idle = end_if_aged
        aging = loop.call_later(random_life_s(self._streams.settings), note_age)
        reading = group.create_task(self._read(receive, end))
        try:
            if not self._reader.is_interrupted:
                self._reader.wait_idle(ended)
                await ended
        finally:
            aging.cancel()
        reading.cancel()
        if not self._gone.is_set():
            await self._close()

    async def _read(self, receive: Receive, end: Callable[[], None]) -> None:
        """Answers messages until the client disconnects."""
        try:
            while (message := await receive())["type"] == "websocket.receive":
                await self._answer(message)
                # Lets other tasks run: messages that have arrived together are received without a wait.
                await asyncio.sleep(0)
            self._gone.set()
        finally:
            end()

    async def _answer(self, message: Message) -> None:
        """Starts what a message asks for. A message that cannot be understood gets an `error`, and changes nothing."""
        stream_id = None
        try:
            if (text := message.get("text")) is None:
                raise Refused("request_invalid", "a message is text, not a binary frame")
            raw = text.encode()
            if len(raw) > MESSAGE_BYTES_MAX:
                raise Refused("body_too_large", f"a message has more than {MESSAGE_BYTES_MAX} bytes: use HTTP for it")
            fields = await convert_body(len(raw), parse_fields, raw)
            stream_id = take_stream_id(fields)
            match parse_message(fields, len(raw)):
                case Create() | Resume() if self._is_aged:
                    await self._emit(error_event(AGED, 400, stream_id=stream_id))
                case Create() | Resume() as job:
                    self._lanes.add(stream_id, job)
                case Cancel() as cancel:
                    self._lanes.cancel(stream_id, cancel)
                case Steer() as steer:
                    self._lanes.steer(steer)
        except Refused as refused:
            await self._emit(refusal_event(refused, stream_id=stream_id))

    async def _close(self) -> None:
        """Says why the connection ends, and closes it when its responses have ended."""
        code = GOING_AWAY
        if self._reader.is_expired:
            code = POLICY
            await self._emit(refusal_event(credential_invalid()))
        elif self._reader.is_drained:
            code = SERVICE_RESTART
            # Their streams end by themselves, each with an `error`.
            await self._wait_until_idle()
        else:
            await self._emit(error_event(AGED, 400))
        self._is_closed = True
        with suppress(OSError):
            await self._send({"type": "websocket.close", "code": code})

    async def _wait_until_idle(self) -> None:
        idle = asyncio.Event()
        self._lanes.when_idle = idle.set
        if not self._lanes.is_idle:
            with suppress(TimeoutError):
                async with asyncio.timeout(END_S_MAX):
                    await idle.wait()

    def _interruption(self) -> str | None:
        if self._reader.is_expired:
            return "credential_invalid"
        if self._reader.is_drained or self._is_aged or self._gone.is_set():
            return "draining"
        return None

    async def _emit(self, event: bytes) -> None:
        """Sends an event, and waits until the client has read enough of the earlier ones."""
        if self._gone.is_set() or self._is_closed:
            return
        try:
            await self._send({"type": "websocket.send", "text": event.decode()})
        except OSError:
            self._gone.set()

    async def _wait_for_disconnect(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}
