"""Marks: which tenants' webhooks have leases that are extended longer than usual, for the next process after a kill."""

from math import ceil

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection
from tailrace.proto.nats.pub_ack import LIFE
from tailrace.proto.nats.stream_leader import TIMEOUT_S, Leader
from tailrace.proto.subjects import CLAIMS_STREAM, extension_mark


class Marks:
    """In the bucket CLAIMS. Nothing removes a mark before it expires: without missing webhooks it delays nothing."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._leader = Leader(connection, CLAIMS_STREAM)

    async def put(self, tenant: Tenant, life_s: float) -> None:
        """Marks a tenant for `life_s` seconds from now on. Raises LogUnavailable."""
        life = {LIFE: f"{ceil(life_s)}s"}
        ack = await self._connection.store(extension_mark(tenant), b"", timeout_s=TIMEOUT_S, headers=life)
        if ack.error is not None:
            raise LogUnavailable(f"the mark of a tenant is not stored: {ack.error.description}")

    async def exists(self, tenant: Tenant) -> bool:
        """Asks the stream's leader whether a tenant is marked. Raises LogUnavailable."""
        return await self._leader.last(extension_mark(tenant)) is not None
