"""Whether the log may have forks, as a process knows it from its checks of the streams."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGKILL
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.chain import START
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, TurnLog, setup_state
from tailrace.proto.subjects import STREAM
from tests.conftest import apply_streams
from tests.harness.turn_builder import request
from tests.harness.until import until
from tests.harness.without_jetstream import without_jetstream


@asynccontextmanager
async def watch(connection: Connection) -> AsyncIterator[None]:
    """Checks the streams all the time while the context is open."""
    watching = asyncio.create_task(setup_state.watch(connection))
    try:
        yield
    finally:
        watching.cancel()


@pytest.mark.rule("R80")
async def test_turns_that_one_server_has_stored_since_the_first_check_have_no_forks(
    own_server: NatsServer, own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another stream and a reconnect start again: they may be those of another server."""
    monkeypatch.setattr(setup_state, "CHECK_EVERY_S", 0.02)
    log, tenant = TurnLog(own_connection), Tenant("t")
    before, after = (TurnKey(tenant, TurnId(new_id())) for _ in range(2))
    # Before the checks begin: the first check may be on its way, and have read the log's last entry already.
    first = (await log.append(before, START, request())).last
    assert not log.is_forkless(before, first)
    async with watch(own_connection):
        await until(lambda: own_connection.forkless_after == first)
        second = (await log.append(after, START, request())).last
        assert log.is_forkless(after, second)
        assert not log.is_forkless(before, first)
        await own_connection.jetstream.delete_stream(STREAM)
        await apply_streams(own_server.url)
        await until(lambda: own_connection.forkless_after == 0)
        second = (await log.append(after, START, request())).last
        await own_server.stop(SIGKILL)
        await own_server.start()
        await until(lambda: own_connection.forkless_after == second)
        assert not log.is_forkless(after, second)


@pytest.mark.rule("F9")
async def test_a_process_leaves_a_server_that_answers_pings_but_has_lost_the_log(
    own_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has no JetStream, as one that is cut off from the other two has no leader of any stream."""
    monkeypatch.setattr(setup_state, "CHECK_EVERY_S", 0.1)
    monkeypatch.setattr("tailrace.proto.nats.connection.sample", lambda addresses, _: addresses)
    (tmp_path / "isolated").mkdir()
    async with NatsServer(tmp_path / "isolated") as isolated, without_jetstream(isolated):
        connection = await Connection.open(f"{isolated.url},{own_server.url}", "test")
        try:
            with pytest.raises(LogUnavailable):
                await connection.stream_info(STREAM)
            async with watch(connection):
                await until(lambda: connection.disconnects == 1 and connection.is_up)
                await connection.stream_info(STREAM)
        finally:
            await connection.close()


async def test_the_difference_to_the_clock_of_nats_server_is_measured(
    own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway whose clock is three minutes behind counts every first token as early."""
    assert abs(await setup_state.read_clock_offset_s(own_connection)) < 1
    monkeypatch.setattr(setup_state, "CHECK_EVERY_S", 0.02)
    monkeypatch.setattr(setup_state, "time", SimpleNamespace(time=lambda: time.time() - 180))
    async with watch(own_connection):
        await until(lambda: -181 < (REGISTRY.get_sample_value("tailrace_clock_offset_seconds") or 0) < -179)
