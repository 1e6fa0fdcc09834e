"""GET /v1/turns/{turn}/events: every reader, wherever it was cut and whatever it comes back to, has every byte once."""

import asyncio
import socket
import time
from itertools import pairwise
from typing import cast

import httpx2
import pytest
from anthropic import NOT_GIVEN, AsyncAnthropic, AsyncStream
from anthropic.lib.streaming import AsyncMessageStream
from anthropic.types import ParsedMessage, RawMessageStreamEvent

from tailrace.gateway.streaming.event_stream import DISPATCH_S
from tailrace.proto.entries import Failure
from tailrace.proto.ids import SEQ_MAX, Tenant, TurnId, new_id
from tailrace.proto.nats import TurnLog
from tailrace.proto.subjects import TurnKey
from tests.harness.readers import data, history, is_read, read, reader, told
from tests.harness.sse_parser import EventStream, parse, turns_own
from tests.harness.system import System
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway, forget, on_shared_loop
from tests.promises import Connected, Story, judge, no_gap, no_repeat, one_end

BAD_CURSORS = [
    "abc",
    "-1",
    "+1",
    "1_0",
    " ",
    "1.0",
    "0x1",
    "٣",
    "1,2",
    str(2**63),
    str(2**64),
    "9" * 5000,
    "\x00",
    "NaN",
]


async def message_of(gateway: Gateway, turn: str) -> ParsedMessage[None]:
    """What the anthropic SDK makes of the dialect that is named after it: its own decoder, its own accumulator."""
    sdk = AsyncAnthropic(api_key="any", base_url=gateway.url)
    url = f"/v1/turns/{turn}/events?dialect=anthropic"
    async with gateway.client.stream("GET", url) as response:
        events = AsyncStream(
            cast_to=cast("type[RawMessageStreamEvent]", RawMessageStreamEvent), response=response, client=sdk
        )
        message = await AsyncMessageStream[None](events, output_format=NOT_GIVEN).get_final_message()
    await sdk.close()
    return message


def blocks(message: ParsedMessage[None]) -> list[dict[str, object]]:
    return [block.model_dump(exclude_none=True) for block in message.content]


def unchunked(body: bytes) -> bytes:
    """The content of a chunked body; fails when the last chunk is missing."""
    content = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert body == b"\r\n"
            return content
        content += body[:length]
        body = body[length + 2 :]


async def asked(gateway: Gateway, line: str) -> str:
    response = await gateway.client.post("/v1/turns", json={"message": line})
    assert response.status_code == 202, response.text
    turn: str = response.json()["turn"]
    return turn


