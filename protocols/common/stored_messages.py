"""Replaces references to blobs in stored messages by their texts, so that clients receive what they sent."""

import asyncio
from typing import Any

import msgspec

from tailrace.proto import blobs, long_strings
from tailrace.proto.blobs import Blob
from tailrace.proto.entries import Message
from tailrace.proto.errors import BlobUnknown
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import BlobStore


class StoredMessages(msgspec.Struct, frozen=True):
    """Messages in the form that the functions of `blobs` take."""

    messages: list[Message]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


async def read_texts(
    blob_store: BlobStore, tenant: Tenant, messages: list[Message], bytes_max: int
) -> dict[str, str] | None:
    """Returns the texts of the messages' blobs by SHA-256; None if they are longer than `bytes_max` in total."""
    references = await asyncio.to_thread(blobs.references, StoredMessages(messages))
    # A blob with several references appears several times in the response, but is read once.
    if sum(blob.bytes for blob in references) > bytes_max:
        return None
    return {blob.sha256: await _text(blob_store, tenant, blob) for blob in set(references)}


def resolve(messages: list[Message], texts: dict[str, str]) -> list[Message]:
    """Returns the messages with `texts` in place of their references."""
    return blobs.resolve(StoredMessages(messages), texts).messages


async def _text(blob_store: BlobStore, tenant: Tenant, blob: Blob) -> str:
    """Returns a blob's text, empty if it has expired. The conversation cannot be continued after an expired blob."""
    try:
        return await long_strings.decode_text(await blob_store.read(tenant, blob))
    except BlobUnknown:
        return ""
