"""A chat's newest branch, as persistence has it, with what was lifted out of its requests put back. It shows nothing.

A client of this protocol keeps its conversation, pictures and all, and says it again with each question. So what it is
told of it is no more than it may say.
"""

from typing import Any

import msgspec

from tailrace.gateway.dependencies import Gateway
from tailrace.proto import blobs
from tailrace.proto.blobs import Blob
from tailrace.proto.entries import Message
from tailrace.proto.errors import BlobUnknown, Refused
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.records import GetAncestry, GetLastTurn, GetSession, TurnRecord

PAGE_TURNS = 200
TOO_LARGE = "the pictures and texts of this chat are larger than {most} bytes: /v1/sessions/{chat}/turns refers to them"


class Said(msgspec.Struct, frozen=True):
    """Messages, as blobs are put back into them."""

    messages: list[Message]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


async def newest(gateway: Gateway, tenant: Tenant, chat: str) -> list[TurnRecord]:
    """Its turns, oldest first; raises Refused for a chat that was never begun, and one that is too large."""
    most = gateway.settings.body_bytes_max
    too_large = Refused("body_too_large", TOO_LARGE.format(most=most, chat=chat))
    found: list[TurnRecord] = []
    size, turn = 0, await last(gateway, tenant, chat)
    while turn is not None:
        page = await gateway.history.ask(tenant, GetAncestry(turn, PAGE_TURNS))
        # As long as it is told, more or less. It bounds how many are read, too.
        size += len(msgspec.json.encode(page.turns))
        if size > most:
            raise too_large
        found += page.turns
        turn = page.next
    found.reverse()
    said = Said([message for one in found for message in one.input])
    lifted = blobs.references(said)
    # A picture that was sent again is told again, and read once.
    if size + sum(blob.bytes for blob in lifted) > most:
        raise too_large
    texts = {blob.sha256: await _text(gateway, tenant, blob) for blob in set(lifted)}
    told = iter(blobs.resolve(said, texts).messages)
    return [msgspec.structs.replace(one, input=[next(told) for _ in one.input]) for one in found]


async def last(gateway: Gateway, tenant: Tenant, chat: str) -> TurnId | None:
    """Its newest turn; None when it has none yet. Raises Refused for a chat that was never begun."""
    try:
        return (await gateway.history.ask(tenant, GetLastTurn(chat))).turn
    except Refused as refused:
        if refused.code != "session_not_found":
            raise
        await gateway.history.ask(tenant, GetSession(chat))
        return None


async def _text(gateway: Gateway, tenant: Tenant, blob: Blob) -> str:
    """What was lifted; nothing when it has expired, and the chat cannot go on after it either."""
    try:
        return (await gateway.bodies.read(tenant, blob)).decode()
    except BlobUnknown:
        return ""
