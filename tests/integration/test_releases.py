"""What was lifted out of a turn goes with the last turn that refers to it: no sooner, and not a week later."""

import asyncio
import os
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.clients.anthropic import count_tokens
from tailrace.persistence import blob_gc, catch_up
from tailrace.persistence.store import Store
from tailrace.proto.chain import START
from tailrace.proto.entries import Message
from tailrace.proto.errors import LogFull, LogUnavailable
from tailrace.proto.ids import SessionId, Tenant, TurnId, child_id, new_id
from tailrace.proto.model_records import CountTokens
from tailrace.proto.nats import BlobPins, BlobStore, Connection, TurnLog, blob_pins
from tailrace.proto.records import GetTurn, TurnRecord
from tailrace.proto.subjects import BODIES, CLAIMS_STREAM, TurnKey
from tests.harness.generator_in_loop import ended, working
from tests.harness.persistence_in_loop import Persistence
from tests.harness.requests import posted
from tests.harness.turn_builder import request
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import Gateway, forget
from tests.integration.test_persistence_recorder import folds, rows
from tests.upgrade.recording import as_of

SHOW = {"type": "text", "text": "#sim words=0 files=1 rate=0"}


@pytest.fixture
def picture() -> str:
    """The base64 of one that nobody else has: two chunks."""
    return b64encode(os.urandom(450_000)).decode()


