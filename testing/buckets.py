"""MemoryClaims, MemoryStepRecords and MemoryTombstones: values of the bucket CLAIMS, in memory."""

from collections.abc import AsyncIterator, Iterable
from typing import Literal

from tailrace.proto.ids import Seq, Tenant, TurnKey
from tailrace.proto.nats import Claim, Claims, Tombstones
from tailrace.proto.nats.idempotency import StoredClaim
from tailrace.proto.nats.step_records import StepRecord, StepRecords
from tailrace.proto.nats.tombstones import ErasureNote
from tailrace.testing.log import BEGINNING


class MemoryClaims(Claims):
    """The claims of all tenants in memory. They do not expire."""

    def __init__(self) -> None:
        self.stored: dict[tuple[Tenant, str], StoredClaim] = {}
        self._revision = 0

    async def claim(self, tenant: Tenant, key: str, mine: Claim) -> Claim:
        if (tenant, key) not in self.stored:
            await self.put(tenant, key, mine)
        return self.stored[tenant, key].claim

    async def replace(self, tenant: Tenant, key: str, deleted: Claim, mine: Claim) -> Claim:
        found = self.stored.get((tenant, key))
        if found is None or found.claim == deleted:
            await self.put(tenant, key, mine)
        return self.stored[tenant, key].claim

    async def read(self, tenant: Tenant, key: str) -> StoredClaim | None:
        return self.stored.get((tenant, key))

    async def put(self, tenant: Tenant, key: str, mine: Claim) -> int:
        self._revision += 1
        self.stored[tenant, key] = StoredClaim(mine, self._revision)
        return self._revision

    async def renew(self, tenant: Tenant, key: str, found: StoredClaim, mine: Claim | None = None) -> int | None:
        return await self.put(tenant, key, mine or found.claim) if self.stored.get((tenant, key)) == found else None

    async def remove(self, tenant: Tenant, key: str, revision: int) -> None:
        found = self.stored.get((tenant, key))
        if found is not None and found.revision == revision:
            del self.stored[tenant, key]


class MemoryStepRecords(StepRecords):
    """The steps of running turns, in memory."""

    def __init__(self) -> None:
        self.stored: dict[TurnKey, StepRecord] = {}

    async def read(self, key: TurnKey) -> StepRecord:
        return self.stored.get(key, StepRecord())

    async def write(self, key: TurnKey, record: StepRecord) -> int | None:
        if record.revision != self.stored.get(key, StepRecord()).revision:
            return None
        self.stored[key] = record._replace(revision=record.revision + 1)
        return record.revision + 1


class MemoryTombstones(Tombstones):
    """Tombstones, deletion marks and erasure notes in memory."""

    def __init__(self, *deleted: TurnKey) -> None:
        self.stored = dict.fromkeys(deleted)
        """The turns with a tombstone."""
        self.erased: set[TurnKey] = set()
        """Those of them that had `store: false`, and that no client has stopped."""
        self.marked: set[TurnKey] = set()
        """The turns whose deletion has begun."""
        self.notes: dict[TurnKey, ErasureNote] = {}
        self._newest = Seq(0)

    async def put(self, turns: Iterable[TurnKey]) -> None:
        keys = dict.fromkeys(turns)
        self.stored |= keys
        self.erased -= keys.keys()

    async def put_erased(self, key: TurnKey) -> None:
        self.stored[key] = None
        self.erased.add(key)

    async def find(self, key: TurnKey) -> Literal["deleted", "erased"] | None:
        if key in self.erased:
            return "erased"
        return "deleted" if key in self.stored or key in self.marked else None

    async def exists(self, key: TurnKey) -> bool:
        return key in self.stored

    async def every(self) -> AsyncIterator[TurnKey]:
        for key in sorted(self.stored):
            yield key

    async def mark_deletion(self, key: TurnKey) -> None:
        self.marked.add(key)

    async def is_deletion_marked(self, key: TurnKey) -> bool:
        return key in self.marked

    async def note_erasure(self, key: TurnKey) -> None:
        self._newest = Seq(self._newest + 1)
        self.notes[key] = ErasureNote(self._newest, key, BEGINNING)

    async def remove_erasure_note(self, key: TurnKey) -> None:
        self.notes.pop(key, None)

    async def next_erasure_note(self, after: Seq) -> ErasureNote | None:
        later = (note for note in self.notes.values() if note.seq > after)
        return min(later, default=None)
