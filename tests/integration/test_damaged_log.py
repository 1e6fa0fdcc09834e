"""A log that has lost an entry: an ended turn comes from the database, any other gets an end, and operators see it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from signal import SIGTERM

import pytest
from structlog.testing import capture_logs

from tailrace.deploy.cli import doctor
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.local.options import Options
from tailrace.features.gateway import DIALECTS
from tailrace.proto.chain import Chain
from tailrace.proto.entries import StoredEntry
from tailrace.proto.errors import TurnDamaged, TurnUnknown
from tailrace.proto.ids import Seq, Tenant, TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.nats.stream_leader import Leader
from tailrace.proto.nats.users import ADMIN
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import STREAM, entries
from tests.harness import turn_builder
from tests.harness.generator_in_loop import read_stats, running_generator
from tests.harness.persistence_in_loop import Persistence
from tests.harness.processes import as_user
from tests.harness.readers import read, read_all_entries, read_bytes, story_of
from tests.harness.requests import get
from tests.harness.system import System
from tests.harness.turn_writer import new_writer, write_turn
from tests.harness.until import until, until_equal
from tests.integration.conftest import Gateway

TEXTS = ("Light ", "takes ", "eight ", "minutes.")
LOST: dict[str, Callable[[tuple[StoredEntry, ...]], StoredEntry]] = {
    "attempt": lambda stored: stored[1],
    "delta": lambda stored: stored[5],
    "stop": lambda stored: stored[-2],
    "end": lambda stored: stored[-1],
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silences count soon, and persistence looks for damaged turns often."""
    monkeypatch.setattr("tailrace.proto.nats.follower.REREAD_S", 0.2)
    monkeypatch.setattr("tailrace.proto.nats.replay.SILENT_S", 0.0)
    monkeypatch.setattr("tailrace.persistence.damaged_turns.INTERVAL_S", 0.2)


@pytest.fixture
async def persistence_in_loop(own_server: NatsServer, tmp_path: Path) -> AsyncIterator[Persistence]:
    async with Persistence(own_server.url, tmp_path / "tailrace.db") as persistence:
        yield persistence


async def lose(log: TurnLog, seq: Seq) -> None:
    """Removes one entry, as nats-server leaves out one whose checksum is wrong."""
    assert await Leader(log.connection, STREAM).delete(seq)


@pytest.mark.rule("R144", "F34")
@pytest.mark.parametrize("lost", LOST)
async def test_an_ended_turn_with_a_lost_entry_is_served_from_the_database(
    own_gateway: Gateway, own_log: TurnLog, tenant: Tenant, persistence_in_loop: Persistence, lost: str
) -> None:
    """To a reader whose cursor is after the gap. `/readyz`, which is open to all, has the number without the id."""
    key = await write_turn(own_log, *TEXTS, tenant=tenant)
    before = await get(own_gateway, f"/v1/turns/{key.turn}")
    await get(own_gateway, "/v1/sessions?limit=1")
    stored = await read_all_entries(own_log, key)
    await lose(own_log, LOST[lost](stored).seq)
    with capture_logs() as logged:
        assert await get(own_gateway, f"/v1/turns/{key.turn}") == before
    assert [line["turn"] for line in logged if line["log_level"] == "error"] == [key.turn]
    received = await read(own_gateway.client, key.turn)
    assert received.over == "ended"
    assert "".join(TEXTS) in str(received.frames)
    later = await read(own_gateway.client, key.turn, stored[-3].seq)
    assert (later.over, "".join(TEXTS) in str(later.frames)) == ("ended", True)
    for dialect in sorted(DIALECTS):
        assert (
            "minutes."
            in (await read_bytes(own_gateway.client, f"/v1/turns/{key.turn}/events?dialect={dialect}")).decode()
        )
    assert await own_log.damaged_turns() == [key]

    async def count() -> object:
        return (await own_gateway.client.get("/readyz")).json()["persistence"].get("damaged_turns")

    await until_equal(count, 1)
    assert key.turn not in (await own_gateway.client.get("/readyz")).text


