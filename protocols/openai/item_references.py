"""Items of `input` that name an output item of an earlier response instead of repeating it.

OpenAI's provider for the AI SDK sends the answers of a conversation in this way.
"""

import asyncio
import re
from collections.abc import Sequence
from itertools import islice

import msgspec

from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant, TurnId, TurnKey, is_token
from tailrace.protocols.openai.responses_input import InputItem, invalid_item
from tailrace.protocols.openai.responses_object import Item, response_of

# The id of an output item contains the turn's id (`responses_object.item_id`).
ITEM_ID = re.compile(r"(?:msg|rs|fc)_(.+)_(\d{1,9})")
# Each response is one read of the log or the database.
RESPONSES_MAX = 1000
# A read of a response that has left the log takes 0.1 s.
READ_AT_ONCE = 16
# About a million tokens, the longest context of any model. Inserted items are not part of the memory that is reserved
# for large bodies.
INSERTED_BYTES_MAX = 4 * 1024 * 1024


async def insert_items(
    items: str | Sequence[InputItem], tenant: Tenant, turns: TurnReader, bytes_max: int
) -> tuple[str | Sequence[InputItem], int]:
    """Returns the input with each reference replaced by its item, and the bytes of the inserted items.

    All inserted items together may have `bytes_max` bytes. Other tasks run after each inserted item.
    Raises Refused, LogUnavailable.
    """
    if isinstance(items, str):
        return items, 0
    inserted_bytes, wanted = 0, {one.id for one in items if one.type == "item_reference"}
    responses: dict[str, dict[str, Item]] = {}
    """The referenced items by id of each response that was read."""
    unread = iter(dict.fromkeys(turn_of_item(one) for one in items if one.type == "item_reference"))

    async def read(turn: str) -> None:
        output = await _read_output(tenant, turn, turns) if is_token(turn) else []
        responses[turn] = {item["id"]: item for item in output if item["id"] in wanted}

    replaced = []
    for index, one in enumerate(items):
        if one.type != "item_reference":
            replaced.append(one)
            continue
        turn = turn_of_item(one)
        if turn not in responses:
            if len(responses) == RESPONSES_MAX:
                raise invalid_item(index, f"more than {RESPONSES_MAX} responses are referenced: send their items")
            # `unread` has the order of `items`, so it begins with `turn`.
            some = islice(unread, min(READ_AT_ONCE, RESPONSES_MAX - len(responses)))
            await asyncio.gather(*map(read, some))
        item = responses[turn].get(one.id or "")
        if item is None:
            raise invalid_item(index, f"no response has the item `{(one.id or '')[:80]}`: send the item itself")
        inserted_bytes += len(msgspec.json.encode(item))
        if inserted_bytes > bytes_max:
            raise Refused(
                "body_too_large", f"the items that `input` references have more than {bytes_max} bytes: reference fewer"
            )
        replaced.append(msgspec.convert(item, InputItem))
        await asyncio.sleep(0)
    return replaced, inserted_bytes


def turn_of_item(item: InputItem) -> str:
    """Returns the id of the turn in the id of an output item, or of a reference to one; '' if it has none."""
    named = ITEM_ID.fullmatch(item.id or "")
    return named[1] if named is not None else ""


def block_of_item(item: InputItem) -> int:
    """Returns the number of the answer's block in the id of an output item; 0 if it has none."""
    named = ITEM_ID.fullmatch(item.id or "")
    return int(named[2]) if named is not None else 0


async def _read_output(tenant: Tenant, turn: str, turns: TurnReader) -> list[Item]:
    """Returns the output items of a response; none if there is no such response. Raises LogUnavailable."""
    try:
        record = await turns.read(TurnKey(tenant, TurnId(turn)))
    except Refused as refused:
        if refused.code != "turn_not_found":
            raise
        return []
    output: list[Item] = response_of(record)["output"]
    return output
