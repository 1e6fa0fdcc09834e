"""Erasure of a user and of a tenant: the files of the database and of NATS after it."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tailrace.client import Client
from tailrace.deploy.cli import erase
from tailrace.deploy.cli.export import export_lines
from tailrace.deploy.cli.main import parser
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.turns.conversation import Conversations
from tailrace.proto.ids import Seq, Tenant, TurnKey, child_id
from tailrace.proto.nats import Connection, Counters, TurnLog
from tailrace.proto.nats.stream_leader import Leader
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import BODIES, STREAM
from tests.harness.batch_client import post_batch, read_results
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.until import until, until_equal
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys
from tests.integration.test_deletion import delete_after_position

MARK = "zebramark"


@pytest.fixture
async def gateway(
    own: OwnSystem, own_server: NatsServer, own_gateway: Gateway, tmp_path: Path
) -> AsyncIterator[Gateway]:
    """A gateway with a generator and persistence, whose files are all in `tmp_path`."""
    async with own.running_generator(), Persistence(own_server.url, tmp_path / "tailrace.db"):
        yield own_gateway


def files_with(text: str, folder: Path) -> dict[str, int]:
    """Returns the files that contain a text, and how often."""
    found = {}
    for path in folder.rglob("*"):
        # nats-server renames its temporary files meanwhile.
        with suppress(FileNotFoundError):
            if path.is_file() and path.suffix != ".log" and (count := path.read_bytes().count(text.encode())):
                found[path.name] = count
    return found


async def post_answered_turn(gateway: Gateway, user: str, **given: object) -> dict[str, Any]:
    """Returns a turn whose question and answer contain the user's name."""
    body = {"message": f"#sim words=20 rate=0 tag={user}", "user": user, "metadata": {"mail": f"{user}@x"}, **given}
    links = (await gateway.client.post("/v1/turns", json=body)).json()["links"]
    await gateway.client.get(links["events"])
    return dict((await gateway.client.get(links["self"])).json())


def export_user_lines(gateway: Gateway, user: str | None, *days: date | None) -> list[dict[str, Any]]:
    with Client(gateway.url, KEY) as client:
        return [json.loads(line) for line in export_lines(client, user, *days)]


async def logged_turns(connection: Connection) -> set[str]:
    info = await connection.jetstream.stream_info(STREAM, subjects_filter="turns.>")
    return {subject.split(".")[2] for subject in info.state.subjects or {}}


async def read(gateway: Gateway, path: str) -> Any:
    answer = await gateway.client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


@pytest.mark.rule("R91")
async def test_no_file_has_the_text_of_an_erased_user(
    gateway: Gateway, own_server: NatsServer, new_gateway: NewGateway, tmp_path: Path
) -> None:
    """The database, its journal and NATS's blocks. Other users' turns stay, and so do the sums without the name.

    A user of the same name in another tenant is another user.
    """
    theirs = await new_gateway(own_server.url, api_keys=api_keys(Tenant("another")))
    first = await post_answered_turn(gateway, MARK, session=f"{MARK}-1", create_session=True)
    await gateway.client.patch(f"/v1/sessions/{MARK}-1", json={"title": f"{MARK} on rivers"})
    follow_up = await post_answered_turn(gateway, "someone", session=f"{MARK}-1")
    kept = await post_answered_turn(gateway, "bob")
    assert {"tailrace.db-wal"} < set(files_with(MARK, tmp_path))
    exported = await asyncio.to_thread(export_user_lines, gateway, MARK)
    assert [(line["type"], line["user"]) for line in exported] == [("session", MARK), ("turn", MARK)]
    day = datetime.fromisoformat(first["asked_at"]).date()
    for days, turns in (((day, day), exported[1:]), ((day + timedelta(1), None), []), ((None, day - timedelta(1)), [])):
        assert await asyncio.to_thread(export_user_lines, gateway, MARK, *days) == turns
    by_day = await read(gateway, "/v1/usage")
    assert (await gateway.client.delete("/v1/users?user=other")).json()["turns"] == 0
    assert (await theirs.client.delete(f"/v1/users?user={MARK}")).json()["turns"] == 0
    assert (await gateway.client.delete("/v1/users?user=")).status_code == 400
    erased = (await gateway.client.delete(f"/v1/users?user={MARK}")).json()
    assert (erased["turns"], erased["rows"]) == (2, {"turns": 2, "sessions": 1, "projects": 0, "files": 0, "blobs": 0})
    assert erased["log_entries"] > 4
    await until_equal(lambda: files_with(MARK, tmp_path), {})
    for turn in (first, follow_up):
        assert (await gateway.client.get(f"/v1/turns/{turn['turn']}")).status_code == 404
    assert [turn["turn"] for turn in await read(gateway, "/v1/turns")] == [kept["turn"]]
    assert await read(gateway, "/v1/usage") == by_day
    # `someone` is the user of the follow-up, which was deleted with the turn that it continued.
    assert {line["key"]: line["turns"] for line in await read(gateway, "/v1/usage?by=user")} == {
        None: 1,
        "bob": 1,
        "someone": 1,
    }
    again = (await gateway.client.delete(f"/v1/users?user={MARK}")).json()
    assert (again["turns"], again["log_entries"]) == (0, 0)