@pytest.mark.rule("R144")
async def test_a_reader_that_has_all_but_the_lost_end_receives_the_end_from_the_database(
    own_gateway: Gateway, own_log: TurnLog, tenant: Tenant, persistence_in_loop: Persistence
) -> None:
    key = await write_turn(own_log, *TEXTS, tenant=tenant)
    await get(own_gateway, "/v1/sessions?limit=1")
    stored = await read_all_entries(own_log, key)
    await lose(own_log, stored[-1].seq)
    received = await read(own_gateway.client, key.turn, stored[-2].seq)
    if received.over == "cut":
        received = await read(
            own_gateway.client, key.turn, received.frames[-1].seq if received.frames else stored[-2].seq
        )
    assert (received.over, '"outcome":"completed"' in str(received.frames)) == ("ended", True)


@pytest.mark.rule("R144")
async def test_a_turn_without_an_end_is_ended_by_a_generator_without_a_model_call(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_claude: str,
    tenant: Tenant,
    persistence_in_loop: Persistence,
) -> None:
    """A reader that waits receives the end, and the database has it; the text before the gap stays."""
    writer = new_writer(own_log, tenant)
    await writer.open(*TEXTS)
    stored = await read_all_entries(own_log, writer.key)
    await lose(own_log, stored[5].seq)
    reading = asyncio.create_task(read(own_gateway.client, writer.key.turn))
    async with running_generator(own_server.url, own_claude):
        received = await reading
        story = story_of(frame.sent for frame in received.frames)
        assert (story.text, story.outcome) == ("Light ", "failed")
        assert "log_damaged" in str(received.frames[-1].sent)
    turn = await get(own_gateway, f"/v1/turns/{writer.key.turn}")
    assert (turn["outcome"], turn["error"]["code"], turn["text"]) == ("failed", "log_damaged", "Light ")
    recorded = await get(own_gateway, "/v1/turns?limit=1")
    assert recorded["data"][0]["error"]["code"] == "log_damaged"
    assert (await read_stats(own_claude)).get("calls", 0) == 0


@pytest.mark.rule("R110", "R144")
async def test_a_lost_delta_costs_no_text_if_the_end_repeats_the_answer(
    own_gateway: Gateway, own_server: NatsServer, own_log: TurnLog, tenant: Tenant, tmp_path: Path
) -> None:
    """The entry is lost before persistence has recorded the turn."""
    key = await write_turn(own_log, *TEXTS, tenant=tenant)
    await lose(own_log, (await read_all_entries(own_log, key))[5].seq)
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        turn = (await get(own_gateway, "/v1/turns?limit=1"))["data"][0]
        assert (turn["outcome"], turn["text"]) == ("completed", "".join(TEXTS))
        assert await get(own_gateway, f"/v1/turns/{key.turn}") == turn


@pytest.mark.rule("R26", "R144")
async def test_a_repeated_post_gets_its_damaged_turn(
    own_server: NatsServer,
    own_gateway: Gateway,
    own_log: TurnLog,
    own_claude: str,
    tenant: Tenant,
    persistence_in_loop: Persistence,
) -> None:
    body, headers = {"message": "#sim words=8"}, {"idempotency-key": "once"}
    async with running_generator(own_server.url, own_claude):
        first = (await own_gateway.client.post("/v1/turns", json=body, headers=headers)).json()
        assert (await read(own_gateway.client, first["turn"])).over == "ended"
        key = TurnKey(tenant, first["turn"])
        await get(own_gateway, "/v1/sessions?limit=1")
        await lose(own_log, (await read_all_entries(own_log, key))[4].seq)
        again = await own_gateway.client.post("/v1/turns", json=body, headers=headers)
        assert again.json()["turn"] == first["turn"]


