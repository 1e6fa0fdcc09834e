"""A reader that comes back while the log, or the gateway, is going away: an EventSource never hears a 503 (ADR 13)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from signal import SIGCONT, SIGKILL
from typing import NamedTuple

import httpx2
import pytest
from prometheus_client import REGISTRY

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.__main__ import build
from tailrace.gateway.app import app
from tailrace.gateway.auth.signed_tokens import TokenSigner
from tailrace.gateway.settings import Settings
from tailrace.gateway.streaming.sse import HEARTBEAT
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.subjects import TurnKey
from tests.harness.freeze import freeze
from tests.harness.processes import Process
from tests.harness.readers import frames, history, read, reader, told
from tests.harness.sse_parser import EventStream, Sent, parse
from tests.harness.system import System
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys, forget
from tests.promises import Connected, judge, no_gap, no_repeat, one_end


def held() -> float:
    """How many readers the gateways of this process hold."""
    return REGISTRY.get_sample_value("tailrace_gateway_streams_held") or 0.0


@asynccontextmanager
async def waiting(gateway: Gateway, url: str, headers: dict[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
    """The body of a response to a reader with a cursor, once it has been sent three heartbeats and nothing else."""
    async with gateway.client.stream("GET", url, headers=headers) as response:
        assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream")
        body = response.aiter_raw()
        received = b""
        while received.count(HEARTBEAT) < 3:
            received += await anext(body)
        assert received.replace(HEARTBEAT, b"") == b""
        yield body


def coming_back(gateway: Gateway, turn: str, cursor: int) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
    """The same, of who has an `id:`."""
    return waiting(gateway, f"/v1/turns/{turn}/events", {"last-event-id": str(cursor)})


class Counted(NamedTuple):
    """A protocol whose readers come back with a number of events: its stream, and the stream after so many."""

    whole: str
    after: str

    def url(self, turn: str, seen: int) -> str:
        return self.after.format(turn=turn, seen=seen, last=seen - 1)


RESPONSE = Counted(
    "/v1/responses/resp_{turn}?stream=true", "/v1/responses/resp_{turn}?stream=true&starting_after={last}"
)
RUN = Counted("/api/chat/{turn}/stream?startIndex=0", "/api/chat/{turn}/stream?startIndex={seen}")


async def shown(gateway: Gateway, url: str, most: int) -> list[str]:
    """The data of the first events, as a client has them that is cut off then."""
    stream, seen = EventStream(), list[Sent]()
    async with gateway.client.stream("GET", url) as response:
        assert response.status_code == 200
        async for received in response.aiter_raw():
            seen += stream.feed(received)
            if len(seen) >= most:
                break
    return [event.data for event in seen[:most]]


async def rest(body: AsyncIterator[bytes]) -> bytes:
    """All that comes until a clean end, but for the heartbeats."""
    return b"".join([piece async for piece in body]).replace(HEARTBEAT, b"")


Again = Callable[[], Awaitable[object]]


async def kill(server: NatsServer) -> Again:
    await server.stop(SIGKILL)
    return server.start


async def pause(server: NatsServer) -> Again:
    freeze(server)

    async def wake() -> None:
        server.signal(SIGCONT)

    return wake


@pytest.fixture
async def fragile(own_server: NatsServer, new_gateway: NewGateway) -> Gateway:
    """A gateway whose NATS a test may take away before anybody has read here."""
    return await new_gateway(own_server.url, heartbeat_s=0.05)


@pytest.mark.parametrize("take_away", [kill, pause])
async def test_a_reader_that_comes_back_while_the_log_is_away_is_held_and_gets_its_rest(
    own_server: NatsServer,
    fragile: Gateway,
    new_gateway: NewGateway,
    own_log: TurnLog,
    key: TurnKey,
    take_away: Callable[[NatsServer], Awaitable[Again]],
) -> None:
    """200 and heartbeats, and then every byte once, in the same response: promises 1 and 2."""
    writer = Writer(own_log, key)
    await writer.open("a", "b")
    elsewhere = await new_gateway(own_server.url)
    first = await read(elsewhere.client, key.turn, most=2)
    cursor = first.frames[-1].seq
    bring_back = await take_away(own_server)
    async with coming_back(fragile, key.turn, cursor) as body:
        await bring_back()
        await writer.say("c")
        await writer.end()
        events = parse(await rest(body))
    second = Connected(cursor, tuple(frames(events)), "ended")
    verdict = judge(await history(own_log, key, reader("held", key, first, second)), (no_gap, no_repeat, one_end))
    assert verdict.is_green, verdict.evidence
    assert told(frame.sent for frame in (*first.frames, *second.frames)).text == "abc"
    assert held() == 0


@pytest.mark.parametrize("status", [204, 400])
async def test_what_a_held_reader_cannot_be_told_any_more_it_is_told_when_it_comes_back_again(
    own_server: NatsServer, fragile: Gateway, own_log: TurnLog, key: TurnKey, status: int
) -> None:
    """At the end of its turn, or with a cursor that is none: the response ends with nothing in it."""
    writer = Writer(own_log, key)
    await writer.open("a")
    cursor = await writer.end() + (status == 400)
    await own_server.stop(SIGKILL)
    async with coming_back(fragile, key.turn, cursor) as body:
        await own_server.start()
        assert await rest(body) == b""
    again = await fragile.client.get(f"/v1/turns/{key.turn}/events", headers={"last-event-id": str(cursor)})
    assert again.status_code == status


async def test_a_held_reader_that_leaves_is_let_go(
    own_server: NatsServer, fragile: Gateway, own_log: TurnLog, key: TurnKey
) -> None:
    """At once, and not when the log is back: a storm of reconnects must not pile up."""
    writer = Writer(own_log, key)
    await writer.open("a")
    await own_server.stop(SIGKILL)
    async with coming_back(fragile, key.turn, writer.chain.last):
        assert held() == 1
    await until(lambda: held() == 0)


async def test_a_held_reader_is_sent_on_by_a_gateway_that_goes_away(
    own_server: NatsServer, fragile: Gateway, own_log: TurnLog, key: TurnKey
) -> None:
    """A clean end, as for everybody who reads here: it comes back to another gateway, which may see the log."""
    writer = Writer(own_log, key)
    await writer.open("a")
    await own_server.stop(SIGKILL)
    async with coming_back(fragile, key.turn, writer.chain.last) as body:
        fragile.stopping.set()
        async with asyncio.timeout(2):
            assert await rest(body) == b""


@pytest.mark.parametrize("counted", [RESPONSE, RUN])
@pytest.mark.parametrize("take_away", [kill, pause])
async def test_a_reader_that_counts_is_held_while_the_log_is_away(
    own_server: NatsServer,
    fragile: Gateway,
    new_gateway: NewGateway,
    own_log: TurnLog,
    key: TurnKey,
    take_away: Callable[[NatsServer], Awaitable[Again]],
    counted: Counted,
) -> None:
    """What it has seen and what it is sent then are every event once: to AI SDK's transport a 503 would be final."""
    writer = Writer(own_log, key)
    await writer.open("a", "b")
    elsewhere = await new_gateway(own_server.url)
    before = await shown(elsewhere, counted.whole.format(turn=key.turn), 4)
    bring_back = await take_away(own_server)
    async with waiting(fragile, counted.url(key.turn, 4), {}) as body:
        await bring_back()
        await writer.say("c")
        await writer.end()
        after = [event.data for event in parse(await rest(body))]
    whole = await shown(elsewhere, counted.whole.format(turn=key.turn), len(before + after))
    assert before + after == whole
    assert "completed" in after[-1] or after[-1] == "[DONE]"
    assert held() == 0


