"""Limits on the open readers of one gateway."""

import pytest

from tailrace.gateway.streaming.reader_counts import ReaderCounts, ReaderLimits, owner_of
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant
from tests.harness.sizes import sizes_of

ALICE, BOB = Tenant("alice"), Tenant("bob")


def refusal(counts: ReaderCounts, tenant: Tenant, address: str) -> tuple[str, bool]:
    """Returns the error code, and whether the error has a Retry-After."""
    with pytest.raises(Refused) as refused:
        counts.add(tenant, address)
    return refused.value.code, (refused.value.retry_after_s or 0) >= 1


@pytest.mark.parametrize(
    ("limits", "tenant", "address", "code"),
    [
        (ReaderLimits(2, 9, 9), BOB, "10.0.0.9", "server_busy"),
        (ReaderLimits(9, 2, 9), ALICE, "10.0.0.9", "too_many_streams"),
        (ReaderLimits(9, 9, 2), BOB, "10.0.0.1", "too_many_streams"),
    ],
    ids=["all", "tenant", "address"],
)
def test_a_reader_above_a_limit_is_refused_until_another_leaves(
    limits: ReaderLimits, tenant: Tenant, address: str, code: str
) -> None:
    """Readers of other tenants and addresses are not affected, except by the total."""
    counts = ReaderCounts(limits)
    first = counts.add(ALICE, "10.0.0.1")
    others = [counts.add(ALICE, "10.0.0.1")]
    assert refusal(counts, tenant, address) == (code, True)
    if code == "too_many_streams":
        others.append(counts.add(BOB, "10.0.0.2"))
    counts.remove(first)
    others.append(counts.add(tenant, address))
    assert refusal(counts, tenant, address) == (code, True)
    for one in others:
        counts.remove(one)
    unused = ReaderCounts(limits)
    assert (vars(counts), sizes_of(counts)) == (vars(unused), sizes_of(unused))


def test_a_reader_with_a_credential_counts_for_its_tenant_only() -> None:
    """All users of a proxy have its address."""
    readers = ReaderCounts(ReaderLimits(9, 2, 1))
    for tenant in (ALICE, ALICE, BOB, BOB):
        readers.add(tenant, None)
    with pytest.raises(Refused, match="This tenant has 2 open streams"):
        readers.add(BOB, None)


@pytest.mark.parametrize(
    ("address", "owner"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("", ""),
        ("unix:", "unix:"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_an_ipv6_network_counts_as_one_address(address: str, owner: str) -> None:
    """A client that owns a /64 could use each of its addresses."""
    assert owner_of(address) in (owner, "fe80::/64")
