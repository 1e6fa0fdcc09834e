"""A call is made whole right before the model is asked, and only for that: what was lifted out is read back (R33)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from tailrace.proto.blobs import Prompt, references, resolve
from tailrace.proto.errors import BackendError, BlobUnknown
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import BlobStore
from tailrace.proto.runtime.byte_semaphore import ByteSemaphore

A = TypeVar("A", bound=Prompt)

EXPIRED = "a picture, document or long text of the request has expired: send it again"


class BlobLoader:
    """Holds no more of them at once than there is room for; further calls wait for their turn."""

    def __init__(self, bodies: BlobStore, room: ByteSemaphore) -> None:
        self._bodies = bodies
        self._room = room

    @asynccontextmanager
    async def load(self, tenant: Tenant, call: A) -> AsyncIterator[A]:
        """`call` with its pictures, documents and long texts; raises BackendError when one is gone, LogUnavailable."""
        blobs = references(call)
        if not blobs:
            yield call
            return
        async with self._room.reserve(sum(blob.bytes for blob in blobs)):
            try:
                texts = {blob.sha256: (await self._bodies.read(tenant, blob)).decode() for blob in set(blobs)}
            except BlobUnknown as error:
                raise BackendError("blob_expired", EXPIRED) from error
            yield resolve(call, texts)