@pytest.mark.parametrize("counted", [RESPONSE, RUN])
async def test_a_held_reader_that_counts_is_broken_off_by_a_gateway_that_goes_away(
    own_server: NatsServer, fragile: Gateway, own_log: TurnLog, key: TurnKey, counted: Counted
) -> None:
    """Its protocol has a word for the end, and without it a clean end would look like one."""
    writer = Writer(own_log, key)
    await writer.open("a")
    await own_server.stop(SIGKILL)
    async with waiting(fragile, counted.url(key.turn, 2), {}) as body:
        fragile.stopping.set()
        async with asyncio.timeout(2):
            with pytest.raises(httpx2.RemoteProtocolError, match="without sending complete message body"):
                await rest(body)


@pytest.mark.parametrize("url", ["/api/chat/{turn}/stream?startIndex=0", "/v1/responses/resp_{turn}?stream=true"])
async def test_a_new_reader_that_would_count_is_told_that_the_log_is_away(
    own_server: NatsServer, fragile: Gateway, key: TurnKey, url: str
) -> None:
    """503: its page has nothing to lose yet, and shows an error that somebody can act on."""
    await own_server.stop(SIGKILL)
    answer = await fragile.client.get(url.format(turn=key.turn))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "log_unavailable")


async def test_a_held_run_without_that_chunk_says_so_when_it_is_asked_again(
    own_server: NatsServer, fragile: Gateway, own_log: TurnLog, key: TurnKey
) -> None:
    """The response breaks off with nothing in it, and the next has the status that says why."""
    writer = Writer(own_log, key)
    await writer.open("a")
    await writer.end()
    await own_server.stop(SIGKILL)
    async with waiting(fragile, RUN.url(key.turn, 999), {}) as body:
        await own_server.start()
        with pytest.raises(httpx2.RemoteProtocolError, match="without sending complete message body"):
            await rest(body)
    again = await fragile.client.get(RUN.url(key.turn, 999))
    assert (again.status_code, again.json()["error"]["code"]) == (400, "cursor_invalid")


