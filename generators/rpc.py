"""RPC handlers: cancel a turn, and what needs the model's API key: list models, count tokens, cancel a message batch.

No failure of the model's API is retried here: the client that called the gateway may try again.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import structlog

from tailrace.generators.backend_order import BackendOrders
from tailrace.generators.backends.anthropic_api import AnthropicApi
from tailrace.generators.backends.message_batches_api import MessageBatchesApi
from tailrace.generators.load_blobs import BlobLoader
from tailrace.proto import long_strings
from tailrace.proto.errors import BackendError, LogUnavailable, Refused
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.model_records import (
    CANCEL_MESSAGE_BATCH,
    COUNT_TOKENS,
    MODELS,
    CancelMessageBatch,
    CancelTurn,
    CountTokens,
    PromptFields,
    TurnCancelled,
)
from tailrace.proto.nats import TurnLog
from tailrace.proto.nats.cancellation import append_cancellation
from tailrace.proto.nats.rpc import Handler, decode_query

logger = structlog.get_logger()

# Before each further try to cancel a message batch that the API does not know.
CANCEL_WAITS_S = (0.5, 1.0, 2.0)
# No try begins later. A gateway waits for 6 s, and a try is two calls.
CANCEL_S = 4.0
# A gateway waits for 2 s.
CANCEL_TURN_S = 2.0


async def cancel_turn(log: TurnLog, tenant: Tenant, body: bytes) -> bytes:
    """The handler that cancels a turn for a gateway far from NATS (PROTOCOL R22)."""
    query = decode_query(body, CancelTurn)
    key = TurnKey(tenant, query.turn)
    try:
        async with asyncio.timeout(CANCEL_TURN_S):
            _, was_running = await append_cancellation(
                log, key, cause=query.cause, by=query.by, timeout_s=CANCEL_TURN_S
            )
    except TimeoutError as error:
        raise LogUnavailable(f"{key.turn} could not be cancelled in time") from error
    return msgspec.json.encode(TurnCancelled(was_running))


class ModelRpc:
    """The handlers that call Anthropic's API."""

    def __init__(
        self, claude: AnthropicApi, message_batches: MessageBatchesApi, blobs: BlobLoader, orders: BackendOrders
    ) -> None:
        self._claude = claude
        self._orders = orders
        self._message_batches = message_batches
        self._blobs = blobs

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by RPC name (PROTOCOL R36)."""
        return {
            MODELS: self._list_models,
            COUNT_TOKENS: self._count_tokens,
            CANCEL_MESSAGE_BATCH: self._cancel_message_batch,
        }

    async def _list_models(self, _: Tenant, __: bytes) -> bytes:
        with _refuse():
            return msgspec.json.encode(await self._claude.models())

    async def _count_tokens(self, tenant: Tenant, body: bytes) -> bytes:
        query = decode_query(body, CountTokens)
        fields = decode_query(bytes(query.body), dict[str, Any])
        with _refuse():
            fields["model"] = self._orders.claude_model_id(fields["model"], "token counts")
            if not query.is_lifted:
                return await self._claude.count_tokens(msgspec.json.encode(fields), query.betas, query.api_version)
            async with self._blobs.load(tenant, msgspec.convert(fields, PromptFields)) as prompt:
                pieces = await long_strings.encode(fields | msgspec.to_builtins(prompt))
                return await self._claude.count_tokens(b"".join(pieces), query.betas, query.api_version)

    async def _cancel_message_batch(self, _: Tenant, body: bytes) -> bytes:
        name = decode_query(body, CancelMessageBatch).message_batch
        with _refuse():
            last = time.monotonic() + CANCEL_S
            for wait_s in (0.0, *CANCEL_WAITS_S):
                if time.monotonic() + wait_s > last:
                    break
                await asyncio.sleep(wait_s)
                # A server of Anthropic may not know a new message batch for a moment.
                if await self._message_batches.cancel(name) or await self._has_ended(name):
                    return b""
        logger.warning("message batch not cancelled: the API does not know it", message_batch=name)
        return b""

    async def _has_ended(self, name: str) -> bool:
        """Returns whether the message batch has ended; False also if there is none. Raises BackendError."""
        try:
            return (await self._message_batches.retrieve(name)).has_ended
        except BackendError as error:
            if error.code != "backend_refused_request":
                raise
            return False


@contextmanager
def _refuse() -> Iterator[None]:
    """Raises Refused for a BackendError."""
    try:
        yield
    except BackendError as error:
        raise Refused(error.code, error.message, retry_after_s=error.retry_after_s, details=error.details) from error
