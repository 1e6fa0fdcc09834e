"""`/v1/responses` over a WebSocket, with OpenAI's Python SDK as it is: `responses.connect()`."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.lib.responses_websocket import AsyncResponsesWebSocketSession, ResponsesWebSocketLimits
from openai.resources.responses.responses import AsyncResponsesConnection
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tailrace.features.responses_socket import socket as socket_module
from tailrace.proto.ids import Tenant, new_id
from tests.clients.openai_chat import LINE, MODEL, SLOW, TEXT, sdk_of
from tests.harness import processes
from tests.harness.cutting_proxy import Cutting
from tests.harness.generator_in_loop import words
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys

ENDS = ("response.completed", "response.incomplete", "response.failed", "error")
BEARER = {"authorization": f"Bearer {KEY}"}
# Long enough to be interrupted.
LONG = "#sim words=200 rate=40"


@asynccontextmanager
async def connected(url: str, **given: Any) -> AsyncIterator[AsyncResponsesConnection]:
    async with sdk_of(url) as sdk, sdk.responses.connect(**given) as connection:
        yield connection


async def read(connection: AsyncResponsesConnection, most: int = 10_000) -> list[Any]:
    """Returns the events until one that ends a response, at most `most`."""
    events: list[Any] = []
    async with asyncio.timeout(30):
        while len(events) < most and (not events or events[-1].type not in ENDS):
            events.append(await connection.recv())
    return events


async def send(connection: AsyncResponsesConnection, **message: Any) -> None:
    """Sends a message that the SDK has no type for."""
    await connection.send(message)  # type: ignore[arg-type]


def text_of(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def numbers_of(events: list[Any]) -> list[int]:
    return [event.sequence_number for event in events]


def added(event: Any, name: str) -> Any:
    """Returns a field that the SDK has no type for."""
    return (event.model_extra or {}).get(name)


def abort(connection: AsyncResponsesConnection) -> None:
    """Loses the connection, without a close frame."""
    connection._connection.transport.abort()  # noqa: SLF001


async def test_each_event_is_that_of_the_stream_with_the_id_of_its_response(gateway: Gateway) -> None:
    async with connected(gateway.url) as connection:
        await connection.response.create(model=MODEL, input=LINE)
        events = await read(connection)
        assert (text_of(events), numbers_of(events)) == (TEXT, list(range(len(events))))
        response_id = events[0].response.id
        assert {added(event, "response_id") for event in events} == {response_id}
        assert {event.stream_id for event in events} == {None}
        async with sdk_of(gateway.url) as sdk:
            streamed = [event async for event in await sdk.responses.retrieve(response_id, stream=True)]
        own = {"response_id", "stream_id"}
        assert [event.to_dict() for event in streamed] == [
            {name: value for name, value in event.to_dict().items() if name not in own} for event in events
        ]
        await connection.response.create(model=MODEL, input=LINE, previous_response_id=response_id)
        events = await read(connection)
        assert events[-1].response.previous_response_id == response_id
        assert text_of(events) == TEXT


async def test_lanes_run_at_once_and_the_responses_of_a_lane_one_after_the_other(gateway: Gateway) -> None:
    async with connected(gateway.url) as connection:
        for number in range(2):
            for lane in ("a", "b"):
                await connection.response.create(model=MODEL, input=SLOW, stream_id=lane, metadata={"n": str(number)})
        events: list[Any] = []
        async with asyncio.timeout(30):
            while sum(event.type == "response.completed" for event in events) < 4:
                events.append(await connection.recv())
    first_end = next(n for n, event in enumerate(events) if event.type == "response.completed")
    assert {event.stream_id for event in events[:first_end]} == {"a", "b"}
    for lane in ("a", "b"):
        own = [event for event in events if event.stream_id == lane]
        assert [event.response.metadata for event in own if event.type == "response.completed"] == [
            {"n": "0"},
            {"n": "1"},
        ]
        # A busy machine writes several words as one event.
        end = next(n for n, event in enumerate(own) if event.type == "response.completed")
        assert (text_of(own[:end]), text_of(own[end:])) == (TEXT, TEXT)


async def test_the_session_of_the_sdk_reads_its_lanes(gateway: Gateway) -> None:
    limits = ResponsesWebSocketLimits(
        max_lanes=4, max_events_per_lane=500, max_events=1000, max_bytes_per_lane=1 << 22, max_bytes=1 << 23
    )
    async with (
        connected(gateway.url) as connection,
        AsyncResponsesWebSocketSession(connection, limits=limits) as session,
    ):
        lanes = [session.lane(name) for name in ("one", "two")]
        for lane in lanes:
            await lane.send({"type": "response.create", "model": MODEL, "input": LINE})
        responses = [await lane.get_final_response() for lane in lanes]
    assert [response.output_text for response in responses] == [TEXT, TEXT]


async def test_a_socket_that_is_cut_after_each_event_continues_after_it(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """On a new socket after each event; together, each event comes once."""
    received: list[Any] = []
    response_id = ""
    while not received or received[-1].type not in ENDS:
        async with connected(gateway.url) as connection:
            if received:
                await send(
                    connection,
                    type="response.resume",
                    response_id=response_id,
                    starting_after=received[-1].sequence_number,
                )
            else:
                await connection.response.create(model=MODEL, input="#sim words=8 rate=20")
            received.append(await connection.recv())
            response_id = added(received[0], "response_id")
            abort(connection)
    whole = [event async for event in await sdk.responses.retrieve(response_id, stream=True)]
    assert numbers_of(received) == numbers_of(whole) == list(range(len(whole)))
    assert text_of(received) == text_of(whole) == words(8)


@pytest.fixture
async def sdk(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with sdk_of(gateway.url) as sdk:
        yield sdk


async def test_the_sdk_reconnects_and_its_loop_goes_on(gateway: Gateway) -> None:
    """The documented program: `on_reconnecting` asks for the rest, and the loop sees each event once."""
    events: list[Any] = []
    async with Cutting(gateway.port) as proxy, sdk_of(proxy.url) as sdk:

        def resume(_: Any) -> None:
            last = events[-1]
            message = {
                "type": "response.resume",
                "response_id": added(last, "response_id"),
                "starting_after": last.sequence_number,
            }
            # While the SDK reconnects, it keeps messages until the new connection is open.
            sending.append(asyncio.create_task(connection.send(message)))  # type: ignore[arg-type]

        sending: list[asyncio.Task[None]] = []
        async with sdk.responses.connect(on_reconnecting=resume, initial_delay=0.05) as connection:
            await connection.response.create(model=MODEL, input=LONG)
            cuts = 0
            async for event in connection:
                events.append(event)
                if event.type in ENDS:
                    break
                if len(events) in (3, 40, 80):
                    cuts += 1
                    proxy.cut_all()
    assert (cuts, len(sending)) == (3, 3)
    assert (text_of(events), numbers_of(events)) == (words(200), list(range(len(events))))


async def test_a_killed_gateway_loses_no_event_of_any_lane(
    gateway: Gateway, system: System, tenant: Tenant, tmp_path: Path
) -> None:
    lanes: dict[str, list[Any]] = {"a": [], "b": []}
    dying = processes.gateway(tmp_path, system.nats_url, TAILRACE_API_KEYS=api_keys(tenant))
    async with dying, connected(dying.url) as connection:
        for lane in lanes:
            await connection.response.create(model=MODEL, input=LONG, stream_id=lane)
        while min(map(len, lanes.values())) < 10:
            event = await connection.recv()
            lanes[event.stream_id or ""].append(event)
        dying.signal(SIGKILL)
        with suppress(ConnectionClosed):
            while True:
                event = await connection.recv()
                lanes[event.stream_id or ""].append(event)
    async with connected(gateway.url) as connection:
        for lane, events in lanes.items():
            last = events[-1]
            after = {"response_id": added(last, "response_id"), "starting_after": last.sequence_number}
            await send(connection, type="response.resume", stream_id=lane, **after)
        while any(events[-1].type not in ENDS for events in lanes.values()):
            event = await connection.recv()
            lanes[event.stream_id or ""].append(event)
    for events in lanes.values():
        assert (text_of(events), numbers_of(events)) == (words(200), list(range(len(events))))


async def test_a_response_that_was_created_twice_with_its_key_is_the_same(gateway: Gateway) -> None:
    """A client that lost the connection before the first event repeats its message."""
    message = {"type": "response.create", "model": MODEL, "input": LINE, "idempotency_key": "only-once"}
    ids = []
    for _ in range(2):
        async with connected(gateway.url) as connection:
            await send(connection, **message)
            events = await read(connection)
            assert text_of(events) == TEXT
            ids.append(events[0].response.id)
    assert ids[0] == ids[1]


async def test_a_resume_after_the_last_event_is_an_error(gateway: Gateway) -> None:
    async with connected(gateway.url) as connection:
        await connection.response.create(model=MODEL, input=LINE)
        last = (await read(connection))[-1]
        after = {"response_id": last.response.id, "starting_after": last.sequence_number}
        await send(connection, type="response.resume", **after)
        (event,) = await read(connection)
        assert (event.type, event.error.code, event.status) == ("error", "cursor_invalid", 400)
        assert added(event, "response_id") == last.response.id
        await send(connection, type="response.resume", response_id="resp_none")
        (event,) = await read(connection)
        assert (event.error.code, added(event, "response_id")) == ("turn_not_found", "resp_none")


async def test_a_resume_beyond_the_last_event_of_a_running_response_is_an_error(gateway: Gateway) -> None:
    """The lane would be silent until the response has ended."""
    async with connected(gateway.url) as connection, connected(gateway.url) as other:
        await connection.response.create(model=MODEL, input=LONG)
        running = added(await connection.recv(), "response_id")
        await send(other, type="response.resume", response_id=running, starting_after=10**6)
        async with asyncio.timeout(5):
            (event,) = await read(other)
        assert (event.type, event.error.code, event.status) == ("error", "cursor_invalid", 400)
        await send(connection, type="response.cancel", response_id=running)


@asynccontextmanager
async def raw(url: str, headers: Mapping[str, str] = BEARER, query: str = "") -> AsyncIterator[ClientConnection]:
    """Connects without the SDK."""
    address = f"{url.replace('http', 'ws', 1)}/v1/responses{query}"
    async with connect(address, additional_headers=headers, max_size=None) as connection:
        yield connection


async def read_error(connection: ClientConnection) -> tuple[int, str, str | None]:
    """Returns status, code and lane of the next event that is an error."""
    async with asyncio.timeout(20):
        while (event := json.loads(await connection.recv()))["type"] != "error":
            pass
    return event["status"], event["error"]["code"], event.get("stream_id")


BAD: dict[str, tuple[str | bytes, int, str, str | None]] = {
    "no JSON": ("{", 400, "json_invalid", None),
    "half of a surrogate pair": ('{"type": "\\ud800"}', 400, "json_invalid", None),
    "deep": ('{"type":' + "[" * 100_000, 400, "json_invalid", None),
    "no object": ("[]", 400, "request_invalid", None),
    "empty": ("", 400, "json_invalid", None),
    "no type": ("{}", 400, "request_invalid", None),
    "unknown type": ('{"type": "response.nothing", "stream_id": "a"}', 400, "request_invalid", "a"),
    "type is a number": ('{"type": 1}', 400, "request_invalid", None),
    "key twice": ('{"type": "response.create", "type": "response.cancel"}', 400, "request_invalid", None),
    "lane is no name": ('{"type": "response.create", "stream_id": "a b"}', 400, "request_invalid", None),
    "lane is empty": ('{"type": "response.create", "stream_id": ""}', 400, "request_invalid", None),
    "unknown field": ('{"type":"response.create","stream_id":"b","input":"x","no":1}', 400, "request_invalid", "b"),
    "wrong field": ('{"type":"response.create","input":1}', 400, "request_invalid", None),
    "unknown model": ('{"type":"response.create","model":"gpt-none","input":"x"}', 404, "model_not_found", None),
    "unknown parent": (
        '{"type":"response.create","input":"x","previous_response_id":"resp_none"}',
        404,
        "previous_response_not_found",
        None,
    ),
    "no id": ('{"type":"response.resume","response_id":"../x"}', 404, "turn_not_found", None),
    "unknown id": ('{"type":"response.resume","response_id":"resp_none"}', 404, "turn_not_found", None),
    "wrong number": ('{"type":"response.resume","response_id":"x","starting_after":"1"}', 400, "request_invalid", None),
    "negative number": (
        '{"type":"response.resume","response_id":"x","starting_after":-2}',
        400,
        "cursor_invalid",
        None,
    ),
    "cancel nothing": ('{"type":"response.cancel"}', 404, "turn_not_found", None),
    "cancel unknown": ('{"type":"response.cancel","response_id":"resp_none"}', 404, "turn_not_found", None),
    "binary": (b"{}", 400, "request_invalid", None),
    "too large": ('{"type":"' + "x" * socket_module.MESSAGE_BYTES_MAX + '"}', 413, "body_too_large", None),
}


@pytest.mark.rule("S14")
async def test_a_bad_message_gets_an_error_and_the_running_response_loses_nothing(gateway: Gateway) -> None:
    async with raw(gateway.url) as connection:
        create = {"type": "response.create", "model": MODEL, "input": LONG, "stream_id": "good"}
        await connection.send(json.dumps(create))
        events: list[Any] = []
        errors: list[Any] = []

        async def read_some(done: Any) -> None:
            async with asyncio.timeout(30):
                while not done():
                    event = json.loads(await connection.recv())
                    (errors if event["type"] == "error" else events).append(event)

        await read_some(lambda: len(events) > 5)
        for number, (name, (message, status, code, lane)) in enumerate(BAD.items()):
            await connection.send(message)
            await read_some(lambda number=number: len(errors) > number)
            error = errors[-1]
            assert (error["status"], error["error"]["code"], error.get("stream_id")) == (status, code, lane), name
            assert error["error"]["message"], name
        # Codex sends it after each response.
        await connection.send('{"type": "response.processed", "response_id": "resp_x"}')
        await read_some(lambda: events[-1]["type"] == "response.completed")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert len(errors) == len(BAD)


@pytest.mark.rule("S7")
async def test_only_pages_of_allowed_origins_may_connect(system: System, new_gateway: NewGateway) -> None:
    """A browser opens a WebSocket to any origin, without a preflight."""
    gateway = await new_gateway(system.nats_url, origins="https://chat.example")
    own = gateway.url
    refused: list[dict[str, str]] = [{"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://[::1"}]
    refused.append({"origin": own, "sec-fetch-site": "cross-site"})
    for headers in refused:
        with pytest.raises(InvalidStatus) as caught:
            async with raw(gateway.url, BEARER | headers):
                pass
        assert caught.value.response.status_code == 403, headers
        assert b"origin_refused" in caught.value.response.body
    for headers in ({}, {"origin": own}, {"origin": "https://chat.example", "sec-fetch-site": "cross-site"}):
        async with raw(gateway.url, BEARER | headers) as connection:
            await connection.send("{}")
            assert (await read_error(connection))[1] == "request_invalid"


async def test_a_request_without_a_valid_key_gets_401(gateway: Gateway) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, BEARER | {"x-api-key": KEY}):
        with pytest.raises(InvalidStatus) as caught:
            async with raw(gateway.url, headers):
                pass
        assert caught.value.response.status_code == 401
        assert caught.value.response.headers["www-authenticate"] == "Bearer"


async def test_a_request_without_an_upgrade_is_426(gateway: Gateway) -> None:
    answer = await gateway.client.get("/v1/responses")
    assert (answer.status_code, answer.json()["error"]["code"]) == (426, "upgrade_required")
    assert (answer.headers["upgrade"], answer.headers["sec-websocket-version"]) == ("websocket", "13")


async def test_a_cancelled_response_ends_on_its_lane(gateway: Gateway) -> None:
    async with connected(gateway.url) as connection:
        for named in (False, True):
            await connection.response.create(model=MODEL, input=LONG, stream_id="a")
            begun = await read(connection, 6)
            target = {"response_id": added(begun[0], "response_id")} if named else {"stream_id": "a"}
            await send(connection, type="response.cancel", **target)
            rest = await read(connection)
            assert (rest[-1].type, rest[-1].response.status) == ("response.incomplete", "cancelled")
            assert numbers_of(begun + rest) == list(range(len(begun + rest)))


async def test_a_steered_response_ends_and_its_successor_follows_on_the_same_lane(gateway: Gateway) -> None:
    async with connected(gateway.url) as connection:
        await connection.response.create(model=MODEL, input="#sim words=80 rate=20 server=web_search*3", stream_id="a")
        first = await read(connection, 6)
        await connection.response.create(model=MODEL, input=LINE, stream_id="a")
        response_id = added(first[0], "response_id")
        await connection.response.steer(input=LINE, previous_response_id=response_id)
        events: list[Any] = []
        async with asyncio.timeout(30):
            while sum(event.type in ENDS for event in events) < 3:
                events.append(await connection.recv())
        accepted = [event for event in events if event.type == "response.steer.accepted"]
        assert [(event.steer.previous_response_id, event.stream_id) for event in accepted] == [(response_id, "a")]
        ends = [event for event in events if event.type in ENDS]
        assert [end.response.id == response_id for end in ends] == [True, False, False]
        successor = accepted[0].steer.id.removeprefix("steer_")
        assert ends[1].response.id == f"resp_{successor}"
        assert {event.stream_id for event in events} == {"a"}
        if ends[0].type == "response.incomplete":
            assert ends[0].response.incomplete_details.reason == "steered"
        assert text_of([event for event in events if added(event, "response_id") == ends[1].response.id]) == TEXT


async def test_a_steer_that_cannot_be_accepted_returns_its_input(gateway: Gateway) -> None:
    async with raw(gateway.url) as connection:
        for given, target, code in (
            ("x", "resp_none", "response_not_found"),
            ([{"type": "message", "role": "assistant", "content": "x"}], "resp_none", "invalid_input"),
            ([], "resp_none", "invalid_input"),
        ):
            message = {"type": "response.steer", "input": given, "previous_response_id": target}
            await connection.send(json.dumps(message))
            event = json.loads(await connection.recv())
            assert (event["type"], event["error"]["code"]) == ("response.steer.failed", code)
            assert event["steer"] == {"input": given, "previous_response_id": target}


async def test_unstored_responses_are_continued_on_their_connection_only(gateway: Gateway) -> None:
    """As Codex does: a warm-up, then new items alone, with `store: false`."""
    async with connected(gateway.url) as connection:
        await connection.response.create(model=MODEL, input="Remember 1.", store=False, generate=False)
        warm = await read(connection)
        assert [event.type for event in warm] == ["response.created", "response.completed"]
        before = warm[-1].response.id
        for number in (2, 3):
            await connection.response.create(
                model=MODEL, input=f"#sim words=2 rate=0\n{number}", store=False, previous_response_id=before
            )
            events = await read(connection)
            assert (events[-1].type, text_of(events)) == ("response.completed", words(2)), events[-1]
            before = events[-1].response.id
        usage = events[-1].response.usage
        await connection.response.create(model=MODEL, input="#sim words=2 rate=0\n3", store=False)
        alone = (await read(connection))[-1].response.usage
        assert usage.input_tokens > alone.input_tokens
    async with connected(gateway.url) as connection:
        await connection.response.create(model=MODEL, input="x", store=False, previous_response_id=before)
        (error,) = await read(connection)
        assert error.error.code == "previous_response_not_found"


async def test_a_repeated_request_with_the_items_that_had_arrived_gets_the_rest(gateway: Gateway) -> None:
    """As Codex does after a cut. The response that continues it has each item of the answer once."""
    tool = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}
    given = [{"role": "user", "content": f"#sim words=3 rate=20 tool=look\n{new_id()}"}]
    create = {"type": "response.create", "model": MODEL, "store": False, "tools": [tool]}
    headers = {"idempotency-key": "auto"}
    async with connected(gateway.url, extra_headers=headers) as connection:
        await send(connection, **create, input=given)
        events: list[Any] = []
        while not events or events[-1].type != "response.output_item.done":
            events.append(await connection.recv())
        abort(connection)
    text = events[-1].item
    async with connected(gateway.url, extra_headers=headers) as connection:
        await send(connection, **create, input=[*given, text.to_dict()])
        rest = await read(connection)
        assert rest[0].response.id == events[0].response.id == added(rest[-1], "response_id")
        assert [event.item.type for event in rest if event.type == "response.output_item.done"] == ["function_call"]
        result = {"type": "function_call_output", "call_id": rest[-1].response.output[1].call_id, "output": "seen"}
        await send(connection, **create, input=[result], previous_response_id=rest[0].response.id)
        last = (await read(connection))[-1].response
    async with sdk_of(gateway.url) as sdk:
        items = [item async for item in sdk.responses.input_items.list(last.id, order="asc")]
    assert [item.type for item in items] == ["message", "message", "function_call", "function_call_output"]


async def test_a_draining_gateway_ends_the_streams_and_another_one_has_the_rest(
    gateway: Gateway, system: System, tenant: Tenant, tmp_path: Path
) -> None:
    draining = processes.gateway(tmp_path, system.nats_url, TAILRACE_API_KEYS=api_keys(tenant))
    async with draining, connected(draining.url) as connection:
        await connection.response.create(model=MODEL, input=LONG)
        events = await read(connection, 10)
        draining.signal(SIGTERM)
        events += await read(connection)
        error = events.pop()
        assert (error.type, error.error.code, error.status) == ("error", "draining", 503)
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
        assert closed.value.rcvd is not None
        # The SDK reconnects after this code.
        assert closed.value.rcvd.code == 1012
        await until(lambda: draining.is_gone)
    async with connected(gateway.url) as connection:
        after = {"response_id": added(events[-1], "response_id"), "starting_after": events[-1].sequence_number}
        await send(connection, type="response.resume", **after)
        events += await read(connection)
    assert (text_of(events), numbers_of(events)) == (words(200), list(range(len(events))))


async def test_a_socket_of_the_age_limit_ends_after_its_responses(system: System, new_gateway: NewGateway) -> None:
    gateway = await new_gateway(system.nats_url, stream_life_s=1.0)
    async with connected(gateway.url) as connection:
        (event,) = await read(connection)
        assert event.error.code == "websocket_connection_limit_reached"
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001


async def test_limits_of_streams_count_sockets_and_their_responses(system: System, new_gateway: NewGateway) -> None:
    gateway = await new_gateway(system.nats_url, streams_tenant_max=2)
    async with raw(gateway.url) as connection:
        create = {"type": "response.create", "model": MODEL, "input": LONG}
        for lane in ("a", "b"):
            await connection.send(json.dumps({**create, "stream_id": lane}))
        assert await read_error(connection) == (429, "too_many_streams", "b")
        with pytest.raises(InvalidStatus) as caught:
            async with raw(gateway.url):
                pass
        assert caught.value.response.status_code == 429


async def test_memory_is_limited_over_all_sockets_and_released(system: System, new_gateway: NewGateway) -> None:
    gateway = await new_gateway(system.nats_url, large_bytes_max=16 * 1024 * 1024)
    # A tenant may hold 2 MiB.
    large = json.dumps({"type": "response.cancel", "response_id": "x" * 1_500_000})
    for _ in range(3):
        async with raw(gateway.url) as connection:
            await connection.send(large)
            assert (await read_error(connection))[1] == "turn_not_found"
    async with raw(gateway.url) as connection:
        with suppress(ConnectionClosed):
            await connection.send(json.dumps({"x": "x" * 3_000_000}))
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013


async def test_the_input_that_connections_keep_leaves_room_for_messages(
    system: System, new_gateway: NewGateway
) -> None:
    gateway = await new_gateway(system.nats_url, large_bytes_max=32 * 1024 * 1024)
    # A tenant may hold 4 MiB.
    warm_up = {"type": "response.create", "model": MODEL, "store": False, "generate": False, "input": "x" * 600_000}
    async with raw(gateway.url) as keeping, raw(gateway.url) as connection:
        for number in range(4):
            await keeping.send(json.dumps(warm_up | {"stream_id": f"lane-{number}"}))
            while json.loads(await keeping.recv())["type"] != "response.completed":
                pass
        await connection.send(json.dumps({"type": "response.cancel", "response_id": "x" * 2_000_000}))
        assert (await read_error(connection))[1] == "turn_not_found"


async def test_lanes_and_waiting_responses_are_limited(gateway: Gateway) -> None:
    async with raw(gateway.url) as connection:
        for number in range(33):
            message = {"type": "response.resume", "response_id": "resp_none", "stream_id": f"lane-{number}"}
            await connection.send(json.dumps(message))
        errors = [await read_error(connection) for _ in range(33)]
        assert (429, "websocket_stream_limit_reached", "lane-32") in errors
        assert sum(code == "turn_not_found" for _, code, _ in errors) == 32


async def test_a_lost_socket_cancels_a_turn_whose_policy_says_so(gateway: Gateway) -> None:
    async with connected(gateway.url) as connection:
        await send(connection, type="response.create", model=MODEL, input=LONG, on_disconnect="cancel")
        (created,) = await read(connection, 1)
        abort(connection)
    turn = created.response.id.removeprefix("resp_")

    async def is_cancelled() -> bool:
        record = (await gateway.client.get(f"/v1/turns/{turn}")).json()
        return bool(record["outcome"] == "cancelled")

    await until(is_cancelled)
