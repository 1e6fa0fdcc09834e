"""The cause comes before its symptoms: what `/readyz`, `status` and `doctor` say first during each fault."""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import NamedTuple

import httpx2
import pytest

from tailrace.deploy.cli import doctor, status
from tailrace.deploy.local.options import Options
from tailrace.deploy.nats import setup
from tailrace.proto.nats.connection import LEADERLESS
from tailrace.proto.nats.users import ADMIN
from tailrace.proto.subjects import GENERATORS, STREAM
from tests.harness.freeze import freeze
from tests.harness.nats_cluster import GIB
from tests.harness.processes import as_user
from tests.harness.system import System
from tests.harness.until import until

pytestmark = pytest.mark.timeout(240)
NAMED_S_MAX = 30.0
NO_SERVER = "no NATS server answers at"
LACKS = "the consumer generators"


class Said(NamedTuple):
    """Parts of the first detail of `/readyz` and of a line of `status`, and the beginning of the error of `doctor`."""

    readyz: str
    status: str
    doctor: str


Step = Callable[[System], Awaitable[object]]


class Case(NamedTuple):
    fault: Step
    said: Said
    cure: Step


async def _freeze_server(system: System) -> None:
    freeze(system.servers[0])


async def _thaw_server(system: System) -> None:
    system.servers[0].signal(SIGCONT)


LOCKS = list[sqlite3.Connection]()


async def _lock(system: System) -> None:
    LOCKS.append(sqlite3.connect(system.database, isolation_level=None))
    LOCKS[0].execute("BEGIN EXCLUSIVE")


async def _unlock(_: System) -> None:
    LOCKS.pop().close()


async def _recreate_consumer(system: System) -> None:
    await setup.apply(system.connection, bytes_max=GIB // 2)


LOCKED = "the database: database is locked (SQLITE_BUSY)"
NONE = "no {} process answers"
ONE_SERVER = {
    "nats-server is frozen": Case(
        _freeze_server, Said("nats: nats-server does not answer", f"  {NO_SERVER}", f"NATS: {NO_SERVER}"), _thaw_server
    ),
    "nats-server is killed": Case(
        lambda system: system.servers[0].stop(SIGKILL),
        Said("nats: not connected", f"  {NO_SERVER}", f"NATS: {NO_SERVER}"),
        lambda system: system.servers[0].start(),
    ),
    "the database is locked": Case(
        _lock, Said(f"persistence: {LOCKED}", f"  Persistence  {LOCKED}", f"Persistence: {LOCKED}"), _unlock
    ),
    "a consumer is deleted": Case(
        lambda system: system.connection.jetstream.delete_consumer(STREAM, GENERATORS),
        Said(f"nats: NATS lacks {LACKS}", f", lacks {LACKS}", "NATS: NATS lacks a stream"),
        _recreate_consumer,
    ),
    "no generator runs": Case(
        lambda system: system.generators[0].stop(SIGKILL),
        Said(f"generators: {NONE.format('generators')}", "  Generators   0 answer", "Generators: no process answers"),
        lambda system: system.generators[0].start(),
    ),
    "persistence does not run": Case(
        lambda system: system.persistence.stop(SIGKILL),
        Said(
            f"persistence: {NONE.format('persistence')}",
            "  Persistence  no process answers",
            "Persistence: no process answers",
        ),
        lambda system: system.persistence.start(),
    ),
}


async def _lose_quorum(system: System) -> None:
    for server in system.servers[1:]:
        await server.stop(SIGKILL)


LEADERLESS_LOG = Case(
    _lose_quorum,
    Said(LEADERLESS, f"  the streams do not answer: {LEADERLESS}", "NATS: the streams cannot"),
    System.wait_until_healed,
)


async def first_detail(client: httpx2.AsyncClient) -> str:
    """Returns the first part of `/readyz` that is not ready, with its detail; empty if all are."""
    parts = (await client.get("/readyz")).json()
    return next((f"{name}: {one['detail']}" for name, one in parts.items() if name != "ok" and not one["ok"]), "")


async def check(system: System, name: str, case: Case, symptom: str = "") -> None:
    """Causes the fault, compares what is said, and cures it. `symptom`: a part that `/readyz` may never name first."""
    client, seen = system.clients[0], list[str]()
    folder, environ = system.folder / "none", {"TAILRACE_NATS_URL": as_user(system.nats_url, ADMIN)}

    async def is_named() -> bool:
        if said := await first_detail(client):
            seen.append(said)
        return case.said.readyz in said

    await case.fault(system)
    await until(is_named, NAMED_S_MAX)
    assert not any(symptom and one.startswith(symptom) for one in seen), (name, seen)

    async def is_shown() -> bool:
        # A leader notices after some seconds that it has lost the majority.
        return case.said.status in status.render(await status.fetch(folder, environ))

    await until(is_shown, NAMED_S_MAX)
    found = await doctor.examine(Options(data_dir=folder), environ)
    errors = [f"{one.name}: {one.detail}" for one in found if one.level == "error"]
    assert [one.startswith(case.said.doctor) for one in errors] == [True], (name, errors)
    await case.cure(system)

    async def is_whole() -> bool:
        return not await first_detail(client)

    await until(is_whole, NAMED_S_MAX)


@pytest.fixture
async def one_server(tmp_path: Path) -> AsyncIterator[System]:
    async with System(tmp_path, sync="default") as system:
        await system.start()
        yield system


async def test_the_cause_is_named_and_not_its_symptom(one_server: System) -> None:
    for name, case in ONE_SERVER.items():
        symptom = "generators" if case.said.readyz.startswith("nats") else "nats"
        await check(one_server, name, case, symptom)


async def test_a_lost_majority_is_named_as_the_cause_of_a_log_that_stores_nothing(tmp_path: Path) -> None:
    """For a moment, generators that look for another nats-server do not answer."""
    async with System(tmp_path, servers=3, sync="default") as system:
        await system.start()
        await check(system, "two of three nats-servers are dead", LEADERLESS_LOG)
