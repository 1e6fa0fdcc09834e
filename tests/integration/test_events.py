"""GET /v1/turns/{turn}/events: cursors, heartbeats, slow readers, long turns, subscriptions, turns out of the log."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, cast

import httpx2
import pytest
from anthropic import NOT_GIVEN, AsyncAnthropic, AsyncStream
from anthropic.lib.streaming import AsyncMessageStream
from anthropic.types import ParsedMessage, RawMessageStreamEvent

from tailrace.gateway.http.last_event_id import QUERY_NAMES
from tailrace.gateway.streaming import writer as frame_writer
from tailrace.gateway.streaming.dialect import Dialect, Frame
from tailrace.gateway.streaming.feed import TurnFeed
from tailrace.gateway.streaming.writer import DISPATCH_S
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Entry, Failure, StoredEntry
from tailrace.proto.errors import LogFull
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.nats import TurnLog, jetstream_log
from tailrace.proto.nats.log_server import PAGE_MAX, EntryPage, LiveFeed
from tailrace.proto.ownership import ScopedKey
from tests.harness.generator_in_loop import words
from tests.harness.readers import build_reader, decode_data, is_read, read, read_history, story_of
from tests.harness.sse_parser import EventStream, parse, without_retry
from tests.harness.system import System
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway, forget, on_shared_loop
from tests.promises import ReaderConnection, Story, judge, no_gap, no_repeat, one_end


def url_of(key: TurnKey, dialect: str = "tailrace") -> str:
    return f"/v1/turns/{key.turn}/events?dialect={dialect}"


async def post(gateway: Gateway, tenant: Tenant, line: str) -> TurnKey:
    answer = await gateway.client.post("/v1/turns", json={"message": line})
    assert answer.status_code == 202, answer.text
    return TurnKey(tenant, TurnId(answer.json()["turn"]))


def text_of(connected: ReaderConnection) -> str:
    return story_of(frame.sent for frame in connected.frames).text


async def message_of(gateway: Gateway, key: TurnKey) -> ParsedMessage[None]:
    """Returns the message that Anthropic's SDK accumulates from the dialect `anthropic`."""
    sdk = AsyncAnthropic(api_key="any", base_url=gateway.url)
    async with gateway.client.stream("GET", url_of(key, "anthropic")) as response:
        event_type = cast("type[RawMessageStreamEvent]", RawMessageStreamEvent)
        events = AsyncStream(cast_to=event_type, response=response, client=sdk)
        message = await AsyncMessageStream[None](events, output_format=NOT_GIVEN).get_final_message()
    await sdk.close()
    return message


def blocks(message: ParsedMessage[None]) -> list[dict[str, Any]]:
    return [block.model_dump(exclude_none=True) for block in message.content]


async def test_fifty_readers_and_every_dialect_get_one_story(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    key = await post(gateway, tenant, "#sim words=200 rate=0 thinking=3 tool=look")
    seen = await asyncio.gather(*(read(gateway.client, key.turn) for _ in range(50)))
    readers = [build_reader(f"{number}", key, one) for number, one in enumerate(seen)]
    verdict = judge(await read_history(system_log, key, *readers), (no_gap, no_repeat, one_end))
    assert verdict.is_green, verdict.evidence
    assert {one.frames for one in seen} == {seen[0].frames}
    folded = await system_log.read_turn(ScopedKey.whole(key))
    assert story_of(frame.sent for frame in seen[0].frames) == Story(folded.text, folded.usage, "completed")
    record = (await gateway.client.get(f"/v1/turns/{key.turn}")).json()
    text = (await gateway.client.get(url_of(key, "text"))).text
    assert text == folded.text == record["text"] == words(200)
    message = await message_of(gateway, key)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert blocks(message) == record["content"]
    assert message.usage.output_tokens == record["usage"]["output_tokens"]
    assert message.stop_reason == record["stop_reason"]


async def test_a_reader_whose_cursor_is_the_last_entry_waits_for_the_next(
    lone_gateway: Gateway, log: TurnLog, writer: Writer
) -> None:
    await writer.open("a")
    waiting = asyncio.create_task(read(lone_gateway.client, writer.key.turn, writer.chain.last))
    await until(lambda: is_read(log, writer.key))
    end = await writer.end()
    assert [frame.seq for frame in (await waiting).frames] == [end]


# int() accepts some of them.
INVALID_CURSORS = [
    *("abc", "-1", "+1", "1_0", " ", "1.0", "0x1", "٣", "1,2", "\x00", "NaN"),
    *(str(2**63), str(2**64), "9" * 5000),
]


@on_shared_loop
async def test_an_invalid_cursor_is_refused(shared_gateway: Gateway) -> None:
    url = url_of(await post(shared_gateway, Tenant("shared"), "#sim words=1"))
    for cursor in INVALID_CURSORS:
        answers = [await shared_gateway.client.get(url, params={"after": cursor})]
        if cursor.isprintable() and cursor.strip():
            answers.append(await shared_gateway.client.get(url, headers=[(b"last-event-id", cursor.encode())]))
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "cursor_invalid"), cursor


