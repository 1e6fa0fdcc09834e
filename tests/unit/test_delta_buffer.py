"""Events that wait for the log: they join where nothing is lost by it, and keep their order."""

import asyncio
from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.generators.delta_buffer import JOINED_BYTES_MAX, DeltaBuffer, Outgoing
from tailrace.proto import events
from tailrace.proto.chain import Chain
from tailrace.proto.events import (
    BlockDelta,
    BlockStart,
    BlockStop,
    Event,
    InputJsonDelta,
    MessageHead,
    MessageStart,
    TextDelta,
    ThinkingDelta,
)
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Seq
from tests.handwritten import Handwritten, raw
from tests.made_up import anthropic_events


def text(piece: str, index: int = 0) -> BlockDelta:
    return BlockDelta(index, TextDelta(piece))


async def taken(outbox: DeltaBuffer) -> list[Outgoing]:
    """All that is left, to the close."""
    left = []
    while (event := await outbox.take()) is not None:
        left.append(event)
    return left


async def through(*what: Event) -> list[Event | events.UnknownEvent]:
    """What comes out when all of `what` has to wait."""
    outbox = DeltaBuffer()
    for one in what:
        outbox.put(events.encode(one))
    outbox.close()
    return [events.decode(event) for event, *_ in await taken(outbox)]


async def test_neighbours_of_one_block_join() -> None:
    """A slow log gets fewer and larger entries, and is never behind."""
    assert await through(text("The"), text(" sky"), text(" is")) == [text("The sky is")]
    thoughts = [BlockDelta(0, ThinkingDelta(piece)) for piece in ("hm", "m")]
    assert await through(*thoughts) == [BlockDelta(0, ThinkingDelta("hmm"))]
    inputs = [BlockDelta(1, InputJsonDelta(piece)) for piece in ('{"a"', ":1}")]
    assert await through(*inputs) == [BlockDelta(1, InputJsonDelta('{"a":1}'))]


async def test_nothing_else_joins() -> None:
    """Another block, another kind, another event between them: each stays an entry of its own."""
    apart: list[Event] = [
        text("a"),
        text("b", index=1),
        BlockDelta(1, ThinkingDelta("c")),
        BlockDelta(1, events.SignatureDelta("d")),
        BlockDelta(1, events.SignatureDelta("e")),
        BlockStop(1),
        BlockStart(2, {"type": "text"}),
        text("f", index=2),
    ]
    assert await through(*apart) == apart


async def test_what_did_not_wait_passes_byte_for_byte() -> None:
    """The log holds what the model sent, also where this version cannot read it."""
    outbox = DeltaBuffer()
    for what in ({"type": "newer", "b": 1, "a": 2}, {"type": "content_block_stop", "index": 0, "more": "x"}):
        outbox.put(raw(what), is_hidden=True)
        assert await outbox.take() == Outgoing(raw(what), is_hidden=True)


async def test_joined_deltas_stay_below_the_cap() -> None:
    """An entry has to fit a message, and a slow reader's buffer."""
    pieces = [f"{number:06d}" for number in range(6000)]
    joined = await through(*map(text, pieces))
    said = [
        event.delta.text for event in joined if isinstance(event, BlockDelta) and isinstance(event.delta, TextDelta)
    ]
    assert "".join(said) == "".join(pieces)
    assert max(map(len, said)) < JOINED_BYTES_MAX
    assert len(joined) < len(pieces) / 100


async def test_a_delta_above_the_cap_is_not_cut() -> None:
    """What the model sent in one piece is stored in one piece; only joining has a limit."""
    large = text("x" * 2 * JOINED_BYTES_MAX)
    assert await through(text("a"), large, text("b")) == [text("a"), large, text("b")]


async def test_whoever_waits_is_woken_by_an_event_and_by_the_close() -> None:
    """The writer sleeps while the model is silent, and ends with it."""
    outbox = DeltaBuffer()
    writing = asyncio.create_task(taken(outbox))
    await asyncio.sleep(0)
    outbox.put(raw({"type": "ping"}))
    await asyncio.sleep(0)
    outbox.close()
    async with asyncio.timeout(1):
        assert await writing == [Outgoing(raw({"type": "ping"}))]


async def test_what_was_put_before_the_close_is_still_taken() -> None:
    """A model's stream that breaks off loses nothing of what it had said."""
    outbox = DeltaBuffer()
    outbox.put(events.encode(text("last words")))
    outbox.close()
    assert await taken(outbox) == [Outgoing(events.encode(text("last words")))]
    assert await outbox.take() is None


@pytest.mark.rule("R9")
@given(st.lists(st.tuples(anthropic_events(), st.booleans()), max_size=30))
async def test_joined_or_not_the_log_tells_the_same(put: list[tuple[Event, bool]]) -> None:
    """However many events are taken between the puts, the fold of what comes out is that of what went in."""
    outbox, out = DeltaBuffer(), []
    for event, is_taken in put:
        outbox.put(events.encode(event))
        if is_taken:
            out.append(await outbox.take())
    outbox.close()
    out += await taken(outbox)
    heard = [events.decode(event[0]) for event in out if event is not None]
    assert told([event for event in heard if not isinstance(event, events.UnknownEvent)]) == told(
        [event for event, *_ in put]
    )


def told(heard: list[Event]) -> Turn:
    log = Handwritten()
    log.ask()
    log.take()
    log.hear(*heard)
    # How many entries it took, and until when, is what joining is allowed to change.
    return msgspec.structs.replace(log.turn, chain=Chain(), tail=Seq(0), reached_at=None, worked=timedelta(0))


OPENING: list[Event] = [MessageStart(MessageHead("msg_1")), BlockStart(0, {"type": "text"})]


def held(*what: Event) -> DeltaBuffer:
    outbox = DeltaBuffer(is_held=True)
    for one in what:
        outbox.put(events.encode(one))
    return outbox


@pytest.mark.rule("R51")
async def test_an_opening_waits_for_its_first_token() -> None:
    """What an API says before that is no answer yet; who stored it would be the first, with nothing to say."""
    outbox = held(*OPENING)
    taking = asyncio.create_task(outbox.take())
    for _ in range(3):
        await asyncio.sleep(0)
    assert (taking.done(), outbox.begun.is_set()) == (False, False)
    outbox.put(events.encode(text("The")))
    first = await taking
    assert first is not None
    outbox.close()
    assert [events.decode(event) for event, *_ in [first, *await taken(outbox)]] == [*OPENING, text("The")]
    assert outbox.begun.is_set()


async def test_an_opening_that_nothing_follows_is_given_at_the_close() -> None:
    """It was paid for. That no token was among it can be seen."""
    outbox = held(*OPENING)
    outbox.close()
    assert [events.decode(event) for event, *_ in await taken(outbox)] == OPENING
    assert not outbox.begun.is_set()


async def test_an_answer_without_a_token_is_an_answer() -> None:
    """A message that ends at once, say: what ends it is given, too."""
    stop = events.MessageDelta(events.StopReason("end_turn"))
    outbox = held(OPENING[0], stop)
    outbox.close()
    assert [events.decode(event) for event, *_ in await taken(outbox)] == [OPENING[0], stop]
    assert outbox.begun.is_set()
