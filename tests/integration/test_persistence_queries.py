"""What persistence answers: what a client was told is in it, of one's own tenant only, or it says why not."""

import asyncio
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.persistence.catch_up import catch_up
from tailrace.proto.entries import Message
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Seq, SessionId, Tenant, TurnId, new_id
from tailrace.proto.nats import Connection, Deliveries, Rpc, TurnLog
from tailrace.proto.nats.leases import Backlog
from tailrace.proto.records import (
    Ancestry,
    Context,
    GetAncestry,
    GetContext,
    GetLastTurn,
    GetSession,
    GetTurn,
    ListSessions,
    ListSessionTurns,
    SessionPage,
    SessionRecord,
    TurnPage,
    TurnRecord,
    record_from_fold,
)
from tailrace.proto.resources import (
    DeleteResource,
    GetProject,
    GetUsage,
    ListBranches,
    ListProjects,
    ProjectPage,
    RenameSession,
)
from tailrace.proto.subjects import PERSISTENCE, TurnKey
from tests.harness.persistence_in_loop import Persistence
from tests.harness.turn_writer import Writer

OURS, THEIRS = Tenant("ours"), Tenant("theirs")
SESSION = SessionId("session-1")


@pytest_asyncio.fixture
async def persistence(own_server: NatsServer, tmp_path: Path) -> AsyncIterator[Persistence]:
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as persistence:
        yield persistence


def said(text: str) -> list[Message]:
    return [Message("user", text)]


async def write(log: TurnLog, *texts: str, **given: Any) -> TurnKey:
    """A whole turn that says `texts`."""
    writer = await ask(log, **given)
    await writer.begin(*texts)
    await writer.end()
    return writer.key


async def ask(log: TurnLog, **given: Any) -> Writer:
    """A turn that is running."""
    writer = Writer(log, TurnKey(OURS, TurnId(new_id())))
    await writer.ask(**given)
    return writer


async def test_what_was_appended_is_in_the_answer_at_once(persistence: Persistence, own_log: TurnLog) -> None:
    """Whoever was told that a turn has ended, or was asked, finds it so: 200 times, without a pause."""
    for _ in range(100):
        writer = await ask(own_log)
        question = GetTurn(writer.key.turn)
        assert (await persistence.ask(OURS, "turn", question, TurnRecord)).outcome == "running"
        await writer.begin("Light")
        await writer.end()
        told = await persistence.ask(OURS, "turn", question, TurnRecord)
        assert told == record_from_fold(writer.key, await own_log.turn(writer.key))


async def test_a_question_is_answered_while_turns_keep_coming(
    persistence: Persistence, own_server: NatsServer, own_log: TurnLog
) -> None:
    """A backlog that is never empty is no reason to wait: what counts is what was there before the question."""
    busy = await Connection.open(own_server.url, "busy")
    turns = [asyncio.create_task(_write_on(TurnLog(busy))) for _ in range(4)]
    try:
        for _ in range(10):
            key = await write(own_log, "Light")
            assert (await persistence.ask(OURS, "turn", GetTurn(key.turn), TurnRecord)).outcome == "completed"
    finally:
        for turn in turns:
            turn.cancel()
        await asyncio.wait(turns)
        await busy.close()


async def test_what_the_server_has_not_counted_yet_is_waited_for(own_connection: Connection, own_log: TurnLog) -> None:
    """nats-server's count of what is pending follows its store by a moment (measured): the store itself is asked."""

    class Undercounted(Deliveries):
        async def backlog(self) -> Backlog:
            return Backlog(waiting=0, leased=0, delivered=Seq(0), floor=Seq(0))

    deliveries = await Undercounted.open(own_connection, PERSISTENCE)
    assert await deliveries.is_drained()
    await ask(own_log)
    assert not await deliveries.is_drained()


async def test_a_question_that_cannot_catch_up_is_refused(own_connection: Connection, own_log: TurnLog) -> None:
    """When nobody records, an old truth is not an answer."""
    await ask(own_log)
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    with pytest.raises(Refused) as refused:
        await catch_up(deliveries, lambda: "", timeout_s=0.05)
    assert (refused.value.code, refused.value.retry_after_s) == ("persistence_unavailable", 2)


async def test_a_question_is_refused_at_once_when_nothing_can_be_recorded(
    own_connection: Connection, own_log: TurnLog
) -> None:
    """Who knows that it will not catch up does not let anybody wait for it."""
    await ask(own_log)
    deliveries = await Deliveries.open(own_connection, PERSISTENCE)
    with pytest.raises(Refused):
        await catch_up(deliveries, lambda: "locked", timeout_s=3600)