async def test_the_cursor_of_the_header_precedes_that_of_the_query(lone_gateway: Gateway, writer: Writer) -> None:
    """An EventSource keeps its URL and sends its cursor in the header."""
    await writer.open("a", "b")
    after_b = writer.chain.last
    end = await writer.end()
    headers = {"last-event-id": str(after_b)}
    both = await lone_gateway.client.get(url_of(writer.key), params={"after": 1}, headers=headers)
    query = await lone_gateway.client.get(url_of(writer.key), params={"after": after_b})
    assert [event.id for event in parse(both.content)] == [event.id for event in parse(query.content)] == [end]


@pytest.mark.rule("R15")
async def test_a_cursor_has_the_query_names_of_polyfills_on_all_streams_of_a_turn(
    lone_gateway: Gateway, writer: Writer
) -> None:
    """They count before `after`, which the page's own URL may have, and after the header. The last value counts."""
    await writer.open("a", "b")
    after_b = writer.chain.last
    end = await writer.end()
    job = f"/api/stream/{writer.key.turn}"
    for name in QUERY_NAMES:
        queries = [
            f"{name}={after_b}",
            f"after=1&{name}={after_b}",
            f"{name}=1&{name}={after_b}",
            f"{name}=&after={after_b}",
        ]
        for query in queries:
            rest = await lone_gateway.client.get(f"{url_of(writer.key)}&{query}")
            assert (rest.status_code, [event.id for event in parse(rest.content)]) == (200, [end]), query
        header = {"last-event-id": str(after_b)}
        rest = await lone_gateway.client.get(f"{url_of(writer.key)}&{name}=1", headers=header)
        assert [event.id for event in parse(rest.content)] == [end]
        rest = await lone_gateway.client.get(f"{job}?{name}={after_b}")
        assert rest.content == (await lone_gateway.client.get(job, headers=header)).content
        for url in (url_of(writer.key), f"{job}?"):
            refused = await lone_gateway.client.get(f"{url}&{name}=x")
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "cursor_invalid")
        # A POST with a cursor never starts a turn.
        for path in ("/v1/turns", "/v1/messages", "/api/chat", "/chat/stream", "/ai/chat"):
            body = {"message": "a", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
            refused = await lone_gateway.client.post(f"{path}?{name}=x", json=body)
            assert "is not a query parameter" not in refused.text, path


SAFARI = "Mozilla/5.0 (Macintosh) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.0 Safari/605.1.15"
CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36"


async def test_a_stream_that_an_event_source_of_webkit_resumes_begins_with_the_end_of_a_cut_event(
    lone_gateway: Gateway, writer: Writer
) -> None:
    """The same EventSource without a cursor, those of other browsers, and `fetch` in Safari get the events alone."""
    await writer.open("one")
    after_one = writer.chain.last
    await writer.store_texts("two")
    await writer.end()
    cursor = {"last-event-id": str(after_one)}
    event_source = {"accept": "text/event-stream", "cache-control": "no-cache"}
    requests = [
        {"user-agent": SAFARI, **event_source, **cursor},
        {"user-agent": SAFARI, **event_source},
        {"user-agent": CHROME, **event_source, **cursor},
        {"user-agent": SAFARI, "accept": "text/event-stream", **cursor},
    ]
    url = url_of(writer.key, "anthropic")
    first, *others = [(await lone_gateway.client.get(url, headers=headers)).content for headers in requests]
    assert first == b":\nevent: discard\nid: %d\n\n" % after_one + others[1]
    assert not any(b"discard" in other for other in others)


async def test_stream_headers_forbid_caching_and_buffering(lone_gateway: Gateway, writer: Writer) -> None:
    await writer.open("a")
    await writer.end()
    for dialect in ("tailrace", "anthropic", "text"):
        headers = (await lone_gateway.client.get(url_of(writer.key, dialect))).headers
        expected = {
            "content-type": "text/plain; charset=utf-8" if dialect == "text" else "text/event-stream",
            "cache-control": "no-cache, no-store, no-transform",
            "x-accel-buffering": "no",
            "tailrace-turn": writer.key.turn,
            "transfer-encoding": "chunked",
        }
        assert {name: headers[name] for name in expected} == expected


@pytest.mark.rule("R15")
@pytest.mark.parametrize(
    ("dialect", "heartbeat"),
    [("tailrace", b": hb\n"), ("anthropic", b'event: ping\ndata: {"type":"ping"}\n\n'), ("text", b"")],
)
async def test_heartbeats_fill_silence_and_have_no_id(
    nats_url: str, new_gateway: NewGateway, log: TurnLog, writer: Writer, dialect: str, heartbeat: bytes
) -> None:
    gateway, without = await new_gateway(nats_url, heartbeat_s=0.02), await new_gateway(nats_url)
    await writer.store_request()
    url = url_of(writer.key, dialect)
    async with gateway.client.stream("GET", url) as response:
        body = response.aiter_raw()
        received = b""
        while heartbeat and received.count(heartbeat) < 3:
            received += await anext(body)
        await writer.begin("a")
        await writer.end()
        received += b"".join([piece async for piece in body])
    undisturbed = without_retry((await without.client.get(url)).content)
    assert without_retry(received.replace(heartbeat, b"") if heartbeat else received) == undisturbed
    if heartbeat:
        events = EventStream().feed(received)
        ids = [event.id for event in events if event.id is not None]
        assert set(ids) <= {one.seq for one in await log.read_entries(ScopedKey.whole(writer.key))}
        assert all(first < second for first, second in pairwise(ids))
        # Of several events of one entry only the last has the id.
        assert {event.event for event in events if event.id is None} <= {"ping", "message_delta"}


async def test_a_failed_turn_breaks_plain_text_off_after_the_client_could_read_the_error(
    lone_gateway: Gateway, writer: Writer
) -> None:
    """A browser drops what its page has not read yet when a body is cut short: the cut comes `DISPATCH_S` later."""
    await writer.open("a")
    await writer.end("failed", Failure("backend_overloaded", "Claude is overloaded"))
    with pytest.raises(httpx2.RemoteProtocolError):
        await lone_gateway.client.get(url_of(writer.key, "text"))
    async with lone_gateway.client.stream("GET", url_of(writer.key, "content")) as answer:
        pieces = answer.aiter_raw()
        received = b""
        while b"overloaded" not in received:
            received += await anext(pieces)
        received_at = time.monotonic()
        with pytest.raises(httpx2.RemoteProtocolError):
            await anext(pieces)
    assert time.monotonic() - received_at > DISPATCH_S / 2


def decode_chunked(body: bytes) -> bytes:
    """Returns the content of a chunked body; fails when the last chunk is missing."""
    content = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert body == b"\r\n"
            return content
        content += body[:length]
        body = body[length + 2 :]


@pytest.mark.rule("F24")
async def test_a_reader_that_reads_nothing_does_not_delay_others_and_gets_everything_later(
    lone_gateway: Gateway, log: TurnLog, writer: Writer
) -> None:
    await writer.open("a")
    head = f"GET {url_of(writer.key, 'text')} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\nconnection: close\r\n\r\n"
    slow = socket.create_connection(("127.0.0.1", lone_gateway.port))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    slow.sendall(head.encode())
    others = [asyncio.create_task(read(lone_gateway.client, writer.key.turn)) for _ in range(3)]
    await until(lambda: is_read(log, writer.key))
    text = "".join(f"{number:099999} " for number in range(80))
    for start in range(0, len(text), 100_000):
        await writer.store_texts(text[start : start + 100_000])
    await writer.end()
    for other in others:
        assert text_of(await other) == "a" + text
    slow_reader, slow_writer = await asyncio.open_connection(sock=slow)
    try:
        body = (await slow_reader.read()).partition(b"\r\n\r\n")[2]
    finally:
        slow_writer.close()
    assert decode_chunked(body) == ("a" + text).encode()


@pytest.mark.rule("F32")
async def test_a_turn_that_has_left_the_log_comes_from_the_database(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, new_gateway: NewGateway, system: System
) -> None:
    """From any cursor: a reset, the whole text, and the end with its id, which is the last cursor."""
    key = await post(gateway, tenant, "#sim words=20 rate=0")
    before = await read(gateway.client, key.turn)
    end = before.frames[-1]
    record = (await gateway.client.get(f"/v1/turns/{key.turn}")).json()
    await forget(gateway, system_log, key)
    later = await new_gateway(system.nats_url)
    for cursor in (0, *(frame.seq for frame in before.frames[:-1])):
        answer = await later.client.get(url_of(key), headers={"last-event-id": str(cursor)})
        events = parse(answer.content)
        assert [decode_data(event.raw)["type"] for event in events] == ["reset", "delta", "done"]
        assert [event.id for event in events] == [None, None, end.seq]
        assert story_of(event.raw for event in events) == story_of(frame.sent for frame in before.frames)
        assert decode_data(events[-1].raw) == decode_data(end.sent)
    assert await read(later.client, key.turn, end.seq) == ReaderConnection(end.seq, (), "ended")
    beyond = await later.client.get(url_of(key), params={"after": end.seq + 1})
    assert (beyond.status_code, beyond.json()["error"]["code"]) == (400, "cursor_invalid")
    assert (await later.client.get(url_of(key, "text"))).text == record["text"]
    assert blocks(await message_of(later, key)) == record["content"]
    assert (await later.client.get(f"/v1/turns/{key.turn}")).json() == record


@pytest.mark.rule("F32")
async def test_a_turn_whose_first_entries_have_left_the_log_comes_from_the_database(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, new_gateway: NewGateway, system: System
) -> None:
    """Retention removes single entries. Without the first ones, no reader can know that a cursor is no fork's."""
    key = await post(gateway, tenant, "#sim words=20 rate=0")
    before = await read(gateway.client, key.turn)
    await forget(gateway, system_log, key, before=before.frames[2].seq)
    later = await new_gateway(system.nats_url)
    assert len(before.frames) > 3
    for cursor in (0, before.frames[2].seq):
        answer = await later.client.get(url_of(key), headers={"last-event-id": str(cursor)})
        events = parse(answer.content)
        assert [decode_data(event.raw)["type"] for event in events] == ["reset", "delta", "done"]
        assert story_of(event.raw for event in events) == story_of(frame.sent for frame in before.frames)


AT_ONCE = 4


@pytest.mark.parametrize(
    "path",
    [
        "/v1/turns/{turn}/events",
        "/v1/turns/{turn}/events?dialect=job&after={last}",
        "/v1/responses/resp_{turn}?stream=true&starting_after=30",
    ],
)
async def test_a_long_turn_is_rendered_in_pieces(
    monkeypatch: pytest.MonkeyPatch, lone_gateway: Gateway, log: TurnLog, key: TurnKey, path: str
) -> None:
    """Entries before the cursor too: rendering 10,000 entries at once blocked the loop for a quarter of a second."""
    monkeypatch.setattr(frame_writer, "FRAMES_MAX", AT_ONCE)
    writer = Writer(log, key)
    await writer.open(*["word "] * 40)
    last = writer.chain.last
    await writer.end()
    rendered: Counter[int] = Counter()
    turns = 0

    frames = TurnFeed.frames

    def count_renderings(self: TurnFeed, dialect: Dialect, *bounds: int) -> list[Frame]:
        def render(state: Any, stored: StoredEntry) -> tuple[Frame, Any]:
            rendered[turns] += 1
            return dialect.render(state, stored)

        return frames(self, dialect._replace(render=render), *bounds)

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(TurnFeed, "frames", count_renderings)
    counting = asyncio.create_task(count())
    answer = await lone_gateway.client.get(path.format(turn=key.turn, last=last))
    counting.cancel()
    assert answer.status_code == 200
    assert rendered.total() > 40
    assert max(rendered.values()) <= AT_ONCE


STREAM = {"accept": "text/event-stream"}


@pytest.mark.rule("R16")
@pytest.mark.usefixtures("generator")
@pytest.mark.parametrize("is_late", [False, True], ids=["", "late"])
@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "key-1"}], ids=["", "idempotent"])
async def test_the_stream_of_a_new_turn_reads_nothing_from_the_log(
    system: System, new_gateway: NewGateway, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], *, is_late: bool
) -> None:
    """Its generator is another process. A second reader shares the feed.

    On a busy machine, the turn may have ended before its gateway goes on after the append.
    """
    # On a busy machine, the second reader and the count of the turn's entries come late.
    gateway = await new_gateway(system.nats_url, linger_s=20)
    monkeypatch.setattr(jetstream_log, "COUNT_TIMEOUT_S", 10)
    reads = list[TurnKey]()

    async def read(self: TurnLog, key: TurnKey, after: Seq, limit: int = PAGE_MAX) -> EntryPage:
        reads.append(key)
        return await original(self, key, after, limit)

    async def append(self: TurnLog, key: TurnKey, chain: Chain, entry: Entry) -> Chain:
        appended = await original_append(self, key, chain, entry)
        if is_late:
            await until(lambda: self.has_end(key))
        return appended

    original, original_append = TurnLog.read, TurnLog.append
    monkeypatch.setattr(TurnLog, "read", read)
    monkeypatch.setattr(TurnLog, "append", append)
    answer = await gateway.client.post("/v1/turns", json={"message": "#sim words=5 rate=0"}, headers=STREAM | headers)
    received = [one.raw for one in parse(answer.content)]
    assert story_of(received).text == words(5)
    events = await gateway.client.get(f"{answer.headers['location']}/events")
    assert [one.raw for one in parse(events.content)] == received
    assert reads == []


async def test_a_turn_that_cannot_be_stored_leaves_no_subscription(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, closed = list[TurnKey](), list[TurnKey]()

    @asynccontextmanager
    async def subscribe(self: TurnLog, key: TurnKey, kind: str = ">") -> AsyncIterator[LiveFeed]:
        try:
            async with original(self, key, kind) as feed:
                opened.append(key)
                yield feed
        finally:
            closed.append(key)

    async def refuse(*_: object, **__: object) -> Chain:
        assert len(opened) == 1
        raise LogFull("the log is full")

    original = TurnLog.subscribe
    monkeypatch.setattr(TurnLog, "subscribe", subscribe)
    monkeypatch.setattr(TurnLog, "append", refuse)
    answer = await gateway.client.post("/v1/turns", json={"message": "hello"}, headers=STREAM)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "log_full")
    assert closed == opened
