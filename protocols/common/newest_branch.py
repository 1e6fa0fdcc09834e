"""Reads the newest branch of a chat from the database, with its blobs put back into the messages.

A client of this protocol sends its whole conversation, with images, in each request. So a chat is returned only up to
the size of a request body.
"""

import asyncio

import msgspec

from tailrace.gateway.history_client import HistoryClient
from tailrace.proto.errors import Refused
from tailrace.proto.ids import TurnId
from tailrace.proto.nats import BlobStore
from tailrace.proto.ownership import Scope
from tailrace.proto.records import GetAncestry, GetLastTurn, GetSession, TurnRecord
from tailrace.protocols.common.read_or_none import read_or_none
from tailrace.protocols.common.stored_messages import read_texts, resolve

PAGE_TURNS = 200
TOO_LARGE = "the chat is larger than {most} bytes: read /v1/sessions/{chat}/turns, which has references to its blobs"


async def newest_branch(
    history: HistoryClient, blob_store: BlobStore, scope: Scope, chat: str, bytes_max: int
) -> list[TurnRecord]:
    """Returns the chat's turns, oldest first. Raises Refused for an unknown chat, and for a chat that is too large."""
    too_large = Refused("body_too_large", TOO_LARGE.format(most=bytes_max, chat=chat))
    found: list[TurnRecord] = []
    size, next_turn = 0, await last_turn(history, scope, chat)
    while next_turn is not None:
        page = await history.query(scope, GetAncestry(next_turn, PAGE_TURNS))
        # About the size of the response; also limits how many turns are read.
        size += len(msgspec.json.encode(page.turns))
        if size > bytes_max:
            raise too_large
        found += page.turns
        next_turn = page.next
    found.reverse()
    messages = [message for turn in found for message in turn.input]
    texts = await read_texts(blob_store, scope.tenant, messages, bytes_max - size)
    if texts is None:
        raise too_large
    resolved = iter(await asyncio.to_thread(resolve, messages, texts))
    return [msgspec.structs.replace(turn, input=[next(resolved) for _ in turn.input]) for turn in found]


async def last_turn(history: HistoryClient, scope: Scope, chat: str) -> TurnId | None:
    """Returns the chat's newest turn, None if it has none yet. Raises Refused for an unknown chat."""
    last = await read_or_none(history.query(scope, GetLastTurn(chat)))
    if last is None:
        await history.query(scope, GetSession(chat))
    return None if last is None else last.turn
