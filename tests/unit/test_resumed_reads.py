"""Where an answer is read, and with which cursor: the whole table, tests/resumed_reads.csv.

A reader never shows a text twice, and never lacks one without being told. Each cell is read once for each turn of
`TURNS` and for each place at which the reader may have been cut. The routes, the response and the log client are the
product's own, over a log in memory.
"""

import asyncio
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace
from starlette.types import ASGIApp

from tailrace.features.gateway import DIALECTS
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.clients.native import routes as native
from tailrace.gateway.history_client import close_record
from tailrace.gateway.http import sse
from tailrace.gateway.http.deferred_response import send_deferred
from tailrace.gateway.streaming import writer
from tailrace.gateway.streaming.dialect import select_variant
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.proto import events
from tailrace.proto.entries import Failure, Message, StoredEntry
from tailrace.proto.errors import CODES, LogError, Refused, not_found
from tailrace.proto.fold import fold
from tailrace.proto.ids import SessionId, TurnId
from tailrace.proto.nats import replay
from tailrace.proto.ownership import Scope
from tailrace.proto.records import Context, GetContext, GetLastTurn, ListTurns, TurnPage, TurnRecord, record_from_fold
from tailrace.proto.restores import Restore, Restores
from tailrace.protocols.ag_ui.gateway import get_thread_or_run
from tailrace.protocols.ai_sdk.gateway import get_stream
from tailrace.protocols.openai.responses_routes import get_response
from tailrace.testing import MemoryClaims, MemoryLog
from tests.harness.displayed_answer import Shown, last_id, show
from tests.harness.response_client import Client, client
from tests.harness.turn_builder import (
    KEY,
    Handwritten,
    answer_block,
    attempted_turn,
    block_events,
    opening_events,
)
from tests.harness.until import until

TABLE = Path(__file__).parents[1] / "resumed_reads.csv"
EVENTS = "/v1/turns/{turn}/events?dialect={dialect}"
# Sequences grow by it, so that a number between two of them is another turn's.
STEP = 3
THREAD = [Message("user", "Hello"), Message("assistant", "Hello!")]
SERVER_CALL = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
SERVER_RESULT = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"url": "https://a"}]}
CLOSING = (events.MessageDelta(events.StopReason("end_turn"), events.UsageSoFar(output_tokens=9)),)
STOPPED = events.MessageDelta(events.StopReason("tool_use"), events.UsageSoFar(output_tokens=9))


def answer(*what: events.Event, **given: Any) -> Handwritten:
    return attempted_turn(opening_events()[0], *what, step=STEP, parent=TurnId("turn-0"), **given)


def build_turns() -> dict[str, Handwritten]:
    """Returns a turn of each kind, with its end."""
    words = answer_block(0, "text", "One ", "two ", "three.")
    server = block_events(1, SERVER_CALL, events.InputJsonDelta('{"q": '), events.InputJsonDelta('"sky"}'))
    turns = {
        "text": answer(*words, *CLOSING),
        "thinking": answer(
            *answer_block(0, "thinking", "So ", "be it."), *answer_block(1, "text", "A ", "b."), *CLOSING
        ),
        "tool input": answer(*words, *answer_block(1, "tool_use", '{"at":', ' "sky"}'), STOPPED),
        "server tool": answer(
            *words, *server, *block_events(2, SERVER_RESULT), *answer_block(3, "text", "Four ", "five."), *CLOSING
        ),
        "steered": answer(*words),
        "reset before": answer(*answer_block(0, "thinking", "Old"), *answer_block(1, "text", "Old ", "words.")),
        "failed": answer(*words),
    }
    turns["reset before"].store_attempt("restart")
    turns["reset before"].store_events(*opening_events()[:1], *words, *CLOSING)
    for kind, log in turns.items():
        match kind:
            case "steered":
                steered = log.end("cancelled")
                log.stored[-1] = replace(steered, entry=replace(steered.entry, successor=TurnId("turn-2")))
            case "failed":
                log.end("failed", Failure("backend_overloaded", "Claude is overloaded"))
            case _:
                log.end()
    return turns


TURNS = build_turns()


class Received(NamedTuple):
    """The events and bytes that a reader had when it was cut."""

    entries: int
    """The number of entries of which it has an event, or of which none follows."""
    data: bytes
    events: int
    """The number of events."""