@pytest.mark.rule("R91")
@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_follow_up_posted_during_an_erasure_leaves_no_text_of_the_erased_user(
    gateway: Gateway, own_log: TurnLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_killed: bool
) -> None:
    """The gateway deletes the follow-up, or persistence, if the gateway was killed before it could."""
    first = await post_answered_turn(gateway, MARK)
    # Of a block without any turn, nats-server removes the file.
    kept = await post_answered_turn(gateway, "bob")

    async def fail(*_: object) -> bool:
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(Conversations, "find_position", delete_after_position(gateway, f"/v1/users?user={MARK}"))
        if is_killed:
            patched.setattr("tailrace.gateway.turns.deleted_parent.is_deleted", fail)
            # Persistence has little time. It then overwrites the request, which repeats the erased turn.
            monkeypatch.setattr("tailrace.persistence.recorder.ERASING_S", 0.0)
        body = {"message": "And then?", "session": first["session"]}
        answer = await gateway.client.post("/v1/turns", json=body)
    assert answer.status_code == (500 if is_killed else 404)
    await until_equal(lambda: logged_turns(own_log.connection), {kept["turn"]})
    await until_equal(lambda: files_with(MARK, tmp_path), {})


@pytest.mark.rule("R91")
async def test_a_user_is_erased_from_the_inputs_of_an_ended_batch(
    gateway: Gateway, own_connection: Connection, tenant: Tenant
) -> None:
    """They contain the text of all turns of the batch. The turns of other users stay, and so do their results."""
    texts = {user: f"#sim words=3 rate=0 tag={user}\n{user * 40_000}" for user in (MARK, "bob")}
    inputs = [{"custom_id": user, "params": {"message": text, "user": user}} for user, text in texts.items()]
    batch = await post_batch(gateway, inputs)
    await gateway.client.get(batch["links"]["events"])
    before = await read_results(gateway, batch)
    erased = (await gateway.client.delete(f"/v1/users?user={MARK}")).json()
    assert (erased["turns"], erased["complete"], erased["rows"]["blobs"]) == (1, True, 2)
    info = await own_connection.jetstream.stream_info(BODIES, subjects_filter=f"bodies.{tenant}.*")
    sha256 = hashlib.sha256(texts["bob"].encode()).hexdigest()
    assert set(info.state.subjects or {}) == {f"bodies.{tenant}.{sha256}"}
    after = await read_results(gateway, batch)
    assert ([line["turn"] for line in after], after[1]) == ([None, before[1]["turn"]], before[1])
    assert MARK not in json.dumps(after)


