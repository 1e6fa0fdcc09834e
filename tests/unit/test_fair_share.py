"""Which tenant's turn may start in a generator with a limited number of slots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.generators.fair_share import STARTED_WITHIN_S, WAITING_TENANT_MAX, FairShare
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id

A, B, C = Tenant("a"), Tenant("b"), Tenant("c")


def fill(share: FairShare, tenant: Tenant) -> int:
    """Starts turns of a tenant until no more may start; returns how many did."""
    count = 0
    while share.may_start(tenant):
        share.note_start(tenant, 0.0)
        count += 1
    return count


@pytest.mark.parametrize(
    ("slots", "share", "started"),
    [(96, 0.75, [72, 18, 4]), (3, 0.75, [2, 1, 0]), (1, 0.75, [1, 0, 0]), (64, 1.0, [64, 0, 0]), (2, 0.1, [1, 1, 0])],
)
def test_each_tenant_gets_a_share_of_what_the_others_leave_free(slots: int, share: float, started: list[int]) -> None:
    slots_of = FairShare(slots, share)
    assert [fill(slots_of, tenant) for tenant in (A, B, C)] == started
    assert slots_of.free == slots - sum(started)


def test_an_ended_turn_starts_the_waiting_tenant_that_was_served_longest_ago() -> None:
    share = FairShare(3, 1.0)
    for tenant in (A, A, A):
        share.note_start(tenant, 0.0)
    turns = [TurnKey(tenant, TurnId(str(number))) for number, tenant in enumerate((A, A, B, C))]
    for key in turns:
        assert share.enqueue(key, 0.0)
    assert share.dequeue() is None
    order = []
    for _ in range(4):
        share.note_end(A)
        started = share.dequeue()
        assert started is not None
        order.append(started.tenant)
        share.note_start(A, 0.0)
    assert order == [A, B, C, A]
    assert not share.clear()


def test_turns_of_a_batch_wait_until_no_other_turn_of_their_tenant_waits() -> None:
    share = FairShare(2, 0.5)
    share.note_start(A, 0.0)
    assert share.count_waiting() == {A: 0}
    child, single = TurnKey(A, TurnId("child")), TurnKey(A, TurnId("single"))
    assert share.enqueue(child, 0.0, is_last=True)
    assert share.enqueue(single, 0.0)
    assert share.count_waiting() == {A: 2}
    share.note_end(A)
    assert [share.dequeue(), share.dequeue()] == [single, child]
    assert share.count_waiting() == {}


def test_too_many_waiting_turns_of_a_tenant_are_given_back() -> None:
    share = FairShare(1, 0.75)
    accepted = [share.enqueue(TurnKey(A, TurnId(str(number))), 0.0) for number in range(WAITING_TENANT_MAX + 1)]
    assert accepted == [True] * WAITING_TENANT_MAX + [False]
    assert share.enqueue(TurnKey(B, TurnId("b")), 0.0)
    assert len(share.clear()) == WAITING_TENANT_MAX + 1
    assert not share.is_waiting(A)


def test_as_many_turns_wait_as_were_started_lately() -> None:
    """Then a tenant with short turns never has a free slot and no turn, while its other turns are given back."""
    share, count = FairShare(1000, 1.0), 2 * WAITING_TENANT_MAX
    for _ in range(count):
        share.note_start(A, 10.0)
    for tenant, now_s, most in ((A, 10.0 + STARTED_WITHIN_S, count), (A, 18.1, WAITING_TENANT_MAX)):
        while share.enqueue(TurnKey(tenant, TurnId(new_id())), now_s):
            pass
        assert len(share.clear()) == most
        assert share.has_long_wait(tenant, now_s) == (most == count)
    assert not share.has_long_wait(B, 10.0)


@given(st.integers(1, 30), st.floats(0.01, 1.0), st.lists(st.tuples(st.sampled_from([A, B, C]), st.booleans())))
def test_slots_are_never_exceeded_and_no_tenant_starves(
    slots: int, share: float, steps: list[tuple[Tenant, bool]]
) -> None:
    """A tenant without a running turn may start one whenever a slot is free."""
    slots_of, running = FairShare(slots, share), {A: 0, B: 0, C: 0}
    for tenant, is_start in steps:
        if is_start and slots_of.may_start(tenant):
            slots_of.note_start(tenant, 0.0)
            running[tenant] += 1
        elif not is_start and running[tenant]:
            slots_of.note_end(tenant)
            running[tenant] -= 1
        assert slots_of.free == slots - sum(running.values()) >= 0
        for one, count in running.items():
            assert slots_of.may_start(one) or count or not slots_of.free