NOTHING = Received(0, b"", 0)


class History:
    """The database, which may have recorded the turn."""

    def __init__(self, record: TurnRecord | None) -> None:
        self._record = record

    async def read_past_turn(self, _: object) -> TurnRecord:
        if self._record is None:
            raise not_found("turn")
        return close_record(self._record)

    async def query(self, _: Scope, query: object) -> Any:
        match query:
            case GetLastTurn():
                raise Refused("session_not_found", "no session")
            case GetContext():
                return Context(SessionId("session-1"), TurnId("turn-0"), THREAD)
            case ListTurns():
                return TurnPage([await self.read_past_turn(query)], None)
            case _:
                return await self.read_past_turn(query)


class Place(NamedTuple):
    """Where the gateway finds the turn: the log's entries, those that follow meanwhile, and the database's row.

    `restores`: those that the gateway knows. `is_known`: whether the reader was cut after them.
    """

    log: list[StoredEntry]
    following: list[StoredEntry]
    record: TurnRecord | None = None
    restores: tuple[Restore, ...] = ()
    is_known: bool = False


def find_live(turn: list[StoredEntry], had: Received) -> Place:
    first = max(1, had.entries)
    return Place(turn[:first], turn[first:])


def find_in_log(turn: list[StoredEntry], _: Received) -> Place:
    return Place(turn, [])


def find_in_database(turn: list[StoredEntry], _: Received) -> Place:
    return Place([], [], record_from_fold(KEY, fold(turn)))


