"""The lanes of a WebSocket against a scripted gateway: order, cuts, what only the connection keeps, and messages."""

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest
from starlette.datastructures import Headers

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
from tailrace.proto.errors import Refused
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

    def __init__(self, *script: tuple[list[dict[str, Any]], Answer]) -> None:
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
                await on_event(msgspec.json.encode(one))
        return answer


def create(text: str = "x", **fields: Any) -> Create:
    made = parse_message(parse_fields(json.dumps({"type": "response.create", "input": text, **fields}).encode()), 10)
    assert isinstance(made, Create)
    return made


async def run(requests: Scripted, use: Callable[[Lanes], None]) -> list[dict[str, Any]]:
    """Returns the events that the client receives after `use`, until all lanes are idle."""
    received: list[dict[str, Any]] = []

    async def emit(data: bytes) -> None:
        received.append(json.loads(data))

    async with asyncio.TaskGroup() as group:
        use(Lanes(cast("InnerRequests", requests), emit, group))
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
        for limits in ({"WAITING_MAX": 1}, {"WAITING_BYTES_MAX": 15}):
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


def fields(text: str, **more: Any) -> Fields:
    return create(text, **more).body


def items_of(extended: Fields | None) -> list[Any]:
    assert extended is not None
    return cast("list[Any]", json.loads(bytes(extended["input"])))


def test_kept_input_comes_before_the_new_items_and_once() -> None:
    kept = KeptInput()
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
    kept = KeptInput()
    for lane in ("a", "b", "c"):
        kept.keep(lane, f"resp_{lane}", fields("x" * 60), [])
    found = [kept.extend(fields("y", previous_response_id=f"resp_{lane}")) is not None for lane in "abc"]
    assert found == [False, True, True]
    kept.keep("d", "resp_d", fields("x" * 500), [])
    assert kept.extend(fields("y", previous_response_id="resp_d")) is None


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
