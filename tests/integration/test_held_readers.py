"""Held readers: a reader with a cursor gets 200 and heartbeats while the log is unreachable or the gateway drains.

To an EventSource and to AI SDK's transport a 503 would be final (ADR 13).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from signal import SIGCONT, SIGKILL
from typing import NamedTuple

import httpx2
import pytest
from prometheus_client import REGISTRY

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.http.server import GRACE_S
from tailrace.gateway.http.sse import HEARTBEAT
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.runtime.flag import Flag
from tests.harness.freeze import freeze
from tests.harness.processes import Process
from tests.harness.readers import build_reader, frames, read, read_history, story_of
from tests.harness.sse_parser import EventStream, SseEvent, parse
from tests.harness.system import System
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway, forget
from tests.integration.test_drain import in_process
from tests.promises import ReaderConnection, judge, no_gap, no_repeat, one_end


def count_held_readers() -> float:
    """Returns the number of readers that the gateways of this process hold."""
    return REGISTRY.get_sample_value("tailrace_gateway_streams_held") or 0.0


@asynccontextmanager
async def held_response(gateway: Gateway, url: str, headers: dict[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
    """The body of a held response, after three heartbeats and nothing else."""
    async with gateway.client.stream("GET", url, headers=headers) as response:
        assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream")
        body = response.aiter_raw()
        received = b""
        while received.count(HEARTBEAT) < 3:
            received += await anext(body)
        assert received.replace(HEARTBEAT, b"") == b""
        yield body


def resuming_request(gateway: Gateway, turn: str, cursor: int) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
    return held_response(gateway, f"/v1/turns/{turn}/events", {"last-event-id": str(cursor)})


class CountingProtocol(NamedTuple):
    """A protocol whose cursor is a number of events: the URL of the whole stream, and of the rest."""

    whole: str
    after: str

    def url(self, turn: str, seen: int) -> str:
        return self.after.format(turn=turn, seen=seen, last=seen - 1)


RESPONSE = CountingProtocol(
    "/v1/responses/resp_{turn}?stream=true", "/v1/responses/resp_{turn}?stream=true&starting_after={last}"
)
RUN = CountingProtocol("/api/chat/{turn}/stream?startIndex=0", "/api/chat/{turn}/stream?startIndex={seen}")
each_protocol = pytest.mark.parametrize("counted", [RESPONSE, RUN], ids=["responses", "ai_sdk"])


async def first_events(gateway: Gateway, url: str, most: int) -> list[str]:
    """Returns the data of the first events of a stream."""
    stream, seen = EventStream(), list[SseEvent]()
    async with gateway.client.stream("GET", url) as response:
        assert response.status_code == 200
        async for received in response.aiter_raw():
            seen += stream.feed(received)
            if len(seen) >= most:
                break
    return [event.data for event in seen[:most]]


async def read_rest(body: AsyncIterator[bytes]) -> bytes:
    """Returns everything up to a clean end, without heartbeats."""
    return b"".join([piece async for piece in body]).replace(HEARTBEAT, b"")


async def read_until_broken(body: AsyncIterator[bytes]) -> None:
    with pytest.raises(httpx2.RemoteProtocolError, match="without sending complete message body"):
        await read_rest(body)


Recover = Callable[[], Awaitable[object]]


async def kill(server: NatsServer) -> Recover:
    await server.stop(SIGKILL)
    return server.start


async def pause(server: NatsServer) -> Recover:
    freeze(server)

    async def resume() -> None:
        server.signal(SIGCONT)

    return resume


each_outage = pytest.mark.parametrize("outage", [kill, pause])


@pytest.fixture
async def fragile(own_server: NatsServer, new_gateway: NewGateway) -> Gateway:
    """A gateway on the test's own server that has not read any turn yet."""
    return await new_gateway(own_server.url, heartbeat_s=0.05)


@pytest.fixture
async def writer(own_log: TurnLog, key: TurnKey) -> Writer:
    """A running turn with the text "ab"."""
    writer = Writer(own_log, key)
    await writer.open("a", "b")
    return writer


@each_outage
async def test_a_held_reader_gets_its_rest_in_the_same_response(
    own_server: NatsServer,
    fragile: Gateway,
    new_gateway: NewGateway,
    writer: Writer,
    outage: Callable[[NatsServer], Awaitable[Recover]],
) -> None:
    key = writer.key
    first = await read((await new_gateway(own_server.url)).client, key.turn, most=2)
    cursor = first.frames[-1].seq
    recover = await outage(own_server)
    async with resuming_request(fragile, key.turn, cursor) as body:
        assert count_held_readers() == 1
        await recover()
        await writer.store_texts("c")
        await writer.end()
        events = parse(await read_rest(body))
    second = ReaderConnection(cursor, tuple(frames(events)), "ended")
    verdict = judge(
        await read_history(writer.log, key, build_reader("held", key, first, second)), (no_gap, no_repeat, one_end)
    )
    assert verdict.is_green, verdict.evidence
    assert story_of(frame.sent for frame in (*first.frames, *second.frames)).text == "abc"
    assert count_held_readers() == 0


