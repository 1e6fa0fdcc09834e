"""Batches: a lane of the worker runs them, also as message batches of Anthropic's API."""

import asyncio
import time

import structlog

from tailrace.features.batches.message_batches_api import MessageBatchesApi
from tailrace.features.batches.records import CANCEL_MESSAGE_BATCH, CancelMessageBatch
from tailrace.features.batches.runner import BatchLane, BatchRunner
from tailrace.generators.feature import Feature, Generator, Parts
from tailrace.generators.rpc import refuse_backend_errors
from tailrace.proto import nats
from tailrace.proto.errors import BackendError
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import BlobStore, Tombstones, TurnLog
from tailrace.proto.nats.rpc import decode_query
from tailrace.proto.nats.step_records import StepRecords

logger = structlog.get_logger()

# The waits before each further try to cancel a message batch that the API does not know.
CANCEL_WAITS_S = (0.5, 1.0, 2.0)
# No try begins later. A gateway waits for 6 s, and a try is two calls.
CANCEL_S = 4.0


class MessageBatchRpc:
    """The handler that cancels a message batch of a deleted batch (PROTOCOL R36)."""

    def __init__(self, api: MessageBatchesApi) -> None:
        self._api = api

    async def cancel(self, _: Tenant, body: bytes) -> bytes:
        name = decode_query(body, CancelMessageBatch).message_batch
        with refuse_backend_errors():
            last = time.monotonic() + CANCEL_S
            for wait_s in (0.0, *CANCEL_WAITS_S):
                if time.monotonic() + wait_s > last:
                    break
                await asyncio.sleep(wait_s)
                # A server of Anthropic may not know a new message batch for a moment.
                if await self._api.cancel(name) or await self._has_ended(name):
                    return b""
        logger.warning("message batch not cancelled: the API does not know it", message_batch=name)
        return b""

    async def _has_ended(self, name: str) -> bool:
        """Returns whether the message batch has ended; False also if there is none. Raises BackendError."""
        try:
            return (await self._api.retrieve(name)).has_ended
        except BackendError as error:
            if error.code != "backend_refused_request":
                raise
            return False


def start(generator: Generator) -> Parts:
    """Returns the parts of one generator: the turns of its batches get half of its slots at most."""
    connection, settings = generator.connection, generator.settings
    api = MessageBatchesApi(generator.claude.client) if generator.claude is not None else None
    runner = BatchRunner(
        TurnLog(connection),
        BlobStore(connection),
        Tombstones(connection),
        StepRecords(connection),
        lambda: nats.fullness(connection),
        name=generator.name,
        concurrency=max(1, settings.concurrency // 2),
        attempts_max=settings.attempts_max,
        message_batches=api,
        hooks=generator.hooks,
        blobs=generator.blobs,
        orders=generator.orders,
    )
    handlers = {CANCEL_MESSAGE_BATCH: MessageBatchRpc(api).cancel} if api is not None else {}
    return Parts(lanes=(BatchLane(runner),), handlers=handlers)


FEATURE = Feature(start=start)
