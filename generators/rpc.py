"""RPC handlers for what needs the model's API key: list models, count tokens, cancel a message batch.

Nothing is retried here: the client that called the gateway may try again.
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import msgspec

from tailrace.generators.load_blobs import BlobLoader
from tailrace.proto import long_strings
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import BackendError, Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.model_records import (
    CANCEL_MESSAGE_BATCH,
    COUNT_TOKENS,
    MODELS,
    CancelMessageBatch,
    CountTokens,
    ListedModels,
    PromptFields,
)
from tailrace.proto.nats.rpc import Handler

T = TypeVar("T")


class ModelApi(Protocol):
    """A backend that lists models and counts tokens."""

    async def models(self) -> ListedModels:
        """Returns all models that the key may use. Raises BackendError."""
        ...

    async def count_tokens(self, body: bytes, betas: str) -> bytes:
        """Returns Anthropic's response to the Messages request in `body`. Raises BackendError."""
        ...


class BatchApi(Protocol):
    """Anthropic's Message Batches."""

    async def cancel(self, name: str) -> None:
        """Cancels a message batch; does nothing if it has ended or does not exist. Raises BackendError."""
        ...


class ModelRpc:
    def __init__(self, model_api: ModelApi, batch_api: BatchApi, blobs: BlobLoader) -> None:
        self._model_api = model_api
        self._batch_api = batch_api
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
        try:
            return msgspec.json.encode(await self._model_api.models())
        except BackendError as error:
            raise _to_refused(error) from error

    async def _count_tokens(self, tenant: Tenant, body: bytes) -> bytes:
        query = decode_query(body, CountTokens)
        try:
            if not query.is_lifted:
                return await self._model_api.count_tokens(bytes(query.body), query.betas)
            fields = decode_query(bytes(query.body), dict[str, Any])
            async with self._blobs.load(tenant, msgspec.convert(fields, PromptFields)) as prompt:
                pieces = await long_strings.encode(fields | msgspec.to_builtins(prompt))
                return await self._model_api.count_tokens(b"".join(pieces), query.betas)
        except BackendError as error:
            raise _to_refused(error) from error

    async def _cancel_message_batch(self, _: Tenant, body: bytes) -> bytes:
        name = decode_query(body, CancelMessageBatch).message_batch
        try:
            await self._batch_api.cancel(name)
        except BackendError as error:
            raise _to_refused(error) from error
        return b""


def decode_query(body: bytes, kind: type[T]) -> T:
    """Decodes a query; raises Refused."""
    try:
        return msgspec.json.decode(body, type=kind)
    except DECODE_ERRORS as error:
        raise Refused("request_invalid", f"the query is not a {kind.__name__}") from error


def _to_refused(error: BackendError) -> Refused:
    return Refused(error.code, error.message, retry_after_s=error.retry_after_s)
