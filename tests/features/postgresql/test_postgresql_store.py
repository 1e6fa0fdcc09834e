"""The store on PostgreSQL: other processes, lost connections, and settings of the server."""

import asyncio
import random
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from tailrace.features.persistence import DATABASES
from tailrace.features.usage.persistence import UsageTable
from tailrace.persistence.rows import build_row
from tailrace.persistence.store import Store
from tailrace.proto.errors import StoreBusy, StoreRefused, StoreUnwritable
from tailrace.proto.ids import Seq
from tests.harness.open_store import open_store
from tests.harness.postgresql import PostgreSQLServer
from tests.harness.stored_turns import OURS, hash_text, key, running_row, words_row
from tests.harness.turn_builder import NOON, completed_turn
from tests.harness.until import until


async def test_a_turn_is_recorded_with_few_requests_to_postgresql(
    postgresql_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes a round trip to the server. None is sent for blobs and joined projects if there are none."""
    sent: list[str] = []

    def count_calls(method: str) -> Callable[..., Any]:
        real = getattr(asyncpg.Connection, method)

        async def call(self: asyncpg.Connection, text: str, *given: Any, **named: Any) -> Any:
            sent.append(text)
            return await real(self, text, *given, **named)

        return call

    for method in ("execute", "executemany", "fetch"):
        monkeypatch.setattr(asyncpg.Connection, method, count_calls(method))
    row = msgspec.structs.replace(running_row("turn-1"), added=words_row(hash_text("light")))
    await postgresql_store.record([row], Seq(1))
    assert len(sent) == 12, sent


@pytest.mark.rule("R93")
async def test_two_processes_write_one_after_the_other_and_count_each_turn_once(postgresql: PostgreSQLServer) -> None:
    """They write the same totals: without the lock of writers, they would deadlock or lose counts."""
    url = await postgresql.new_database()
    async with open_store(url) as one, open_store(url) as other:
        rows = [build_row(key(turn), completed_turn("Light").turn) for turn in ("turn-1", "turn-2")]
        async with one.database.transaction():
            with pytest.raises(StoreBusy, match="lock timeout"):
                await other.record(rows)
        for store in (one, other):
            await store.record(rows)
        for by in ("day", "session", "model"):
            (total,) = (await UsageTable(one).usage(OURS, by, NOON.date(), NOON.date(), "", 9))[0]
            assert (by, total.turns) == (by, 2)


@pytest.mark.rule("R93")
@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_a_transaction_that_has_waited_sees_the_one_before(postgresql: PostgreSQLServer, isolation: str) -> None:
    """Whatever the default of the role or the database is: otherwise each wait would be an error."""
    url = await postgresql.new_database()
    async with postgresql.connect(url) as administrator:
        name = url.rpartition("/")[2]
        await administrator.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
        async with open_store(url, busy_timeout_s=30) as one, open_store(url, busy_timeout_s=30) as other:
            async with one.database.transaction() as transaction:
                waiting = asyncio.create_task(other.record([running_row("turn-1")], Seq(7)))
                is_waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = $1"
                await until(lambda: administrator.fetchval(is_waiting, name))
                await transaction.execute("UPDATE reached SET seq = 5", {})
            await waiting
            assert await one.read_recorded_upto() == 7


async def test_a_schema_has_a_history_of_its_own(postgresql: PostgreSQLServer) -> None:
    """Also if its tables are in another schema of the search_path, and the schema has a table of another program."""
    url = await postgresql.new_database()
    async with postgresql.connect(url) as administrator:
        await administrator.execute("CREATE SCHEMA second; CREATE TABLE second.notes ()")
    async with open_store(url) as public, open_store(f"{url}?search_path=second%2Cpublic") as second:
        await public.record([running_row("turn-1")])
        assert await second.turn(key("turn-1")) is None
    async with open_store(f"{url}?search_path=second%2Cpublic") as second:
        assert not second.needs_replay


@pytest.mark.parametrize(("default", "used"), [("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")])
async def test_a_commit_is_on_the_disk_and_any_other_default_stays(
    postgresql: PostgreSQLServer, default: str, used: str
) -> None:
    url = await postgresql.new_database()
    async with postgresql.connect(url) as administrator:
        await administrator.execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET synchronous_commit = '{default}'")
    async with open_store(url) as store:
        (found,) = await store.database.read("SELECT current_setting('synchronous_commit') AS value", {})
    assert found["value"] == used


@pytest.mark.rule("R93")
async def test_a_lock_is_held_by_one_process(postgresql: PostgreSQLServer) -> None:
    """Until its block ends, or its process. Others wait for it, for longer than for the lock of a transaction."""
    url = await postgresql.new_database()
    async with open_store(url) as one, open_store(url) as other:
        async with one.lock("a"), other.lock("b"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1), other.lock("a"):
                    pass
        async with other.lock("a"):
            pass


@asynccontextmanager
async def proxy_that_hides_ends(port: int) -> AsyncIterator[int]:
    """Yields a port that forwards to `port`. What the server sends last arrives, but not the end of the connection."""
    writers: list[asyncio.StreamWriter] = []

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, server = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, server))
        await asyncio.gather(copy(reader, server), copy(back, writer), return_exceptions=True)

    listening = await asyncio.start_server(forward, "127.0.0.1", 0)
    yield listening.sockets[0].getsockname()[1]
    listening.close()
    for writer in writers:
        writer.close()


async def test_a_server_without_transaction_numbers_loses_no_turn(postgresql: PostgreSQLServer) -> None:
    """It has the SQLSTATE of a row that is too large for an index. Only such a row is left out."""
    url = await postgresql.new_database()
    async with open_store(url) as store:
        long = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=6000))
        with pytest.raises(StoreRefused):
            await store.record([msgspec.structs.replace(running_row("turn-1"), user=long)])
        async with postgresql.connect(url) as administrator:
            await administrator.execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
                "'database is not accepting commands to avoid wraparound data loss' USING ERRCODE = '54000'; END $$; "
                "CREATE TRIGGER refuse BEFORE INSERT ON turns FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
            with pytest.raises(StoreUnwritable, match=r"to avoid wraparound data loss \(54000\)"):
                await store.record([running_row("turn-1")])
            await administrator.execute("DROP TRIGGER refuse ON turns")
        await store.record([running_row("turn-1")])


async def test_a_database_that_accepts_no_connections_is_busy(postgresql: PostgreSQLServer) -> None:
    url = await postgresql.new_database()
    async with postgresql.connect("postgres") as administrator:
        await administrator.execute(f"ALTER DATABASE {url.rpartition('/')[2]} ALLOW_CONNECTIONS false")
    with pytest.raises(StoreBusy, match="is not currently accepting connections"):
        await DATABASES.open(url, busy_timeout_s=0.05)


END_OTHERS = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()"
)


async def test_a_connection_that_the_server_has_ended_is_replaced(postgresql: PostgreSQLServer) -> None:
    """The first use of it is StoreBusy, also if only the server's last message has arrived. The next one works."""
    url = await postgresql.new_database()
    async with (
        proxy_that_hides_ends(postgresql.port) as port,
        postgresql.connect(url) as administrator,
        open_store(url.replace(str(postgresql.port), str(port))) as store,
    ):
        await store.turn(key("turn-1"))
        await administrator.execute(END_OTHERS, url.rpartition("/")[2])

        async def is_refused() -> bool:
            try:
                await store.turn(key("turn-1"))
            except StoreBusy:
                return True
            return False

        # The message arrives at some time after the statement.
        await until(is_refused)
        assert await store.turn(key("turn-1")) is None


async def test_the_error_of_a_transaction_that_the_server_has_ended_names_the_cause(
    postgresql: PostgreSQLServer,
) -> None:
    """Not that its rollback found no connection."""
    url = await postgresql.new_database()
    async with open_store(url) as store:

        async def wait_in_transaction() -> None:
            async with store.database.transaction() as transaction:
                await transaction.read("SELECT pg_sleep(60)", {})

        waiting = asyncio.create_task(wait_in_transaction())
        async with postgresql.connect(url) as administrator:
            is_waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = $1"
            await until(lambda: administrator.fetchval(is_waiting, url.rpartition("/")[2]))
            await administrator.execute(END_OTHERS, url.rpartition("/")[2])
        with pytest.raises(StoreBusy, match="terminating connection due to administrator command"):
            await waiting


async def test_a_host_that_does_not_answer_does_not_keep_the_next_one_waiting(
    postgresql: PostgreSQLServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the loss of the primary's machine: the time limit is for each host of the URL."""
    monkeypatch.setattr("tailrace.features.postgresql.database.CONNECT_TIMEOUT_S", 2.0)
    url, host = await postgresql.new_database(), f"127.0.0.1:{postgresql.port}"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        both = url.replace(host, f"127.0.0.1:{silent.getsockname()[1]},{host}")
        async with open_store(both) as store, store.lock("a"):
            assert await store.turn(key("turn-1")) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_connection_notices_that_the_machine_of_the_server_is_gone(
    postgresql: PostgreSQLServer, postgresql_store: Store
) -> None:
    """By probes of the kernel: a query that waits for its answer sends nothing."""
    lines = [line.split() for line in (await asyncio.to_thread(Path("/proc/net/tcp").read_text)).splitlines()]
    ours = [line for line in lines if line[2] == f"0100007F:{postgresql.port:04X}" and line[3] == "01"]
    # The timer 02 is that of the probes. https://www.kernel.org/doc/html/latest/networking/proc_net_tcp.html
    assert {line[5][:2] for line in ours} == {"02"}


@pytest.mark.rule("R93")
async def test_tasks_of_a_process_that_wait_for_a_lock_have_no_connection(
    postgresql_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the deletions of one tenant would take all connections of the server."""
    opened: list[str] = []

    async def connect(url: str, **options: Any) -> asyncpg.Connection:
        opened.append(url)
        return await real(url, **options)

    async def hold() -> None:
        async with postgresql_store.lock("a"):
            pass

    real = asyncpg.connect
    monkeypatch.setattr(asyncpg, "connect", connect)
    async with postgresql_store.lock("a"):
        waiting = [asyncio.create_task(hold()) for _ in range(5)]
        await asyncio.sleep(0)
        assert len(opened) == 1
    await asyncio.gather(*waiting)
    assert len(opened) == 6