async def test_a_question_that_waits_keeps_no_other_waiting(own_connection: Connection) -> None:
    """One endpoint hears one request at a time, so each is answered beside the others."""
    begun, gate = asyncio.Event(), asyncio.Event()

    async def patient(_: Tenant, question: bytes) -> bytes:
        if question == b"wait":
            begun.set()
            await gate.wait()
        return question

    # Of a user who may ask and answer what nobody else does.
    services = Rpc(own_connection)
    await services.serve("patient", "1.0.0", {"patience": patient})
    waiting = asyncio.create_task(services.request(OURS, "patience", b"wait", timeout_s=5))
    await begun.wait()
    assert await services.request(OURS, "patience", b"now", timeout_s=5) == b"now"
    gate.set()
    assert await waiting == b"wait"


QUESTIONS: dict[str, tuple[Any, str]] = {
    "turn": (GetTurn(TurnId("nobody")), "turn_not_found"),
    "session": (GetSession("nobody"), "session_not_found"),
    "session_turns": (ListSessionTurns("nobody"), "session_not_found"),
    "sessions": (ListSessions(after="invented"), "cursor_invalid"),
    "context": (GetContext(session="nobody"), "session_not_found"),
    "last": (GetLastTurn("nobody"), "session_not_found"),
    "branches": (ListBranches("nobody"), "session_not_found"),
    "project": (GetProject("nobody"), "project_not_found"),
    "projects": (ListProjects(after="invented"), "cursor_invalid"),
    "usage": (GetUsage("day", date(2026, 1, 1), date(2026, 1, 2), after="invented"), "cursor_invalid"),
    "rename_session": (RenameSession("nobody", "a title"), "session_not_found"),
    "delete": (DeleteResource("session", "nobody"), "session_not_found"),
}


@pytest.mark.parametrize("name", QUESTIONS)
async def test_what_is_not_there_is_refused_with_its_code(persistence: Persistence, name: str) -> None:
    """The code is a row of tailrace.proto.errors.CODES; the gateway passes it on."""
    question, code = QUESTIONS[name]
    assert await refusal(persistence, OURS, name, question) == code


@pytest.mark.parametrize("name", QUESTIONS)
async def test_a_question_that_is_none_is_refused(persistence: Persistence, name: str) -> None:
    """A gateway of another version hears what is wrong, not silence."""
    assert await refusal(persistence, OURS, name, ["what?"]) == "request_invalid"


async def test_another_tenants_history_is_not_there(persistence: Persistence, own_log: TurnLog) -> None:
    """Knowing an id helps nobody: the answer is that of an id that was never given out."""
    key = await write(own_log, "Light", session=SESSION)
    asked: list[tuple[str, Any, str]] = [
        ("turn", GetTurn(key.turn), "turn_not_found"),
        ("session", GetSession(SESSION), "session_not_found"),
        ("session_turns", ListSessionTurns(SESSION), "session_not_found"),
        ("context", GetContext(session=SESSION), "session_not_found"),
        ("context", GetContext(parent=key.turn), "parent_not_found"),
    ]
    assert [await refusal(persistence, THEIRS, name, question) for name, question, _ in asked] == [
        code for *_, code in asked
    ]
    assert await persistence.ask(THEIRS, "sessions", ListSessions(), SessionPage) == SessionPage([], None)


async def test_a_branch_is_told_without_the_other_ones(persistence: Persistence, own_log: TurnLog) -> None:
    """A second try has the same parent; each follow-up sees its own ancestors, and the last turn is the default."""
    root = await write(own_log, "Light.", messages=said("Why?"), session=SESSION)
    left = await write(own_log, "Left.", messages=said("How?"), session=SESSION, parent=root.turn)
    right = await write(own_log, "Right.", messages=said("When?"), session=SESSION, parent=root.turn)
    start = [*said("Why?"), Message("assistant", "Light.")]
    of_left = Context(
        SESSION,
        left.turn,
        [*start, *said("How?"), Message("assistant", "Left.")],
        [(root.turn, 2), (left.turn, 4)],
    )
    of_right = Context(
        SESSION,
        right.turn,
        [*start, *said("When?"), Message("assistant", "Right.")],
        [(root.turn, 2), (right.turn, 4)],
    )
    assert await persistence.ask(OURS, "context", GetContext(parent=left.turn), Context) == of_left
    assert await persistence.ask(OURS, "context", GetContext(SESSION, left.turn), Context) == of_left
    assert await persistence.ask(OURS, "context", GetContext(session=SESSION), Context) == of_right