def find_after_loss(turn: list[StoredEntry], _: Received) -> Place:
    """The database has only the turn's first half: the log was lost before the end was recorded."""
    return Place([], [], record_from_fold(KEY, fold(turn[: len(turn) // 2])))


def restore(turn: list[StoredEntry]) -> list[StoredEntry]:
    """Returns the turn as it goes on after a restore of its first half: with other words."""
    log = Handwritten(STEP)
    for one in turn[: len(turn) // 2]:
        log.store(one.entry)
    log.close_block("other ")
    log.store_events(*answer_block(len(log.turn.blocks), "text", "Other ", "words."), *CLOSING)
    log.end()
    return log.stored


def find_restored(turn: list[StoredEntry], _: Received) -> Place:
    """The reader has a part of the log that was lost."""
    return Place(restore(turn), [], restores=(Restore(7, turn[len(turn) // 2 - 1].seq),))


def find_running_restored(turn: list[StoredEntry], _: Received) -> Place:
    place = find_restored(turn, NOTHING)
    half = len(turn) // 2
    return place._replace(log=place.log[: half + 1], following=place.log[half + 1 :])


def find_after_restore(turn: list[StoredEntry], _: Received) -> Place:
    """The reader has a part of the restored log."""
    return find_restored(turn, NOTHING)._replace(is_known=True)


def find_restored_database(turn: list[StoredEntry], _: Received) -> Place:
    """The restored turn has ended, and has left the log."""
    place = find_restored(turn, NOTHING)
    return place._replace(log=[], record=record_from_fold(KEY, fold(place.log)))


PLACES: dict[str, Callable[[list[StoredEntry], Received], Place]] = {
    "live": find_live,
    "log": find_in_log,
    "database": find_in_database,
    "database after a loss of the log": find_after_loss,
    "restored log": find_restored,
    "restored log, live": find_running_restored,
    "restored log, cut after the restore": find_after_restore,
    "database after a restore": find_restored_database,
}


class Sent(NamedTuple):
    """The request of a reader."""

    path: str
    last_id: str = ""


def no_cursor(dialect: str, _: Received) -> Sent:
    return Sent(EVENTS.format(turn=KEY.turn, dialect=dialect))


def with_id(dialect: str, had: Received) -> Sent | None:
    name = last_id(had.data)
    return None if name is None else Sent(no_cursor(dialect, had).path, name)


def with_foreign_id(dialect: str, had: Received) -> Sent | None:
    """The number of an entry of another turn."""
    name = last_id(had.data)
    if name is None:
        return None
    return Sent(no_cursor(dialect, had).path, str(int(name.partition("-")[0]) + 1))


def with_id_beyond(dialect: str, had: Received) -> Sent:
    """A number that no entry has yet."""
    return Sent(no_cursor(dialect, had).path, "999999")


def with_offset(dialect: str, had: Received) -> Sent | None:
    name = last_id(had.data) or "-1"
    return Sent(f"/api/agui?runId={KEY.turn}&offset={name}") if dialect == "ag-ui" else None


def with_start_index(dialect: str, had: Received) -> Sent | None:
    return Sent(f"/api/chat/{KEY.turn}/stream?startIndex={had.events}") if dialect == "ui" else None


def with_id_of_chunk(dialect: str, had: Received) -> Sent | None:
    name = last_id(had.data)
    return Sent(f"/api/chat/{KEY.turn}/stream", name) if dialect == "ui" and name else None


def with_starting_after(dialect: str, had: Received) -> Sent | None:
    if dialect != "openai-responses" or not had.events:
        return None
    return Sent(f"/v1/responses/resp_{KEY.turn}?stream=true&starting_after={had.events - 1}")


CURSORS: dict[str, Callable[[str, Received], Sent | None]] = {
    "none": no_cursor,
    "id": with_id,
    "offset": with_offset,
    "id of a chunk": with_id_of_chunk,
    "startIndex": with_start_index,
    "starting_after": with_starting_after,
    "id of another turn": with_foreign_id,
    "id beyond the log": with_id_beyond,
}


OF_TURN = frozenset(CURSORS) - {"id of another turn", "id beyond the log"}
"""The cursors that the reader has from the turn. One turn is enough for the others."""


class Row(NamedTuple):
    """A row of the table: what readers of these dialects get, depending on where they were cut."""

    place: str
    cursor: str
    dialects: str
    results: str


def read_table() -> list[Row]:
    with TABLE.open(newline="") as file:
        return [Row(*line) for line in list(csv.reader(file))[1:]]


def cuts(dialect: str, turn: list[StoredEntry], id_offset: int = 0) -> list[Received]:
    """Returns what a reader may have had when it was cut, after each event.

    A reader that was told to repeat its request without a cursor was not cut.
    """
    spoken, found = select_variant(DIALECTS[dialect], sse.MEDIA_TYPE), [Received(0, b"", 0)]
    state, data, count = spoken.start(KEY), b"", 0
    for number, stored in enumerate(turn, 1):
        frame, state = spoken.render(state, replace(stored, seq=id_offset + stored.seq))
        for event in frame.events:
            data += sse.encode((event,))
            count += event.data != b"[DONE]"
            if not frame.is_break or event.seq is not None or dialect == "openai-responses":
                found.append(Received(number, data, count))
        if not frame.events and frame.data:
            data += frame.data
            found.append(Received(number, data, 0))
    return found


def whole_of(dialect: str, turn: list[StoredEntry]) -> Shown:
    """Returns what a reader shows that was never cut. Without a reset, it has begun after the last restart."""
    received, restarted = cuts(dialect, turn), 0
    if not DIALECTS[dialect].can_reset:
        modes = [getattr(one.entry, "mode", "") for one in turn]
        restarted = modes.index("restart") + 1 if "restart" in modes else 0
    before = max((one.data for one in received if one.entries <= restarted), key=len) if restarted else b""
    return show(dialect, received[-1].data[len(before) :])


class Answer(NamedTuple):
    """The response that a reader got."""

    status: int
    body: bytes
    is_complete: bool


async def read(place: Place, sent: Sent, dialect: str) -> Answer:
    """Sends the request to the route of its path, over a log and a database that have the turn at this place."""
    log = MemoryLog()
    log.restores = Restores(place.restores)
    log.load(KEY, place.log)
    async with client(log, beats_every_s=30) as one:
        one.streams.history = History(place.record)
        path, _, query = sent.path.partition("?")
        headers = {"accept": sse.MEDIA_TYPE, "last-event-id": sent.last_id}
        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "path_params": {"turn": KEY.turn, "chat": KEY.turn, "response_id": f"resp_{KEY.turn}"},
        }
        request = ApiRequest(scope, one.receive, None, None)  # type: ignore[arg-type]
        request.principal = LOCAL._replace(access=Scope(KEY.tenant, LOCAL.access.viewer))
        try:
            app = await route(one, log, request, path)
        except (Refused, LogError) as error:
            return Answer(CODES[error.code].status, b"", is_complete=True)
        streaming = asyncio.ensure_future(send_deferred(app)(scope, one.receive, one.send))
        if place.following:
            await until(lambda: one.sent or streaming.done(), every_s=0)
            log.load(KEY, place.following)
        async with asyncio.timeout(5):
            await streaming
        return Answer(one.status, one.body, one.is_complete)


async def route(one: Client, log: MemoryLog, request: ApiRequest, path: str) -> ASGIApp:
    turns = TurnReader(log, one.streams.history)
    if path.startswith("/v1/responses"):
        return await get_response(request, one.streams, turns)
    if path.startswith("/api/chat"):
        return await get_stream(request, one.streams, turns, None)  # type: ignore[arg-type]
    if path.startswith("/api/agui"):
        return await get_thread_or_run(request, one.streams, MemoryClaims(), None, None, None)  # type: ignore[arg-type]
    return await native.get_events(request, one.streams, DIALECTS)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "WOKEN_WAIT_S", 0)
    monkeypatch.setattr(writer, "DISPATCH_S", 0)


CELLS = [(row, dialect) for row in read_table() for dialect in row.dialects.split()]


@pytest.mark.rule("R15")
@pytest.mark.rule("R150")
@pytest.mark.parametrize(
    ("row", "dialect"), CELLS, ids=[f"{row.place}, {row.cursor}, {dialect}" for row, dialect in CELLS]
)
async def test_no_reader_shows_a_text_twice_or_lacks_one_without_being_told(row: Row, dialect: str) -> None:
    results, wrong = await read_cell(row.place, row.cursor, dialect)
    assert not wrong
    assert ", ".join(sorted(results)) == row.results


def test_the_table_has_each_place_cursor_and_dialect_once() -> None:
    had = {name: [one for log in TURNS.values() for one in cuts(name, log.stored)] for name in DIALECTS}
    possible = [
        (place, cursor, name)
        for place in PLACES
        for cursor, send in CURSORS.items()
        for name in DIALECTS
        if any(send(name, one) is not None for one in had[name])
    ]
    assert sorted((row.place, row.cursor, dialect) for row, dialect in CELLS) == sorted(possible)


async def read_cell(place: str, cursor: str, dialect: str) -> tuple[set[str], list[str]]:
    """Returns the results of a cell, and what readers show wrongly."""
    results, wrong = set[str](), list[str]()
    of_turn = cursor in OF_TURN
    for kind, log in TURNS.items() if of_turn else [("text", TURNS["text"])]:
        turn = log.stored
        own = PLACES[place](turn, NOTHING)
        cut_at = cuts(dialect, restore(turn), Restores(own.restores).offset) if own.is_known else cuts(dialect, turn)
        for had in cut_at if cursor != "none" or place == "live" else [NOTHING]:
            sent = CURSORS[cursor](dialect, had)
            if sent is None:
                continue
            found = PLACES[place](turn, had)
            got = await read(found, sent, dialect)
            result = judge(dialect, turn, found, cursor, had if cursor != "none" else NOTHING, got)
            results.add(result.partition(":")[0])
            if ":" in result:
                wrong.append(f"{kind}, cut after {had.events} events: {result}")
    return results, wrong


def judge(dialect: str, turn: list[StoredEntry], place: Place, cursor: str, had: Received, got: Answer) -> str:
    """Returns what the reader got: a status, `whole`, `rest`, `reset`, or `broken off`; what it shows wrongly follows a
    colon.

    `reset`: the response replaces whatever the reader has.
    """
    if place.restores:
        turn = restore(turn)
    whole = whole_of(dialect, turn)
    if place.record is not None:
        frame = DIALECTS[dialect].render_record(close_record(place.record), 0)
        whole = show(dialect, frame.data)
    is_all = show(dialect, had.data) == whole and had.entries == len(turn)
    match got.status:
        case 204:
            return "204" if is_all else f"204: {show(dialect, had.data)} is not {whole}"
        case 200 if not got.is_complete:
            return "broken off"
        case 200:
            shown, all_data = show(dialect, had.data + got.body), cuts(dialect, turn)[-1].data
            is_reset = show(dialect, all_data + got.body) == show(dialect, got.body)
            result = "whole" if cursor == "none" else "reset" if is_reset else "rest"
            return result if shown == whole else f"{result}: {shown} is not {whole}"
        case status:
            return f"{status} at the end" if is_all and cursor == "startIndex" else str(status)
