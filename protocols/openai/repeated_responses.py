"""A request that Codex repeats after its stream was cut: it ends with the output items that had arrived.

With the key `auto`, such a request gets the rest of the same response. Claude's API could not answer it: current models
refuse a last message of the assistant. Source: Codex 0.171.0, over a WebSocket and over HTTP (docs/PROGRAMS.md).
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

import msgspec

from tailrace.gateway.http.large_bodies import convert_body
from tailrace.gateway.streaming.feed import FanOut, TurnFeed
from tailrace.gateway.streaming.writer import Snapshot
from tailrace.gateway.turns.request_body import MessageParam
from tailrace.proto.errors import LogUnavailable, TurnUnknown
from tailrace.proto.fold import EMPTY_TURN, fold
from tailrace.proto.ids import BEFORE_FIRST, TurnId, is_token
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import record_from_fold
from tailrace.protocols.openai.builtin_calls import ITEM_TYPES
from tailrace.protocols.openai.item_references import turn_of_item
from tailrace.protocols.openai.responses_input import InputItem, conversation_of
from tailrace.protocols.openai.responses_object import Item
from tailrace.protocols.openai.responses_stream import render_snapshot, response_of

# The client may have received its items from a gateway that was further on, or the answer has begun again.
BEHIND_S_MAX = 5.0
BEHIND = "the log has fewer items of this response than `input` ends with: repeat the request"
# The statuses of a response that has ended before its answer was complete.
CUT_SHORT = ("incomplete", "cancelled", "failed")


class Received(NamedTuple):
    """An input that ends with output items of one response."""

    turn: TurnId
    question: list[InputItem]
    """The items before them."""
    items: list[InputItem]
    """The output items."""


def find_received(items: str | Sequence[InputItem]) -> Received | None:
    """Returns the parts of an input that ends with output items; None for any other input."""
    turn = "" if isinstance(items, str) or not items else turn_of_item(items[-1])
    if isinstance(items, str) or not is_token(turn):
        return None
    count = len(list(takewhile(lambda one: turn_of_item(one) == turn, reversed(items))))
    return Received(TurnId(turn), list(items[:-count]), list(items[-count:]))


async def find_rest(
    fan_out: FanOut, key: ScopedKey, items: Sequence[InputItem], size: int, *, may_continue: bool
) -> Snapshot | None:
    """Returns what renders the response so far without `items`, which have `size` bytes at most.

    None if the response does not begin with them, or has left the log. Also None with `may_continue`, if they are all
    items of an answer that is not complete: the model can continue it. Raises Refused if an item is not valid,
    LogUnavailable.
    """
    count = len(items)
    try:
        async with asyncio.timeout(BEHIND_S_MAX), fan_out.subscribe(key, BEFORE_FIRST) as feed:
            response = await _read_response(feed, items[-1].id or "")
    except TurnUnknown:
        return None
    except TimeoutError as error:
        raise LogUnavailable(BEHIND) from error
    output = response["output"]
    if may_continue and count == len(output) and response["status"] in CUT_SHORT:
        return None
    if not await convert_body(size, _are_equal, items, output[:count]):
        return None
    return partial(render_snapshot, first=count)


def _are_equal(items: Sequence[InputItem], output: Sequence[Item]) -> bool:
    """Returns whether the items of an input are those of an output. Raises Refused if an item is not valid.

    Calls of built-in tools are compared by their ids.
    """
    begun = msgspec.convert(output, list[InputItem])
    return [one.id for one in items] == [one.id for one in begun] and _messages(items) == _messages(begun)


def _messages(items: Sequence[InputItem]) -> list[MessageParam]:
    return conversation_of([one for one in items if one.type not in ITEM_TYPES]).messages


async def _read_response(feed: TurnFeed, item_id: str) -> dict[str, Any]:
    """Returns the response as soon as an item is whole, or the turn has ended. Raises LogUnavailable."""
    turn, read, blocks = EMPTY_TURN, 0, 0
    while True:
        # Only the new entries: a client may name an item that never comes.
        turn, read = fold(feed.entries[read:], turn), len(feed.entries)
        if len(turn.blocks) != blocks or feed.is_ended:
            # The next block, which may have no item, closes an item; the item of a call has its result in a block.
            response, blocks = response_of(record_from_fold(feed.key, turn)), len(turn.blocks)
            whole = [item["id"] for item in response["output"] if item.get("status") != "in_progress"]
            if feed.is_ended or item_id in whole:
                return response
        if feed.is_broken:
            raise LogUnavailable(BEHIND)
        await feed.wait_for_change(read)
