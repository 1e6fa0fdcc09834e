"""Migration of a log from before the NATS accounts: `up` moves it into the account and loses nothing."""

import io
import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGTERM

import pytest
from msgspec.structs import replace

from tailrace.deploy.local import migrate_log
from tailrace.deploy.local.console import Console
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.nats_server import GLOBAL_ACCOUNT, NatsServer, account_dir
from tailrace.deploy.local.options import Options
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import Connection
from tailrace.proto.nats.permissions import LOG
from tailrace.proto.nats.streams import apply
from tailrace.proto.subjects import GENERATORS, STREAM
from tests.harness.until import until

BYTES_MAX = 64 * 1024**2


async def store(options: Options) -> None:
    """Stores an acknowledged and a waiting request in the global account, as an older version does."""
    specs = [replace(spec, has_one_account=True) for spec in migrate_log.server_specs(options, options.data_dir)]
    async with AsyncExitStack() as stack:
        for spec in specs:
            spec.directory.mkdir(parents=True, exist_ok=True)
        servers = [await stack.enter_async_context(NatsServer(spec.directory, spec=spec)) for spec in specs]
        connection = await Connection.open(",".join(server.url for server in servers), "test")

        async def is_set_up() -> bool:
            try:
                await apply(connection, bytes_max=BYTES_MAX, replicas=len(specs))
            except LogUnavailable:  # until they have elected a leader
                return False
            return True

        await until(is_set_up, 30)
        for number in range(2):
            await connection.jetstream.publish(f"turns.t.{number}.request", b"{}")
        pull = await connection.jetstream.pull_subscribe_bind(consumer=GENERATORS, stream=STREAM)
        (taken,) = await pull.fetch(1)
        await taken.ack_sync()
        await connection.close()
        for server in servers:
            await server.stop(SIGTERM)
    assert all(account_dir(spec.store, GLOBAL_ACCOUNT).exists() for spec in specs)


async def read_log_state(options: Options) -> tuple[int, int, int]:
    """Returns the number of entries, the number of waiting ones, and the acknowledged sequence."""
    (spec,) = migrate_log.server_specs(options, options.data_dir)
    async with NatsServer(spec.directory, spec=spec) as server:
        connection = await Connection.open(server.url, "test")
        state = (await connection.jetstream.stream_info(STREAM)).state
        consumer = await connection.jetstream.consumer_info(STREAM, GENERATORS)
        await connection.close()
        assert consumer.ack_floor is not None
        return state.messages, consumer.num_pending or 0, consumer.ack_floor.stream_seq


async def test_the_log_of_one_server_is_moved_to_its_account(tmp_path: Path) -> None:
    """Entries and acknowledgements; a second start does nothing."""
    options, out = Options(data_dir=tmp_path), io.StringIO()
    await store(options)
    for _ in range(2):
        await migrate_log.migrate(options, Console(out, width=2, coloured=False))
    assert out.getvalue() == "up | the log was moved to a NATS account of its own\n"
    assert await read_log_state(options) == (2, 1, 1)


async def test_the_log_of_a_cluster_is_moved_by_a_start_without_cluster(tmp_path: Path) -> None:
    """The Raft groups contain the account's name, so a cluster would start empty: the message says what to do."""
    three, one = Options(data_dir=tmp_path, cluster=True), Options(data_dir=tmp_path)
    await store(three)
    with pytest.raises(UpRefused, match="once without --cluster"):
        await migrate_log.migrate(three, Console(io.StringIO(), width=2, coloured=False))
    # One server may have lost its store: the others have it.
    shutil.rmtree(migrate_log.server_specs(three, tmp_path)[-1].store)
    await migrate_log.migrate(one, Console(io.StringIO(), width=2, coloured=False))
    (spec,) = migrate_log.server_specs(one, tmp_path)
    assert account_dir(spec.store, LOG).exists()
    assert await read_log_state(one) == (2, 1, 1)


@pytest.mark.parametrize("cluster", [False, True], ids=["one", "three"])
async def test_a_start_with_two_logs_is_refused(tmp_path: Path, cluster: bool) -> None:
    """An older version was started again, found no log and created one; either log may be the right one."""
    options, other = (Options(data_dir=tmp_path, cluster=is_three) for is_three in (cluster, not cluster))
    spec = migrate_log.server_specs(options, tmp_path)[-1]
    for account in (GLOBAL_ACCOUNT, LOG):
        account_dir(spec.store, account).mkdir(parents=True)
    for wanted in (options, other):
        with pytest.raises(
            UpRefused, match=r"there are two logs: .*\$G of an older version, and .*TAILRACE of this one\. Move"
        ):
            await migrate_log.migrate(wanted, Console(io.StringIO(), width=2, coloured=False))
    assert not migrate_log.store_of(other, tmp_path).exists()