def name(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def image(data: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def showing(*pictures: str) -> list[dict[str, Any]]:
    """The answer is the hash of what the model was sent."""
    return [{"role": "user", "content": [*map(image, pictures), SHOW]}]


async def shown(gateway: Gateway, *pictures: str, **given: Any) -> dict[str, Any]:
    """A turn about `pictures` that has ended, and whose model saw them."""
    turn = await posted(gateway, message=None, messages=showing(*pictures), **given)
    assert (await gateway.client.get(turn["links"]["self"])).json()["text"] == name("".join(pictures))
    return turn


async def delete(gateway: Gateway, turn: dict[str, Any]) -> int:
    return (await gateway.client.delete(f"/v1/turns/{turn['turn']}")).status_code


async def is_there(gateway: Gateway, text: str) -> bool:
    answer = await gateway.client.get(f"/v1/blobs/{name(text)}")
    assert answer.status_code == (200 if answer.content == text.encode() else 404)
    return answer.status_code == 200


async def is_gone(gateway: Gateway, text: str) -> bool:
    return not await is_there(gateway, text)


async def stored(connection: Connection, tenant: Tenant) -> list[str]:
    """All that the stream has of a tenant: marks, and chunks without one."""
    info = await connection.jetstream.stream_info(BODIES, subjects_filter=f"bodies.{tenant}.>")
    return sorted(info.state.subjects or {})


async def held(connection: Connection, tenant: Tenant) -> list[str]:
    info = await connection.jetstream.stream_info(CLAIMS_STREAM, subjects_filter=f"$KV.CLAIMS.held.{tenant}.>")
    return sorted(info.state.subjects or {})


@asynccontextmanager
async def small_system(nats_url: str, claude: str, folder: Path) -> AsyncIterator[Persistence]:
    """A generator and persistence, for as long as a block."""
    async with working(nats_url, claude), Persistence(nats_url, folder / "tailrace.db") as persistence:
        yield persistence


def before(owner: type, method: str, call: Callable[[], Awaitable[object]], patched: pytest.MonkeyPatch) -> None:
    """Has `call` done right before the next call of a method, whoever makes it."""
    original, due = getattr(owner, method), [call]

    async def interrupted(self: Any, *given: Any, **named: Any) -> Any:
        if due:
            await due.pop()()
        return await original(self, *given, **named)

    patched.setattr(owner, method, interrupted)


@pytest.mark.rule("R34")
async def test_a_blob_goes_with_the_last_turn_that_refers_to_it(
    gateway: Gateway, second_gateway: Gateway, system_log: TurnLog, tenant: Tenant, picture: str
) -> None:
    """When the answer to DELETE is there, no gateway tells it any more, and the store has nothing of it."""
    first, second = await shown(gateway, picture), await shown(gateway, picture)
    follow_up = await posted(gateway, message="And?", session=second["session"])
    assert await delete(gateway, first) == 200
    assert await is_there(gateway, picture)
    assert await delete(gateway, follow_up) == 200
    assert await is_there(gateway, picture)
    assert await delete(gateway, second) == 200
    assert [await is_gone(one, picture) for one in (gateway, second_gateway)] == [True, True]
    assert await stored(system_log._connection, tenant) == []
    assert await delete(gateway, second) == 404
    # And asked again, it is there again.
    await shown(gateway, picture)


async def test_long_texts_system_prompts_and_tools_go_too(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """Whatever was lifted, wherever it stood; also with a session, and with a project."""
    for kind in ("turn", "session", "project"):
        novel, rules, look = (new_id() * 4000 for _ in range(3))
        tools = [{"name": "look", "description": look, "input_schema": {"type": "object"}}]
        body = {"message": f"{novel}\n#sim words=2 rate=0", "system": rules, "tools": tools, "project": "rivers"}
        turn = await posted(gateway, **body)
        assert len([one for one in await stored(system_log._connection, tenant) if one.count(".") == 2]) == 3
        path = {"turn": turn["links"]["self"], "session": f"/v1/sessions/{turn['session']}"}
        answer = await gateway.client.delete(path.get(kind, "/v1/projects/rivers"))
        assert (answer.status_code, await stored(system_log._connection, tenant)) == (200, [])


async def test_another_tenants_blob_is_another(gateway: Gateway, system_log: TurnLog, picture: str) -> None:
    """It has the same name, and nobody else's deletion takes it away."""
    other = Tenant(f"tenant-{new_id()}")
    bodies = BlobStore(system_log._connection)
    await bodies.put(other, {name(picture): picture.encode()})
    assert await delete(gateway, await shown(gateway, picture)) == 200
    assert await bodies.size(other, name(picture)) == len(picture)


async def test_a_turn_that_waits_keeps_what_it_refers_to(
    own_server: NatsServer,
    own_log: TurnLog,
    own_gateway: Gateway,
    claude: str,
    tenant: Tenant,
    tmp_path: Path,
    picture: str,
) -> None:
    """No generator has taken it yet when the turn is deleted that had the picture before."""
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        async with working(own_server.url, claude):
            first = await shown(own_gateway, picture)
        waiting = (await own_gateway.client.post("/v1/turns", json={"messages": showing(picture)})).json()
        assert await delete(own_gateway, first) == 200
        async with working(own_server.url, claude):
            turn = await ended(own_log, TurnKey(tenant, TurnId(waiting["turn"])))
    assert (turn.outcome, turn.text) == ("completed", name(picture))


async def test_a_batch_keeps_what_its_inputs_refer_to_and_takes_it_along(
    own_server: NatsServer,
    own_log: TurnLog,
    own_gateway: Gateway,
    claude: str,
    tenant: Tenant,
    tmp_path: Path,
    picture: str,
) -> None:
    """Those that nobody has asked yet, too: they stand in a blob of their own, which goes as well."""
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        async with working(own_server.url, claude):
            first = await shown(own_gateway, picture)
        body = {"requests": [{"custom_id": "c", "params": {"messages": showing(picture)}}]}
        batch = (await own_gateway.client.post("/v1/batches", json=body)).json()
        assert await delete(own_gateway, first) == 200
        async with working(own_server.url, claude):
            await ended(own_log, TurnKey(tenant, TurnId(batch["batch"])))
            turn = await own_log.turn(TurnKey(tenant, child_id(TurnId(batch["batch"]), 0)))
            assert (turn.outcome, turn.text) == ("completed", name(picture))
        assert len([one for one in await stored(own_log._connection, tenant) if one.count(".") == 2]) == 2
        assert await delete(own_gateway, {"turn": batch["batch"]}) == 200
        assert await stored(own_log._connection, tenant) == []


@pytest.mark.rule("R34")
@pytest.mark.parametrize("step", ["holding", "looking", "asking"])
async def test_what_is_asked_while_its_picture_is_deleted_has_it(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, picture: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Between any two steps of a POST, a whole deletion of the only other turn that refers to it."""
    first = await shown(gateway, picture)

    async def deletion() -> None:
        assert await delete(gateway, first) == 200

    method = {"holding": (BlobPins, "pin"), "looking": (BlobStore, "put"), "asking": (TurnLog, "append")}[step]
    with monkeypatch.context() as patched:
        before(*method, deletion, patched)
        second = await shown(gateway, picture)
    assert await delete(gateway, first) == 404
    assert await is_there(gateway, picture)
    assert await held(system_log._connection, tenant) == []
    assert await delete(gateway, second) == 200
    assert await stored(system_log._connection, tenant) == []


async def test_a_prompt_that_is_counted_has_its_picture_although_it_is_deleted(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in no turn, so nothing but the hold says that somebody is about to read it."""
    document = b64encode(os.urandom(6_300_000)).decode()
    first = await shown(gateway, document)
    ask = count_tokens.ask_generator

    async def deleted_before(gateway_: Any, tenant: Tenant, question: CountTokens, timeout_s: float) -> bytes:
        if question.is_lifted:
            assert await delete(gateway, first) == 200
        return await ask(gateway_, tenant, question, timeout_s)

    monkeypatch.setattr(count_tokens, "ask_generator", deleted_before)
    body = {"model": "claude-sonnet-5-5", "messages": showing(document)}
    answer = await gateway.client.post("/v1/messages/count_tokens", json=body)
    assert answer.status_code == 200, answer.text

    async def is_empty() -> bool:
        return await stored(system_log._connection, tenant) == []

    await until(is_empty)


@pytest.mark.rule("R34")
@pytest.mark.parametrize(
    "step",
    [
        (BlobStore, "mark_deleted"),
        (BlobPins, "is_pinned"),
        (Store, "referenced_blobs"),
        (BlobStore, "purge"),
        (Store, "forget_released"),
    ],
)
async def test_what_is_asked_between_two_steps_of_a_deletion_has_its_picture(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    claude: str,
    tenant: Tenant,
    tmp_path: Path,
    picture: str,
    monkeypatch: pytest.MonkeyPatch,
    step: tuple[type, str],
) -> None:
    """A whole POST between any two steps of the deletion of the only other turn that refers to it."""
    asked: list[dict[str, Any]] = []

    async def post() -> None:
        asked.append((await own_gateway.client.post("/v1/turns", json={"messages": showing(picture)})).json())

    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        async with working(own_server.url, claude):
            first = await shown(own_gateway, picture)
        with monkeypatch.context() as patched:
            before(*step, post, patched)
            assert await delete(own_gateway, first) == 200
        async with working(own_server.url, claude):
            turn = await ended(own_log, TurnKey(tenant, TurnId(asked[0]["turn"])))
        assert (turn.outcome, turn.text) == ("completed", name(picture))
        assert await is_there(own_gateway, picture)
        assert await delete(own_gateway, asked[0]) == 200
        assert await stored(own_log._connection, tenant) == []


@pytest.mark.rule("R34")
async def test_what_is_asked_and_not_recorded_yet_has_its_picture(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    claude: str,
    tenant: Tenant,
    tmp_path: Path,
    picture: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who deletes waits for the database once more, after it has condemned: without that, this one is never seen."""
    asked: list[dict[str, Any]] = []
    waited, is_held, record, caught_up = asyncio.Event(), BlobPins.is_pinned, Store.record, catch_up.catch_up
    waited.set()

    async def post(self: BlobPins, tenant: Tenant, sha256: str) -> bool:
        if not asked:
            waited.clear()
            asked.append((await own_gateway.client.post("/v1/turns", json={"messages": showing(picture)})).json())
        return await is_held(self, tenant, sha256)

    async def behind(self: Store, *given: Any) -> None:
        await waited.wait()
        await record(self, *given)

    async def waits(*given: Any) -> None:
        waited.set()
        await caught_up(*given)

    monkeypatch.setattr(BlobPins, "is_pinned", post)
    monkeypatch.setattr(Store, "record", behind)
    monkeypatch.setattr("tailrace.persistence.__main__.catch_up", waits)
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        async with working(own_server.url, claude):
            first = await shown(own_gateway, picture)
        assert await delete(own_gateway, first) == 200
        async with working(own_server.url, claude):
            turn = await ended(own_log, TurnKey(tenant, TurnId(asked[0]["turn"])))
    assert (turn.outcome, turn.text) == ("completed", name(picture))


def denied_once(owner: type, method: str, denial: object, patched: pytest.MonkeyPatch) -> None:
    """What a leader says that has just woken up: the first answer is from before it fell asleep."""
    original, due = getattr(owner, method), [denial]

    async def asked(self: Any, *given: Any) -> Any:
        return due.pop() if due else await original(self, *given)

    patched.setattr(owner, method, asked)


@pytest.mark.rule("R34")
async def test_a_blob_whose_hold_is_denied_once_stays(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, picture: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A leader that has just woken up knows nothing of what came while it slept: one no proves nothing (R14)."""
    bodies, holder = BlobStore(system_log._connection), BlobPins(system_log._connection)
    await bodies.put(tenant, {name(picture): picture.encode()})
    store = await Store.open(tmp_path / "own.db", busy_timeout_s=0.05)
    try:
        await store.migrate()
        await store.release_blobs(tenant, f'["{name(picture)}"]')
        settling = blob_gc.BlobCollector(store, bodies, BlobPins(system_log._connection), no_wait)
        async with holder.release_after(tenant, "asking"):
            await holder.pin(tenant, "asking", [name(picture)])
            denied_once(BlobPins, "is_pinned", False, monkeypatch)
            await settling.collect(tenant)
            assert await is_there(gateway, picture)
            assert await store.released_blobs(tenant) == [name(picture)]
        await settling.collect(tenant)
        assert await stored(system_log._connection, tenant) == []
    finally:
        await store.close()


async def test_a_blob_that_is_denied_once_is_deleted_all_the_same(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, picture: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who is told that there is none, by a leader that slept, would leave it there for a week."""
    bodies = BlobStore(system_log._connection)
    await bodies.put(tenant, {name(picture): picture.encode()})
    store = await Store.open(tmp_path / "own.db", busy_timeout_s=0.05)
    try:
        await store.migrate()
        await store.release_blobs(tenant, f'["{name(picture)}"]')
        denied_once(BlobStore, "mark_deleted", None, monkeypatch)
        await blob_gc.BlobCollector(store, bodies, BlobPins(system_log._connection), no_wait).collect(tenant)
    finally:
        await store.close()
    assert await stored(system_log._connection, tenant) == []


async def no_wait() -> None:
    """There is nothing in the log that this database has yet to learn."""


async def test_what_was_held_and_never_asked_goes_by_itself(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A POST that comes to nothing held the picture while it was deleted: somebody looks again."""
    first = await shown(gateway, picture)

    async def refused(*_: object, **__: object) -> None:
        assert await delete(gateway, first) == 200
        assert await is_there(gateway, picture)
        raise LogFull("full")

    with monkeypatch.context() as patched:
        patched.setattr(TurnLog, "append", refused)
        answer = await gateway.client.post("/v1/turns", json={"messages": showing(picture)})
    assert answer.status_code == 503

    async def is_empty() -> bool:
        return await stored(system_log._connection, tenant) == []

    await until(is_empty)
    assert await held(system_log._connection, tenant) == []


@pytest.mark.rule("R34")
async def test_broken_off_at_any_step_a_deletion_is_finished_by_the_next_life(
    own_server: NatsServer,
    own_log: TurnLog,
    own_gateway: Gateway,
    tenant: Tenant,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NATS goes away before its n-th request, and persistence after it: what was released stands in the database."""
    database, bodies = tmp_path / "tailrace.db", BlobStore(own_log._connection)
    monkeypatch.setattr(blob_gc, "INTERVAL_S", 0.05)
    monkeypatch.setattr(blob_gc, "WOKEN_WAIT_S", 0.001)
    steps = (
        (BlobStore, "mark_deleted"),
        (BlobPins, "is_pinned"),
        (Store, "referenced_blobs"),
        (BlobStore, "_purge"),
        (Store, "forget_released"),
    )
    broken = range(1, 20)
    for last in broken:
        content = b64encode(os.urandom(90_000))
        sha = sha256(content).hexdigest()
        await bodies.put(tenant, {sha: content})
        told = [{"type": "text", "text": {"tailrace:blob": sha, "bytes": len(content)}}]
        writer = Writer(own_log, TurnKey(tenant, TurnId(new_id())))
        await writer.ask(messages=[Message("user", told)])
        await writer.begin("Light")
        await writer.end()
        with monkeypatch.context() as patched:
            calls = 0

            def breaking(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
                async def step(self: Any, *given: Any) -> Any:
                    nonlocal calls
                    calls += 1
                    if calls >= last:  # noqa: B023  # called in this very round
                        raise LogUnavailable("away")
                    return await original(self, *given)

                return step

            for owner, method in steps:
                patched.setattr(owner, method, breaking(getattr(owner, method)))
            async with Persistence(own_server.url, database):
                status = await delete(own_gateway, {"turn": writer.key.turn})
                assert (status, await delete(own_gateway, {"turn": writer.key.turn})) in ((200, 404), (503, 503))
        async with Persistence(own_server.url, database):
            # Who is told that nothing is there can rely on it.
            assert await delete(own_gateway, {"turn": writer.key.turn}) == 404
            assert await stored(own_log._connection, tenant) == []
        if status == 200:
            break
    assert last > len(steps)
    assert status == 200


async def test_while_persistence_is_down_nothing_is_deleted(
    own_server: NatsServer, own_gateway: Gateway, own_log: TurnLog, claude: str, tmp_path: Path, picture: str
) -> None:
    """The client hears so; once it is back, the same DELETE does all of it."""
    async with small_system(own_server.url, claude, tmp_path):
        turn = await shown(own_gateway, picture)
    assert await delete(own_gateway, turn) == 503
    assert await is_there(own_gateway, picture)
    async with small_system(own_server.url, claude, tmp_path):
        assert await delete(own_gateway, turn) == 200
        assert await is_gone(own_gateway, picture)


async def test_a_follow_up_that_is_taken_out_takes_its_pictures_along(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    tenant: Tenant,
    tmp_path: Path,
    picture: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its request comes after its parent's deletion, and no row is ever made of it (R35)."""
    monkeypatch.setattr(blob_gc, "INTERVAL_S", 0.05)
    bodies = BlobStore(own_log._connection)
    root = Writer(own_log, TurnKey(tenant, TurnId(new_id())))
    await root.open("Light")
    await root.end()
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        assert await delete(own_gateway, {"turn": root.key.turn}) == 200
        await bodies.put(tenant, {name(picture): picture.encode()})
        told = [{"type": "text", "text": {"tailrace:blob": name(picture), "bytes": len(picture)}}]
        orphan = request(messages=[Message("user", told)], parent=root.key.turn, session=SessionId("session-1"))
        await own_log.append(TurnKey(tenant, TurnId(new_id())), START, orphan)

        async def is_empty() -> bool:
            return await stored(own_log._connection, tenant) == []

        await until(is_empty)


async def test_a_database_of_before_learns_who_refers_to_what(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    claude: str,
    tenant: Tenant,
    tmp_path: Path,
    picture: str,
) -> None:
    """From its rows, and from the log, which knows more: system prompts stand in no row."""
    database, rules = tmp_path / "tailrace.db", new_id() * 4000
    async with small_system(own_server.url, claude, tmp_path) as persistence:
        old = await shown(own_gateway, picture)
        new = await shown(own_gateway, picture, system=rules)
        await persistence.ask(tenant, "turn", GetTurn(TurnId(new["turn"])), TurnRecord)
        await forget(own_gateway, own_log, TurnKey(tenant, TurnId(old["turn"])))
    earlier = as_of(5, database)
    async with Persistence(own_server.url, earlier) as persistence:
        await persistence.ask(tenant, "turn", GetTurn(TurnId(new["turn"])), TurnRecord)
        assert [row.blobs for row in rows(earlier)] == [
            f'["{name(picture)}"]',
            (await folds(own_log, [TurnKey(tenant, TurnId(new["turn"]))]))[0].blobs,
        ]
        assert await delete(own_gateway, new) == 200
        assert [await is_there(own_gateway, text) for text in (picture, rules)] == [True, False]
        assert await delete(own_gateway, old) == 200
        assert await stored(own_log._connection, tenant) == []


async def fails(holder: BlobPins, tenant: Tenant, error: Exception) -> None:
    async with holder.release_after(tenant, "mine"):
        await holder.pin(tenant, "mine", ["a"])
        raise error


@pytest.mark.rule("R34")
async def test_a_hold_is_somebodys_and_ends_with_what_they_do(connection: Connection, tenant: Tenant) -> None:
    """Of one tenant, one blob; another holder's stays; who takes nothing lets go of nothing."""
    mine, theirs = BlobPins(connection), BlobPins(connection)
    async with mine.release_after(tenant, "mine"):
        assert not await mine.is_pinned(tenant, "a")
        await mine.pin(tenant, "mine", ["a", "b"])
        async with theirs.release_after(tenant, "theirs"):
            await theirs.pin(tenant, "theirs", ["b"])
            assert [await mine.is_pinned(tenant, blob) for blob in "abc"] == [True, True, False]
            assert not await mine.is_pinned(Tenant("other"), "a")
        assert [await theirs.is_pinned(tenant, blob) for blob in "ab"] == [True, True]
    assert [await mine.is_pinned(tenant, blob) for blob in "ab"] == [False, False]


async def test_who_cannot_say_whether_they_asked_holds_on_for_a_while(
    connection: Connection, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log may store what was asked later; after ten minutes it will not, and the hold is void."""
    mine = BlobPins(connection)
    with pytest.raises(LogUnavailable):
        await fails(mine, tenant, LogUnavailable("unclear"))
    assert await mine.is_pinned(tenant, "a")
    monkeypatch.setattr(blob_pins, "PIN_AGE_MAX", -blob_pins.PIN_AGE_MAX)
    assert not await mine.is_pinned(tenant, "a")


async def test_what_is_refused_holds_nothing(connection: Connection, tenant: Tenant) -> None:
    """Nothing of it is in the log, nor will be."""
    mine = BlobPins(connection)
    with pytest.raises(LogFull):
        await fails(mine, tenant, LogFull("full"))
    assert not await mine.is_pinned(tenant, "a")