@pytest.mark.rule("R91")
async def test_a_running_batch_of_an_erased_tenant_submits_no_more_turns(
    own: OwnSystem, gateway: Gateway, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own turn is older than those of its inputs, of which there may be more than a part of the erasure has."""
    monkeypatch.setattr("tailrace.persistence.store.DELETE_TURNS_MAX", 2)
    # Slow turns, because the database must not fall behind on a busy machine.
    inputs = [{"custom_id": f"c{number}", "params": {"message": "#sim words=100000 rate=5"}} for number in range(60)]
    await post_batch(gateway, inputs)

    # So many turns of a batch are in the queue at once.
    await own.wait_for_open_streams(8)
    erased = await gateway.client.delete(f"/v1/tenant?confirm={tenant}")
    assert (erased.status_code, await own.calls()) == (200, 8), erased.text


@pytest.mark.rule("R91")
async def test_a_running_batch_leaves_out_the_other_inputs_of_an_erased_user(
    own: OwnSystem, gateway: Gateway, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """The inputs of other users run. Persistence gives back what was reserved for those that never ran."""
    limited = await new_gateway(own.server.url, limits_key="usd_day=5")
    users = [MARK, MARK, *["bob", MARK, "bob"] * 10]
    line = {MARK: "#sim words=2 wait=3600", "bob": "#sim words=2 rate=0"}
    inputs = [
        {"custom_id": f"c{number}", "params": {"message": line[user], "user": user}}
        for number, user in enumerate(users)
    ]
    batch = await post_batch(limited, inputs, parallel=2)
    await own.wait_for_open_streams(2)
    erased = await limited.client.delete(f"/v1/users?user={MARK}")
    assert (erased.status_code, erased.json().get("complete")) == (200, True), erased.text
    await limited.client.get(batch["links"]["events"])
    outcomes = [one["outcome"] for one in await read_results(limited, batch)]
    assert outcomes == ["completed" if user == "bob" else "cancelled" for user in users]
    # The two that ran before, and those of the other user.
    assert await own.calls() == 22
    record = (await limited.client.get(batch["links"]["self"])).json()
    assert (record["outcome"], record["done"], record["failed"]) == ("completed", 20, 12)
    await own.wait_until_acknowledged()
    answered = await own.log.read_turn(ScopedKey.whole(TurnKey(tenant, child_id(batch["batch"], users.index("bob")))))
    assert answered.request is not None
    held = next(hold for hold in answered.request.holds or () if hold.unit == "nusd")
    assert await Counters(own.connection).add(held.subject, 0) >= round(record["cost_usd"] * 1e9)


@pytest.mark.rule("R91")
async def test_an_erasure_in_parts_counts_everything_once_and_deletes_rows_after_each_part(
    gateway: Gateway,
    tenant: str,
    own_connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`tailrace erase` prints the sum. Its first part ends within a turn."""
    delete, parts = Leader.delete, []

    async def count_entries() -> int:
        # The log may also have a write probe of the gateway.
        info = await own_connection.jetstream.stream_info(STREAM, subjects_filter=f"turns.{tenant}.>")
        return sum((info.state.subjects or {}).values())

    async def delete_slowly(self: Leader, seq: Seq, *, erases: bool = False) -> bool:
        await asyncio.sleep(0.08)
        return await delete(self, seq, erases=erases)

    def erase_in_parts(self: Client, *given: Any, **options: Any) -> Any:
        parts.append(request(self, *given, **options))
        return parts[-1]

    first = await post_answered_turn(gateway, MARK, session=f"{MARK}-1", create_session=True)
    await post_answered_turn(gateway, "someone", parent=first["turn"])
    for _ in range(2):
        await post_answered_turn(gateway, MARK)
    await post_answered_turn(gateway, MARK, store=False)
    entries = await count_entries()
    request = Client.request
    monkeypatch.setattr(Client, "request", erase_in_parts)
    monkeypatch.setattr(Leader, "delete", delete_slowly)
    monkeypatch.setattr("tailrace.deploy.cli.erase.PART_S", 1)
    command = ["erase", "--user", MARK, "--yes", "--json", "--url", gateway.url, "--key", KEY]
    assert await asyncio.to_thread(erase.run, parser().parse_args(command), {}) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["turns"], report["log_entries"], report["complete"]) == (5, entries, True)
    assert report["rows"] == {"turns": 4, "sessions": 3, "projects": 0, "files": 0, "blobs": 0}
    assert await count_entries() == 0
    assert len(parts) > 2
    assert sum(part["rows"]["turns"] for part in parts[:-1]) > 0


