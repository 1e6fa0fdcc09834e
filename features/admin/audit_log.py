"""The audit log: changes of keys, limits and tenants by operators, in a stream from which nats-server never deletes."""

from datetime import datetime
from typing import Any, Literal, NamedTuple

import msgspec
import structlog

from tailrace.proto import subjects
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Seq, Tenant
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.direct_get import DirectReader
from tailrace.proto.subjects import AUDIT, EVERY_AUDIT

logger = structlog.get_logger()

TIMEOUT_S = 5.0
Action = Literal["key.create", "key.revoke", "key.rotate", "limits.set", "tenant.set"]


class Actor(NamedTuple):
    """The author of a change: the id of the credential, or `command line`; and the address, or the machine's name."""

    by: str
    address: str


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A change by an operator. The entry is stored before the change; a second entry with `error` says that the
    change failed."""

    at: datetime
    """When the change was requested."""
    action: Action
    """The thing that was changed."""
    by: str
    """The id of the credential, or `command line`."""
    address: str
    """The address of the client, or the name of the machine."""
    tenant: Tenant
    """The tenant that was changed, or whose key or limits were."""
    target: str
    """The id of the key, or the name of the tenant."""
    before: dict[str, Any] | None = None
    """The record before the change, without secrets; null: there was none. Of a rotation: the old key."""
    after: dict[str, Any] | None = None
    """The record after the change, without secrets; null: there is none. Of a rotation: the new key."""
    error: str | None = None
    """Why the change failed; null: it was made, or a later entry says that it failed."""


class AuditLog:
    """The entries, in the order of the changes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reader = DirectReader(connection, AUDIT)

    async def append(self, entry: AuditEntry) -> None:
        """Stores an entry. If this raises LogUnavailable, the change must not be made."""
        subject = subjects.audit(entry.action.replace(".", "_"))
        stored = await self._connection.store(subject, msgspec.json.encode(entry), timeout_s=TIMEOUT_S)
        if stored.error is not None:
            raise LogUnavailable(f"the audit log stores nothing: {stored.error.description}")

    async def page(self, before: Seq | None, limit: int) -> tuple[list[AuditEntry], Seq | None]:
        """Returns up to `limit` entries before the sequence `before`, newest first, and the `before` of the next page.

        Entries that cannot be read are left out. Raises LogUnavailable.
        """
        state = (await self._connection.stream_info(AUDIT)).state
        last = min(state.last_seq, before - 1) if before is not None else state.last_seq
        # Nothing is deleted, so the sequences have no gaps.
        first, seq, found = max(last - limit + 1, 1), 0, list[AuditEntry]()
        while first <= last and seq < last:
            messages, is_last, _ = await self._reader.page(EVERY_AUDIT, Seq(max(first, seq + 1)))
            for message in messages:
                seq = int((message.headers or {})["Nats-Sequence"])
                if seq <= last and (entry := _read_entry(message.data, seq)) is not None:
                    found.append(entry)
            if is_last:
                break
        return found[::-1], Seq(first) if first > 1 else None


def _read_entry(data: bytes, seq: int) -> AuditEntry | None:
    """Returns an entry; None, and logs an error, if a newer version or a compromised gateway has stored it.

    Such an entry can never be deleted, and must not hide the others.
    """
    try:
        return msgspec.json.decode(data, type=AuditEntry)
    except DECODE_ERRORS:
        logger.error("an entry of the audit log cannot be read", seq=seq)  # noqa: TRY400  # the data is the reason
        return None
