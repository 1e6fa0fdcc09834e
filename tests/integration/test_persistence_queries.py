"""Queries of persistence: they see every entry that was acknowledged before, of one tenant, or say why they cannot."""

import asyncio
import gc
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import date
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from tailrace.deploy.cli import status
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.persistence import DATABASES
from tailrace.features.projects.records import GetProject, ListProjects
from tailrace.features.usage.records import GetUsage, GetUsageBy
from tailrace.persistence.catch_up import SharedCatchUp
from tailrace.persistence.health import PersistenceHealth
from tailrace.persistence.serve import OTHERS_WAIT_S
from tailrace.proto.entries import Message
from tailrace.proto.errors import LogUnavailable, Refused, StoreNotShared
from tailrace.proto.ids import Seq, SessionId, Tenant, TurnId
from tailrace.proto.nats import Connection, Deliveries, Rpc, TurnLog
from tailrace.proto.nats.leases import Backlog, Progress
from tailrace.proto.nats.users import ADMIN
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import (
    Ancestry,
    Context,
    GetAncestry,
    GetContext,
    GetLastTurn,
    GetSession,
    GetTurn,
    ListRunning,
    ListSessions,
    ListSessionTurns,
    TurnPage,
    TurnRecord,
    record_from_fold,
)
from tailrace.proto.resources import ChangeSession, DeleteResource, ListBranches
from tailrace.proto.subjects import PERSISTENCE
from tests.harness.persistence_in_loop import Persistence
from tests.harness.processes import as_user
from tests.harness.turn_writer import OURS, Writer, new_writer, write_turn
from tests.harness.until import until

SESSION = SessionId("session-1")


@pytest.fixture
async def persistence(own_server: NatsServer, either_database: Path | str) -> AsyncIterator[Persistence]:
    async with Persistence(own_server.url, either_database) as persistence:
        yield persistence


def message(text: str) -> list[Message]:
    return [Message("user", text)]


async def ask(log: TurnLog, **given: Any) -> Writer:
    """Writes the request of a turn."""
    writer = new_writer(log)
    await writer.store_request(**given)
    return writer


async def refusal(persistence: Persistence, name: str, question: object) -> str:
    """Returns the error code with which a query is refused."""
    with pytest.raises(Refused) as refused:
        await persistence.ask(OURS, name, question, msgspec.Raw)
    return refused.value.code


async def test_a_query_sees_every_entry_that_was_acknowledged_before(
    persistence: Persistence, own_server: NatsServer, own_log: TurnLog
) -> None:
    """Its request and its end, while other turns are written without a pause."""
    busy = await Connection.open(own_server.url, "busy")

    async def write_on() -> None:
        while True:
            await write_turn(TurnLog(busy), "Light")
            # Persistence has to keep pace, on a slow machine and with PostgreSQL too.
            await asyncio.sleep(0.02)

    writing = [asyncio.create_task(write_on()) for _ in range(4)]
    try:
        for _ in range(4):
            writer = await ask(own_log)
            query = GetTurn(writer.key.turn)
            assert (await persistence.ask(OURS, "turn", query, TurnRecord)).outcome == "running"
            await writer.begin("Light")
            await writer.end()
            record = await persistence.ask(OURS, "turn", query, TurnRecord)
            assert record == record_from_fold(writer.key, await own_log.read_turn(ScopedKey.whole(writer.key)))
    finally:
        for task in writing:
            task.cancel()
        await asyncio.wait(writing)
        await busy.close()


async def test_entries_that_the_server_has_not_counted_yet_are_waited_for(
    own_connection: Connection, own_log: TurnLog
) -> None:
    """The number of pending entries of nats-server lags behind its store (measured), so the store is read too."""

    class LaggingCount(Deliveries):
        async def backlog(self) -> Backlog:
            return Backlog(waiting=0, leased=0, delivered=Seq(0), floor=Seq(0))

    deliveries = await LaggingCount.open(own_connection, PERSISTENCE)
    assert await deliveries.is_drained()
    await ask(own_log)
    assert not await deliveries.is_drained()