@pytest.mark.rule("R91")
async def test_an_erasure_whose_gateway_stops_returns_what_it_has_erased(
    gateway: Gateway, own_server: NatsServer, new_gateway: NewGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a refusal, `tailrace erase` would not count it."""
    for _ in range(3):
        await post_answered_turn(gateway, MARK)
    delete, begun = Leader.delete, asyncio.Event()

    async def delete_slowly(self: Leader, seq: Seq, *, erases: bool = False) -> bool:
        begun.set()
        await asyncio.sleep(0.04)
        return await delete(self, seq, erases=erases)

    monkeypatch.setattr(Leader, "delete", delete_slowly)
    monkeypatch.setattr("tailrace.gateway.turns.delete.ERASING_S", 0.2)
    monkeypatch.setattr("tailrace.gateway.http.server.UNANSWERED_S_MAX", 0.0)
    path = f"/v1/users?user={MARK}&max_seconds=60"
    async with gateway.new_client() as client:
        erasing = asyncio.create_task(client.delete(path))
        await begun.wait()
        await gateway.stop()
        part = (await erasing).json()
    another = await new_gateway(own_server.url)
    rest = (await another.client.delete(path)).json()
    assert (part["complete"], rest["complete"]) == (False, True)
    assert 0 < part["log_entries"] < part["log_entries"] + rest["log_entries"]
    assert part["turns"] + rest["turns"] == 3


@pytest.mark.rule("R91")
async def test_a_tenant_is_erased_only_with_its_name_and_keeps_sums_without_names(
    gateway: Gateway, tmp_path: Path, tenant: str
) -> None:
    for user in (f"{MARK}-a", f"{MARK}-b"):
        await post_answered_turn(gateway, user, project=f"{MARK}-project")
    file = {"file": ("notes.txt", MARK.encode(), "text/plain")}
    assert (await gateway.client.post("/v1/files", files=file, data={"purpose": "user_data"})).status_code == 200
    await gateway.client.post("/v1/sessions", json={"title": MARK})
    types = [line["type"] for line in await asyncio.to_thread(export_user_lines, gateway, None)]
    assert types == ["project", "file", *["session"] * 3, *["turn"] * 2]
    for confirm in ("", "?confirm=", "?confirm=other"):
        refused = await gateway.client.delete(f"/v1/tenant{confirm}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "confirm")
        assert f"must be {tenant}, the name of your tenant" in refused.json()["error"]["message"]
    erased = (await gateway.client.delete(f"/v1/tenant?confirm={tenant}")).json()
    assert (erased["turns"], erased["rows"]) == (2, {"turns": 2, "sessions": 3, "projects": 1, "files": 1, "blobs": 1})
    # A blob's block keeps it until nats-server rewrites or deletes the block: docs/ERASURE.md.
    await until(lambda: set(files_with(MARK, tmp_path)) <= {"1.blk"})
    for path in ("/v1/turns", "/v1/sessions", "/v1/projects", "/v1/files"):
        assert await read(gateway, path) == []
    for by in ("user", "project", "session"):
        assert [(line["key"], line["turns"]) for line in await read(gateway, f"/v1/usage?by={by}")] == [(None, 2)]
    assert [(one["key"], one["turns"]) for one in await read(gateway, "/v1/usage?by=metadata.mail")] == [(None, 2)]


@pytest.mark.rule("R109")
async def test_a_turn_with_store_false_leaves_only_sums(
    own: OwnSystem, own_server: NatsServer, own_gateway: Gateway, tmp_path: Path
) -> None:
    """It can be read after its end, and then no file has its text. It belongs to no session."""
    database = tmp_path / "tailrace.db"
    async with own.running_generator(), Persistence(own_server.url, database):
        turn = await post_answered_turn(own_gateway, MARK, store=False)
        body = {"model": "claude-sonnet-5-5", "input": f"#sim words=9 rate=0 tag={MARK}", "store": False}
        response = (await own_gateway.client.post("/v1/responses", json=body)).json()
        assert MARK in turn["text"]
        for path in ("/v1/turns", "/v1/sessions"):
            assert await read(own_gateway, path) == []
        links = {"parent": turn["turn"], "session": turn["session"]}
        for name, known in links.items():
            follow_up = await own_gateway.client.post("/v1/turns", json={"message": "and?", name: known})
            assert (follow_up.status_code, follow_up.json()["error"]["code"]) == (404, f"{name}_not_found")
            refused = await own_gateway.client.post("/v1/turns", json={"message": "x", name: known, "store": False})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)
        continued = body | {"previous_response_id": response["id"]}
        refused = await own_gateway.client.post("/v1/responses", json=continued)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "previous_response_id")
        assert "tailrace.db-wal" not in files_with(MARK, tmp_path)
    # The time is over, for a process that starts now.
    async with Persistence(own_server.url, database, unstored_s=0.001):
        await until_equal(lambda: files_with(MARK, tmp_path), {})
        for path in (f"/v1/turns/{turn['turn']}", f"/v1/responses/{response['id']}"):
            assert (await own_gateway.client.get(path)).status_code == 404
        assert sum(day["turns"] for day in await read(own_gateway, "/v1/usage")) == 2
        assert [(line["key"], line["turns"]) for line in await read(own_gateway, "/v1/usage?by=user")] == [(None, 2)]


@pytest.mark.rule("R109")
async def test_a_turn_with_store_false_can_be_deleted(gateway: Gateway, tmp_path: Path, tenant: str) -> None:
    """While it runs, and after its end. The same Idempotency-Key is refused then; another one starts a turn.

    Both turns are counted. An erasure of its user or of its tenant includes it, too.
    """
    body = {"message": f"#sim words=2000 rate=50 tag={MARK}", "store": False}
    turns = []
    for number in range(2):
        key = {"idempotency-key": f"{MARK}-{number}"}
        started = (await gateway.client.post("/v1/turns", json=body, headers=key)).json()
        turns.append(started["turn"])
        deleted = await gateway.client.delete(started["links"]["self"])
        assert (deleted.status_code, deleted.json()["turns"]) == (200, 1)
        assert (await gateway.client.get(started["links"]["self"])).status_code == 404
        repeated = await gateway.client.post("/v1/turns", json=body, headers=key)
        assert (repeated.status_code, repeated.json()["error"]["code"]) == (410, "turn_deleted")
    assert turns[0] != turns[1]
    ended = await post_answered_turn(gateway, MARK, store=False)
    assert (await gateway.client.delete(f"/v1/turns/{ended['turn']}")).json()["turns"] == 1
    for gone in (ended["turn"], *turns):
        assert (await gateway.client.delete(f"/v1/turns/{gone}")).status_code == 404
    await post_answered_turn(gateway, MARK, store=False)
    running = [
        (await gateway.client.post("/v1/turns", json=body | named)).json()["links"]["self"]
        for named in ({"user": MARK}, {"user": "other"}, {})
    ]
    erased = (await gateway.client.delete(f"/v1/users?user={MARK}")).json()
    assert (erased["turns"], erased["rows"]["turns"]) == (2, 0)
    assert erased["log_entries"] > 4
    assert [(await gateway.client.get(path)).status_code for path in running] == [404, 200, 200]
    assert (await gateway.client.delete(f"/v1/users?user={MARK}")).json()["turns"] == 0
    assert (await gateway.client.delete(f"/v1/tenant?confirm={tenant}")).json()["turns"] == 2
    assert {(await gateway.client.get(path)).status_code for path in running} == {404}
    await until_equal(lambda: files_with(MARK, tmp_path), {})
    assert sum(day["turns"] for day in await read(gateway, "/v1/usage")) == 7
