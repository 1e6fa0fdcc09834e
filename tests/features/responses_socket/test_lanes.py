"""The lanes of a WebSocket against a scripted gateway: order, cuts, what only the connection keeps, and messages."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from tailrace.features.responses_socket import kept_input, lanes
from tailrace.features.responses_socket.inner_requests import Answer, InnerRequests, OnEvent
from tailrace.features.responses_socket.kept_input import KeptInput
from tailrace.features.responses_socket.lanes import Lanes
from tailrace.features.responses_socket.messages import (
    Create,
    Fields,
    Resume,
    Steer,
    parse_fields,
    parse_message,
    steered_message,
)
from tailrace.features.responses_socket.socket import ResponsesSocket
from tailrace.features.responses_socket.socket_memory import Resize, SocketMemory
from tailrace.proto import ownership
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.runtime.flag import Flag

WHOLE = Answer(200, Headers(), b"", is_whole=True)
CUT = Answer(200, Headers(), b"", is_whole=False)


def event(kind: str, number: int, **more: Any) -> dict[str, Any]:
    return {"type": kind, "sequence_number": number, **more}


def response(kind: str, number: int, **more: Any) -> dict[str, Any]:
    return event(f"response.{kind}", number, response={"id": "resp_t", **more})


def delta(number: int) -> dict[str, Any]:
    return event("response.output_text.delta", number, delta="x")


class Scripted:
    """Answers each request with the next row of a script: events, and the answer. Keeps the requests."""

    def __init__(self, *script: tuple[Sequence[dict[str, Any] | bytes], Answer]) -> None:
        self.gone = Flag()
        self.sent: list[tuple[str, Any]] = []
        self._script = list(script)

    async def post(self, path: str, body: bytes, on_event: OnEvent | None = None, **_: Any) -> Answer:
        self.sent.append((path, json.loads(body)))
        return await self._answer(on_event)

    async def get(self, path: str, query: str, on_event: OnEvent) -> Answer:
        self.sent.append((path, query))
        return await self._answer(on_event)

    async def _answer(self, on_event: OnEvent | None) -> Answer:
        events, answer = self._script.pop(0)
        for one in events:
            await asyncio.sleep(0)
            if on_event is not None:
                await on_event(one if isinstance(one, bytes) else msgspec.json.encode(one))
        await asyncio.sleep(0)
        return answer


def create(text: str = "x", **fields: Any) -> Create:
    made = parse_message(parse_fields(json.dumps({"type": "response.create", "input": text, **fields}).encode()), 10)
    assert isinstance(made, Create)
    return made


def has_room(_: int) -> bool:
    return True


async def run(
    requests: Scripted,
    use: Callable[[Lanes], None],
    on_event: Callable[[Lanes, dict[str, Any]], None] = lambda _made, _event: None,
    resize: Resize = has_room,
) -> list[dict[str, Any]]:
    """Returns the events that the client receives after `use`, until all lanes are idle.

    `on_event` is called with each event.
    """
    received: list[dict[str, Any]] = []

    async def emit(data: bytes) -> None:
        received.append(json.loads(data))
        on_event(made, received[-1])

    async with asyncio.TaskGroup() as group:
        made = Lanes(cast("InnerRequests", requests), emit, group, resize, KeptInput(has_room))
        use(made)
    return received


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "RESUME_AFTER_S", 0)


async def test_a_stream_that_is_cut_is_resumed_after_its_last_event() -> None:
    requests = Scripted(
        ([response("created", 0), delta(1)], CUT),
        ([], CUT),
        ([delta(2)], CUT),
        ([response("completed", 3)], WHOLE),
    )
    received = await run(requests, lambda made: made.add("a", create()))
    assert [one["sequence_number"] for one in received] == [0, 1, 2, 3]
    assert {(one["response_id"], one["stream_id"]) for one in received} == {("resp_t", "a")}
    assert [query for _, query in requests.sent[1:]] == [f"stream=true&starting_after={n}" for n in (1, 1, 2)]


async def test_a_stream_that_stays_cut_is_given_up_with_what_resumes_it() -> None:
    requests = Scripted(([response("created", 0)], CUT), *[([], CUT)] * lanes.RESUMES_MAX)
    *_, last = await run(requests, lambda made: made.add(None, create()))
    assert (last["error"]["code"], last["status"], last["response_id"]) == ("log_unavailable", 503, "resp_t")
    assert "stream_id" not in last


async def test_a_restart_ends_the_stream_as_over_http() -> None:
    """Its `error` has the form of a WebSocket's, and the client decides whether it reads the new answer."""
    restarted = event("error", 2, code="server_error", message="again", param=None)
    requests = Scripted(([response("created", 0), delta(1), restarted], CUT))
    *_, last = await run(requests, lambda made: made.add(None, create()))
    assert (last["error"]["code"], last["error"]["message"], last["sequence_number"]) == ("server_error", "again", 2)
    assert last["response_id"] == "resp_t"


