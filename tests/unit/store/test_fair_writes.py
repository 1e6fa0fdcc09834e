"""Fairness between tenants, and between tenants and the recorder."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tailrace.features.files.persistence import FileTable
from tailrace.features.unstored.table import UnstoredTable
from tailrace.persistence.store import Store
from tailrace.proto.ids import Tenant, TurnId, new_id
from tailrace.proto.resources import CreateSession, DeleteResource
from tests.harness.stored_turns import OURS, THEIRS, key, running_row
from tests.harness.turn_builder import NOON

# Operations, and how many of one tenant may end before a later one of another tenant. SQLite runs several reads at
# once.
WORK: dict[str, tuple[Callable[[Store, Tenant], Awaitable[object]], int]] = {
    "session": (lambda store, tenant: store.session(tenant, "s1", NOON), 20),
    "new_session": (lambda store, tenant: store.new_session(tenant, CreateSession(new_id()), NOON), 7),
    "release_blobs": (lambda store, tenant: store.release_blobs(tenant, ["a"]), 7),
    "forget_released": (lambda store, tenant: store.forget_released(tenant, ["a"]), 7),
    "keep_referenced": (lambda store, tenant: store.keep_referenced(tenant, ["a"]), 7),
    "forget_unstored": (lambda store, tenant: UnstoredTable(store).forget([key("turn-2", tenant)]), 7),
    "delete": (lambda store, tenant: store.delete(tenant, DeleteResource("turn", "turn-2")), 7),
    "delete_files": (lambda store, tenant: FileTable(store).delete_files(tenant, ["file-1"]), 7),
}


@pytest.mark.parametrize("name", WORK)
async def test_a_tenant_with_much_work_makes_neither_other_tenants_nor_the_recorder_wait_for_all_of_it(
    store: Store, name: str
) -> None:
    work, most = WORK[name]
    order: list[str] = []

    async def do(who: str, awaitable: Awaitable[object]) -> None:
        await awaitable
        order.append(who)

    later = [do(THEIRS, work(store, THEIRS))]
    if name != "session":  # the recorder does not wait for those who read
        later.append(do("recorder", store.record([running_row("turn-1")])))
    await asyncio.gather(*[do(OURS, work(store, OURS)) for _ in range(40)], *later)
    assert max(map(order.index, {*order} - {OURS})) < most


async def test_the_recorder_waits_for_one_write_of_a_tenant_at_most(store: Store) -> None:
    """Queries of the history wait for the recorder."""
    order, recorder = list[str](), store.without_queue()

    async def create(tenant: Tenant, session: str) -> None:
        await store.new_session(tenant, CreateSession(session), NOON)
        order.append("tenant")

    async def record(turn: str) -> None:
        """Does what is written of a turn with `store: false`, until it is erased."""
        await UnstoredTable(recorder).put(key(turn), None)
        await recorder.record([running_row(turn)])
        await recorder.delete(OURS, DeleteResource("session", "1", (TurnId(turn),)))
        await recorder.release_blobs(OURS, ["a"])
        await UnstoredTable(recorder).forget([key(turn)])
        order.append("recorder")

    tenants = [OURS, *(Tenant(f"tenant-{number}") for number in range(19))]
    waiting = [create(tenant, f"{number}") for number in range(5) for tenant in tenants]
    await asyncio.gather(*waiting, *(record(f"turn-{number}") for number in range(10)))
    last = max(place for place, one in enumerate(order) if one == "recorder")
    # The ten turns, and one write of a tenant before each of the five rounds of transactions.
    assert last < 10 + 7
