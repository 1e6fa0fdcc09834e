"""The lanes of a WebSocket: each sends the events of one response after the other.

Each event is that of the stream over HTTP, with the response's id and the name of the lane. A stream that is cut while
the WebSocket is open is resumed after its last event.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import structlog

from tailrace.features.responses_socket.inner_requests import Answer, InnerRequests
from tailrace.features.responses_socket.kept_input import Items, KeptInput
from tailrace.features.responses_socket.messages import (
    Cancel,
    Create,
    Fields,
    LanesReached,
    Resume,
    Steer,
    error_event,
    refusal_event,
    steer_accepted_event,
    steer_failed_event,
    steered_message,
    text_field,
)
from tailrace.features.responses_socket.socket_memory import Resize
from tailrace.gateway.http.error_responses import NO_MEMORY, Envelope, Problem
from tailrace.gateway.http.json_mistake import ESCAPE, REPLACEMENT
from tailrace.gateway.http.large_bodies import convert_body
from tailrace.proto.errors import CODES, Refused
from tailrace.proto.ids import new_id
from tailrace.protocols.openai.responses_object import PREFIX, Head, build_response

logger = structlog.get_logger()

# OpenAI's limits of one connection.
RUNNING_MAX = 16
NAMED_MAX = 32
# Responses that wait for an earlier one.
WAITING_MAX = 64
# Bytes of the messages of all responses that wait or run.
MESSAGES_BYTES_MAX = 32 * 1024 * 1024
# The log may be unavailable for a while. After this many cuts without an event in between, a stream is given up.
RESUME_AFTER_S = 0.5
RESUMES_MAX = 10

# The turns by which a lane recognises a response that is steered.
STREAMED_MAX = 64

TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed"})
TRUE = msgspec.Raw(b"true")
SEND_AGAIN = (
    "`previous_response_id` is not known on this connection, and `store: false` keeps nothing: send the whole input"
)

Emit = Callable[[bytes], Awaitable[None]]
"""Sends an event to the client."""


class _Response(msgspec.Struct):
    id: str
    output: Items = []
    next_response_id: str | None = None


class _Event(msgspec.Struct):
    """The part of an event that a lane reads."""

    type: str
    sequence_number: int | None = None
    response: _Response | None = None
    code: str = ""
    message: str = ""
    param: str | None = None


_decode = msgspec.json.Decoder(_Event).decode


class Lanes:
    """All lanes of one WebSocket."""

    def __init__(
        self, requests: InnerRequests, emit: Emit, group: asyncio.TaskGroup, resize: Resize, kept: KeptInput
    ) -> None:
        """`resize` holds the memory of the messages of all responses that wait or run."""
        self.requests = requests
        self.emit = emit
        self.running = asyncio.Semaphore(RUNNING_MAX)
        self.kept = kept
        self.interruption: Callable[[], str | None] = lambda: None
        """Returns the code of the reason for which no stream is resumed any more, or None."""
        self.when_idle: Callable[[], None] = lambda: None
        """Called when the last response has ended."""
        self.waiting = 0
        self._messages_bytes = 0
        self._resize = resize
        self._group = group
        self._lanes: dict[str | None, Lane] = {}
        self._controls = 0

    @property
    def is_idle(self) -> bool:
        return not any(lane.is_busy for lane in self._lanes.values()) and self._controls == 0

    def add(self, stream_id: str | None, job: Create | Resume) -> None:
        """Adds a response to its lane. Raises Refused above a limit."""
        lane = self._lane(stream_id)
        size = self._messages_bytes + job.size
        if self.waiting >= WAITING_MAX or size > MESSAGES_BYTES_MAX:
            raise Refused("too_many_streams", "too many responses wait on this connection: send it when one has ended")
        if not self._resize(size):
            raise Refused("server_busy", NO_MEMORY)
        self.waiting += 1
        self._messages_bytes = size
        lane.jobs.append(job)
        self.start(lane)

    def release(self, job: Create | Resume) -> None:
        """Releases the memory of the message of a response that has ended."""
        self._messages_bytes -= job.size
        self._resize(self._messages_bytes)

    def start(self, lane: "Lane") -> None:
        """Runs the lane unless it runs."""
        if not lane.is_busy:
            lane.is_busy = True
            self._group.create_task(lane.run())

    def _lane(self, stream_id: str | None) -> "Lane":
        """Returns the lane of this name. Raises Refused if it would be one too many."""
        lane = self._lanes.get(stream_id)
        if lane is None:
            if stream_id is not None and len([name for name in self._lanes if name is not None]) >= NAMED_MAX:
                raise LanesReached(NAMED_MAX)
            lane = self._lanes[stream_id] = Lane(self, stream_id)
        return lane

    def cancel(self, stream_id: str | None, message: Cancel) -> None:
        """Cancels a response without waiting for it; its own stream says that it has ended. Raises Refused."""
        lane = self._lanes.get(stream_id)
        turn = message.response_id or (lane.response_id if lane is not None else None)
        if turn is None:
            raise Refused("turn_not_found", "no response runs on this lane: send its `response_id`")
        self._control(self._cancel(stream_id, turn))

    def steer(self, message: Steer) -> None:
        """Puts a message into a response; the response to it follows on the same lane. Raises Refused."""
        lanes = [lane for lane in self._lanes.values() if message.response_id in lane.streamed]
        self._control(self._steer(lanes[0] if lanes else self._lane(None), message))

    def _control(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` beside the lanes. Raises Refused if too much of it is in progress."""
        if self._controls >= RUNNING_MAX:
            work.close()
            raise Refused("too_many_streams", "too many messages are in progress on this connection: send it again")
        self._controls += 1
        self._group.create_task(self._run_control(work))

    async def _run_control(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            logger.exception("request failed", error=type(error).__name__)
            await self.emit(_internal_event())
        finally:
            self._controls -= 1
            self.note_end()

    async def _cancel(self, stream_id: str | None, turn: str) -> None:
        answer = await self.requests.post(f"/v1/responses/{PREFIX}{turn}/cancel", b"{}")
        if answer.status >= 400 and not self.requests.gone.is_set():
            await self.emit(_refusal_of(answer, stream_id=stream_id))

    async def _steer(self, lane: "Lane", message: Steer) -> None:
        names = {"stream_id": lane.stream_id}
        try:
            body = steered_message(message)
        except Refused as refused:
            problem = Problem(refused.message, "invalid_request_error", refused.code)
            await self.emit(steer_failed_event(message, problem, lane.last, **names))
            return
        path, key = f"/v1/turns/{message.response_id}/steer", message.idempotency_key
        answer = await self.requests.post(path, body, idempotency_key=key)
        if self.requests.gone.is_set():
            return
        if answer.status != 202:
            problem = msgspec.json.decode(answer.body, type=Envelope).error
            await self.emit(steer_failed_event(message, problem, lane.last, **names))
            return
        turn = msgspec.json.decode(answer.body, type=_Steered).turn
        await self.emit(steer_accepted_event(message, turn, lane.last, **names))
        lane.follow(turn)

    def note_end(self) -> None:
        """Calls `when_idle` if nothing runs."""
        if self.is_idle:
            self.when_idle()


class _Steered(msgspec.Struct):
    """The part of the response to a steer that a lane reads."""

    turn: str


class Lane:
    """A lane. Its responses run one after the other, in the order of their messages."""

    def __init__(self, lanes: Lanes, stream_id: str | None) -> None:
        self.jobs: deque[Create | Resume] = deque()
        self.is_busy = False
        self.response_id: str | None = None
        """The turn of the response that runs, as soon as its first event was sent."""
        self.last = 0
        """The number of the last event that was sent."""
        self.streamed: deque[str] = deque(maxlen=STREAMED_MAX)
        """The turns whose events this lane has sent, or sends now."""
        self.stream_id = stream_id
        self._successors: deque[str] = deque()
        """The turns that steer the response that runs. Their events come before those of `jobs`."""
        self._lanes = lanes

    def keep(self, response_id: str, body: Fields, output: Items) -> None:
        """Keeps what only this connection knows, for the response that continues this one."""
        self._lanes.kept.keep(self.stream_id, response_id, body, output)

    def follow(self, turn: str) -> None:
        """Sends the events of `turn` after those of the response that runs."""
        if turn not in self.streamed and turn not in self._successors:
            self._successors.append(turn)
            self._lanes.start(self)

    @property
    def names(self) -> dict[str, str | None]:
        """The fields by which a client knows what an `error` is about. The id is None before the first event."""
        response_id = None if self.response_id is None else f"{PREFIX}{self.response_id}"
        return {"response_id": response_id, "stream_id": self.stream_id}

    @property
    def _has_next(self) -> bool:
        return bool(self._successors or self.jobs) and not self._lanes.requests.gone.is_set()

    def _next(self) -> Create | Resume:
        """Takes what comes next."""
        if self._successors:
            return Resume(self._successors.popleft(), None)
        self._lanes.waiting -= 1
        return self.jobs.popleft()

    async def run(self) -> None:
        """Runs the responses that wait, until none is left."""
        try:
            while self._has_next:
                async with self._lanes.running:
                    # The client may have disconnected meanwhile.
                    if self._has_next:
                        await self._run_job(self._next())
        finally:
            self.is_busy = False
            self._lanes.note_end()

    async def _run_job(self, job: Create | Resume) -> None:
        try:
            await self._respond(job)
        except Refused as refused:
            await self._lanes.emit(refusal_event(refused, **self.names))
        except Exception as error:
            logger.exception("request failed", error=type(error).__name__)
            await self._lanes.emit(_internal_event(**self.names))
        finally:
            self._lanes.release(job)
            self.response_id = None

    async def _respond(self, job: Create | Resume) -> None:
        if isinstance(job, Create) and not job.generate:
            await self._warm_up(job.body)
            return
        following = _Following(self, self._lanes.emit)
        if isinstance(job, Create):
            body = await self._extended(job.body)
            following.unstored = body if bytes(body.get("store", b"")) == b"false" else None
            sent = await convert_body(job.size, msgspec.json.encode, {**body, "stream": TRUE, "background": TRUE})
            answer = await self._lanes.requests.post(
                "/v1/responses", sent, following.note, idempotency_key=job.idempotency_key
            )
        else:
            following.resume(job)
            answer = await following.read(self._lanes.requests)
        answer = await self._read_rest(answer, following)
        if self._lanes.requests.gone.is_set():
            return
        if answer.status in (200, 204) and isinstance(job, Resume) and following.is_empty and answer.is_whole:
            await self._end_empty(following)
        elif answer.status != 200:
            await self._lanes.emit(_refusal_of(answer, **self.names))
        elif not following.is_over and not answer.is_whole:
            await self._lanes.emit(following.interruption_event(self._lanes.interruption() or "log_unavailable"))

    async def _read_rest(self, answer: Answer, following: "_Following") -> Answer:
        """Resumes a stream that was cut, as long as that helps. Returns the last answer."""
        tries = 0
        while answer.status == 200 and not answer.is_whole and not following.is_over and tries < RESUMES_MAX:
            before = following.last
            if self._lanes.interruption() is not None or following.turn is None:
                break
            await asyncio.sleep(RESUME_AFTER_S)
            if self._lanes.interruption() is not None:
                break
            answer = await following.read(self._lanes.requests)
            tries = tries + 1 if following.last == before else 0
        return answer

    async def _end_empty(self, following: "_Following") -> None:
        """Goes on after a response without further events: with the one that steered it, or an `error`."""
        again = _Following(self, _ignore)
        again.resume(Resume(following.turn or "", None))
        answer = await again.read(self._lanes.requests)
        if answer.status != 200:
            await self._lanes.emit(_refusal_of(answer, **self.names))
        elif not self._successors:
            ended = Refused("cursor_invalid", "the response has ended, and has no event after `starting_after`")
            await self._lanes.emit(refusal_event(ended, **self.names))

    async def _extended(self, body: Fields) -> Fields:
        """Returns the body with the items that only this connection knows. Raises Refused."""
        extended = self._lanes.kept.extend(body)
        if extended is not None:
            return extended
        if text_field(body, "previous_response_id") is not None and bytes(body.get("store", b"")) == b"false":
            raise Refused("parent_not_found", SEND_AGAIN)
        return body

    async def _warm_up(self, body: Fields) -> None:
        """Keeps the input of a response that the model does not answer, and sends its events."""
        turn = new_id()
        head = Head(turn, model=text_field(body, "model") or "")
        self._lanes.kept.keep(self.stream_id, f"{PREFIX}{turn}", await self._extended(body), [])
        following = _Following(self, self._lanes.emit)
        events = {"response.created": build_response(head, "in_progress", [])}
        events["response.completed"] = build_response(head, "completed", [])
        for number, (kind, response) in enumerate(events.items()):
            # It has no session: only this connection knows it.
            event = {"type": kind, "response": response | {"conversation": None}, "sequence_number": number}
            await following.note(msgspec.json.encode(event))


class _Following:
    """The events of one response, as far as they were sent."""

    def __init__(self, lane: Lane, emit: Emit) -> None:
        self._lane = lane
        self._emit = emit
        self._suffix = b""
        """The fields that are added to each event."""
        self.turn: str | None = None
        self.last: int | None = None
        """The number of the last event."""
        self.is_empty = True
        """Whether no event was sent."""
        self.is_over = False
        """Whether the last event has no other after it."""
        self.unstored: Fields | None = None
        """The body of a response that is not stored. When it has ended, the connection keeps its input and output."""

    def resume(self, job: Resume) -> None:
        self.last = job.starting_after
        self._name(job.response_id)

    async def read(self, requests: InnerRequests) -> Answer:
        """Reads the events after the last one."""
        after = "" if self.last is None else f"&starting_after={self.last}"
        return await requests.get(f"/v1/responses/{PREFIX}{self.turn}", f"stream=true{after}", self.note)

    async def note(self, data: bytes) -> None:
        """Sends the event `data`."""
        event, self.is_empty = _decode_event(data), False
        if event.response is not None and event.response.id != f"{PREFIX}{self.turn}":
            self._name(event.response.id.removeprefix(PREFIX))
        if event.sequence_number is not None:
            self.last = event.sequence_number
            self._lane.last = event.sequence_number
        # An `error` ends the stream: the answer begins again.
        self.is_over = event.type in TERMINAL or event.type == "error"
        if event.response is not None and event.type in TERMINAL:
            # Before the client knows the end: it may continue the response on another lane at once.
            if self.unstored is not None and event.type != "response.failed":
                self._lane.keep(event.response.id, self.unstored, event.response.output)
            if event.response.next_response_id is not None:
                self._lane.follow(event.response.next_response_id.removeprefix(PREFIX))
        if event.type == "error":
            # Over HTTP, the fields of the error are those of the event.
            problem = Problem(event.message, "server_error", event.code, event.param)
            data = error_event(problem, 500, sequence_number=event.sequence_number)
        await self._emit(data[:-1] + self._suffix + b"}")

    def interruption_event(self, code: str) -> bytes:
        """Returns the `error` for a stream that was cut, and is not resumed here."""
        row = CODES[code]
        message = "the stream was cut, and the response goes on: send `response.resume` with its last `sequence_number`"
        problem = Problem(message, row.type, code)
        return error_event(problem, row.status, **self._lane.names)

    def _name(self, turn: str) -> None:
        self.turn = self._lane.response_id = turn
        self._lane.streamed.append(turn)
        self._suffix = b',"response_id":%b' % msgspec.json.encode(f"{PREFIX}{turn}")
        if self._lane.stream_id is not None:
            self._suffix += b',"stream_id":%b' % msgspec.json.encode(self._lane.stream_id)


def _decode_event(data: bytes) -> _Event:
    try:
        return _decode(data)
    except msgspec.DecodeError:
        # Models write halves of surrogate pairs, which msgspec refuses (PROTOCOL R125). The client gets them.
        return _decode(ESCAPE.sub(lambda found: found[0] if found[1] is None else REPLACEMENT, data))


def _internal_event(**names: str | None) -> bytes:
    return refusal_event(Refused("internal", "an internal error, which has been logged"), **names)


async def _ignore(_: bytes) -> None:
    """Sends nothing."""


def _refusal_of(answer: Answer, **names: str | None) -> bytes:
    """Returns the `error` for a response that is no stream."""
    problem = msgspec.json.decode(answer.body, type=Envelope).error
    return error_event(problem, answer.status, answer.headers.get("retry-after"), **names)