async def test_a_resume_after_the_end_of_a_steered_response_goes_on_with_its_successor() -> None:
    end = response("incomplete", 2, next_response_id="resp_next")
    successor = event("response.completed", 0, response={"id": "resp_next"})
    requests = Scripted(([], WHOLE), ([response("created", 0), end], WHOLE), ([successor], WHOLE))

    def resume(made: Lanes) -> None:
        made.add("a", Resume("t", 2))

    received = await run(requests, resume)
    assert [(one["type"], one["response_id"]) for one in received] == [("response.completed", "resp_next")]


async def test_a_resume_after_the_end_that_cannot_be_checked_gets_the_reason() -> None:
    body = b'{"type":"error","error":{"message":"x","type":"api_error","code":"log_unavailable","param":null}}'
    requests = Scripted(([], WHOLE), ([], Answer(503, Headers(), body, is_whole=True)))
    (only,) = await run(requests, lambda made: made.add(None, Resume("t", 2)))
    assert (only["status"], only["error"]["code"]) == (503, "log_unavailable")


async def test_messages_that_wait_when_the_client_disconnects_create_nothing() -> None:
    requests = Scripted(([response("created", 0), response("completed", 1)], WHOLE))

    def use(made: Lanes) -> None:
        made.add(None, create("first"))
        made.add(None, create("second"))
        asyncio.get_running_loop().call_soon(requests.gone.set)

    await run(requests, use)
    assert [body["input"] for _, body in requests.sent] == ["first"]


async def test_waiting_messages_are_limited_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = Scripted(([response("completed", 0)], WHOLE), ([response("completed", 0)], WHOLE))

    def use(made: Lanes) -> None:
        for limits in ({"WAITING_MAX": 1}, {"MESSAGES_BYTES_MAX": 15}):
            with monkeypatch.context() as less:
                for name, value in limits.items():
                    less.setattr(lanes, name, value)
                if not made.waiting:
                    made.add(None, create())
                with pytest.raises(Refused) as refused:
                    made.add(None, create())
                assert refused.value.code == "too_many_streams"

    await run(requests, use)
    assert len(requests.sent) == 1


async def test_the_bytes_of_a_response_that_runs_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MESSAGES_BYTES_MAX", 15)
    requests = Scripted(*[([response("created", 0), response("completed", 1)], WHOLE)] * 2)
    refused: list[str] = []

    def add(made: Lanes, found: dict[str, Any]) -> None:
        if found["type"] == "response.created":
            try:
                made.add("b", create())
            except Refused as error:
                refused.append(error.code)

    await run(requests, lambda made: made.add("a", create()), add)
    assert (refused, len(requests.sent)) == (["too_many_streams"], 1)


async def test_messages_without_room_in_the_memory_of_all_sockets_are_refused_and_ended_ones_released() -> None:
    requests, sizes, refused = Scripted(([response("completed", 0)], WHOLE)), list[int](), list[str]()

    def has_room_for_one(size: int) -> bool:
        sizes.append(size)
        return size <= create().size

    def use(made: Lanes) -> None:
        made.add(None, create())
        with pytest.raises(Refused) as error:
            made.add(None, create())
        refused.append(error.value.code)

    await run(requests, use, resize=has_room_for_one)
    assert (refused, len(requests.sent)) == (["server_busy"], 1)
    assert sizes == [create().size, 2 * create().size, 0]


