"""Copying the log from one NATS server to another, also after an interrupted copy."""

import io
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGTERM
from types import SimpleNamespace
from typing import cast

import pytest
import pytest_asyncio

from tailrace.deploy.local import migrate_log
from tailrace.deploy.local.console import Console
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.local.options import Options
from tailrace.deploy.nats import stream_copy
from tailrace.deploy.nats.setup import apply
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import Connection
from tailrace.proto.nats.stream_configs import EVERY_STREAM
from tailrace.proto.subjects import STREAM

BYTES_MAX = 64 * 1024**2


async def fill_stream(url: str) -> None:
    """Stores three entries and removes the second."""
    connection = await Connection.open(url, "test")
    await apply(connection, bytes_max=BYTES_MAX)
    for number in range(3):
        await connection.jetstream.publish(f"turns.t.{number}.request", b"{}")
    await connection.jetstream.delete_msg(STREAM, 2)
    await connection.close()


@pytest_asyncio.fixture
async def ends(tmp_path: Path) -> AsyncIterator[tuple[Connection, Connection]]:
    """A log with three entries, of which the second was removed, and a server without streams."""
    async with AsyncExitStack() as stack:
        connections, server_urls = [], []
        for name in ("source", "target"):
            (tmp_path / name).mkdir()
            server = await stack.enter_async_context(NatsServer(tmp_path / name))
            server_urls.append(server.url)
            connections.append(await Connection.open(server.url, "test"))
            stack.push_async_callback(connections[-1].close)
        await fill_stream(server_urls[0])
        source, target = connections
        yield source, target


async def read_held(connection: Connection) -> dict[str | None, tuple[int | None, ...]]:
    found = {info.config.name: info.state for info in await connection.jetstream.streams_info()}
    return {name: (at.messages, at.last_seq, at.consumer_count) for name, at in found.items()}


async def copy(source: Connection, target: Connection) -> None:
    await stream_copy.copy_streams(source, target, replicas=1, bytes_max=BYTES_MAX)


async def test_a_copy_has_every_stream_with_its_sequences_and_consumers(ends: tuple[Connection, Connection]) -> None:
    """With its gaps, byte for byte: the log is larger than one message of a snapshot, and incompressible."""
    source, target = ends
    payloads = [os.urandom(64 * 1024) for _ in range(4 * stream_copy.CHUNK_BYTES // (64 * 1024))]
    for number, payload in enumerate(payloads):
        await source.jetstream.publish(f"turns.t.{number}.event", payload)
    await source.jetstream.delete_msg(STREAM, 6)
    await copy(source, target)
    held = await read_held(target)
    assert held == await read_held(source)
    assert set(held) == set(EVERY_STREAM)
    assert held[STREAM] == (len(payloads) + 1, len(payloads) + 3, 3)
    for number in (0, 1, len(payloads) - 1):
        assert (await target.jetstream.get_last_msg(STREAM, f"turns.t.{number}.event")).data == payloads[number]


async def test_the_rest_of_an_interrupted_copy_is_refused_as_a_target(ends: tuple[Connection, Connection]) -> None:
    """An interrupted restore leaves an empty stream with that name: it is refused."""
    source, target = ends
    await apply(target, bytes_max=BYTES_MAX)
    assert (await read_held(target))[STREAM] == (0, 0, 3)
    with pytest.raises(LogUnavailable, match="already in use"):
        await copy(source, target)


class FullServer:
    """A target on a full disk: nats-server 2.15.1 answered the second attempt to restore TURNS like this."""

    async def request(self, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(data=b'{"type":"io.nats.jetstream.api.v1.stream_delete_response","success":true}')


async def test_an_answer_of_another_type_ends_a_copy(ends: tuple[Connection, Connection]) -> None:
    """Then `up` says in one sentence that the log could not be copied."""
    with pytest.raises(LogUnavailable, match=r"does not accept the copy of TURNS: .*stream_delete_response"):
        await copy(ends[0], cast("Connection", FullServer()))


async def test_an_interrupted_copy_is_repeated_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its servers are removed with it: a server that has lost a stream in the middle may never recover it."""
    options, out, really_copy = Options(data_dir=tmp_path), io.StringIO(), stream_copy.copy_streams
    (old,) = migrate_log.server_specs(options, tmp_path)
    async with NatsServer(tmp_path, spec=old) as server:
        await fill_stream(server.url)
        await server.stop(SIGTERM)

    async def break_off(_: Connection, target: Connection, **__: int) -> None:
        monkeypatch.setattr(stream_copy, "copy_streams", really_copy)
        await apply(target, bytes_max=BYTES_MAX)
        raise LogUnavailable("one stream of nine")

    monkeypatch.setattr(stream_copy, "copy_streams", break_off)
    await migrate_log.copy([old], options, tmp_path / "moving", Console(out, width=2, coloured=False))
    assert out.getvalue() == "up | copying the log again: one stream of nine\n"
    async with NatsServer(tmp_path / "moving") as server:
        connection = await Connection.open(server.url, "test")
        assert (await read_held(connection))[STREAM] == (2, 3, 3)
        await connection.close()


async def test_a_copy_that_fails_leaves_nothing_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy on a full disk would keep it full."""

    async def refuse(*_: object, **__: object) -> None:
        raise LogUnavailable("no space")

    options, stage = Options(data_dir=tmp_path), tmp_path / "moving"
    (old,) = migrate_log.server_specs(options, tmp_path)
    monkeypatch.setattr(stream_copy, "copy_streams", refuse)
    with pytest.raises(UpRefused, match=r"could not be copied \(no space\); nothing was changed"):
        await migrate_log.copy([old], options, stage, Console(io.StringIO(), width=2, coloured=False))
    assert not stage.exists()
