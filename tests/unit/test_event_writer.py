"""EventWriter: what it publishes at once, what waits, and what its task does."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from unittest.mock import patch

import pytest

from tailrace.generators import delta_ticks, event_writer
from tailrace.generators.backends.model_event import ModelEvent, from_event, stop_message
from tailrace.generators.delta_buffer import DeltaBuffer
from tailrace.generators.delta_ticks import SLOW_APPEND_S, DeltaTicks
from tailrace.generators.event_writer import EventWriter
from tailrace.proto import events
from tailrace.proto.entries import Attempt, Event
from tailrace.proto.errors import BackendError, FenceLost, LogFull
from tailrace.proto.events import BlockDelta, BlockStart, BlockStop, TextDelta
from tailrace.proto.fold import Folding, fold
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats.log_server import Published, PublishUnclear
from tailrace.testing import MemoryLog
from tests.harness.turn_builder import request
from tests.harness.until import until

KEY = TurnKey(Tenant("t"), TurnId(new_id()))
START = from_event(BlockStart(0, {"type": "text", "text": ""}))
STOP = from_event(BlockStop(0))
END = stop_message("end_turn")


def delta(text: str) -> ModelEvent:
    return from_event(BlockDelta(0, TextDelta(text)))


class HeldLog(MemoryLog):
    """A log whose acknowledgements wait for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[tuple[Event, Published]] = []
        self.is_ready = True

    def publish_soon(self, key: TurnKey, entry: Event, fence: Seq, done: Published) -> bool:
        if self.is_ready:
            assert fence == self.turn_of(key).tail
            self.published.append((entry, done))
        return self.is_ready

    def acknowledge(self) -> None:
        """Stores the last published entry and acknowledges it."""
        entry, done = self.published[-1]
        done(self.store(KEY, entry).seq)

    @property
    def sent(self) -> list[dict[str, Any]]:
        return [json.loads(bytes(entry.event)) for entry, _ in self.published]

    @property
    def texts(self) -> list[str]:
        return [one["delta"]["text"] for one in self.sent if "delta" in one]


class Writing:
    """A writer of a turn with one attempt, and its task."""

    def __init__(self, ticks: DeltaTicks) -> None:
        self.log = HeldLog()
        self.log.store(KEY, request())
        self.log.store(KEY, Attempt(prev=Seq(1), attempt=1, generator="g", backend="claude", mode="fresh"))
        self.folding = Folding(fold(self.log.stored[KEY]))
        self.writer = EventWriter(self.log, KEY, self.folding, ticks)
        self.task = asyncio.create_task(self.writer.run())

    def put(self, *several: ModelEvent) -> None:
        for event in several:
            self.writer.put(event)

    def assert_log_is_folded(self) -> None:
        folded, logged = self.folding.build(), fold(self.log.stored[KEY])
        assert (folded.chain, folded.blocks) == (logged.chain, logged.blocks)


@asynccontextmanager
async def writing(delta_interval_s: float = 0.0, ticks: DeltaTicks | None = None) -> AsyncIterator[Writing]:
    opened = Writing(ticks or DeltaTicks(delta_interval_s))
    await asyncio.sleep(0)
    yield opened
    opened.task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await opened.task


async def test_an_event_is_published_by_the_put_and_the_next_one_by_the_acknowledgement() -> None:
    """No task runs in between, and one append is in flight."""
    async with writing() as own:
        own.put(START, delta("a"), delta("b"))
        assert own.log.texts == []
        own.log.acknowledge()
        assert own.log.texts == ["ab"]
        own.put(STOP)
        own.log.acknowledge()
        assert own.log.sent[-1]["type"] == "content_block_stop"
        own.log.acknowledge()
        own.assert_log_is_folded()
        own.writer.close()
        await own.task


async def test_a_cancellation_gets_in_between_two_appends() -> None:
    """Another process may append after each acknowledgement; the writer stops at its own next append."""
    async with writing() as own:
        own.put(START, delta("a"))
        own.log.acknowledge()
        # The end of another process. Its fence is the entry that was just acknowledged.
        own.log.store(KEY, Event(prev=own.folding.chain.last, attempt=1, event=events.HANDOVER))
        _, done = own.log.published[-1]
        done(PublishUnclear("10071"))
        with pytest.raises(FenceLost):
            await own.task
        own.put(delta("b"))
        assert len(own.log.published) == 2


@pytest.mark.parametrize("is_stored", [True, False])
async def test_an_unclear_outcome_is_settled_by_the_task(is_stored: bool) -> None:
    """The acknowledgement is lost, or the publish. The next event follows once the tail of the log is read."""
    async with writing() as own:
        own.put(START, delta("a"))
        entry, done = own.log.published[-1]
        if is_stored:
            own.log.store(KEY, entry)
        done(PublishUnclear("no answer", is_answered=False))
        await until(lambda: own.log.texts == ["a"])
        own.log.acknowledge()
        own.assert_log_is_folded()
        own.writer.close()
        await own.task


async def test_an_event_that_cannot_be_sent_at_once_is_appended_by_the_task() -> None:
    async with writing() as own:
        own.log.is_ready = False
        own.put(START, delta("a"), STOP)
        own.writer.close()
        await own.task
        own.assert_log_is_folded()
        assert own.folding.text() == "a"


async def test_an_append_to_a_full_log_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_writer, "FULL_WAIT_S", 0.01)
    async with writing() as own:
        own.put(START)
        own.log.append_errors = [LogFull("full"), LogFull("full")]
        own.log.published[-1][1](LogFull("full"))
        own.writer.close()
        await own.task
        own.assert_log_is_folded()
        assert len(own.folding.blocks) == 1


