"""The stream of a session whose log was restored: wherever its client was cut, it has the text of each turn once."""

import asyncio
import json
from typing import Any

import pytest

from tailrace.features.session_stream.gateway import SessionStream
from tailrace.features.session_stream.new_turns import NewTurns
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.http.deferred_response import send_deferred
from tailrace.gateway.streaming.reader import Reader
from tailrace.proto.ids import Seq, SessionId, TurnId
from tailrace.proto.nats import replay
from tailrace.proto.ownership import Scope
from tailrace.proto.records import ListTurnsSince, TurnPosition, TurnPositions
from tailrace.proto.restores import EPOCHS_AT, Restore, Restores
from tailrace.testing import MemoryLog
from tests.harness.response_client import client
from tests.harness.turn_builder import KEY, Handwritten, closing_events, opening_events
from tests.harness.until import until

OLD, RUNNING, LATER = (KEY._replace(turn=TurnId(f"turn-{name}")) for name in ("old", "running", "later"))
SESSION = SessionId("session-1")
EPOCH, TAIL = 7, Seq(14)

Shown = dict[TurnId, str]
Cut = tuple[str, Shown]
"""The last id that a client has received, and the text of each turn that it shows."""


def turn_at(first: int, *texts: str) -> Handwritten:
    """Returns a completed turn whose request is at `first`, and its first text four entries later."""
    log = Handwritten(first)
    log.store_request()
    log.step = 1
    log.store_attempt()
    log.store_events(*opening_events())
    log.store_texts(*texts)
    log.store_events(*closing_events(len(texts)))
    log.end()
    return log


def lost_log() -> MemoryLog:
    """The log that went on after the backup at TAIL, with a turn that began later."""
    log = MemoryLog()
    turns = (
        (OLD, turn_at(1, "One.")),
        (RUNNING, turn_at(10, "Two ", "lost ", "words.")),
        (LATER, turn_at(30, "Lost.")),
    )
    for key, turn in turns:
        log.load(key, turn.stored)
    return log


def restored_log(*, has_later: bool = True) -> MemoryLog:
    log = MemoryLog()
    log.restores = Restores([Restore(EPOCH, TAIL)])
    turns = [(OLD, turn_at(1, "One.")), (RUNNING, turn_at(10, "Two ", "other ", "new ", "words."))]
    for key, turn in [*turns, *([(KEY, turn_at(24, "Three."))] if has_later else [])]:
        log.load(key, turn.stored)
    return log


RIGHT = {OLD.turn: "One.", RUNNING.turn: "Two other new words.", KEY.turn: "Three."}


class History:
    """The database, which has recorded all turns of the log."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    async def query(self, _: object, query: ListTurnsSince) -> TurnPositions:
        found = [TurnPosition(key.turn, stored[-1].seq, False) for key, stored in self._log.stored.items()]
        return TurnPositions(sorted((one for one in found if one.cursor > query.since), key=lambda one: one.cursor))


async def read(log: MemoryLog, cursor: str, known: Shown) -> list[Cut]:
    """Reads the stream from a cursor until all turns have ended. Returns where the client may be cut."""
    cuts, shown, last = [(cursor, known)], dict(known), cursor
    async with client(log, beats_every_s=30) as one:
        one.streams.history = History(log)
        one.request.principal = LOCAL._replace(access=Scope(KEY.tenant, LOCAL.access.viewer))
        stream = SessionStream(Reader(one.streams, one.request), NewTurns(log), SESSION, cursor, exists=True)
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        streaming = asyncio.ensure_future(send_deferred(stream)(scope, one.receive, one.send))
        await until(lambda: streaming.done() or len(one.body) > 0, every_s=0)
        size = -1
        while size != len(one.body):
            size = len(one.body)
            await asyncio.sleep(0.02)
        one.disconnected.set()
        await streaming
    for block in one.body.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        event, last = json.loads(fields["data"]), fields.get("id", last)
        match event:
            case {"type": "reset", "turn": turn}:
                shown = {**shown, turn: ""}
            case {"type": "delta", "turn": turn, "text": text}:
                shown = {**shown, turn: shown.get(turn, "") + text}
        if "id" in fields:
            cuts.append((last, shown))
    return cuts


@pytest.mark.rule("R150")
async def test_a_client_of_a_session_shows_each_text_once_after_a_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it was cut before the backup, after it, or after the restore. Lost turns stay as they are."""
    monkeypatch.setattr(replay, "WOKEN_WAIT_S", 0)
    before = await read(lost_log(), "0", {})
    assert before[-1][1] == {OLD.turn: "One.", RUNNING.turn: "Two lost words.", LATER.turn: "Lost."}
    after = await read(restored_log(has_later=False), "0", {})
    assert all(int(number) > EPOCHS_AT for number in after[-1][0].replace("-", ".").split("."))
    for cursor, shown in [*before, *after]:
        (*_, (_, found)) = await read(restored_log(), cursor, shown)
        found.pop(LATER.turn, None)
        assert found == RIGHT, cursor


@pytest.mark.rule("R150")
async def test_a_session_goes_on_without_a_reset_where_the_restored_log_has_what_its_client_has() -> None:
    cursor = f"0.1-8.10-{TAIL}"
    shown = {OLD.turn: "One.", RUNNING.turn: "Two "}
    assert (await read(restored_log(), cursor, shown))[-1][1] == RIGHT
