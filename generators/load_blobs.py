"""Puts the strings that were moved into the blob store back into a model call, for as long as it is made (R33)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from tailrace.proto.blobs import Prompt, references, resolve
from tailrace.proto.errors import BackendError, BlobUnknown
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import BlobStore
from tailrace.proto.runtime.fair_semaphore import FairSemaphore

P = TypeVar("P", bound=Prompt)

EXPIRED = "a picture, document or long text of the request has expired: send it again"


class BlobLoader:
    """Loads blobs for calls. `semaphore` limits the bytes in memory at once; further calls wait."""

    def __init__(self, bodies: BlobStore, semaphore: FairSemaphore) -> None:
        self._bodies = bodies
        self._semaphore = semaphore

    @asynccontextmanager
    async def load(self, tenant: Tenant, prompt: P) -> AsyncIterator[P]:
        """Yields `prompt` with strings instead of references. Raises BackendError if a blob is gone, LogUnavailable."""
        blobs = references(prompt)
        if not blobs:
            yield prompt
            return
        async with self._semaphore.reserve(sum(blob.bytes for blob in blobs)):
            try:
                texts = {blob.sha256: (await self._bodies.read(tenant, blob)).decode() for blob in set(blobs)}
            except BlobUnknown as error:
                raise BackendError("blob_expired", EXPIRED) from error
            yield resolve(prompt, texts)