@pytest.mark.rule("R144")
async def test_a_fork_retention_and_a_purge_are_no_damage(own_log: TurnLog, tenant: Tenant) -> None:
    writer = new_writer(own_log, tenant)
    await writer.open(*TEXTS)
    stored = await read_all_entries(own_log, writer.key)
    # Two entries of a fork: the second one continues the first one.
    fork = Chain(stored[3].seq, 1)
    for _ in range(2):
        seq = await own_log.publish(writer.key, turn_builder.text_delta(fork, "?"), await own_log.last_seq(writer.key))
        fork = Chain(seq, 1)
    assert (await own_log.read_turn(ScopedKey.whole(writer.key))).skipped == 2
    # Retention removes the oldest entries, and the request first.
    await own_log.connection.jetstream.purge_stream(STREAM, subject=entries(writer.key), seq=stored[4].seq)
    with pytest.raises(TurnUnknown) as raised:
        await own_log.read_turn(ScopedKey.whole(writer.key))
    assert not isinstance(raised.value, TurnDamaged)
    await own_log.purge(writer.key)
    with pytest.raises(TurnUnknown) as raised:
        await own_log.read_turn(ScopedKey.whole(writer.key))
    assert not isinstance(raised.value, TurnDamaged)
    assert await own_log.damaged_turns() == []


@pytest.mark.rule("R91", "R144")
async def test_a_turn_that_is_being_erased_is_not_noted_as_damaged(
    own_gateway: Gateway,
    own_log: TurnLog,
    tenant: Tenant,
    persistence_in_loop: Persistence,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An erasure of many turns takes minutes, and overwrites the end of each turn first."""
    key = await write_turn(own_log, *TEXTS, tenant=tenant, user="ann")
    await get(own_gateway, "/v1/sessions?limit=1")
    seqs = [stored.seq for stored in await read_all_entries(own_log, key)]
    delete, may_go_on = Leader.delete, asyncio.Event()

    async def delete_slowly(self: Leader, seq: Seq, *, erases: bool = False) -> bool:
        if seq != seqs[-1]:
            await may_go_on.wait()
        return await delete(self, seq, erases=erases)

    async def is_end_erased() -> bool:
        return not await own_log.has_entry(key, seqs[-1])

    monkeypatch.setattr(Leader, "delete", delete_slowly)
    erasing = asyncio.create_task(own_gateway.client.delete("/v1/users?user=ann"))
    await until(is_end_erased)
    with capture_logs() as logged:
        received = await read(own_gateway.client, key.turn)
        assert received.over == "cut"
        received = await read(own_gateway.client, key.turn, received.frames[-1].seq)
    assert (received.over, '"outcome":"completed"' in str(received.frames)) == ("ended", True)
    assert [line for line in logged if line["log_level"] == "error"] == []
    assert await own_log.damaged_turns() == []
    may_go_on.set()
    assert (await erasing).json()["turns"] == 1


@pytest.mark.rule("F34")
@pytest.mark.timeout(120)
async def test_a_flipped_byte_of_a_block_file_is_noticed(tmp_path: Path) -> None:
    """As on a disk that changes a byte while nats-server is stopped. `tailrace doctor` names the turn."""
    async with System(tmp_path) as system:
        await system.start()
        client = system.clients[0]
        turn = (await client.post("/v1/turns", json={"message": "#sim words=60 rate=0 tag=flip"})).json()["turn"]
        whole = await read(client, turn)
        assert whole.over == "ended"
        before = (await client.get("/v1/turns?limit=1")).json()["data"][0]
        await system.servers[0].stop(SIGTERM)
        flip_byte(tmp_path, b"flip000005")
        await system.servers[0].start()
        await until(lambda: is_up(system))
        assert (await client.get(f"/v1/turns/{turn}")).json() == before
        received = await read(client, turn)
        assert story_of(frame.sent for frame in received.frames) == story_of(frame.sent for frame in whole.frames)
        environ = {"TAILRACE_NATS_URL": as_user(system.nats_url, ADMIN)}
        findings = {one.name: one for one in await doctor.examine(Options(data_dir=tmp_path), environ)}
        assert (findings["Log"].level, turn in findings["Log"].detail) == ("warning", True)


async def is_up(system: System) -> bool:
    return (await system.clients[0].get("/readyz")).status_code == 200


def flip_byte(folder: Path, text: bytes) -> None:
    """Changes a byte of the first occurrence of `text` in the block files of TURNS."""
    for block in folder.rglob("streams/TURNS/msgs/*.blk"):
        content = bytearray(block.read_bytes())
        if (at := content.find(text)) >= 0:
            content[at + 4] ^= 0x15
            block.write_bytes(content)
            return
    raise AssertionError("no block file has the text")
