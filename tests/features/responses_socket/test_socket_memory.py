"""The memory of all WebSockets: shares of tenants, what is not counted, and what is released."""

from tailrace.features.responses_socket.socket_memory import SocketMemory
from tailrace.gateway.http.large_bodies import SMALL_BYTES_MAX
from tailrace.proto.ids import Tenant

A, B, C = map(Tenant, ("a", "b", "c"))
MEMORY = 8 * SMALL_BYTES_MAX


def test_a_tenant_may_hold_half_and_all_together_no_more_than_there_is() -> None:
    memory = SocketMemory(MEMORY)
    with memory.hold(A) as first, memory.hold(A) as second, memory.hold(B) as other, memory.hold(C) as third:
        assert first(MEMORY // 2 - SMALL_BYTES_MAX - 1)
        assert second(SMALL_BYTES_MAX + 1)
        assert not second(SMALL_BYTES_MAX + 2)
        assert other(MEMORY // 2 - SMALL_BYTES_MAX)
        assert not third(SMALL_BYTES_MAX + 1)
        assert other(MEMORY // 2 - SMALL_BYTES_MAX - 1)
        assert third(SMALL_BYTES_MAX + 1)


def test_a_refused_change_changes_nothing() -> None:
    memory = SocketMemory(MEMORY)
    with memory.hold(A) as resize:
        assert resize(MEMORY // 2)
        assert not resize(MEMORY // 2 + 1)
        assert memory.held == MEMORY // 2
        assert resize(MEMORY // 4)
        assert memory.held == MEMORY // 4


def test_little_memory_is_not_counted() -> None:
    memory = SocketMemory(1)
    with memory.hold(A) as resize:
        assert resize(SMALL_BYTES_MAX)
        assert not resize(SMALL_BYTES_MAX + 1)
    assert memory.held == 0


def test_optional_memory_leaves_half_of_it_to_messages() -> None:
    memory = SocketMemory(2 * MEMORY)
    with memory.hold(A, is_optional=True) as kept, memory.hold(A) as message, memory.hold(B, is_optional=True) as other:
        assert not kept(MEMORY // 2 + 1)
        assert kept(MEMORY // 2)
        assert message(MEMORY // 2)
        # All tenants together have used half.
        assert not other(SMALL_BYTES_MAX + 1)
        assert message(MEMORY // 2 - SMALL_BYTES_MAX - 1)
        assert other(SMALL_BYTES_MAX + 1)


def test_a_connection_that_has_ended_holds_nothing() -> None:
    memory = SocketMemory(MEMORY)
    with memory.hold(A) as resize:
        assert resize(MEMORY // 2)
    assert memory.held == 0
    assert not resize(MEMORY // 2)
    assert memory.held == 0