async def test_a_response_that_waits_for_a_slot_is_not_created_for_a_client_that_has_left() -> None:
    requests = Scripted(*[([response("created", 0), response("completed", 1)], WHOLE)] * 2)

    def use(made: Lanes) -> None:
        made.running = asyncio.Semaphore(1)
        for lane in ("a", "b"):
            made.add(lane, create(lane))

    await run(requests, use, lambda _made, _event: requests.gone.set())
    assert [body["input"] for _, body in requests.sent] == ["a"]


async def test_a_successor_that_waits_for_a_slot_is_sent_once() -> None:
    """A repeated steer with the same key names the same turn."""
    accepted = Answer(202, Headers(), b'{"turn":"s"}', is_whole=True)
    successor = event("response.completed", 0, response={"id": "resp_s"})
    deltas = [delta(number) for number in range(1, 20)]
    requests = Scripted(
        ([response("created", 0), *deltas, response("completed", 20)], WHOLE),
        ([], accepted),
        ([], accepted),
        ([successor], WHOLE),
        ([successor], WHOLE),
    )

    def steer(made: Lanes, found: dict[str, Any]) -> None:
        if found.get("stream_id") == "a" and found["sequence_number"] in (0, 8):
            made.steer(Steer("other", msgspec.Raw(b'"x"'), "key"))

    def use(made: Lanes) -> None:
        made.running = asyncio.Semaphore(1)
        made.add("a", create())

    received = await run(requests, use, steer)
    assert sum(one["type"] == "response.steer.accepted" for one in received) == 2
    assert sum(one.get("response_id") == "resp_s" for one in received) == 1


async def test_an_unexpected_error_of_a_steer_or_a_cancel_ends_no_other_response() -> None:
    requests = Scripted(([response("created", 0), delta(1), response("completed", 2)], WHOLE))

    def use(made: Lanes) -> None:
        made.add("a", create())

    def break_off(made: Lanes, found: dict[str, Any]) -> None:
        if found["type"] == "response.created":
            # The script has no answer for it.
            made.steer(Steer("t", msgspec.Raw(b'"x"'), None))

    received = await run(requests, use, break_off)
    assert [one["error"]["code"] for one in received if one["type"] == "error"] == ["internal"]
    assert [one["sequence_number"] for one in received if one["type"] != "error"] == [0, 1, 2]


async def test_half_of_a_surrogate_pair_is_sent_as_over_http() -> None:
    """PROTOCOL R125."""
    half = b'{"type":"response.output_text.delta","sequence_number":1,"delta":"\\ud83d"}'
    requests = Scripted(([response("created", 0), half, response("completed", 2)], WHOLE))
    received = await run(requests, lambda made: made.add(None, create()))
    assert [one["sequence_number"] for one in received] == [0, 1, 2]
    assert received[1]["delta"] == "\ud83d"


async def test_an_unstored_response_can_be_continued_on_another_lane_at_its_last_event() -> None:
    requests = Scripted(([response("completed", 0, output=[])], WHOLE), ([response("completed", 0)], WHOLE))

    def go_on(made: Lanes, found: dict[str, Any]) -> None:
        if found.get("stream_id") == "a":
            made.add("b", create("two", store=False, previous_response_id="resp_t"))

    received = await run(requests, lambda made: made.add("a", create("one", store=False)), go_on)
    assert [one["type"] for one in received] == ["response.completed"] * 2
    assert [item["content"] for item in requests.sent[1][1]["input"]] == ["one", "two"]


async def test_a_request_that_ends_without_a_response_when_the_client_has_left_is_no_error() -> None:
    requests = Scripted(([], Answer(500, Headers(), b"", is_whole=False)))

    def use(made: Lanes) -> None:
        made.add(None, Resume("t", 2))
        asyncio.get_running_loop().call_soon(requests.gone.set)

    assert await run(requests, use) == []


