"""Readers for the promises: what one connection received, and the text that a client makes of it."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import httpx2
import msgspec

from tailrace.features.gateway import DIALECTS
from tailrace.gateway.streaming.dialect import Dialect
from tailrace.proto.chain import START, link
from tailrace.proto.entries import StoredEntry
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tailrace.proto.nats import Connection, Rpc, TurnLog
from tailrace.proto.nats.users import GATEWAY
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import TurnRecord
from tailrace.proto.usage import Usage
from tests.harness.processes import as_user
from tests.harness.sse_parser import EventStream, SseEvent
from tests.promises import Frame, History, Reader, ReaderConnection, Story

ENDS = ('{"type":"done"', '{"type":"error"', '{"type":"message_stop"')


async def read(
    client: httpx2.AsyncClient,
    turn: str,
    cursor: int = BEFORE_FIRST,
    *,
    dialect: str = "tailrace",
    most: int | None = None,
) -> ReaderConnection:
    """Reads the stream of `turn` over one connection, and disconnects after `most` frames."""
    headers = {"last-event-id": str(cursor)} if cursor else {}
    url = f"/v1/turns/{turn}/events?dialect={dialect}"
    async with client.stream("GET", url, headers=headers) as response:
        return await receive(response, Seq(cursor), most=most)


async def read_bytes(client: httpx2.AsyncClient, url: str) -> bytes:
    """Returns the body of a stream, also of one that breaks off."""
    body = b""
    with suppress(httpx2.RemoteProtocolError):
        async with client.stream("GET", url, headers={"accept": "text/event-stream"}) as response:
            assert response.status_code == 200, await response.aread()
            async for received in response.aiter_raw():
                body += received
    return body


async def receive(
    response: httpx2.Response,
    cursor: Seq = BEFORE_FIRST,
    *,
    most: int | None = None,
    on_data: Callable[[list[SseEvent]], None] = lambda _: None,
) -> ReaderConnection:
    """Reads one connection. Calls `on_data` with the events of each piece of data, which may be none."""
    if response.status_code == 204:
        return ReaderConnection(cursor, (), "ended")
    assert response.status_code == 200, await response.aread()
    stream = EventStream()
    events: list[SseEvent] = []
    try:
        async for received in response.aiter_raw():
            events += (new := stream.feed(received))
            on_data(new)
            if most is not None and len(frames(events)) >= most:
                return ReaderConnection(cursor, tuple(frames(events)[:most]), "left")
    except httpx2.RemoteProtocolError:
        return ReaderConnection(cursor, tuple(frames(events)), "cut")
    assert stream.rest == b"", f"the stream ends within an event: {stream.rest!r}"
    is_ended = bool(events) and events[-1].data.startswith(ENDS)
    return ReaderConnection(cursor, tuple(frames(events)), "ended" if is_ended else "cut")


def frames(events: Iterable[SseEvent]) -> list[Frame]:
    """Groups events by entry: of several events of one entry the last has the id."""
    found: list[Frame] = []
    raw = b""
    for event in events:
        if event.event == "ping" and event.id is None:
            continue
        raw += event.raw
        if event.id is not None:
            found.append(Frame(Seq(event.id), raw))
            raw = b""
    return found


def render_frames(
    key: TurnKey, stored: Iterable[StoredEntry], dialect: str | Dialect = "tailrace"
) -> tuple[Frame, ...]:
    """Returns the frames that an uninterrupted reader receives."""
    spoken = DIALECTS[dialect] if isinstance(dialect, str) else dialect
    state, found = spoken.start(key), []
    for one in select_valid(stored):
        frame, state = spoken.render(state, one)
        if frame.data:
            found.append(Frame(one.seq, frame.data))
    return tuple(found)


def select_valid(stored: Iterable[StoredEntry]) -> list[StoredEntry]:
    """Returns the valid entries (PROTOCOL R11)."""
    chain, valid = START, list[StoredEntry]()
    for one in stored:
        if (linked := link(chain, one.seq, one.entry)) is not None:
            chain = linked
            valid.append(one)
    return valid


def story_of(sent: Iterable[bytes]) -> Story:
    """Returns the story that a client of the dialect `tailrace` builds: it adds deltas and clears them at a reset."""
    text, usage, outcome = "", None, "running"
    for event in map(decode_data, sent):
        match event["type"]:
            case "delta":
                text += event["text"]
            case "reset":
                text = ""
            case "done":
                outcome, usage = event["outcome"], event["usage"]
            case "error":
                outcome, usage = "failed", event["usage"]
    return Story(text, msgspec.convert(usage, Usage | None), outcome)  # type: ignore[arg-type]


def decode_data(sent: bytes) -> dict[str, Any]:
    """Returns the JSON of a frame with one event."""
    found: dict[str, Any] = msgspec.json.decode(sent.partition(b"data: ")[2].partition(b"\n")[0])
    return found


def build_reader(name: str, key: TurnKey, *connections: ReaderConnection, dialect: str = "tailrace") -> Reader:
    sent = [frame.sent for connected in connections for frame in connected.frames]
    story = story_of(sent) if dialect == "tailrace" else None
    return Reader(name=name, key=key, dialect=dialect, connections=connections, received=story)


async def read_all_entries(log: TurnLog, key: TurnKey) -> tuple[StoredEntry, ...]:
    """Returns all stored entries of a turn, valid or not."""
    stored: list[StoredEntry] = []
    while more := await log.read_entries(ScopedKey.whole(key), stored[-1].seq if stored else BEFORE_FIRST):
        stored += more
    return tuple(stored)


async def read_history(
    log: TurnLog, key: TurnKey, *readers: Reader, records: dict[TurnKey, TurnRecord] | None = None
) -> History:
    """Returns the history of one acknowledged turn."""
    stored = await read_all_entries(log, key)
    seen = {(key, one.dialect): render_frames(key, stored, one.dialect) for one in readers}
    return History(posted={key: True}, readers=readers, log={key: stored}, rendered=seen, records=records)


async def is_read(log: TurnLog, key: TurnKey) -> bool:
    """Whether a gateway reports a reader of the turn."""
    url = log.connection.client.connected_url
    assert url is not None
    another = await Connection.open(as_user(url.geturl(), GATEWAY), "test-gateway")
    try:
        return await Rpc(another).has_readers(key, timeout_s=0.1)
    finally:
        await another.close()
