"""The claim of an idempotency key whose turn the log does not have."""

from typing import Literal

import pytest

from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.turns.draft import Draft
from tailrace.gateway.turns.repeats import OtherWriter, Repeats
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import Claim
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.testing import MemoryClaims, MemoryLog, MemoryTombstones

TURN = TurnKey(Tenant("ours"), TurnId("turn-1"))
SHA256 = "0" * 64
DRAFT = Draft(Principal(Scope(TURN.tenant, WHOLE)), b"", "key", body_sha256=SHA256)

How = Literal["nothing", "marked", "deleted", "erased", "erased and deleted"]


async def repeats_after(how: How) -> Repeats:
    """Returns the repeats of a system that has the claim `key` of TURN, and not its turn."""
    claims, tombstones = MemoryClaims(), MemoryTombstones()
    await claims.claim(TURN.tenant, "key", Claim(TURN.turn, SHA256))
    if how == "marked":
        await tombstones.mark_deletion(TURN)
    if how.startswith("erased"):
        await tombstones.put_erased(TURN)
    if how.endswith("deleted"):
        await tombstones.put([TURN])
    return Repeats(MemoryLog(), claims, tombstones)


@pytest.mark.rule("R26")
@pytest.mark.parametrize("how", ["marked", "deleted", "erased and deleted"])
async def test_the_key_of_a_deleted_turn_is_refused(how: How) -> None:
    """Also between the purge of a running turn and its tombstone."""
    repeats = await repeats_after(how)
    for repeat in (
        repeats.find_repeat(DRAFT),
        repeats.claim(TurnKey(TURN.tenant, TurnId("turn-2")), DRAFT),
    ):
        with pytest.raises(Refused, match="turn-1 of this request was deleted") as refused:
            await repeat
        assert refused.value.code == "turn_deleted"


@pytest.mark.rule("R26")
@pytest.mark.rule("R109")
async def test_the_key_of_an_erased_turn_is_free() -> None:
    """Its turn had `store: false`, and no client has stopped it."""
    repeats, own = await repeats_after("erased"), TurnKey(TURN.tenant, TurnId("turn-2"))
    assert await repeats.find_repeat(DRAFT) is None
    assert await repeats.claim(own, DRAFT) is None


@pytest.mark.rule("R26")
async def test_the_turn_of_a_gateway_that_died_before_its_append_is_stored_by_the_next_one() -> None:
    repeats = await repeats_after("nothing")
    assert await repeats.find_repeat(DRAFT) == OtherWriter(TURN)