async def test_a_stream_that_a_drain_has_cut_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "RESUME_AFTER_S", 60)
    requests = Scripted(([response("created", 0)], CUT))

    def use(made: Lanes) -> None:
        made.interruption = lambda: "draining"
        made.add(None, create())

    async with asyncio.timeout(2):
        *_, last = await run(requests, use)
    assert last["error"]["code"] == "draining"


class IdleReader:
    """A reader that nothing interrupts."""

    streams = SimpleNamespace(draining=Flag(), settings=SimpleNamespace(stream_life_s=3600.0))
    is_interrupted = is_expired = is_drained = False

    @asynccontextmanager
    async def open(self, *_: Any) -> AsyncIterator[None]:
        yield

    async def acquire(self) -> None:
        """Has no limit."""

    def wait_idle(self, _: asyncio.Future[None]) -> None:
        """Is never called back."""


def socket_of(reader: IdleReader, app: Any = None) -> ResponsesSocket:
    handshake = SimpleNamespace(
        app=app, scope={}, headers=Headers(), access=ownership.Scope(Tenant("t"), ownership.WHOLE)
    )
    return ResponsesSocket(cast("Any", handshake), cast("Any", reader), SocketMemory(1))


async def test_a_websocket_takes_a_slot_of_the_limit_over_all_gateways() -> None:
    class FullReader(IdleReader):
        async def acquire(self) -> None:
            raise Refused("too_many_streams", "no slot is free")

    with pytest.raises(Refused) as refused:
        await socket_of(FullReader()).respond({}, cast("Any", None), cast("Any", None))
    assert refused.value.code == "too_many_streams"


async def test_a_websocket_that_is_cancelled_begins_no_further_response() -> None:
    """The server cancels what outlasts its stop. An inner request answers that with a refusal, and its lane goes on."""
    posted: list[str] = []

    async def app(scope: Scope, receive: Receive, _send: Send) -> None:
        posted.append(scope["path"])
        while (await receive())["type"] != "http.disconnect":
            pass

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def send(_: Message) -> None:
        """Is read by the client."""

    text = json.dumps({"type": "response.create", "input": "x"})
    create_message: Message = {"type": "websocket.receive", "text": text}
    messages: list[Message] = [{"type": "websocket.connect"}, create_message, create_message]
    opened = socket_of(IdleReader(), app)
    opened._send_through_layers = send  # noqa: SLF001  # its caller sets it
    responding = asyncio.create_task(opened.respond({}, receive, send))
    async with asyncio.timeout(5):
        while not posted:  # noqa: ASYNC110  # a few steps of the loop
            await asyncio.sleep(0)
        responding.cancel()
        await asyncio.wait([responding])
    assert responding.cancelled()
    assert posted == ["/v1/responses"]


async def test_other_tasks_run_between_messages_that_arrive_together() -> None:
    """One read of a connection may have 40,000 messages, for which neither `receive` nor `send` waits."""
    answered = list[str]()
    arrived: list[Message] = [{"type": "websocket.connect"}]
    arrived += [{"type": "websocket.receive", "text": "wrong"}] * 100 + [{"type": "websocket.disconnect"}]

    async def receive() -> Message:
        return arrived.pop(0)

    async def send(message: Message) -> None:
        answered.append(message["type"])

    opened = socket_of(IdleReader())
    opened._send_through_layers = send  # noqa: SLF001  # its caller sets it
    responding = asyncio.create_task(opened.respond({}, receive, send))
    async with asyncio.timeout(5):
        while "websocket.send" not in answered:  # noqa: ASYNC110  # a few steps of the loop
            await asyncio.sleep(0)
        assert answered.count("websocket.send") < 5
        await responding
    assert answered.count("websocket.send") == 100


@pytest.mark.parametrize("kind", ["response.create", "response.steer"])
@pytest.mark.parametrize("key", ["", "a\nb", "\u2192", "x" * 201])
def test_an_idempotency_key_that_is_no_header_value_is_refused(kind: str, key: str) -> None:
    message = {"type": kind, "input": "x", "previous_response_id": "resp_t", "idempotency_key": key}
    with pytest.raises(Refused) as refused:
        parse_message(parse_fields(json.dumps(message).encode()), 10)
    assert refused.value.code == "idempotency_key_invalid"