async def test_a_reader_that_is_cut_at_any_entry_of_a_finished_turn_has_every_byte_once(
    gateway: Gateway, second_gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """Promises 1 and 2, for every cursor: the same gateway and another one carry on exactly there."""
    turn = await asked(gateway, "#sim words=12 rate=100 thinking=2 tool=look")
    key = TurnKey(tenant, TurnId(turn))
    uncut = await read(gateway.client, turn)
    readers = [reader("uncut", key, uncut)]
    for cut in range(1, len(uncut.frames)):
        first = await read(gateway.client, turn, most=cut)
        for place in (gateway, second_gateway):
            rest = await read(place.client, turn, first.frames[-1].seq)
            readers.append(reader(f"cut after {cut}", key, first, rest))
    verdict = judge(await history(system_log, key, *readers), (no_gap, no_repeat, one_end))
    assert verdict.is_green, verdict.evidence
    assert len(readers) > 20


@pytest.mark.rule("F5")
async def test_readers_that_are_cut_at_every_entry_of_a_running_turn_have_every_byte_once(
    gateway: Gateway, second_gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """Promises 1 and 2, while the turn is being written: reader n is cut after n entries and comes back elsewhere."""
    turn = await asked(gateway, "#sim words=30 rate=60")
    key = TurnKey(tenant, TurnId(turn))

    async def cut_after(cut: int) -> tuple[int, list[Connected]]:
        first = await read(gateway.client, turn, most=cut)
        rest = await read(second_gateway.client, turn, first.frames[-1].seq)
        return cut, [first, rest]

    pairs = await asyncio.gather(*(cut_after(cut) for cut in range(1, 31)))
    readers = [reader(f"cut after {cut}", key, *connections) for cut, connections in pairs]
    verdict = judge(await history(system_log, key, *readers), (no_gap, no_repeat, one_end))
    assert verdict.is_green, verdict.evidence


async def test_who_joins_late_gets_all_of_it(lone_gateway: Gateway, log: TurnLog, key: TurnKey) -> None:
    """A first visit without a cursor begins with the turn's first entry, however far the turn is."""
    writer = Writer(log, key)
    await writer.open(*"abcdefgh")
    late = asyncio.create_task(read(lone_gateway.client, key.turn))
    await until(lambda: is_read(log, key))
    await writer.say("i")
    await writer.end()
    assert told(frame.sent for frame in (await late).frames).text == "abcdefghi"


async def test_fifty_readers_at_once_see_the_same_bytes(gateway: Gateway, system_log: TurnLog, tenant: Tenant) -> None:
    """A turn is followed and rendered once for all of its readers, and none of them misses or repeats anything."""
    turn = await asked(gateway, "#sim words=200 rate=0")
    key = TurnKey(tenant, TurnId(turn))
    seen = await asyncio.gather(*(read(gateway.client, turn) for _ in range(50)))
    verdict = judge(
        await history(system_log, key, *(reader(f"{n}", key, one) for n, one in enumerate(seen))),
        (no_gap, no_repeat, one_end),
    )
    assert verdict.is_green, verdict.evidence
    assert {one.frames for one in seen} == {seen[0].frames}
    assert told(frame.sent for frame in seen[0].frames).text == " ".join(f"w{n:06}" for n in range(200))


@pytest.mark.parametrize("dialect", ["tailrace", "text", "anthropic"])
async def test_a_cursor_at_the_end_is_answered_204(
    nats_url: str, new_gateway: NewGateway, log: TurnLog, key: TurnKey, dialect: str
) -> None:
    """An EventSource comes back after every end; only 204 tells it to stay away. Also at a gateway new to the turn."""
    writer = Writer(log, key)
    await writer.open("a")
    end = await writer.end()
    url = f"/v1/turns/{key.turn}/events?dialect={dialect}&after={end}"
    for _ in range(2):
        fresh = await new_gateway(nats_url)
        answers = [await fresh.client.get(url) for _ in range(2)]
        assert [(answer.status_code, answer.content) for answer in answers] == [(204, b"")] * 2


async def test_a_reader_that_waits_at_the_last_entry_before_the_end_gets_the_end(
    lone_gateway: Gateway, log: TurnLog, key: TurnKey
) -> None:
    """A cursor that nothing follows yet waits; it is not an end."""
    writer = Writer(log, key)
    await writer.open("a")
    waiting = asyncio.create_task(read(lone_gateway.client, key.turn, writer.chain.last))
    await until(lambda: is_read(log, key))
    end = await writer.end()
    assert [frame.seq for frame in (await waiting).frames] == [end]


@on_shared_loop
@pytest.mark.parametrize("cursor", BAD_CURSORS)
async def test_a_cursor_that_is_no_number_of_ours_is_refused(shared_gateway: Gateway, cursor: str) -> None:
    """int() would take some of these; the stream never made any of them."""
    path = f"/v1/turns/{await asked(shared_gateway, '#sim words=1')}/events"
    answers = [await shared_gateway.client.get(path, params={"after": cursor})]
    if cursor.isprintable() and cursor.strip():
        answers.append(await shared_gateway.client.get(path, headers=[(b"last-event-id", cursor.encode())]))
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "cursor_invalid")


async def test_a_cursor_of_another_turn_or_of_the_future_is_refused(
    lone_gateway: Gateway, log: TurnLog, tenant: Tenant
) -> None:
    """Served from a foreign cursor a reader would miss what lies before it, without knowing."""
    mine, other = (Writer(log, TurnKey(tenant, TurnId(new_id()))) for _ in range(2))
    await mine.open("a")
    await other.open("b")
    await mine.say("c")
    for running in (True, False):
        for cursor in (other.chain.last, mine.chain.last + 1, SEQ_MAX):
            headers = {"last-event-id": str(cursor)}
            answer = await lone_gateway.client.get(f"/v1/turns/{mine.key.turn}/events", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "cursor_invalid"), (cursor, running)
        if running:
            await mine.end()


async def test_the_header_wins_over_the_query(lone_gateway: Gateway, log: TurnLog, key: TurnKey) -> None:
    """An EventSource keeps the URL that it was made with, and says in the header how far it has come since."""
    writer = Writer(log, key)
    await writer.open("a", "b")
    after_b = writer.chain.last
    end = await writer.end()
    path = f"/v1/turns/{key.turn}/events"
    both = await lone_gateway.client.get(path, params={"after": 1}, headers={"last-event-id": str(after_b)})
    query = await lone_gateway.client.get(path, params={"after": after_b})
    assert [event.id for event in parse(both.content)] == [event.id for event in parse(query.content)] == [end]


@pytest.mark.parametrize(
    ("dialect", "media_type"),
    [
        ("tailrace", "text/event-stream"),
        ("anthropic", "text/event-stream"),
        ("text", "text/plain; charset=utf-8"),
    ],
)
async def test_a_stream_has_headers_that_keep_proxies_from_holding_it_back(
    lone_gateway: Gateway, log: TurnLog, key: TurnKey, dialect: str, media_type: str
) -> None:
    """What SSE clients and proxies need: no cache, no transformation, no buffering; and the turn is named."""
    writer = Writer(log, key)
    await writer.open("a")
    await writer.end()
    answer = await lone_gateway.client.get(f"/v1/turns/{key.turn}/events?dialect={dialect}")
    names = ("content-type", "cache-control", "x-accel-buffering", "tailrace-turn", "transfer-encoding")
    assert {name: answer.headers[name] for name in names} == {
        "content-type": media_type,
        "cache-control": "no-cache, no-store, no-transform",
        "x-accel-buffering": "no",
        "tailrace-turn": key.turn,
        "transfer-encoding": "chunked",
    }


@pytest.mark.rule("R15")
async def test_only_what_is_stored_has_an_id(
    nats_url: str, new_gateway: NewGateway, log: TurnLog, key: TurnKey
) -> None:
    """A cursor is an entry's sequence: each id is one of the log's, they go up, and a heartbeat has none."""
    gateway = await new_gateway(nats_url, heartbeat_s=0.02)
    writer = Writer(log, key)
    await writer.open("a")
    async with gateway.client.stream("GET", f"/v1/turns/{key.turn}/events?dialect=anthropic") as response:
        stream, events = EventStream(), []
        async for received in response.aiter_raw():
            events += stream.feed(received)
            if not writer.chain.is_ended and [event.event for event in events].count("ping") >= 3:
                await writer.end()
    stored = {one.seq for one in await log.replay(key)}
    ids = [event.id for event in events if event.id is not None]
    assert set(ids) <= stored
    assert all(first < second for first, second in pairwise(ids))
    assert {event.event for event in events if event.id is None} == {"ping", "message_delta"}


@pytest.mark.parametrize(
    ("dialect", "heartbeat"),
    [("tailrace", b": hb\n"), ("anthropic", b'event: ping\ndata: {"type":"ping"}\n\n'), ("text", b"")],
)
async def test_silence_is_filled_in_each_dialects_legal_form(
    nats_url: str, new_gateway: NewGateway, log: TurnLog, key: TurnKey, dialect: str, heartbeat: bytes
) -> None:
    """A proxy that gives up in silence would give up on a model that thinks. Bare text has no word for it."""
    gateway = await new_gateway(nats_url, heartbeat_s=0.02)
    quiet = await new_gateway(nats_url)
    writer = Writer(log, key)
    await writer.ask()
    url = f"/v1/turns/{key.turn}/events?dialect={dialect}"
    async with gateway.client.stream("GET", url) as response:
        body = response.aiter_raw()
        received = b""
        while heartbeat and received.count(heartbeat) < 3:
            received += await anext(body)
        await writer.begin("a")
        await writer.end()
        received += b"".join([piece async for piece in body])
    undisturbed = turns_own((await quiet.client.get(url)).content)
    assert turns_own(received.replace(heartbeat, b"") if heartbeat else received) == undisturbed


async def test_a_slow_model_is_waited_for_with_heartbeats(
    system: System, gateway: Gateway, new_gateway: NewGateway
) -> None:
    """The first frame says that the turn is in the log; what follows until the first delta are comments."""
    impatient = await new_gateway(system.nats_url, heartbeat_s=0.05)
    turn = await asked(gateway, "#sim words=2 wait=0.5 rate=0")
    stream = EventStream()
    async with impatient.client.stream("GET", f"/v1/turns/{turn}/events") as response:
        events = [event async for received in response.aiter_raw() for event in stream.feed(received)]
    assert data(events[0].raw)["type"] == "start"
    assert told(event.raw for event in events).text == "w000000 w000001"
    assert len(stream.comments) >= 5


async def test_every_dialect_tells_one_story(gateway: Gateway, system_log: TurnLog, tenant: Tenant) -> None:
    """Promise 4: the text of the three dialects, of the fold and of GET are the same, and so is the usage."""
    turn = await asked(gateway, "#sim words=50 rate=0 thinking=3 tool=look")
    key = TurnKey(tenant, TurnId(turn))
    tailrace = await read(gateway.client, turn)
    folded = await system_log.turn(key)
    text = (await gateway.client.get(f"/v1/turns/{turn}/events?dialect=text")).text
    message = await message_of(gateway, turn)
    record = (await gateway.client.get(f"/v1/turns/{turn}")).json()
    assert told(frame.sent for frame in tailrace.frames) == Story(folded.text, folded.usage, "completed")
    assert text == folded.text == record["text"] == " ".join(f"w{n:06}" for n in range(50))
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert blocks(message) == record["content"]
    assert message.usage.output_tokens == record["usage"]["output_tokens"]
    assert message.stop_reason == record["stop_reason"]


@pytest.fixture
async def restarted(log: TurnLog, key: TurnKey) -> Writer:
    """A turn whose first attempt said "ab" and broke; the second has not begun to speak."""
    writer = Writer(log, key)
    await writer.open("a", "b")
    return writer


async def restart(writer: Writer) -> None:
    await writer.begin("c", mode="restart")
    await writer.end()


@pytest.mark.rule("R21")
async def test_a_restart_is_a_reset_to_a_reader_of_tailrace(
    lone_gateway: Gateway, restarted: Writer, log: TurnLog, key: TurnKey
) -> None:
    """It forgets the text so far and goes on in the same connection."""
    reading = asyncio.create_task(read(lone_gateway.client, key.turn))
    await until(lambda: is_read(log, key))
    await restart(restarted)
    sent = [frame.sent for frame in (await reading).frames]
    assert [data(one)["type"] for one in sent] == ["start", "delta", "delta", "reset", "delta", "done"]
    assert told(sent).text == "c"


async def test_a_restart_breaks_bare_text_off(
    lone_gateway: Gateway, restarted: Writer, log: TurnLog, key: TurnKey
) -> None:
    """Bare text cannot take back what it said: the client sees a broken body, asks again, and gets the new answer."""
    url = f"/v1/turns/{key.turn}/events?dialect=text"
    async with lone_gateway.client.stream("GET", url) as response:
        body = response.aiter_raw()
        assert await anext(body) == b"ab"
        await restart(restarted)
        with pytest.raises(httpx2.RemoteProtocolError):
            await anext(body)
    assert (await lone_gateway.client.get(url)).text == "c"


async def test_a_restart_breaks_the_anthropic_sdks_off(
    lone_gateway: Gateway, restarted: Writer, log: TurnLog, key: TurnKey
) -> None:
    """Their protocol has no word for it; a new reader, and one that comes back, sees the new answer alone (ADR 14)."""
    reading = asyncio.create_task(read(lone_gateway.client, key.turn, dialect="anthropic"))
    await until(lambda: is_read(log, key))
    await restart(restarted)
    broken = await reading
    assert broken.over == "cut"
    assert data(broken.frames[-1].sent) == {"type": "ping"}
    assert blocks(await message_of(lone_gateway, key.turn)) == [{"type": "text", "text": "c"}]
    rest = await read(lone_gateway.client, key.turn, broken.frames[-1].seq, dialect="anthropic")
    assert (data(rest.frames[0].sent)["type"], rest.over) == ("message_start", "ended")


async def test_a_turn_that_failed_is_an_error_in_every_dialect(
    lone_gateway: Gateway, log: TurnLog, key: TurnKey
) -> None:
    """Nobody may take half an answer for a whole one."""
    writer = Writer(log, key)
    await writer.open("a")
    await writer.end("failed", Failure("backend_overloaded", "Claude is overloaded"))
    url = f"/v1/turns/{key.turn}/events"
    tailrace = parse((await lone_gateway.client.get(url)).content)[-1]
    anthropic = parse((await lone_gateway.client.get(url, params={"dialect": "anthropic"})).content)[-1]
    told_tailrace = {name: data(tailrace.raw)[name] for name in ("type", "code", "message")}
    assert told_tailrace == {"type": "error", "code": "backend_overloaded", "message": "Claude is overloaded"}
    assert data(anthropic.raw)["error"] == {"type": "overloaded_error", "message": "Claude is overloaded"}
    with pytest.raises(httpx2.RemoteProtocolError):
        await lone_gateway.client.get(url, params={"dialect": "text"})


async def test_who_is_broken_off_has_had_time_to_take_the_error(
    lone_gateway: Gateway, log: TurnLog, key: TurnKey
) -> None:
    """A browser forgets what its page has not read yet when a body is cut short, so the cut comes a moment later."""
    writer = Writer(log, key)
    await writer.open("a")
    await writer.end("failed", Failure("backend_overloaded", "Claude is overloaded"))
    url = f"/v1/turns/{key.turn}/events?dialect=content"
    async with lone_gateway.client.stream("GET", url) as answer:
        pieces = answer.aiter_raw()
        told = b""
        while b"overloaded" not in told:
            told += await anext(pieces)
        told_at = time.monotonic()
        with pytest.raises(httpx2.RemoteProtocolError):
            await anext(pieces)
    assert time.monotonic() - told_at > DISPATCH_S / 2


@pytest.mark.rule("F24")
async def test_a_reader_that_reads_nothing_harms_nobody_and_gets_everything_later(
    lone_gateway: Gateway, log: TurnLog, key: TurnKey
) -> None:
    """A reader is an index: the turn goes on, others read it to its end, and the slow one is not dropped."""
    writer = Writer(log, key)
    await writer.open("a")
    headers = f"host: x\r\nx-api-key: {KEY}\r\nconnection: close\r\n\r\n"
    asking = f"GET /v1/turns/{key.turn}/events?dialect=text HTTP/1.1\r\n{headers}"
    slow = socket.create_connection(("127.0.0.1", lone_gateway.port))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    slow.sendall(asking.encode())
    others = [asyncio.create_task(read(lone_gateway.client, key.turn)) for _ in range(3)]
    await until(lambda: is_read(log, key))
    text = "".join(f"{n:099999} " for n in range(80))
    for start in range(0, len(text), 100_000):
        await writer.say(text[start : start + 100_000])
    await writer.end()
    for other in others:
        assert told(frame.sent for frame in (await other).frames).text == "a" + text
    reader_, writer_ = await asyncio.open_connection(sock=slow)
    try:
        body = (await reader_.read()).partition(b"\r\n\r\n")[2]
    finally:
        writer_.close()
    assert unchunked(body) == ("a" + text).encode()


@pytest.mark.rule("F32")
async def test_a_turn_that_has_left_the_log_is_told_from_the_database(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, new_gateway: NewGateway, system: System
) -> None:
    """Reset, the whole text, the end with its id; and at that id there is nothing more. Whatever the cursor was."""
    turn = await asked(gateway, "#sim words=20 rate=0")
    key = TurnKey(tenant, TurnId(turn))
    before = await read(gateway.client, turn)
    record = (await gateway.client.get(f"/v1/turns/{turn}")).json()
    await forget(gateway, system_log, key)
    later = await new_gateway(system.nats_url)
    for cursor in (0, *(frame.seq for frame in before.frames[:-1])):
        headers = {"last-event-id": str(cursor)}
        events = parse((await later.client.get(f"/v1/turns/{turn}/events", headers=headers)).content)
        assert [data(event.raw)["type"] for event in events] == ["reset", "delta", "done"]
        assert [event.id for event in events] == [None, None, before.frames[-1].seq]
        assert told(event.raw for event in events) == told(frame.sent for frame in before.frames)
        assert data(events[-1].raw) == data(before.frames[-1].sent)
    assert await read(later.client, turn, before.frames[-1].seq) == Connected(before.frames[-1].seq, (), "ended")
    beyond = await later.client.get(f"/v1/turns/{turn}/events?after={before.frames[-1].seq + 1}")
    assert (beyond.status_code, beyond.json()["error"]["code"]) == (400, "cursor_invalid")
    assert (await later.client.get(f"/v1/turns/{turn}/events?dialect=text")).text == record["text"]
    message = await message_of(later, turn)
    assert blocks(message) == record["content"]
    assert (await later.client.get(f"/v1/turns/{turn}")).json() == record


async def test_half_an_answer_that_has_left_the_log_is_broken_off_in_bare_text(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, new_gateway: NewGateway, system: System
) -> None:
    """As it was when it came from the log: what is told from the database looks no better than it was."""
    body = {"message": "#sim words=9 rate=0 fault=cut@3", "on_interrupt": "fail"}
    turn = (await gateway.client.post("/v1/turns", json=body)).json()["turn"]
    assert (await read(gateway.client, turn)).over == "ended"
    await forget(gateway, system_log, TurnKey(tenant, TurnId(turn)))
    later = await new_gateway(system.nats_url)
    async with later.client.stream("GET", f"/v1/turns/{turn}/events?dialect=text") as response:
        received = response.aiter_raw()
        assert (await anext(received)).startswith(b"w000000")
        with pytest.raises(httpx2.RemoteProtocolError):
            await anext(received)


@pytest.mark.rule("F32")
async def test_a_turn_whose_beginning_has_left_the_log_is_told_from_the_database_or_goes_on(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, new_gateway: NewGateway, system: System
) -> None:
    """Retention takes entries one by one: who has a cursor gets the rest, and who has none the whole."""
    turn = await asked(gateway, "#sim words=20 rate=0")
    key = TurnKey(tenant, TurnId(turn))
    before = await read(gateway.client, turn)
    await forget(gateway, system_log, key, before=before.frames[2].seq)
    later = await new_gateway(system.nats_url)
    rest = await read(later.client, turn, before.frames[2].seq)
    anew = parse((await later.client.get(f"/v1/turns/{turn}/events")).content)
    assert rest.frames == before.frames[3:]
    assert [data(event.raw)["type"] for event in anew] == ["reset", "delta", "done"]
    assert told(event.raw for event in anew) == told(frame.sent for frame in before.frames)
