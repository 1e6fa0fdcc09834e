"""Pins on blobs that a request is about to refer to, so that the garbage collection does not purge them.

A request reaches the log a moment after its blobs were found. A purge marks the blob as deleted first and looks for
pins after that; a request pins the blob first and looks at its mark after that. So one of the two sees the other in
every order (PROTOCOL R34, ADR 15).
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import nats.errors

from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.stream_leader import Leader
from tailrace.proto.subjects import CLAIMS_STREAM

# Longer than any request takes from pinning to appending: the holder of an older pin has died.
PIN_AGE_MAX = timedelta(minutes=10)
# How many expired pins of a blob are skipped. With more, the blob counts as pinned until the bucket drops them.
EXPIRED_MAX = 100


class BlobPins:
    """All pins. May be shared within a process. Every method raises LogUnavailable."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._leader = Leader(connection, CLAIMS_STREAM)
        self._holders: set[tuple[Tenant, str]] = set()

    async def pin(self, tenant: Tenant, holder: str, blobs: Iterable[str]) -> None:
        """Pins blobs, given by SHA-256, for `holder`, such as a new turn. Must run inside `release_after`.

        Raises LogUnavailable.
        """
        names = [subjects.blob_pin(tenant, holder, sha256) for sha256 in blobs]
        if not names:
            return
        self._holders.add((tenant, holder))
        try:
            await asyncio.gather(*(self._connection.jetstream.publish(name, b"") for name in names))
        except nats.errors.Error as error:
            raise LogUnavailable(f"pictures and long texts cannot be pinned ({type(error).__name__}): retry") from error

    @asynccontextmanager
    async def release_after(self, tenant: Tenant, holder: str) -> AsyncIterator[None]:
        """Releases the pins of `holder` after the block.

        The pins stay if the block raises LogUnavailable or is cancelled: the request may be stored. They expire.
        """
        try:
            yield
        except (LogUnavailable, asyncio.CancelledError):
            self._holders.discard((tenant, holder))
            raise
        except BaseException:
            await self._drop(tenant, holder)
            raise
        await self._drop(tenant, holder)

    async def is_pinned(self, tenant: Tenant, sha256: str) -> bool:
        """Returns whether the blob is pinned, read from the bucket's leader, which never lags.

        Raises LogUnavailable.
        """
        seq = 1
        for _ in range(EXPIRED_MAX):
            found = await self._leader.first(subjects.blob_pins_of(tenant, sha256), seq)
            if found is None:
                return False
            if await self._connection.now() - found.time <= PIN_AGE_MAX:
                return True
            seq = found.seq + 1
        return True

    async def _drop(self, tenant: Tenant, holder: str) -> None:
        if (tenant, holder) not in self._holders:
            return
        self._holders.discard((tenant, holder))
        # The client has its response already: a pin that stays must not turn it into an error.
        with suppress(LogUnavailable):
            await self._leader.purge(subjects.blob_pins_by(tenant, holder))
