"""The questions that only who has the model's key can answer. Nothing is retried here: whoever asks may ask again."""

from collections.abc import Mapping
from typing import Protocol, TypeVar

import msgspec

from tailrace.generators.load_blobs import BlobLoader
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
    replace_prompt,
)
from tailrace.proto.nats.rpc import Handler

T = TypeVar("T", bound=msgspec.Struct)


class Informant(Protocol):
    """A backend that can tell about its models without being asked for an answer."""

    async def models(self) -> ListedModels:
        """All that the key may use. Raises BackendError."""
        ...

    async def count_tokens(self, body: bytes, betas: str) -> bytes:
        """Anthropic's own answer for the Messages request in `body`. Raises BackendError."""
        ...


class Cancelling(Protocol):
    """Who has Anthropic's Message Batches."""

    async def cancel(self, name: str) -> None:
        """Raises BackendError. One that has ended, or is not there, is left as it is."""
        ...


class ModelRpc:
    def __init__(self, informant: Informant, message_batches: Cancelling, blobs: BlobLoader) -> None:
        self._informant = informant
        self._message_batches = message_batches
        self._blobs = blobs

    @property
    def answers(self) -> Mapping[str, Handler]:
        """By the names under which they are asked (PROTOCOL R36)."""
        return {
            MODELS: self._models,
            COUNT_TOKENS: self._count_tokens,
            CANCEL_MESSAGE_BATCH: self._cancel_message_batch,
        }

    async def _models(self, _: Tenant, __: bytes) -> bytes:
        try:
            return msgspec.json.encode(await self._informant.models())
        except BackendError as error:
            raise refused(error) from error

    async def _count_tokens(self, tenant: Tenant, asked: bytes) -> bytes:
        question = read(asked, CountTokens)
        body = bytes(question.body)
        try:
            if not question.is_lifted:
                return await self._informant.count_tokens(body, question.betas)
            async with self._blobs.load(tenant, msgspec.json.decode(body, type=PromptFields)) as prompt:
                return await self._informant.count_tokens(replace_prompt(body, prompt), question.betas)
        except BackendError as error:
            raise refused(error) from error

    async def _cancel_message_batch(self, _: Tenant, asked: bytes) -> bytes:
        named = read(asked, CancelMessageBatch).message_batch
        try:
            await self._message_batches.cancel(named)
        except BackendError as error:
            raise refused(error) from error
        return b""


def read(asked: bytes, kind: type[T]) -> T:
    """Raises Refused."""
    try:
        return msgspec.json.decode(asked, type=kind)
    except DECODE_ERRORS as error:
        raise Refused("request_invalid", f"the question is not an {kind.__name__}") from error


def refused(error: BackendError) -> Refused:
    """The same to whoever asked."""
    return Refused(error.code, error.message, retry_after_s=error.retry_after_s)
