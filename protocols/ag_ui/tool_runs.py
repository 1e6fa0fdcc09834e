"""Tools that the page runs by itself: one reader of a run gets the events for which TanStack AI runs them.

TanStack AI 0.58 runs a tool with `execute` for `CUSTOM` `tool-input-available`, in each tab that reads the run. So the
dialects of `/api/agui` hold back the end of a run with such calls, and the first reader that comes to it claims them.
Then all get the end.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from tailrace.gateway.services import Gateway
from tailrace.gateway.streaming.dialect import Frame
from tailrace.gateway.streaming.response import EventStream
from tailrace.proto.entries import End
from tailrace.proto.errors import LogUnavailable, Refused
from tailrace.proto.fold import fold
from tailrace.proto.ids import Seq, new_id
from tailrace.proto.nats import Claim
from tailrace.proto.ownership import Scope, ScopedKey, owned_key
from tailrace.proto.records import GetLastTurn, TurnRecord, record_from_fold
from tailrace.protocols.ag_ui.blocks import is_call
from tailrace.protocols.ag_ui.events import Json, encode_part
from tailrace.protocols.ag_ui.runs import Thread
from tailrace.protocols.ag_ui.stream import HELD, LIVE, POSTED, find_interrupts, is_held, result_events
from tailrace.protocols.common.stop_reasons import has_waiting_calls

# The number in the id of the first of these events: above those of all other events of an entry.
FIRST = 900_000


class ToolRuns:
    """Decides which reader gets the calls of a turn."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def go_on(self, stream: EventStream, key: ScopedKey, cursor: Seq, end: End | None) -> bool:
        """See GoOn. Sends the end of a run that was held back, with the calls if this reader is the first one."""
        variant = stream.dialect.variant
        if end is None or not is_held(end) or not variant.startswith(HELD):
            return False
        seq = Seq(self._gateway.log.restores.offset + cursor)
        record = replace(record_from_fold(key.plain, fold(stream.feed.entries)), cursor=seq)
        calls = tools_of(record) if variant.startswith(LIVE) else await self._read_undecided(key.scope, record)
        # A repeated POST is of the same page, which knows the ids of the events that it has received. A page that joins
        # a run has no name: if it is cut off right here, no page runs the tools.
        mine = Claim(key.turn, POSTED if variant.startswith(POSTED) else new_id())
        if calls and await self._gateway.claims.claim(key.scope.tenant, _claim_name(key), mine) != mine:
            calls = []
        shown = encode_part(calls, seq, key.turn, FIRST)
        # A reader may have been cut off behind one of these events.
        received = max(stream.reader.part - FIRST, 0)
        await stream.write(Frame((*shown[received:], stream.dialect.render_record(record, 0).events[-1])))
        return False

    async def _read_undecided(self, scope: Scope, record: TurnRecord) -> list[Json]:
        """Returns the events for the calls without a decision; none if the thread has a later turn.

        Raises LogUnavailable if the database does not answer.
        """
        if not tools_of(record):
            return []
        history, read_decided = self._gateway.history, self._gateway.submitter.steps.read_decided
        try:
            if (await history.query(scope, GetLastTurn(record.session))).turn != record.turn:
                return []
            decided = await read_decided(scope, record.session) if read_decided is not None else ()
        except Refused as refused:
            raise LogUnavailable(refused.message) from refused
        return tools_of(record, result_events(record.turn, decided))

    async def wait(self, scope: Scope, thread: Thread) -> bool:
        """Returns whether the newest turn of a thread has calls that no page has run. Raises LogUnavailable."""
        if thread.newest is None or not tools_of(thread.newest, thread.decided):
            return False
        key = ScopedKey(scope, thread.newest.turn)
        claim = await self._gateway.claims.find(scope.tenant, _claim_name(key))
        return claim is None and await self._gateway.log.has_turn(key)


def tools_of(record: TurnRecord, decided: Iterable[Json] = ()) -> list[Json]:
    """Returns the events for the calls of a turn that wait for its page: no person decides about them, and none is of
    the results `decided`."""
    blocks = record.content if has_waiting_calls(record) else []
    calls = {block["id"]: block for block in blocks if is_call(block) and block["type"] == "tool_use"}
    gated = find_interrupts({call: block["name"] for call, block in calls.items()}, record.metadata)
    for call in (*(one["id"] for one in gated), *(one["toolCallId"] for one in decided)):
        calls.pop(call, None)
    values = [{"toolCallId": call, "toolName": one["name"], "input": one.get("input")} for call, one in calls.items()]
    return [{"type": "CUSTOM", "name": "tool-input-available", "value": value} for value in values]


def _claim_name(key: ScopedKey) -> str:
    return owned_key(key.scope, f"tools {key.turn}")
