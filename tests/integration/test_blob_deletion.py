"""Deletion of blobs: a blob is deleted with the last turn that refers to it, and not before."""

import asyncio
import os
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tailrace.features.count_tokens import gateway as count_tokens
from tailrace.persistence import blob_gc
from tailrace.persistence.catch_up import SharedCatchUp
from tailrace.persistence.rows import build_row
from tailrace.persistence.store import Store
from tailrace.proto.chain import START
from tailrace.proto.entries import Message
from tailrace.proto.errors import LogFull, LogUnavailable
from tailrace.proto.fold import Turn
from tailrace.proto.ids import SessionId, Tenant, TurnId, TurnKey, child_id, new_id
from tailrace.proto.nats import BlobPins, BlobStore, Connection, Tombstones, TurnLog, blob_pins
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import GetTurn, TurnRecord
from tailrace.proto.resources import DeleteResource
from tailrace.proto.subjects import BODIES, CLAIMS_STREAM
from tests.harness.open_store import open_store
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.requests import post_until_ended
from tests.harness.turn_builder import completed_turn, request
from tests.harness.turn_writer import Writer
from tests.harness.until import until_equal
from tests.integration.conftest import Gateway, forget
from tests.integration.test_persistence_recorder import expected_rows, rows
from tests.upgrade.recording import downgrade

Step = tuple[type, str]

# The answer is the hash of the files that the model was sent.
SHOW = {"type": "text", "text": "#sim words=0 files=1 rate=0"}
STEPS_OF_DELETION: list[Step] = [
    (BlobStore, "mark_deleted"),
    (BlobPins, "is_pinned"),
    (Store, "referenced_blobs"),
    (BlobStore, "purge"),
    (Store, "forget_released"),
]
STEPS_OF_POST: list[Step] = [(BlobPins, "pin"), (BlobStore, "put"), (TurnLog, "append")]


@pytest.fixture
def picture() -> str:
    """The base64 of a new picture of two chunks."""
    return b64encode(os.urandom(450_000)).decode()