def is_recorded(_: Tenant | None, upto: Seq, progress: Progress) -> bool:
    """The state of a process without a recorder."""
    return progress.has_acknowledged(upto)


async def test_a_query_that_cannot_catch_up_is_refused(own_connection: Connection, own_log: TurnLog) -> None:
    """After its timeout, and at once while nothing can be recorded."""
    await ask(own_log)
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    for failure, timeout_s in (("", 0.05), ("locked", 3600)):
        with pytest.raises(Refused) as refused:
            await SharedCatchUp(deliveries, is_recorded, lambda failure=failure: failure, timeout_s).wait(OURS)  # type: ignore[misc]
        assert (refused.value.code, refused.value.retry_after_s) == ("persistence_unavailable", 2)


async def test_queries_that_wait_together_share_the_requests_to_the_server(
    own_connection: Connection, own_log: TurnLog
) -> None:
    """Otherwise hundreds of them would slow the recorder, for which they wait."""
    running = most = 0

    class CountingDeliveries(Deliveries):
        async def progress(self) -> Progress:
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                return await super().progress()
            finally:
                running -= 1

    await ask(own_log)
    deliveries = await CountingDeliveries.open(own_connection, PERSISTENCE)
    wait = SharedCatchUp(deliveries, is_recorded, lambda: "", 0.5).wait
    refused = await asyncio.gather(*(wait(OURS) for _ in range(100)), return_exceptions=True)
    assert {type(each) for each in refused} == {Refused}
    assert most == 1


async def test_a_query_waits_for_what_was_stored_during_the_read_of_another(
    own_connection: Connection, own_log: TurnLog
) -> None:
    """It must not share a read that has begun. Nor does it need the query that caused that read."""
    has_read, goes_on = asyncio.Event(), asyncio.Event()

    class Slow(Deliveries):
        async def progress(self) -> Progress:
            progress = await super().progress()
            has_read.set()
            await goes_on.wait()
            return progress

    wait = SharedCatchUp(await Slow.open(own_connection, PERSISTENCE), is_recorded, lambda: "", 0.5).wait
    first = asyncio.create_task(wait(OURS))
    await has_read.wait()
    await ask(own_log)
    second = asyncio.create_task(wait(OURS))
    await asyncio.sleep(0)
    first.cancel()
    goes_on.set()
    with pytest.raises(Refused):
        await second


async def test_failed_reads_of_the_progress_are_not_kept() -> None:
    class Down:
        async def progress(self) -> Progress:
            raise LogUnavailable("no leader")

    wait = SharedCatchUp(cast(Deliveries, Down()), is_recorded, lambda: "", 1).wait
    for _ in range(20):
        with pytest.raises(LogUnavailable):
            await wait(OURS)
    gc.collect()
    assert sum(isinstance(each, LogUnavailable) for each in gc.get_objects()) < 5


UNKNOWN: dict[str, tuple[Any, str]] = {
    "turn": (GetTurn(TurnId("none")), "turn_not_found"),
    "session": (GetSession("none"), "session_not_found"),
    "session_turns": (ListSessionTurns("none"), "session_not_found"),
    "sessions": (ListSessions(after="invented"), "cursor_invalid"),
    "running": (ListRunning(after="invented"), "cursor_invalid"),
    "ancestry": (GetAncestry(TurnId("none")), "turn_not_found"),
    "context": (GetContext(session="none"), "session_not_found"),
    "last": (GetLastTurn("none"), "session_not_found"),
    "branches": (ListBranches("none"), "session_not_found"),
    "project": (GetProject("none"), "project_not_found"),
    "projects": (ListProjects(after="invented"), "cursor_invalid"),
    "usage": (GetUsage("day", date(2026, 1, 1), date(2026, 1, 2), after="invented"), "cursor_invalid"),
    "usage_by": (GetUsageBy(["day", "user"], date(2026, 1, 1), date(2026, 2, 1)), "request_invalid"),
    "rename_session": (ChangeSession("none", "a title"), "session_not_found"),
    "delete": (DeleteResource("session", "none"), "session_not_found"),
}