async def test_a_turn_and_those_before_it_are_told_by_pages(persistence: Persistence, own_log: TurnLog) -> None:
    """Newest first, without the other branches; the last page says so, also of a branch whose beginning is not here."""
    parent, line = TurnId("not-here"), list[TurnId]()
    for _ in range(5):
        await write(own_log, "Aside.", messages=said("And?"), session=SESSION, parent=parent)
        parent = (await write(own_log, "So.", messages=said("Why?"), session=SESSION, parent=parent)).turn
        line.insert(0, parent)
    pages: list[list[TurnId]] = []
    after: TurnId | None = line[0]
    while after is not None:
        page = await persistence.ask(OURS, "ancestry", GetAncestry(after, 2), Ancestry)
        pages, after = [*pages, [turn.turn for turn in page.turns]], page.next
    assert pages == [line[0:2], line[2:4], line[4:]]
    whole = await persistence.ask(OURS, "ancestry", GetAncestry(line[0], 5), Ancestry)
    assert ([turn.turn for turn in whole.turns], whole.next) == (line, None)
    for tenant, turn in ((OURS, TurnId("never")), (THEIRS, line[0])):
        assert await refusal(persistence, tenant, "ancestry", GetAncestry(turn)) == "turn_not_found"


async def test_a_page_of_long_turns_before_a_turn_is_short(persistence: Persistence, own_log: TurnLog) -> None:
    """An answer is one message: what does not fit is told by the next."""
    root = await write(own_log, "x" * 400_000, messages=said("Why?"), session=SESSION)
    leaf = await write(own_log, "y" * 400_000, messages=said("How?"), session=SESSION, parent=root.turn)
    first = await persistence.ask(OURS, "ancestry", GetAncestry(leaf.turn), Ancestry)
    assert ([turn.turn for turn in first.turns], first.next) == ([leaf.turn], root.turn)
    second = await persistence.ask(OURS, "ancestry", GetAncestry(root.turn), Ancestry)
    assert ([turn.turn for turn in second.turns], second.next) == ([root.turn], None)


async def test_what_earlier_turns_said_is_told_once(persistence: Persistence, own_log: TurnLog) -> None:
    """A request carries its whole conversation; only what it added belongs to its turn."""
    root = await write(own_log, "Light.", messages=said("Why?"), session=SESSION)
    whole = [*said("Why?"), Message("assistant", "Light."), *said("How?")]
    leaf = await write(own_log, "So.", messages=whole, history=2, session=SESSION, parent=root.turn)
    context = await persistence.ask(OURS, "context", GetContext(parent=leaf.turn), Context)
    assert context.messages == [*whole, Message("assistant", "So.")]


