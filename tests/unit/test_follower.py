"""Follower: entries that the live feed delivers while the follower waits are passed on at once."""

import asyncio

import pytest

from tailrace.proto.chain import Chain
from tailrace.proto.entries import StoredEntry
from tailrace.proto.errors import CursorUnknown
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats.follower import Follower
from tailrace.proto.nats.log_server import LiveFeed
from tests.harness.scripted_log import KEY, ScriptedServer, page
from tests.harness.turn_builder import attempt, completed_turn


async def test_an_entry_is_passed_on_while_the_follower_waits() -> None:
    stored, received, feed = completed_turn("text").stored, list[StoredEntry](), LiveFeed()
    follower = Follower(ScriptedServer(read=[page(stored[0])]), KEY, stored[0].seq, feed, received.extend)
    await follower.first()
    waiting = asyncio.create_task(follower.next())
    await asyncio.sleep(0)
    for one in stored[1:3]:
        feed.add(one)
    assert received == stored[1:3]
    assert not waiting.done()
    # A repeated one, and one beyond a gap.
    feed.add(stored[2])
    feed.add(stored[4])
    assert received == stored[1:3]
    waiting.cancel()


@pytest.mark.rule("R16")
async def test_a_feed_that_begins_with_the_request_needs_no_read_of_the_log() -> None:
    """Another entry first: the subscription may be younger than the turn, so the log is read."""
    stored = completed_turn("text").stored
    server, whole, late = ScriptedServer(read=[page(*stored[:2])]), LiveFeed(), LiveFeed()
    for one in stored[:2]:
        whole.add(one)
    late.add(stored[1])
    assert await Follower(server, KEY, BEFORE_FIRST, whole).first() == stored[:2]
    assert server.requests == []
    assert await Follower(server, KEY, BEFORE_FIRST, late).first() == stored[:2]
    assert server.names == ["read"]


@pytest.mark.rule("R16")
async def test_a_turn_that_has_ended_before_it_is_followed_needs_no_read_of_the_log() -> None:
    """The entries before the end do not wait until the log confirms it."""
    stored, feed = completed_turn("text").stored, LiveFeed()
    server = ScriptedServer()
    follower = Follower(server, KEY, BEFORE_FIRST, feed)
    for one in stored:
        feed.add(one)
    assert await follower.first() == stored[:-1]
    assert await follower.next() == stored[-1:]
    assert server.requests == []
    assert follower.is_ended


async def test_an_error_of_the_receiver_ends_the_follower() -> None:
    """nats-py would only report it, and the reader would never receive the entry."""
    stored, feed = completed_turn("text").stored, LiveFeed()

    def receive(_: list[StoredEntry]) -> None:
        raise MemoryError

    follower = Follower(ScriptedServer(read=[page(stored[0])]), KEY, stored[0].seq, feed, receive)
    await follower.first()
    waiting = asyncio.create_task(follower.next())
    await asyncio.sleep(0)
    feed.add(stored[1])
    feed.add(stored[2])
    with pytest.raises(MemoryError):
        await waiting


@pytest.mark.rule("R144")
@pytest.mark.parametrize("gap", [0, 1], ids=["directly after its predecessor", "after another turn's entry"])
async def test_a_turn_that_goes_on_without_the_last_entry_of_a_reader_is_read_from_the_beginning(gap: int) -> None:
    """At the first entry of the next attempt, and in a log without forks."""
    stored, feed = completed_turn("text").stored, LiveFeed()
    lost = StoredEntry(Seq(stored[1].seq + 1 + gap), stored[2].at, stored[2].entry)
    following = StoredEntry(Seq(lost.seq + 1), lost.at, attempt(Chain(stored[1].seq, 1)))
    server = ScriptedServer(read=[page(*stored[:2]), page(*stored[:2], following)])
    server.forkless_after = BEFORE_FIRST
    follower = Follower(server, KEY, BEFORE_FIRST, feed)
    await follower.first()
    feed.add(lost)
    assert await follower.next() == [lost]
    feed.add(following)
    with pytest.raises(CursorUnknown):
        await follower.next()


@pytest.mark.rule("R144")
async def test_a_silence_counts_from_the_last_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier silences do not delay the question whether the log has lost the end."""
    monkeypatch.setattr("tailrace.proto.nats.follower.REREAD_S", 0.0)
    stored, feed = completed_turn("text").stored, LiveFeed()
    server = ScriptedServer(read=[page(stored[0]), page()], last_request=[stored[0].seq], has_recorded_end=[False])
    follower = Follower(server, KEY, BEFORE_FIRST, feed)
    await follower.first()
    for _ in range(3):
        await follower.next()
    assert server.names.count("has_recorded_end") == 1
    feed.add(stored[1])
    await follower.next()
    for _ in range(2):
        await follower.next()
    assert server.names.count("has_recorded_end") == 2
