"""Makes model calls: chooses the backend's model name, loads blobs into the call, repeats a call that fails early."""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager

import msgspec

from tailrace.generators.backends import Backend, Call
from tailrace.generators.backends.model_event import ModelEvent
from tailrace.generators.failover import Source
from tailrace.generators.load_blobs import BlobLoader
from tailrace.generators.retry import Retry
from tailrace.proto.ids import Tenant


class ModelCaller:
    """The backends of this process and how they are called. Shared by all turns."""

    def __init__(self, backends: Mapping[str, Backend], retry: Retry, blobs: BlobLoader) -> None:
        """`backends` by name: all that a turn's order of backends may name."""
        self._backends = backends
        self._blobs = blobs
        self.retry = retry

    @asynccontextmanager
    async def open(
        self, source: Source, call: Call, tenant: Tenant, *, is_single: bool = False
    ) -> AsyncIterator[tuple[ModelEvent, AsyncIterator[ModelEvent]]]:
        """Opens an answer: its first event, and an iterator of the rest. Leaving the context closes the connection.

        With `is_single` the call is not repeated. Raises BackendError, LogUnavailable.
        """
        backend = self._backends[source.backend]
        model = source.model_id or backend.model_id(call.model)
        call = msgspec.structs.replace(call, model=model, tenant=tenant)
        retry = msgspec.structs.replace(self.retry, tries_max=1) if is_single else self.retry
        async with self._blobs.load(tenant, call) as whole:
            first, rest = await retry.begin(backend, whole)
            async with aclosing(rest):
                yield first, rest