async def test_a_reader_that_comes_back_to_a_gateway_that_goes_away_is_sent_on(
    nats_url: str, connection: Connection, log: TurnLog, key: TurnKey, tenant: Tenant
) -> None:
    """200, a heartbeat and a clean end; whoever would be new here, or knows what a 503 is, gets that."""
    writer = Writer(log, key)
    await writer.open("a")
    draining = asyncio.Event()
    draining.set()
    url, headers = f"/v1/turns/{key.turn}/events", {"x-api-key": KEY}
    after = {"last-event-id": str(writer.chain.last)}
    async with asyncio.TaskGroup() as group:
        settings = Settings(nats_url=nats_url, api_keys=api_keys(tenant), linger_s=0)
        transport = httpx2.ASGITransport(
            app=app(build(settings, connection, group, draining, signature=TokenSigner(b"secret")))
        )
        async with httpx2.AsyncClient(transport=transport, base_url="http://x", headers=headers) as client:
            back = await client.get(url, headers=after)
            others = [
                await client.get(url),
                await client.head(url, headers=after),
                await client.get(f"{url}?dialect=text", headers=after),
                await client.get(f"{url}?dialect=anthropic", headers=after),
                await client.get(RESPONSE.url(key.turn, 1)),
                await client.get(RUN.whole.format(turn=key.turn)),
                await client.head(RUN.url(key.turn, 1)),
            ]
            # Broken off: without a server, there is no other word for a response that lacks its last part.
            with pytest.raises(AssertionError):
                await client.get(RUN.url(key.turn, 1))
    assert (back.status_code, back.content) == (200, HEARTBEAT)
    assert [other.status_code for other in others] == [503] * 7


async def test_a_reader_of_what_only_the_database_remembers_is_held_until_it_can_be_asked(
    gateway: Gateway, system: System, system_log: TurnLog, tenant: Tenant, new_gateway: NewGateway, persistence: Process
) -> None:
    """The turn has left the log, and persistence is away for a moment: a 503 would be just as final."""
    turn = (await gateway.client.post("/v1/turns", json={"message": "#sim words=5 rate=0"})).json()["turn"]
    before = await read(gateway.client, turn)
    await forget(gateway, system_log, TurnKey(tenant, TurnId(turn)))
    later = await new_gateway(system.nats_url, heartbeat_s=0.05, query_timeout_s=0.2)
    freeze(persistence)
    try:
        async with coming_back(later, turn, before.frames[0].seq) as body:
            persistence.signal(SIGCONT)
            events = parse(await rest(body))
    finally:
        persistence.signal(SIGCONT)
    assert told(event.raw for event in events) == told(frame.sent for frame in before.frames)


async def test_a_run_that_only_the_database_remembers_is_held_until_it_can_be_asked(
    gateway: Gateway, system: System, system_log: TurnLog, tenant: Tenant, new_gateway: NewGateway, persistence: Process
) -> None:
    """Nobody can say which turn it is: neither the log nor the history, for a moment."""
    turn = (await gateway.client.post("/v1/turns", json={"message": "#sim words=6 rate=0"})).json()["turn"]
    await read(gateway.client, turn)
    await forget(gateway, system_log, TurnKey(tenant, TurnId(turn)))
    whole = await shown(gateway, RUN.whole.format(turn=turn), 99)
    later = await new_gateway(system.nats_url, heartbeat_s=0.05, query_timeout_s=0.2)
    freeze(persistence)
    try:
        async with waiting(later, RUN.url(turn, 2), {}) as body:
            # So many that it was looked for meanwhile, and nobody could say.
            beats = 0
            while beats < 30:
                beats += (await anext(body)).count(HEARTBEAT)
            persistence.signal(SIGCONT)
            events = parse(await rest(body))
    finally:
        persistence.signal(SIGCONT)
    assert events[-1].data == whole[-1] == "[DONE]"