def name(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def reference(text: str) -> list[dict[str, Any]]:
    """A message's content that refers to the blob of `text`."""
    return [{"type": "text", "text": {"tailrace:blob": name(text), "bytes": len(text)}}]


def picture_messages(picture: str) -> list[dict[str, Any]]:
    source = {"type": "base64", "media_type": "image/png", "data": picture}
    return [{"role": "user", "content": [{"type": "image", "source": source}, SHOW]}]


async def post_picture(gateway: Gateway, picture: str, **given: Any) -> dict[str, Any]:
    """Posts a turn about a picture and waits for its end; the model has received the picture."""
    turn = await post_until_ended(gateway, message=None, messages=picture_messages(picture), **given)
    assert (await gateway.client.get(turn["links"]["self"])).json()["text"] == name(picture)
    return turn


async def delete(gateway: Gateway, turn: dict[str, Any]) -> int:
    return (await gateway.client.delete(f"/v1/turns/{turn['turn']}")).status_code


async def is_there(gateway: Gateway, text: str) -> bool:
    answer = await gateway.client.get(f"/v1/blobs/{name(text)}")
    assert answer.status_code == (200 if answer.content == text.encode() else 404)
    return answer.status_code == 200


async def stored_blobs(connection: Connection, tenant: Tenant) -> list[str]:
    """Returns the subjects of all blobs and chunks of a tenant."""
    info = await connection.jetstream.stream_info(BODIES, subjects_filter=f"bodies.{tenant}.>")
    return sorted(info.state.subjects or {})


async def blob_count(connection: Connection, tenant: Tenant) -> int:
    return len([subject for subject in await stored_blobs(connection, tenant) if subject.count(".") == 2])


async def pins(connection: Connection, tenant: Tenant) -> list[str]:
    info = await connection.jetstream.stream_info(CLAIMS_STREAM, subjects_filter=f"$KV.CLAIMS.held.{tenant}.>")
    return sorted(info.state.subjects or {})


async def until_empty(connection: Connection, tenant: Tenant) -> None:
    await until_equal(lambda: stored_blobs(connection, tenant), [])


def call_before(step: Step, call: Callable[[], Awaitable[object]], patched: pytest.MonkeyPatch) -> None:
    """Makes the next call of a method run `call` first."""
    original, due = getattr(*step), [call]

    async def call_due_first(self: Any, *given: Any, **named: Any) -> Any:
        if due:
            await due.pop()()
        return await original(self, *given, **named)

    patched.setattr(*step, call_due_first)


@dataclass
class BlobSystem(OwnSystem):
    """The test's own system with a gateway; generators and persistence run as long as a block."""

    gateway: Gateway
    tenant: Tenant
    database: Path

    def persistence(self) -> AbstractAsyncContextManager[Persistence]:
        return Persistence(self.server.url, self.database)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Persistence]:
        async with self.running_generator(), self.persistence() as persistence:
            yield persistence

    async def show(self, picture: str) -> dict[str, Any]:
        async with self.running_generator():
            return await post_picture(self.gateway, picture)

    async def post(self, picture: str) -> dict[str, Any]:
        """Posts a turn, which waits for a generator."""
        answer = await self.gateway.client.post("/v1/turns", json={"messages": picture_messages(picture)})
        accepted: dict[str, Any] = answer.json()
        return accepted

    async def ended_turn(self, turn: str) -> Turn:
        """Runs a generator until the turn has ended."""
        async with self.running_generator():
            return await self.wait_for_end(TurnKey(self.tenant, TurnId(turn)))

    async def write(self, text: str) -> dict[str, Any]:
        """Stores a blob and a completed turn that refers to it."""
        await BlobStore(self.connection).put(self.tenant, {name(text): text.encode()})
        writer = Writer(self.log, TurnKey(self.tenant, TurnId(new_id())))
        await writer.store_request(messages=[Message("user", reference(text))])
        await writer.begin("Light")
        await writer.end()
        return {"turn": writer.key.turn}


@pytest.fixture
def own(own: OwnSystem, own_gateway: Gateway, tenant: Tenant, tmp_path: Path) -> BlobSystem:
    return BlobSystem(**vars(own), gateway=own_gateway, tenant=tenant, database=tmp_path / "tailrace.db")


@pytest.mark.rule("R34")
async def test_a_blob_is_deleted_with_the_last_turn_that_refers_to_it(
    gateway: Gateway, second_gateway: Gateway, system_log: TurnLog, tenant: Tenant, picture: str
) -> None:
    """After the response to DELETE no gateway returns it. Another tenant's blob of the same name stays."""
    other, blobs = Tenant(f"tenant-{new_id()}"), BlobStore(system_log.connection)
    await blobs.put(other, {name(picture): picture.encode()})
    first, second = await post_picture(gateway, picture), await post_picture(gateway, picture)
    follow_up = await post_until_ended(gateway, message="And?", session=second["session"])
    for turn in (first, follow_up):
        assert await delete(gateway, turn) == 200
        assert await is_there(gateway, picture)
    assert await delete(gateway, second) == 200
    assert [await is_there(one, picture) for one in (gateway, second_gateway)] == [False, False]
    assert await stored_blobs(system_log.connection, tenant) == []
    assert await delete(gateway, second) == 404
    await post_picture(gateway, picture)
    assert await blobs.size(other, name(picture)) == len(picture)


