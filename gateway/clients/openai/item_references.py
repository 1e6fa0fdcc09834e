"""Items of `input` that name an output item of an earlier response instead of repeating it.

OpenAI's provider for the AI SDK sends the answers of a conversation in this way.
"""

import re
from collections.abc import Sequence

import msgspec

from tailrace.gateway.clients.openai.responses_input import InputItem, invalid_item
from tailrace.gateway.clients.openai.responses_object import Item, response_of
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant, TurnId, is_token
from tailrace.proto.subjects import TurnKey

# The id of an output item contains the turn's id (`responses_object.item_id`).
ITEM_ID = re.compile(r"(?:msg|rs|fc)_(.+)_\d+")
# Each response is one read of the log or the database.
RESPONSES_MAX = 1000


async def insert_items(
    items: str | Sequence[InputItem], tenant: Tenant, turns: TurnReader, bytes_max: int
) -> str | list[InputItem]:
    """Returns the input with each reference replaced by its item. Raises Refused, LogUnavailable.

    All inserted items may have `bytes_max` bytes together.
    """
    if isinstance(items, str):
        return items
    responses: dict[str, dict[str, Item]] = {}
    """The output items by id of each response that was read."""
    inserted = []
    for index, one in enumerate(items):
        if one.type != "item_reference":
            inserted.append(one)
            continue
        named = ITEM_ID.fullmatch(one.id or "")
        turn = named[1] if named is not None else ""
        if turn not in responses:
            if len(responses) == RESPONSES_MAX:
                raise invalid_item(index, f"more than {RESPONSES_MAX} responses are referenced: send their items")
            responses[turn] = await _read_output(tenant, turn, turns) if is_token(turn) else {}
        item = responses[turn].get(one.id or "")
        if item is None:
            raise invalid_item(index, f"no response has the item `{(one.id or '')[:80]}`: send the item itself")
        bytes_max -= len(msgspec.json.encode(item))
        if bytes_max < 0:
            raise Refused("body_too_large", "the items that `input` references are too large: send fewer")
        inserted.append(msgspec.convert(item, InputItem))
    return inserted


async def _read_output(tenant: Tenant, turn: str, turns: TurnReader) -> dict[str, Item]:
    """Returns the output items of a response by their ids; none if there is no such response. Raises LogUnavailable."""
    try:
        record = await turns.read(TurnKey(tenant, TurnId(turn)))
    except Refused as refused:
        if refused.code != "turn_not_found":
            raise
        return {}
    return {item["id"]: item for item in response_of(record)["output"]}
