"""Replaces the references to blobs in a model call by the blobs, and frees these when the answer begins (R33)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from tailrace.proto import long_strings
from tailrace.proto.blobs import Blob, Prompt, references, resolve
from tailrace.proto.errors import BackendError, BlobUnknown
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import BlobStore
from tailrace.proto.runtime.fair_semaphore import FairSemaphore

P = TypeVar("P", bound=Prompt)

# Copies of a blob: its chunks, its text, and the request body. Python stores a text with a character beyond Latin-1 in
# two or four bytes a character, which counts as two copies more.
COPIES = 5

EXPIRED = "a picture, document or long text of the request has expired: send it again"


class BlobLoader:
    """Loads blobs for calls. `semaphore` limits their bytes in memory; further calls wait, and tenants take turns."""

    def __init__(self, store: BlobStore, semaphore: FairSemaphore) -> None:
        self._store = store
        self._semaphore = semaphore

    @asynccontextmanager
    async def load(self, tenant: Tenant, prompt: P) -> AsyncIterator[P]:
        """Yields `prompt` with strings instead of references. Raises BackendError if a blob is gone, LogUnavailable."""
        blobs = references(prompt)
        if not blobs:
            yield prompt
            return
        async with self._semaphore.reserve(COPIES * sum(blob.bytes for blob in blobs), tenant=tenant):
            try:
                texts = {blob.sha256: await self._read(tenant, blob) for blob in set(blobs)}
            except BlobUnknown as error:
                raise BackendError("blob_expired", EXPIRED) from error
            yield resolve(prompt, texts)

    async def _read(self, tenant: Tenant, blob: Blob) -> str:
        return await long_strings.decode_text(await self._store.read(tenant, blob))
