"""A log from before the NATS accounts: today's `up` finds it and loses nothing."""

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
    """What a version before leaves: a request that was taken, and one that was not, in the account without a name."""
    specs = [replace(spec, has_one_account=True) for spec in migrate_log.server_specs(options, options.data_dir)]
    async with AsyncExitStack() as stack:
        for spec in specs:
            spec.directory.mkdir(parents=True, exist_ok=True)
        servers = [await stack.enter_async_context(NatsServer(spec.directory, spec=spec)) for spec in specs]
        connection = await Connection.open(",".join(server.url for server in servers), "test")

        async def is_set_up() -> bool:
            try:
                await apply(connection, bytes_max=BYTES_MAX, replicas=len(specs))
            except LogUnavailable:  # until they have chosen who leads
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


async def found(options: Options) -> tuple[int, int, int]:
    """The entries that one server of today has, how many of them are waiting, and up to where they are taken."""
    (spec,) = migrate_log.server_specs(options, options.data_dir)
    async with NatsServer(spec.directory, spec=spec) as server:
        connection = await Connection.open(server.url, "test")
        state = (await connection.jetstream.stream_info(STREAM)).state
        consumer = await connection.jetstream.consumer_info(STREAM, GENERATORS)
        await connection.close()
        assert consumer.ack_floor is not None
        return state.messages, consumer.num_pending or 0, consumer.ack_floor.stream_seq


async def test_what_one_server_has_stored_is_the_logs_own_now(tmp_path: Path) -> None:
    """Entries and how far they were taken; a second start finds nothing to do."""
    options, out = Options(data_dir=tmp_path), io.StringIO()
    await store(options)
    for _ in range(2):
        await migrate_log.migrate(options, Console(out, width=2, coloured=False))
    assert out.getvalue() == "up | the log was moved to a NATS account of its own\n"
    assert await found(options) == (2, 1, 1)


async def test_what_three_servers_have_stored_is_copied_by_way_of_one(tmp_path: Path) -> None:
    """Their agreements name the account: three of today would begin with nothing, so it is said what to do first."""
    three, one = Options(data_dir=tmp_path, cluster=True), Options(data_dir=tmp_path)
    await store(three)
    with pytest.raises(UpRefused, match="once without --cluster"):
        await migrate_log.migrate(three, Console(io.StringIO(), width=2, coloured=False))
    # One may have lost what it had: the others give it.
    shutil.rmtree(migrate_log.server_specs(three, tmp_path)[-1].store)
    await migrate_log.migrate(one, Console(io.StringIO(), width=2, coloured=False))
    (spec,) = migrate_log.server_specs(one, tmp_path)
    assert account_dir(spec.store, LOG).exists()
    assert await found(one) == (2, 1, 1)


@pytest.mark.parametrize("cluster", [False, True], ids=["one", "three"])
async def test_of_two_logs_none_is_taken(tmp_path: Path, cluster: bool) -> None:
    """A version before was started here once more: it found no log and began one, and either may be what is wanted."""
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
