"""Items of `input` that the gateway reads from an earlier response.

Some clients name an output item instead of repeating it, such as OpenAI's provider for the AI SDK. A repeated call of a
built-in tool has not all that Claude's API needs, so its blocks are read, too.
"""

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import msgspec

from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.proto import odd_json
from tailrace.proto.conversation import AWAITS_CLIENT
from tailrace.proto.errors import Refused
from tailrace.proto.ids import TurnId, is_token
from tailrace.proto.ownership import Scope, ScopedKey
from tailrace.proto.server_tools import is_result
from tailrace.protocols.common.read_or_none import read_or_none
from tailrace.protocols.openai.builtin_calls import ITEM_TYPES, LISTING, pair_results
from tailrace.protocols.openai.responses_input import InputItem, StoredItem, invalid_item
from tailrace.protocols.openai.responses_object import ITEM_ID
from tailrace.protocols.openai.responses_stream import response_of

# Each response is one read of the log or the database.
RESPONSES_MAX = 1000
# A read of a response that has left the log takes 0.1 s.
READ_AT_ONCE = 16
# About a million tokens, the longest context of any model. Inserted items are not part of the memory that is reserved
# for large bodies.
INSERTED_BYTES_MAX = 4 * 1024 * 1024


async def insert_items(
    items: str | Sequence[InputItem], scope: Scope, turns: TurnReader, bytes_max: int
) -> tuple[str | Sequence[InputItem], int]:
    """Returns the input with each reference replaced by its item, and each call of a built-in tool with its blocks.

    Also returns the bytes that were inserted, at most `bytes_max`. A call whose response is gone, or that has no room,
    stays as it is (`responses_input.lost_calls`). Other tasks run after each inserted item. Raises Refused,
    LogUnavailable.
    """
    if isinstance(items, str):
        return items, 0
    inserted_bytes, wanted = 0, {one.id for one in items if _is_read(one)}
    responses: dict[str, dict[str, _Read]] = {}
    """The items that are read, by id, of each response that was read."""
    unread = iter(dict.fromkeys(turn_of_item(one) for one in items if _is_read(one)))

    async def read(turn: str) -> None:
        found = await _read_items(scope, turn, turns) if is_token(turn) else {}
        responses[turn] = {item_id: item for item_id, item in found.items() if item_id in wanted}

    replaced = []
    for index, one in enumerate(items):
        if not _is_read(one):
            replaced.append(one)
            continue
        turn, is_reference = turn_of_item(one), one.type == "item_reference"
        if turn not in responses and len(responses) < RESPONSES_MAX:
            # `unread` has the order of `items`, so it begins with `turn`.
            some = islice(unread, min(READ_AT_ONCE, RESPONSES_MAX - len(responses)))
            await asyncio.gather(*map(read, some))
        if turn not in responses and is_reference:
            raise invalid_item(index, f"more than {RESPONSES_MAX} responses are referenced: send their items")
        item = responses.get(turn, {}).get(one.id or "")
        if item is None and is_reference:
            raise invalid_item(index, f"no response has the item `{(one.id or '')[:80]}`: send the item itself")
        has_room = item is not None and inserted_bytes + item.size <= bytes_max
        if is_reference and not has_room:
            raise Refused(
                "body_too_large", f"the items that `input` references have more than {bytes_max} bytes: reference fewer"
            )
        if item is None or not has_room:
            replaced.append(one)
            continue
        inserted_bytes += item.size
        replaced.append(item.item)
        await asyncio.sleep(0)
    return replaced, inserted_bytes


class _Read(NamedTuple):
    """An output item that was read, and its size in bytes."""

    item: InputItem
    size: int


def _is_read(item: InputItem) -> bool:
    return item.type == "item_reference" or item.type in ITEM_TYPES


def turn_of_item(item: InputItem) -> str:
    """Returns the id of the turn in the id of an output item, or of a reference to one; '' if it has none."""
    named = ITEM_ID.fullmatch(item.id or "")
    return named[1] if named is not None else ""


def block_of_item(item: InputItem) -> int:
    """Returns the number of the answer's block in the id of an output item; 0 if it has none."""
    named = ITEM_ID.fullmatch(item.id or "")
    return int(named[2]) if named is not None else 0


async def _read_items(scope: Scope, turn: str, turns: TurnReader) -> dict[str, _Read]:
    """Returns the output items of a response by id; none if there is no such response. Raises LogUnavailable."""
    record = await read_or_none(turns.read(ScopedKey(scope, TurnId(turn))))
    if record is None:
        return {}
    results = pair_results(record.content)
    found: dict[str, _Read] = {}
    for item in response_of(record)["output"]:
        index = block_of_item(InputItem(id=item["id"]))
        fields, struct = item, InputItem
        if item["type"] in ITEM_TYPES:
            block = record.content[index]
            is_open = record.stop_reason == AWAITS_CLIENT or block["type"] == LISTING or is_result(block)
            pair = [block, results[index]] if index in results else [block] if is_open else []
            fields, struct = item | {"blocks": pair}, StoredItem
        found[item["id"]] = _Read(msgspec.convert(fields, struct), len(odd_json.encode(fields)))
    return found
