"""The log copied from one NATS to another, as `up` does that moves it: whatever was left there before."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest_asyncio

from deploy.nats_server import NatsServer
from proto.log import Connection, copying
from proto.log.streams import EVERY_STREAM, apply
from proto.subjects import STREAM

BYTES_MAX = 64 * 1024**2


@pytest_asyncio.fixture
async def ends(tmp_path: Path) -> AsyncIterator[tuple[Connection, Connection]]:
    """A log with three entries, of which the second was removed, and a NATS with nothing."""
    async with AsyncExitStack() as stack:
        connections = []
        for name in ("source", "target"):
            (tmp_path / name).mkdir()
            server = await stack.enter_async_context(NatsServer(tmp_path / name))
            connections.append(await Connection.open(server.url, "test"))
            stack.push_async_callback(connections[-1].close)
        source, target = connections
        await apply(source, bytes_max=BYTES_MAX)
        for number in range(3):
            await source.jetstream.publish(f"turns.t.{number}.request", b"{}")
        await source.jetstream.delete_msg(STREAM, 2)
        yield source, target


async def held(connection: Connection) -> dict[str | None, tuple[int | None, ...]]:
    found = {info.config.name: info.state for info in await connection.jetstream.streams_info()}
    return {name: (at.messages, at.last_seq, at.consumer_count) for name, at in found.items()}


async def copy(source: Connection, target: Connection) -> None:
    await copying.copy(source, target, replicas=1, bytes_max=BYTES_MAX)


async def test_a_copy_has_what_the_log_has(ends: tuple[Connection, Connection]) -> None:
    """Every stream, with its sequences, gaps and consumers; and once more changes nothing."""
    source, target = ends
    await copy(source, target)
    first = await held(target)
    assert first == await held(source)
    assert set(first) == set(EVERY_STREAM)
    assert first[STREAM] == (2, 3, 3)
    created = (await target.jetstream.stream_info(STREAM)).created
    await copy(source, target)
    assert (await target.jetstream.stream_info(STREAM)).created == created


async def test_what_a_copy_that_broke_off_has_left_is_no_copy(ends: tuple[Connection, Connection]) -> None:
    """A restore without an end leaves a stream with nothing in it, under the name of the one that was meant."""
    source, target = ends
    await apply(target, bytes_max=BYTES_MAX)
    assert (await held(target))[STREAM] == (0, 0, 3)
    await copy(source, target)
    assert await held(target) == await held(source)
