"""A purged turn: readers, followers and writers notice it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import serving
from tailrace.proto.errors import LogUnavailable, TurnUnknown
from tailrace.proto.ids import TurnId, new_id
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.subjects import TurnKey
from tests.harness.generator_in_loop import ask, is_acknowledged, open_streams, stats, working
from tests.harness.turn_builder import says
from tests.harness.turn_writer import Writer
from tests.harness.until import until


@pytest.fixture
async def claude() -> AsyncIterator[str]:
    """The address of a simulated Claude that nobody else calls."""
    async with serving() as url:
        yield url


@pytest.mark.rule("R35")
async def test_a_purged_turn_is_unknown_and_every_other_is_as_it_was(log: TurnLog, key: TurnKey) -> None:
    """All of its entries are gone, whatever they were; doing it again changes nothing."""
    gone, stays = Writer(log, key), Writer(log, TurnKey(key.tenant, TurnId(new_id())))
    for writer in (gone, stays):
        await writer.open("Light ", "scatters.")
        await writer.end()
    before = await log.replay(stays.key)
    for _ in range(2):
        await log.purge(key)
        assert await log.replay(key) == []
        with pytest.raises(TurnUnknown):
            await log.turn(key)
    assert [stored.seq for stored in await log.replay(stays.key)] == [stored.seq for stored in before]


@pytest.mark.rule("R35")
async def test_the_writer_of_a_purged_turn_is_told_at_once(log: TurnLog, key: TurnKey) -> None:
    """Refused and with nothing after its last entry, it would else ask again until its time is up."""
    writer = Writer(log, key)
    await writer.open("Light")
    await log.purge(key)
    async with asyncio.timeout(2):
        with pytest.raises(TurnUnknown):
            await log.append(key, writer.chain, says(writer.chain, " scatters."))
    assert await log.replay(key) == []


@pytest.mark.rule("R35")
async def test_the_follower_of_a_purged_turn_finds_out(
    log: TurnLog, key: TurnKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end may never be heard of; a reader must not be kept waiting for it for ever."""
    monkeypatch.setattr("tailrace.proto.nats.follower.REREAD_S", 0.05)
    await Writer(log, key).open("Light")
    follower = log.follow(key)
    assert await anext(follower)
    await log.purge(key)
    async with asyncio.timeout(5):
        with pytest.raises(TurnUnknown):
            await anext(follower)


async def test_the_follower_of_a_silent_turn_goes_on(
    log: TurnLog, key: TurnKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that thinks is no purge: the log is asked, again and again, and its answer is not taken for one."""
    looks = 0

    async def counted(self: TurnLog, key: TurnKey, kind: str | None = None) -> int:
        nonlocal looks
        looks += 1
        return await last_seq(self, key, kind)

    last_seq = TurnLog.last_seq
    monkeypatch.setattr(TurnLog, "last_seq", counted)
    monkeypatch.setattr("tailrace.proto.nats.follower.REREAD_S", 0.02)
    writer = Writer(log, key)
    await writer.open("Light")
    follower = log.follow(key)
    assert await anext(follower)
    following = asyncio.ensure_future(anext(follower))
    await until(lambda: looks > 2)
    await writer.say(" scatters.")
    assert len(await following) == 1
    await follower.aclose()


@pytest.mark.rule("R35")
async def test_a_generator_whose_turn_is_purged_stops_and_the_model_with_it(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> None:
    """Also when nobody has cancelled it before: its next append is refused, and nothing of it comes again."""
    async with working(own_server.url, claude):
        key = await ask(own_log, "words=100000 rate=200")
        await open_streams(claude, 1)
        await own_log.purge(key)
        await open_streams(claude, 0)
        assert (await stats(claude))["calls"] == 1
        await until(lambda: is_acknowledged(own_connection))
    assert await own_log.replay(key) == []


async def test_without_a_server_nothing_is_purged(own_server: NatsServer, own_log: TurnLog, key: TurnKey) -> None:
    """Whoever asks is told so, and asks again."""
    await own_server.stop()
    with pytest.raises(LogUnavailable):
        await own_log.purge(key)