async def test_unknown_ids_and_invalid_queries_are_refused_with_their_code(persistence: Persistence) -> None:
    for name, (query, code) in UNKNOWN.items():
        assert await refusal(persistence, name, query) == code, name
        assert await refusal(persistence, name, ["what?"]) == "request_invalid", name


async def test_the_context_of_a_follow_up_is_its_branch(persistence: Persistence, own_log: TurnLog) -> None:
    """Without the other branches, and each message once; the default parent is the session's last turn.

    Refused are a running parent, one of another session, and one whose ancestors have been deleted. A client may begin
    a session under a name of its own.
    """

    async def context(*given: Any, **named: Any) -> Context:
        return await persistence.ask(OURS, "context", GetContext(*given, **named), Context)

    assert await context(SESSION, create_session=True) == Context(SESSION, None, [])
    root = await write_turn(own_log, "Light.", messages=message("Why?"), session=SESSION)
    assert (await context(SESSION, create_session=True)).parent == root.turn
    start = [*message("Why?"), Message("assistant", "Light.")]
    left = await write_turn(
        own_log, "Left.", messages=[*start, *message("How?")], history=2, session=SESSION, parent=root.turn
    )
    right = await write_turn(own_log, "Right.", messages=message("When?"), session=SESSION, parent=root.turn)
    of_left = Context(
        SESSION,
        left.turn,
        [*start, *message("How?"), Message("assistant", "Left.")],
        [(root.turn, 2), (left.turn, 4)],
        owner=None,
    )
    of_right = Context(
        SESSION,
        right.turn,
        [*start, *message("When?"), Message("assistant", "Right.")],
        [(root.turn, 2), (right.turn, 4)],
        owner=None,
    )
    assert await context(parent=left.turn) == await context(SESSION, left.turn) == of_left
    assert await context(session=SESSION) == of_right

    elsewhere = await write_turn(own_log, "Light.", session=SessionId("session-2"))
    orphan = await write_turn(own_log, "So.", session=SessionId("session-3"), parent=TurnId("deleted"))
    for query in (GetContext(SESSION, elsewhere.turn), GetContext(SESSION, "none"), GetContext(parent=orphan.turn)):
        assert await refusal(persistence, "context", query) == "parent_not_found"
    assert await refusal(persistence, "context", GetContext()) == "request_invalid"

    running = await ask(own_log, session=SESSION, parent=root.turn)
    last = await persistence.ask(OURS, "last", GetLastTurn(SESSION), TurnRecord)
    assert last == record_from_fold(running.key, await own_log.read_turn(ScopedKey.whole(running.key)))
    for query in (GetContext(session=SESSION), GetContext(parent=running.key.turn)):
        assert await refusal(persistence, "context", query) == "session_busy"
    assert (await context(parent=root.turn)).parent == root.turn


