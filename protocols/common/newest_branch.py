"""Reads the newest branch of a chat from the database, with its blobs put back into the messages.

A client of this protocol sends its whole conversation, with images, in each request. So a chat is returned only up to
the size of a request body.
"""

import asyncio
from typing import NamedTuple

import msgspec

from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.streaming.reader import StreamContext
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.proto.entries import Message
from tailrace.proto.errors import Refused
from tailrace.proto.ids import TurnId
from tailrace.proto.nats import BlobStore
from tailrace.proto.ownership import Scope
from tailrace.proto.records import GetAncestry, GetLastTurn, GetSession, TurnRecord
from tailrace.protocols.common.read_or_none import read_or_none
from tailrace.protocols.common.stop_reasons import has_waiting_calls
from tailrace.protocols.common.stored_messages import read_texts, resolve

PAGE_TURNS = 200
TOO_LARGE = "the chat is larger than {most} bytes: read /v1/sessions/{chat}/turns, which has references to its blobs"


class Branch(NamedTuple):
    """The turns of a chat, oldest first."""

    turns: list[TurnRecord]
    decided: list[Message]
    """The results of calls of the newest turn, while its other calls wait for a decision."""


async def newest_branch(
    streams: StreamContext, steps: OptionalSteps, blob_store: BlobStore, scope: Scope, chat: str
) -> Branch:
    """Returns the chat's newest branch. Raises Refused for an unknown chat, and for a chat that is too large."""
    history, bytes_max = streams.history, streams.settings.body_bytes_max
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
    may_wait = bool(found) and has_waiting_calls(found[-1])
    decided = await steps.read_decided(scope, chat) if may_wait and steps.read_decided is not None else []
    turns = [msgspec.structs.replace(turn, input=[next(resolved) for _ in turn.input]) for turn in found]
    return Branch(turns, decided)


async def last_turn(history: HistoryClient, scope: Scope, chat: str) -> TurnId | None:
    """Returns the chat's newest turn, None if it has none yet. Raises Refused for an unknown chat."""
    last = await read_or_none(history.query(scope, GetLastTurn(chat)))
    if last is None:
        await history.query(scope, GetSession(chat))
    return None if last is None else last.turn