async def test_a_conversation_of_too_many_turns_says_so(
    persistence: Persistence, own_log: TurnLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beginning is here, and is not told at once: no more of it, but from an earlier turn."""
    monkeypatch.setattr("tailrace.persistence.queries.BRANCH_TURNS_MAX", 3)
    keys = [await write(own_log, "Light.", messages=said("Why?"), session=SESSION)]
    for _ in range(4):
        keys.append(await write(own_log, "So.", messages=said("How?"), session=SESSION, parent=keys[-1].turn))
    with pytest.raises(Refused, match="more than 3 turns") as refused:
        await persistence.ask(OURS, "context", GetContext(parent=keys[-1].turn), Context)
    assert refused.value.code == "body_too_large"
    earlier = await persistence.ask(OURS, "context", GetContext(parent=keys[-2].turn), Context)
    assert len(earlier.messages) == 8


async def test_a_session_that_is_not_there_may_begin_under_its_name(persistence: Persistence, own_log: TurnLog) -> None:
    """Clients name their chats themselves: the first question finds none, and every later one goes on."""
    question = GetContext(SESSION, begin=True)
    assert await persistence.ask(OURS, "context", question, Context) == Context(SESSION, None, [])
    root = await write(own_log, "Light.", messages=said("Why?"), session=SESSION)
    assert (await persistence.ask(OURS, "context", question, Context)).parent == root.turn


async def test_the_first_project_that_is_named_for_a_session_is_its_project(
    persistence: Persistence, own_log: TurnLog
) -> None:
    """A project is there from when a turn first names it; one that is named later changes nothing."""
    for project in (None, "first", "second"):
        await write(own_log, "Light.", session=SESSION, project=project)
    assert (await persistence.ask(OURS, "context", GetContext(SESSION), Context)).project == "first"
    projects = await persistence.ask(OURS, "projects", ListProjects(), ProjectPage)
    assert [(one.id, one.name, one.sessions, one.turns) for one in projects.projects] == [("first", "first", 1, 3)]


async def test_the_newest_turn_of_a_session_is_told_while_it_runs(persistence: Persistence, own_log: TurnLog) -> None:
    """A chat that was left is found again by its name alone."""
    await write(own_log, "Light.", session=SESSION)
    running = await ask(own_log, session=SESSION)
    last = await persistence.ask(OURS, "last", GetLastTurn(SESSION), TurnRecord)
    assert last == record_from_fold(running.key, await own_log.turn(running.key))


async def test_a_conversation_does_not_go_on_from_a_running_turn(persistence: Persistence, own_log: TurnLog) -> None:
    """There is no answer yet to go on from; an earlier turn can still be branched from."""
    root = await write(own_log, "Light.", session=SESSION)
    running = await ask(own_log, session=SESSION, parent=root.turn)
    assert await refusal(persistence, OURS, "context", GetContext(session=SESSION)) == "session_busy"
    assert await refusal(persistence, OURS, "context", GetContext(parent=running.key.turn)) == "session_busy"
    assert (await persistence.ask(OURS, "context", GetContext(parent=root.turn), Context)).parent == root.turn


async def test_a_parent_has_to_be_of_the_session(persistence: Persistence, own_log: TurnLog) -> None:
    """Two conversations are never mixed, and one without its beginning is not told as if it were whole."""
    here = await write(own_log, "Light.", session=SESSION)
    there = await write(own_log, "Light.", session=SessionId("session-2"))
    orphan = await write(own_log, "So.", session=SESSION, parent=TurnId("forgotten"))
    for question in (GetContext(SESSION, there.turn), GetContext(SESSION, "nobody"), GetContext(parent=orphan.turn)):
        assert await refusal(persistence, OURS, "context", question) == "parent_not_found"
    assert await refusal(persistence, OURS, "context", GetContext()) == "request_invalid"
    assert (await persistence.ask(OURS, "context", GetContext(SESSION, here.turn), Context)).parent == here.turn


async def test_pages_follow_one_another_to_the_end(persistence: Persistence, own_log: TurnLog) -> None:
    """Every turn of a session, oldest first, and every session, newest first, each once."""
    keys = [await write(own_log, "Light", session=SESSION) for _ in range(5)]
    turns: list[TurnRecord] = []
    after: str | None = None
    while True:
        page = await persistence.ask(OURS, "session_turns", ListSessionTurns(SESSION, after, limit=2), TurnPage)
        turns += page.turns
        if (after := page.next) is None:
            break
    assert [turn.turn for turn in turns] == [key.turn for key in keys]

    await write(own_log, "Light", session=SessionId("session-2"))
    first = await persistence.ask(OURS, "sessions", ListSessions(limit=1), SessionPage)
    last = await persistence.ask(OURS, "sessions", ListSessions(first.next, limit=1), SessionPage)
    assert [one.session for one in first.sessions + last.sessions] == ["session-2", SESSION]
    assert (last.sessions[0].turns, last.next) == (5, None)
    assert await persistence.ask(OURS, "session", GetSession(SESSION), SessionRecord) == last.sessions[0]


async def test_a_page_of_long_turns_is_short(persistence: Persistence, own_log: TurnLog) -> None:
    """An answer has to fit into one message of a server that nobody has configured; one turn is always there."""
    keys = [await write(own_log, "x" * 300_000, session=SESSION) for _ in range(2)]
    first = await persistence.ask(OURS, "session_turns", ListSessionTurns(SESSION), TurnPage)
    rest = await persistence.ask(OURS, "session_turns", ListSessionTurns(SESSION, first.next), TurnPage)
    assert [[turn.turn for turn in page.turns] for page in (first, rest)] == [[key.turn] for key in keys]
    assert rest.next is None


async def refusal(persistence: Persistence, tenant: Tenant, name: str, question: object) -> str:
    """The code with which a question is refused."""
    with pytest.raises(Refused) as refused:
        await persistence.ask(tenant, name, question, msgspec.Raw)
    return refused.value.code


async def _write_on(log: TurnLog) -> None:
    while True:
        await write(log, "Light")