async def test_long_texts_system_prompts_and_tools_are_deleted_with_their_project(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    novel, rules, look = (new_id() * 4000 for _ in range(3))
    tools = [{"name": "look", "description": look, "input_schema": {"type": "object"}}]
    body = {"message": f"{novel}\n#sim words=2 rate=0", "system": rules, "tools": tools, "project": "rivers"}
    await post_until_ended(gateway, **body)
    assert await blob_count(system_log.connection, tenant) == 3
    answer = await gateway.client.delete("/v1/projects/rivers")
    assert (answer.status_code, await stored_blobs(system_log.connection, tenant)) == (200, [])


@pytest.mark.parametrize("is_batch", [False, True], ids=["turn", "batch"])
async def test_a_waiting_turn_and_the_inputs_of_a_batch_keep_their_blobs(
    own: BlobSystem, picture: str, is_batch: bool
) -> None:
    """The other turn that refers to the picture is deleted before a generator takes this one."""
    async with own.persistence():
        first = await own.show(picture)
        if is_batch:
            body = {"requests": [{"custom_id": "c", "params": {"messages": picture_messages(picture)}}]}
            batch = (await own.gateway.client.post("/v1/turn-batches", json=body)).json()["batch"]
            waiting = child_id(TurnId(batch), 0)
        else:
            waiting = (await own.post(picture))["turn"]
        assert await delete(own.gateway, first) == 200
        turn = await own.ended_turn(batch if is_batch else waiting)
        turn = await own.log.read_turn(ScopedKey.whole(TurnKey(own.tenant, TurnId(waiting))))
        assert (turn.outcome, turn.text) == ("completed", name(picture))
        assert await blob_count(own.connection, own.tenant) == (2 if is_batch else 1)
        assert await delete(own.gateway, {"turn": batch if is_batch else waiting}) == 200
        assert await stored_blobs(own.connection, own.tenant) == []


@pytest.mark.rule("R34")
@pytest.mark.parametrize("step", STEPS_OF_POST, ids=lambda step: step[1])
async def test_a_deletion_at_any_step_of_a_post_keeps_its_blob(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, picture: str, monkeypatch: pytest.MonkeyPatch, step: Step
) -> None:
    """The only other turn that refers to it is deleted."""
    first = await post_picture(gateway, picture)

    async def deletion() -> None:
        assert await delete(gateway, first) == 200

    with monkeypatch.context() as patched:
        call_before(step, deletion, patched)
        second = await post_picture(gateway, picture)
    assert await delete(gateway, first) == 404
    assert await is_there(gateway, picture)
    assert await pins(system_log.connection, tenant) == []
    assert await delete(gateway, second) == 200
    assert await stored_blobs(system_log.connection, tenant) == []


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """The database of a collector of the test's own."""
    async with open_store(tmp_path / "own.db") as store:
        yield store


def collector(store: Store, connection: Connection) -> blob_gc.BlobCollector:
    async def no_wait(_: Tenant | None) -> None:
        """The log has nothing that this database has not recorded."""

    return blob_gc.BlobCollector(store, BlobStore(connection), BlobPins(connection), no_wait)


@pytest.mark.rule("R34")
async def test_a_blob_whose_last_turn_is_deleted_during_a_collection_is_deleted(
    connection: Connection, tenant: Tenant, picture: str, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    """The collection has found the turn just before."""
    referenced, turn = (
        Store.referenced_blobs,
        build_row(TurnKey(tenant, TurnId(new_id())), completed_turn("Light").turn),
    )

    async def find_and_delete(self: Store, *given: Any) -> list[str]:
        found = await referenced(self, *given)
        await store.delete(tenant, DeleteResource("session", turn.session, (TurnId(turn.turn),)))
        return found

    await BlobStore(connection).put(tenant, {name(picture): picture.encode()})
    await store.record([msgspec.structs.replace(turn, blobs=f'["{name(picture)}"]')])
    await store.release_blobs(tenant, [name(picture)])
    with monkeypatch.context() as patched:
        patched.setattr(Store, "referenced_blobs", find_and_delete)
        await collector(store, connection).collect(tenant)
    await collector(store, connection).collect(tenant)
    assert await stored_blobs(connection, tenant) == []


async def test_a_collection_without_released_blobs_takes_no_lock(
    connection: Connection, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    """Each deletion collects, also that of an unknown turn. On PostgreSQL a lock takes a connection."""
    locked = list[str]()

    def lock(_: Store, name: str) -> AbstractAsyncContextManager[None]:
        locked.append(name)
        return nullcontext()

    monkeypatch.setattr(Store, "lock", lock)
    assert (await collector(store, connection).collect(tenant), locked) == (0, [])


async def test_a_prompt_that_is_counted_keeps_its_blob_until_then(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No turn refers to it: only the pin keeps it."""
    document = b64encode(os.urandom(6_300_000)).decode()
    first = await post_picture(gateway, document)
    store = count_tokens.store_long_strings

    async def store_and_delete(*arguments: Any) -> dict[str, Any]:
        fields = await store(*arguments)
        assert await delete(gateway, first) == 200
        return fields

    monkeypatch.setattr(count_tokens, "store_long_strings", store_and_delete)
    body = {"model": "claude-sonnet-5-5", "messages": picture_messages(document)}
    answer = await gateway.client.post("/v1/messages/count_tokens", json=body)
    assert answer.status_code == 200, answer.text
    await until_empty(system_log.connection, tenant)


@pytest.mark.rule("R34")
@pytest.mark.parametrize("step", STEPS_OF_DELETION, ids=lambda step: step[1])
async def test_a_post_at_any_step_of_a_deletion_keeps_its_blob(
    own: BlobSystem, picture: str, monkeypatch: pytest.MonkeyPatch, step: Step
) -> None:
    posts: list[dict[str, Any]] = []

    async def post() -> None:
        posts.append(await own.post(picture))

    async with own.persistence():
        first = await own.show(picture)
        with monkeypatch.context() as patched:
            call_before(step, post, patched)
            assert await delete(own.gateway, first) == 200
        turn = await own.ended_turn(posts[0]["turn"])
        assert (turn.outcome, turn.text) == ("completed", name(picture))
        assert await is_there(own.gateway, picture)
        assert await delete(own.gateway, posts[0]) == 200
        assert await stored_blobs(own.connection, own.tenant) == []


@pytest.mark.rule("R34")
async def test_a_turn_that_is_not_recorded_yet_keeps_its_blob(
    own: BlobSystem, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion waits for the database once more after it has marked the blob; otherwise it would miss this turn."""
    posts: list[dict[str, Any]] = []
    is_caught_up, is_pinned, record, wait = asyncio.Event(), BlobPins.is_pinned, Store.record, SharedCatchUp.wait
    is_caught_up.set()

    async def post_first(self: BlobPins, tenant: Tenant, sha256: str) -> bool:
        if not posts:
            is_caught_up.clear()
            posts.append(await own.post(picture))
        return await is_pinned(self, tenant, sha256)

    async def record_late(self: Store, *given: Any) -> None:
        await is_caught_up.wait()
        await record(self, *given)

    async def catch_up_now(self: SharedCatchUp, tenant: Tenant | None) -> None:
        is_caught_up.set()
        await wait(self, tenant)

    monkeypatch.setattr(BlobPins, "is_pinned", post_first)
    monkeypatch.setattr(Store, "record", record_late)
    monkeypatch.setattr(SharedCatchUp, "wait", catch_up_now)
    async with own.persistence():
        first = await own.show(picture)
        assert await delete(own.gateway, first) == 200
        turn = await own.ended_turn(posts[0]["turn"])
    assert (turn.outcome, turn.text) == ("completed", name(picture))


@pytest.mark.rule("R34")
@pytest.mark.parametrize(
    ("step", "answer"), [((BlobPins, "is_pinned"), False), ((BlobStore, "mark_deleted"), None)], ids=["pin", "blob"]
)
async def test_one_wrong_denial_of_a_pin_or_a_blob_is_not_believed(
    connection: Connection,
    tenant: Tenant,
    picture: str,
    monkeypatch: pytest.MonkeyPatch,
    store: Store,
    step: Step,
    answer: object,
) -> None:
    """A leader that was frozen answers with its old state (R14): a pinned blob stays, any other is deleted."""
    blobs, holder = BlobStore(connection), BlobPins(connection)
    await blobs.put(tenant, {name(picture): picture.encode()})
    await store.release_blobs(tenant, [name(picture)])
    original, wrong = getattr(*step), [answer]

    async def deny_once(self: Any, *given: Any) -> Any:
        return wrong.pop() if wrong else await original(self, *given)

    if step[0] is BlobPins:
        async with holder.release_after(tenant, "holder"):
            await holder.pin(tenant, "holder", [name(picture)])
            monkeypatch.setattr(*step, deny_once)
            await collector(store, connection).collect(tenant)
            assert await blobs.size(tenant, name(picture)) == len(picture)
            assert await store.released_blobs(tenant) == [name(picture)]
    else:
        monkeypatch.setattr(*step, deny_once)
    await collector(store, connection).collect(tenant)
    assert await stored_blobs(connection, tenant) == []
    assert wrong == []


async def test_the_blob_of_a_post_that_fails_is_deleted_by_itself(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The POST had pinned the picture while its only turn was deleted."""
    first = await post_picture(gateway, picture)

    async def fail(*_: object, **__: object) -> None:
        assert await delete(gateway, first) == 200
        assert await is_there(gateway, picture)
        raise LogFull("full")

    with monkeypatch.context() as patched:
        patched.setattr(TurnLog, "append", fail)
        answer = await gateway.client.post("/v1/turns", json={"messages": picture_messages(picture)})
    assert answer.status_code == 503
    await until_empty(system_log.connection, tenant)
    assert await pins(system_log.connection, tenant) == []


@pytest.mark.rule("R34")
async def test_a_post_without_an_acknowledgement_keeps_its_pins(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its turn may be stored later; after ten minutes it will not, and the pin expires."""

    async def fail(*_: object, **__: object) -> None:
        raise LogUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(TurnLog, "append", fail)
        answer = await gateway.client.post("/v1/turns", json={"messages": picture_messages(picture)})
    assert answer.status_code == 503
    assert len(await pins(system_log.connection, tenant)) == 1
    holder = BlobPins(system_log.connection)
    assert await holder.is_pinned(tenant, name(picture))
    monkeypatch.setattr(blob_pins, "PIN_AGE_MAX", -blob_pins.PIN_AGE_MAX)
    assert not await holder.is_pinned(tenant, name(picture))


@pytest.mark.rule("R34")
async def test_a_deletion_that_fails_at_any_step_is_completed_after_a_restart(
    own: BlobSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NATS is unavailable from the nth request on: the database has the list of released blobs."""
    monkeypatch.setattr(blob_gc, "INTERVAL_S", 0.05)
    monkeypatch.setattr(blob_gc, "WOKEN_WAIT_S", 0.001)
    steps = [(BlobStore, "_purge") if step == (BlobStore, "purge") else step for step in STEPS_OF_DELETION]
    for last in range(1, 20):
        turn = await own.write(b64encode(os.urandom(90_000)).decode())
        with monkeypatch.context() as patched:
            calls = 0

            def fail_after(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
                async def step(self: Any, *given: Any) -> Any:
                    nonlocal calls
                    calls += 1
                    if calls >= last:  # noqa: B023  # called in this round
                        raise LogUnavailable("away")
                    return await original(self, *given)

                return step

            for owner, method in steps:
                patched.setattr(owner, method, fail_after(getattr(owner, method)))
            async with own.persistence():
                status = await delete(own.gateway, turn)
                assert (status, await delete(own.gateway, turn)) in ((200, 404), (503, 503))
        async with own.persistence():
            # 404 means that nothing is stored any more.
            assert await delete(own.gateway, turn) == 404
            assert await stored_blobs(own.connection, own.tenant) == []
        if status == 200:
            break
    assert last > len(steps)
    assert status == 200


async def test_without_persistence_nothing_is_deleted(own: BlobSystem, picture: str) -> None:
    """The response is 503; once persistence is back, the same DELETE succeeds."""
    async with own.running():
        turn = await post_picture(own.gateway, picture)
    assert await delete(own.gateway, turn) == 503
    assert await is_there(own.gateway, picture)
    async with own.running():
        assert await delete(own.gateway, turn) == 200
        assert not await is_there(own.gateway, picture)


async def test_the_blobs_of_an_orphaned_follow_up_are_deleted(
    own: BlobSystem, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request is stored after the deletion of its parent, so it never has a row (R35)."""
    monkeypatch.setattr(blob_gc, "INTERVAL_S", 0.05)
    root = Writer(own.log, TurnKey(own.tenant, TurnId(new_id())))
    await root.open("Light")
    await root.end()
    async with own.persistence():
        assert await delete(own.gateway, {"turn": root.key.turn}) == 200
        await BlobStore(own.connection).put(own.tenant, {name(picture): picture.encode()})
        messages = [Message("user", reference(picture))]
        orphan = request(messages=messages, parent=root.key.turn, session=SessionId("session-1"))
        await own.log.append(TurnKey(own.tenant, TurnId(new_id())), START, orphan)
        await until_empty(own.connection, own.tenant)


async def test_a_result_of_a_batch_that_was_purged_but_has_no_tombstone_yet_is_deleted(own: BlobSystem) -> None:
    """Otherwise it stays if the database is lost at this moment: a repeated DELETE no longer finds the batch."""
    batch = Writer(own.log, TurnKey(own.tenant, TurnId(new_id())))
    await batch.open("Light")
    await Tombstones(own.connection).mark_deletion(batch.key)
    await own.log.purge(batch.key)
    parents = (batch.key.turn, TurnId(new_id()))
    results = [TurnKey(own.tenant, child_id(parent, 0)) for parent in parents]
    for key, parent in zip(results, parents, strict=True):
        await own.log.append(key, START, request(parent=parent, session=SessionId("session-1")))
    async with own.persistence() as persistence:
        await persistence.ask(own.tenant, "turn", GetTurn(results[1].turn), TurnRecord)
        assert await own.log.find_stored(results) == {results[1]}


async def test_a_database_of_an_older_version_learns_the_references(own: BlobSystem, picture: str) -> None:
    """From its rows, and from the log, which also has the system prompts."""
    rules = new_id() * 4000
    async with own.running() as persistence:
        old, new = await post_picture(own.gateway, picture), await post_picture(own.gateway, picture, system=rules)
        await persistence.ask(own.tenant, "turn", GetTurn(TurnId(new["turn"])), TurnRecord)
        await forget(own.gateway, own.log, TurnKey(own.tenant, TurnId(old["turn"])))
    earlier = downgrade(5, own.database)
    async with Persistence(own.server.url, earlier) as persistence:
        await persistence.ask(own.tenant, "turn", GetTurn(TurnId(new["turn"])), TurnRecord)
        (row,) = await expected_rows(own.log, [TurnKey(own.tenant, TurnId(new["turn"]))])
        assert [row.blobs for row in rows(earlier)] == [f'["{name(picture)}"]', row.blobs]
        assert await delete(own.gateway, new) == 200
        assert [await is_there(own.gateway, text) for text in (picture, rules)] == [True, False]
        assert await delete(own.gateway, old) == 200
        assert await stored_blobs(own.connection, own.tenant) == []


@pytest.mark.rule("R34")
async def test_a_pin_belongs_to_a_holder_and_ends_with_its_request(connection: Connection, tenant: Tenant) -> None:
    """Each pin is of one tenant and one blob; a holder that pins nothing releases nothing."""
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