async def test_a_conversation_of_too_many_turns_is_refused(
    persistence: Persistence, own_log: TurnLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follow-up of an earlier turn is possible."""
    monkeypatch.setattr("tailrace.persistence.queries.BRANCH_TURNS_MAX", 3)
    keys = [await write_turn(own_log, "Light.", messages=message("Why?"), session=SESSION)]
    for _ in range(4):
        keys.append(await write_turn(own_log, "So.", messages=message("How?"), session=SESSION, parent=keys[-1].turn))
    with pytest.raises(Refused, match="more than 3 turns") as refused:
        await persistence.ask(OURS, "context", GetContext(parent=keys[-1].turn), Context)
    assert refused.value.code == "body_too_large"
    earlier = await persistence.ask(OURS, "context", GetContext(parent=keys[-2].turn), Context)
    assert len(earlier.messages) == 8


async def test_the_ancestors_of_a_turn_have_pages(persistence: Persistence, own_log: TurnLog) -> None:
    """Newest first, without the turns of other branches."""
    parent, branch = TurnId("not-here"), list[TurnId]()
    for _ in range(5):
        await write_turn(own_log, "Aside.", session=SESSION, parent=parent)
        parent = (await write_turn(own_log, "So.", session=SESSION, parent=parent)).turn
        branch.insert(0, parent)
    ancestors: list[list[TurnId]] = []
    after: Any = branch[0]
    while after is not None:
        found = await persistence.ask(OURS, "ancestry", GetAncestry(after, 2), Ancestry)
        ancestors.append([turn.turn for turn in found.turns])
        after = found.next
    assert ancestors == [branch[0:2], branch[2:4], branch[4:]]
    whole = await persistence.ask(OURS, "ancestry", GetAncestry(branch[0], 5), Ancestry)
    assert ([turn.turn for turn in whole.turns], whole.next) == (branch, None)


async def test_a_page_of_long_turns_is_short(persistence: Persistence, own_log: TurnLog) -> None:
    """An answer must fit into one message of a server with default limits; each page has at least one turn."""
    root = await write_turn(own_log, "x" * 400_000, session=SESSION)
    leaf = await write_turn(own_log, "y" * 400_000, session=SESSION, parent=root.turn)
    first = await persistence.ask(OURS, "session_turns", ListSessionTurns(SESSION), TurnPage)
    rest = await persistence.ask(OURS, "session_turns", ListSessionTurns(SESSION, first.next), TurnPage)
    assert [[turn.turn for turn in page.turns] for page in (first, rest)] == [[root.turn], [leaf.turn]]
    assert rest.next is None
    newest = await persistence.ask(OURS, "ancestry", GetAncestry(leaf.turn), Ancestry)
    assert ([turn.turn for turn in newest.turns], newest.next) == ([leaf.turn], root.turn)


@pytest.mark.rule("R114")
@pytest.mark.parametrize("is_new", [True, False], ids=["a new database", "a database with an id"])
async def test_a_process_with_another_database_does_not_start(
    own_server: NatsServer, either_database: Path | str, tmp_path: Path, is_new: bool
) -> None:
    """Each would record a part of the turns. Processes with one database share them."""
    other = tmp_path / "other.db"
    if not is_new:
        async with Persistence(own_server.url, other) as alone:
            assert (await alone.health()).ok
    shared = Persistence(own_server.url, either_database), Persistence(own_server.url, either_database)
    async with shared[0], shared[1]:
        await asyncio.sleep(OTHERS_WAIT_S + 0.5)
        async with Persistence(own_server.url, other) as refused:
            with pytest.raises(StoreNotShared, match=re.escape(f"uses {DATABASES.global_name(str(either_database))}")):
                await refused.running
        assert not any(process.running.done() for process in shared)
    async with Persistence(own_server.url, other) as alone:
        assert (await alone.health()).ok


async def test_status_names_the_databases_of_processes_that_do_not_share_one(
    own_server: NatsServer, tmp_path: Path
) -> None:
    """Two that start at the same moment do not see each other."""
    ours, environ = tmp_path / "ours.db", {"TAILRACE_NATS_URL": as_user(own_server.url, ADMIN)}
    connection = await Connection.open(as_user(own_server.url, PERSISTENCE), "another persistence")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(connection.close)
        await stack.enter_async_context(Persistence(own_server.url, ours))
        shown = (await status.fetch(tmp_path, environ)).nats
        assert shown is not None
        assert (shown.persistence, shown.persistence_detail) == (True, "")
        another = msgspec.json.encode(
            PersistenceHealth(ok=True, detail="", database="host:/another.db", database_id="another")
        )
        await Rpc(connection).serve_health(PERSISTENCE, lambda: another)

        async def is_noticed() -> bool:
            found = await status.fetch(tmp_path, environ)
            lines = [line for line in status.render(found).splitlines() if "use different databases" in line]
            return not found.ok and len(lines) == 1 and str(ours) in lines[0] and "host:/another.db" in lines[0]

        await until(is_noticed)