@each_protocol
async def test_a_held_reader_that_counts_events_gets_its_rest(
    own_server: NatsServer, fragile: Gateway, new_gateway: NewGateway, writer: Writer, counted: CountingProtocol
) -> None:
    turn = writer.key.turn
    elsewhere = await new_gateway(own_server.url)
    before = await first_events(elsewhere, counted.whole.format(turn=turn), 4)
    recover = await kill(own_server)
    async with held_response(fragile, counted.url(turn, 4), {}) as body:
        await recover()
        await writer.store_texts("c")
        await writer.end()
        after = [event.data for event in parse(await read_rest(body))]
    assert before + after == await first_events(elsewhere, counted.whole.format(turn=turn), len(before + after))
    assert "completed" in after[-1] or after[-1] == "[DONE]"


@pytest.mark.parametrize("status", [204, 400])
async def test_a_held_response_without_an_event_ends_and_the_next_request_has_the_status(
    own_server: NatsServer, fragile: Gateway, writer: Writer, status: int
) -> None:
    cursor = await writer.end() + (status == 400)
    await own_server.stop(SIGKILL)
    async with resuming_request(fragile, writer.key.turn, cursor) as body:
        await own_server.start()
        assert await read_rest(body) == b""
    url = f"/v1/turns/{writer.key.turn}/events"
    assert (await fragile.client.get(url, headers={"last-event-id": str(cursor)})).status_code == status


async def test_a_held_response_whose_event_does_not_exist_breaks_off_and_the_next_request_has_the_status(
    own_server: NatsServer, fragile: Gateway, writer: Writer
) -> None:
    await writer.end()
    await own_server.stop(SIGKILL)
    async with held_response(fragile, RUN.url(writer.key.turn, 999), {}) as body:
        await own_server.start()
        await read_until_broken(body)
    again = await fragile.client.get(RUN.url(writer.key.turn, 999))
    assert (again.status_code, again.json()["error"]["code"]) == (400, "cursor_invalid")


async def test_a_held_reader_that_disconnects_is_released_before_the_log_is_back(
    own_server: NatsServer, fragile: Gateway, writer: Writer
) -> None:
    await own_server.stop(SIGKILL)
    async with resuming_request(fragile, writer.key.turn, writer.chain.last):
        assert count_held_readers() == 1
    await until(lambda: count_held_readers() == 0)


async def test_a_draining_gateway_ends_held_responses_and_breaks_off_those_with_a_final_event(
    own_server: NatsServer, fragile: Gateway, writer: Writer
) -> None:
    """Without its final event, a clean end of such a protocol would look like the end of the turn."""
    turn = writer.key.turn
    await own_server.stop(SIGKILL)
    async with (
        resuming_request(fragile, turn, writer.chain.last) as body,
        held_response(fragile, RESPONSE.url(turn, 2), {}) as response,
        held_response(fragile, RUN.url(turn, 2), {}) as run,
    ):
        fragile.stopping.set()
        async with asyncio.timeout(GRACE_S - 1):
            assert await read_rest(body) == b""
            await read_until_broken(response)
            await read_until_broken(run)


async def test_a_draining_gateway_sends_a_resuming_reader_away_with_a_clean_end(
    nats_url: str, connection: Connection, log: TurnLog, key: TurnKey, tenant: Tenant
) -> None:
    """New readers and clients that handle a 503 get 503."""
    writer = Writer(log, key)
    await writer.open("a")
    draining = Flag()
    draining.set()
    url, after = f"/v1/turns/{key.turn}/events", {"last-event-id": str(writer.chain.last)}
    async with in_process(nats_url, connection, tenant, draining) as client:
        resumed = await client.get(url, headers=after)
        refused = [
            await client.get(url),
            await client.head(url, headers=after),
            await client.get(f"{url}?dialect=text", headers=after),
            await client.get(f"{url}?dialect=anthropic", headers=after),
            await client.get(RESPONSE.url(key.turn, 1)),
            await client.get(RUN.whole.format(turn=key.turn)),
            await client.head(RUN.url(key.turn, 1)),
        ]
        # This transport reports a response that breaks off by an AssertionError.
        with pytest.raises(AssertionError):
            await client.get(RUN.url(key.turn, 1))
    assert (resumed.status_code, resumed.content) == (200, HEARTBEAT)
    assert [answer.status_code for answer in refused] == [503] * 7


@pytest.mark.parametrize("is_counted", [False, True], ids=["cursor", "ai_sdk"])
async def test_a_reader_of_a_turn_that_has_left_the_log_is_held_while_persistence_does_not_answer(
    gateway: Gateway,
    system: System,
    system_log: TurnLog,
    tenant: Tenant,
    new_gateway: NewGateway,
    persistence: Process,
    is_counted: bool,
) -> None:
    turn = (await gateway.client.post("/v1/turns", json={"message": "#sim words=5 rate=0"})).json()["turn"]
    before = await read(gateway.client, turn)
    await forget(gateway, system_log, TurnKey(tenant, TurnId(turn)))
    whole = await first_events(gateway, RUN.whole.format(turn=turn), 99)
    later = await new_gateway(system.nats_url, heartbeat_s=0.05, query_timeout_s=0.2)
    freeze(persistence)
    try:
        held = (
            held_response(later, RUN.url(turn, 2), {})
            if is_counted
            else resuming_request(later, turn, before.frames[0].seq)
        )
        async with held as body:
            # Longer than several queries wait.
            heartbeats = 0
            while heartbeats < 15:
                heartbeats += (await anext(body)).count(HEARTBEAT)
            persistence.signal(SIGCONT)
            events = parse(await read_rest(body))
    finally:
        persistence.signal(SIGCONT)
    if is_counted:
        assert events[-1].data == whole[-1] == "[DONE]"
    else:
        assert story_of(event.raw for event in events) == story_of(frame.sent for frame in before.frames)
