"""RPC handlers: cancel a turn, and what needs the model's API key: list models, count tokens.

No failure of the model's API is retried here: the client that called the gateway may try again.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from tailrace.generators.backend_order import BackendOrders
from tailrace.generators.backends.anthropic_api import AnthropicApi
from tailrace.generators.load_blobs import BlobLoader
from tailrace.proto import long_strings
from tailrace.proto.errors import BackendError, LogUnavailable, Refused
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.model_records import (
    COUNT_TOKENS,
    MODELS,
    CancelTurn,
    CountTokens,
    PromptFields,
    TurnCancelled,
)
from tailrace.proto.nats import TurnLog
from tailrace.proto.nats.cancellation import append_cancellation
from tailrace.proto.nats.rpc import Handler, decode_query

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

    def __init__(self, claude: AnthropicApi, blobs: BlobLoader, orders: BackendOrders) -> None:
        self._claude = claude
        self._orders = orders
        self._blobs = blobs

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by RPC name (PROTOCOL R36)."""
        return {
            MODELS: self._list_models,
            COUNT_TOKENS: self._count_tokens,
        }

    async def _list_models(self, _: Tenant, __: bytes) -> bytes:
        with refuse_backend_errors():
            return msgspec.json.encode(await self._claude.models())

    async def _count_tokens(self, tenant: Tenant, body: bytes) -> bytes:
        query = decode_query(body, CountTokens)
        fields = decode_query(bytes(query.body), dict[str, Any])
        with refuse_backend_errors():
            fields["model"] = self._orders.claude_model_id(fields["model"], "token counts")
            if not query.is_lifted:
                return await self._claude.count_tokens(msgspec.json.encode(fields), query.betas, query.api_version)
            async with self._blobs.load(tenant, msgspec.convert(fields, PromptFields)) as prompt:
                pieces = await long_strings.encode(fields | msgspec.to_builtins(prompt))
                return await self._claude.count_tokens(b"".join(pieces), query.betas, query.api_version)


@contextmanager
def refuse_backend_errors() -> Iterator[None]:
    """Raises Refused for a BackendError."""
    try:
        yield
    except BackendError as error:
        raise Refused(error.code, error.message, retry_after_s=error.retry_after_s, details=error.details) from error