def fields(text: str, **more: Any) -> Fields:
    return create(text, **more).body


def items_of(extended: Fields | None) -> list[Any]:
    assert extended is not None
    return cast("list[Any]", json.loads(bytes(extended["input"])))


def test_kept_input_comes_before_the_new_items_and_once() -> None:
    kept = KeptInput(has_room)
    kept.keep(None, "resp_1", fields("one", previous_response_id="resp_0"), [msgspec.Raw(b'{"type":"message"}')])
    again = kept.extend(fields("two", previous_response_id="resp_1"))
    assert items_of(again) == [
        {"role": "user", "content": "one"},
        {"type": "message"},
        {"role": "user", "content": "two"},
    ]
    assert again is not None
    assert bytes(again["previous_response_id"]) == b'"resp_0"'
    # The lane's next response takes its place.
    kept.keep(None, "resp_2", again, [])
    assert kept.extend(fields("x", previous_response_id="resp_1")) is None
    assert kept.extend(fields("x")) is None


def test_kept_input_is_limited_and_the_oldest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_input, "BYTES_MAX", 200)
    kept = KeptInput(has_room)
    for lane in ("a", "b", "c"):
        kept.keep(lane, f"resp_{lane}", fields("x" * 60), [])
    found = [kept.extend(fields("y", previous_response_id=f"resp_{lane}")) is not None for lane in "abc"]
    assert found == [False, True, True]
    kept.keep("d", "resp_d", fields("x" * 500), [])
    assert kept.extend(fields("y", previous_response_id="resp_d")) is None


def test_kept_input_without_room_in_the_memory_of_all_sockets_is_dropped() -> None:
    sizes: list[int] = []

    def has_room_for_one(size: int) -> bool:
        sizes.append(size)
        return size < 150

    kept = KeptInput(has_room_for_one)
    for lane in ("a", "b"):
        kept.keep(lane, f"resp_{lane}", fields("x" * 60), [])
    assert [kept.extend(fields("y", previous_response_id=f"resp_{lane}")) is not None for lane in "ab"] == [False, True]
    kept.keep("c", "resp_c", fields("x" * 200), [])
    assert kept.extend(fields("y", previous_response_id="resp_c")) is None
    # Nothing is kept: nothing is held.
    assert [size for size in sizes if size < 150][-1] == 0


def test_kept_input_does_not_hold_the_rest_of_the_message() -> None:
    kept = KeptInput(has_room)
    items = [{"role": "user", "content": "one"}]
    long = {"input": items, "instructions": "x" * 1_000_000, "previous_response_id": "resp_0"}
    raw = json.dumps({"type": "response.create", **long}).encode()
    tracemalloc.start()
    try:
        message = parse_message(parse_fields(bytes(bytearray(raw))), len(raw))
        assert isinstance(message, Create)
        kept.keep(None, "resp_1", message.body, [])
        del message
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
    assert items_of(kept.extend(fields("two", previous_response_id="resp_1")))[0] == items[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("Shorter.", "Shorter."),
        ([{"type": "message", "role": "user", "content": "Shorter."}], "Shorter."),
        (
            [
                {"type": "message", "role": "user", "content": "One."},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Two."}]},
            ],
            [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}],
        ),
    ],
)
def test_a_steer_is_one_message_at_the_boundary(given: Any, message: Any) -> None:
    steer = Steer("t", msgspec.Raw(json.dumps(given).encode()), None)
    assert json.loads(steered_message(steer)) == {"message": message, "at": "boundary"}


@pytest.mark.parametrize(
    "given",
    [
        None,
        1,
        [],
        [{"role": "system", "content": "x"}],
        [{"role": "assistant", "content": "x"}],
        [{"type": "reasoning"}],
    ],
)
def test_a_steer_without_a_message_of_the_user_is_refused(given: Any) -> None:
    with pytest.raises(Refused):
        steered_message(Steer("t", msgspec.Raw(json.dumps(given).encode()), None))