async def test_an_internal_error_ends_the_task_and_not_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The acknowledgement is processed in the callback of the socket of NATS."""

    def fail(*_: object) -> None:
        raise MemoryError

    async with writing() as own:
        own.put(START)
        monkeypatch.setattr(own.folding, "add", fail)
        own.log.acknowledge()
        own.writer.close()
        with pytest.raises(MemoryError):
            await own.task


async def test_an_internal_error_is_not_replaced_before_the_task_has_woken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's socket puts another event in the same iteration of the event loop."""

    def fail(*_: object) -> None:
        raise MemoryError

    async with writing() as own:
        own.put(START)
        monkeypatch.setattr(own.folding, "add", fail)
        own.log.acknowledge()
        own.put(STOP)
        assert len(own.log.published) == 1
        with pytest.raises(MemoryError):
            await own.task


async def test_a_writer_that_was_stopped_takes_no_notice_of_an_acknowledgement() -> None:
    async with writing() as own:
        own.put(START, delta("a"))
        own.task.cancel()
        await asyncio.wait([own.task])
        own.log.acknowledge()
        assert own.log.texts == []


@pytest.mark.parametrize("end", ["another event", "the close", "the time"])
async def test_a_delta_waits_for_others_after_an_append_of_a_delta(end: str) -> None:
    """Until the interval is over, or something else follows. The first delta does not wait."""
    async with writing(delta_interval_s=0.05 if end == "the time" else 3600) as own:
        own.put(START)
        own.log.acknowledge()
        own.put(delta("a"))
        own.log.acknowledge()
        own.put(delta("b"), delta("c"))
        assert own.log.texts == ["a"]
        match end:
            case "another event":
                own.put(STOP)
            case "the close":
                own.writer.close()
            case _:
                await until(lambda: len(own.log.texts) > 1)
        assert own.log.texts == ["a", "bc"]


async def test_after_a_slow_append_a_delta_waits() -> None:
    # Longer than the pauses of a busy machine.
    with patch.object(delta_ticks, "JOIN_S", 1.0):
        async with writing() as own:
            own.put(START)
            own.log.acknowledge()
            own.put(delta("a"))
            await asyncio.sleep(2 * SLOW_APPEND_S)
            own.log.acknowledge()
            own.put(delta("b"))
            assert own.log.texts == ["a"]
            await until(lambda: own.log.texts == ["a", "b"])


async def test_the_deltas_of_a_busy_process_are_published_together() -> None:
    # Longer than the pauses of a busy machine.
    with patch.multiple(delta_ticks, BUSY_DELTAS=1, TICK_S=1.0):
        ticks, now = DeltaTicks(), asyncio.get_running_loop().time()
        async with writing(ticks=ticks) as own, writing(ticks=ticks) as other:
            await asyncio.sleep(ticks.next_tick(now) - now)
            for one in (own, other):
                one.put(START)
                one.log.acknowledge()
                one.put(delta("a"))
                one.log.acknowledge()
                one.put(delta("b"))
                assert one.log.texts == ["a"]
            await until(lambda: own.log.texts == ["a", "b"])
            assert other.log.texts == ["a", "b"]
            # A delta that came while an append was in flight waits, too.
            own.put(delta("c"))
            own.log.acknowledge()
            assert own.log.texts == ["a", "b"]
            await until(lambda: own.log.texts == ["a", "b", "c"])


@pytest.mark.parametrize("end", ["another event", "the close"])
async def test_nothing_but_a_delta_behind_a_delta_waits_in_a_busy_process(end: str) -> None:
    with patch.multiple(delta_ticks, BUSY_DELTAS=1, TICK_S=3600):
        async with writing(ticks=DeltaTicks()) as own:
            own.put(START, delta("a"))
            own.log.acknowledge()
            assert own.log.texts == ["a"]
            own.log.acknowledge()
            own.put(delta("b"))
            assert own.log.texts == ["a"]
            if end == "the close":
                own.writer.close()
                assert own.log.texts == ["a", "b"]
                return
            own.put(STOP, START, delta("c"))
            assert own.log.texts == ["a", "b"]
            for _ in range(3):
                own.log.acknowledge()
            assert own.log.texts == ["a", "b", "c"]


async def test_a_writer_is_drained_when_all_events_are_stored() -> None:
    """A large event, for example, is in memory until then."""
    async with writing() as own:
        await own.writer.drained()
        own.put(START, STOP)
        draining = asyncio.create_task(own.writer.drained())
        own.log.acknowledge()
        await asyncio.sleep(0)
        assert not draining.done()
        own.log.acknowledge()
        await draining


@pytest.mark.rule("R139")
async def test_an_answer_that_has_lost_a_delta_is_not_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event that completes the message is not published behind the gap."""
    put = DeltaBuffer.put

    def lose(self: DeltaBuffer, event: ModelEvent, now: float) -> None:
        if event != delta("lost"):
            put(self, event, now)

    monkeypatch.setattr(DeltaBuffer, "put", lose)
    async with writing() as opened:
        opened.put(START, delta("a"), delta("lost"), delta("b"), STOP)
        for _ in ("start", "ab", "stop"):
            opened.log.acknowledge()
        with pytest.raises(BackendError) as lost:
            opened.put(END)
        assert lost.value.code == "events_lost"
        assert opened.log.sent[-1] == {"type": "content_block_stop", "index": 0}


@pytest.mark.rule("R139")
async def test_a_gap_at_the_end_of_an_attempt_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeltaBuffer, "put", lambda *_: None)
    async with writing() as opened:
        opened.put(START, delta("lost"))
        opened.writer.close()
        opened.log.acknowledge()
        with pytest.raises(BackendError) as lost:
            await opened.task
        assert lost.value.code == "events_lost"
