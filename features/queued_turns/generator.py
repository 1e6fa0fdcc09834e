"""Turns that were stored while the turn before them ran (`on_busy: queue`, PROTOCOL R79).

Such a request has only its own messages. The conversation before them is read from the log when the turn before it has
ended. A turn does not change after its end, so every generator reads the same.
"""

from functools import partial

from msgspec.structs import replace

from tailrace.generators.feature import Feature, Parts
from tailrace.proto.containers import with_container
from tailrace.proto.conversation import accepted_before, has_results, read_history
from tailrace.proto.entries import Request
from tailrace.proto.errors import BackendError, TurnUnknown
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.system_messages import fit_system_messages

GONE = "the turn to continue from was deleted, or has left the log, before this one began"


async def prepare_queued(log: TurnLog, key: TurnKey, turn: Turn) -> Turn | None:
    """Returns `turn`, with the conversation before it if it is queued; None while the turn before it runs.

    Raises BackendError if the log does not have that turn any more, and LogUnavailable.
    """
    request = turn.request
    if request is None or not request.is_queued or turn.end is not None:
        return turn
    branch: list[TurnRecord] = []
    base = request
    while base.is_queued and base.parent is not None:
        parent = TurnKey(key.tenant, base.parent)
        if not await log.has_end(parent) and await log.has_turn(ScopedKey.whole(parent)):
            # Two short reads come first, because each delivery of a waiting turn repeats them.
            return None
        record, base = await _read(log, parent)
        if record.outcome == "running":
            return None
        branch.insert(0, record)
    history = read_history(branch)
    before = accepted_before(request.messages, [*base.messages[: base.history], *history.messages])
    before = fit_system_messages(request.messages, before, request.model, request.options)
    container = history.containers.get(branch[-1].turn) if any(map(has_results, request.messages)) else None
    whole = replace(
        request,
        options=request.options if container is None else with_container(request.options, container),
        messages=[*before, *request.messages],
        history=len(before),
        thinking=[*(base.thinking or ()), *history.thinking],
        previous=history.prompts.get(branch[-1].turn),
    )
    return replace(turn, request=whole)


async def _read(log: TurnLog, key: TurnKey) -> tuple[TurnRecord, Request]:
    """Returns a turn and its request. Raises BackendError if the log does not have it."""
    try:
        turn = await log.read_turn(ScopedKey.whole(key))
        record = record_from_fold(key, turn)
    except TurnUnknown as error:
        raise BackendError("parent_not_found", GONE) from error
    assert turn.request is not None  # noqa: S101  # a record has one
    return record, turn.request


FEATURE = Feature(start=lambda generator: Parts(prepare=(partial(prepare_queued, generator.log),)))
