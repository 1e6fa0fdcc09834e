"""A chat's newest branch, as persistence has it, with what was lifted out of its requests put back. It shows nothing.

A client of this protocol keeps its conversation, pictures and all, and says it again with each question. So what it is
told of it is no more than it may say.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.context import Gateway
from proto import blobs
from proto.blobs import Blob
from proto.entries import Message
from proto.errors import BlobUnknown, Refused
from proto.ids import Tenant
from proto.records import AskSessionTurns, TurnRecord

# More than a person has said in one conversation.
PAGES_MAX, PAGE_TURNS = 20, 200
TOO_LARGE = "the pictures and texts of this chat are larger than {most} bytes: /v1/sessions/{chat}/turns refers to them"


class Said(msgspec.Struct, frozen=True):
    """Messages, as blobs are put back into them."""

    messages: list[Message]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


async def newest(gateway: Gateway, tenant: Tenant, chat: str) -> list[TurnRecord]:
    """Its turns, oldest first; raises Refused for a chat that was never begun, and one that is too large."""
    turns: list[TurnRecord] = []
    after = None
    for _ in range(PAGES_MAX):
        page = await gateway.history.ask(tenant, AskSessionTurns(chat, after, PAGE_TURNS))
        turns += page.turns
        after = page.next
        if after is None:
            break
    found = branch(turns)
    said = Said([message for turn in found for message in turn.input])
    lifted = blobs.references(said)
    most = gateway.settings.body_bytes_max
    if sum(blob.bytes for blob in lifted) > most:
        raise Refused("body_too_large", TOO_LARGE.format(most=most, chat=chat))
    texts = {blob.sha256: await _text(gateway, tenant, blob) for blob in set(lifted)}
    told = iter(blobs.resolve(said, texts).messages)
    return [msgspec.structs.replace(turn, input=[next(told) for _ in turn.input]) for turn in found]


def branch(turns: Sequence[TurnRecord]) -> list[TurnRecord]:
    """The newest turn and those before it, oldest first."""
    by_id = {one.turn: one for one in turns}
    found: list[TurnRecord] = []
    turn = turns[-1] if turns else None
    while turn is not None:
        found.append(turn)
        turn = by_id.get(turn.parent) if turn.parent is not None else None
    return found[::-1]


async def _text(gateway: Gateway, tenant: Tenant, blob: Blob) -> str:
    """What was lifted; nothing when it has expired, and the chat cannot go on after it either."""
    try:
        return (await gateway.bodies.read(tenant, blob)).decode()
    except BlobUnknown:
        return ""
