"""The notes of turns with `store: false` in the database, by which an erasure of their user finds them."""

import hashlib
from collections.abc import Sequence

import msgspec

from tailrace.persistence.rows import TurnRow
from tailrace.persistence.store import Store
from tailrace.proto.ids import Tenant, TurnId, TurnKey

# Each is looked up in the log before the answer, for which a gateway waits some seconds.
UNSTORED_MAX = 200


class UnstoredTable:
    """The notes of all tenants. Every method raises StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, key: TurnKey, user: str | None, row: TurnRow | None = None) -> None:
        """Notes a turn with `store: false`, with a hash of its user, and the rows of features from `row`, if any."""
        columns = {"tenant": key.tenant, "turn": key.turn, "user_hash": _user_hash(key.tenant, user)}
        async with self._store.write() as writer:
            await writer.execute("put_unstored", columns)
            if row is not None:
                for statement, values in self._store.of_unstored(row).items():
                    await writer.execute(statement, {**msgspec.structs.asdict(row), **values})

    async def list_of_user(self, tenant: Tenant, user: str | None) -> list[TurnId]:
        """Returns noted turns of a user, or of all users if `user` is None, at most `UNSTORED_MAX`."""
        if user is None:
            rows = await self._store.read("tenant_unstored", tenant=tenant, limit=UNSTORED_MAX)
        else:
            user_hash = _user_hash(tenant, user)
            rows = await self._store.read("user_unstored", tenant=tenant, user_hash=user_hash, limit=UNSTORED_MAX)
        return [row["turn"] for row in rows]

    async def every(self, after: TurnKey) -> list[TurnKey]:
        """Returns the noted turns of all tenants after `after`, in order, at most `UNSTORED_MAX`."""
        rows = await self._store.read("every_unstored", tenant=after.tenant, turn=after.turn, limit=UNSTORED_MAX)
        return [TurnKey(row["tenant"], row["turn"]) for row in rows]

    async def forget(self, turns: Sequence[TurnKey]) -> None:
        """Removes the notes of turns that are erased, or have left the log: of one tenant, except `without_queue`."""
        async with self._store.write(turns[0].tenant) as writer:
            rows = [{"tenant": key.tenant, "turn": key.turn} for key in turns]
            await writer.executemany("forget_unstored", rows)
            self._store.database.note_deletion()


def _user_hash(tenant: Tenant, user: str | None) -> str:
    if user is None:
        return ""
    return hashlib.sha256(f"{tenant}\0{user}".encode(errors="surrogatepass")).hexdigest()
