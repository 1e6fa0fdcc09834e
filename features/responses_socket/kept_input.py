"""The input and output of responses that only their WebSocket knows: warm-ups, and responses with `store: false`.

OpenAI keeps the last response of each lane in the memory of the connection, so that the next one can send its new items
alone. After the connection is lost, a client sends the whole input again. Other responses are continued from the log.
"""

from typing import NamedTuple

import msgspec

from tailrace.features.responses_socket.messages import Fields, text_field
from tailrace.features.responses_socket.socket_memory import Resize

# Of all lanes together. The oldest is dropped first; its client sends the whole input again.
BYTES_MAX = 8 * 1024 * 1024

Items = list[msgspec.Raw]


class Kept(NamedTuple):
    """The items that the next response continues, after the stored response `previous`, if there is one."""

    items: Items
    previous: msgspec.Raw | None
    size: int


class KeptInput:
    """The last response of each lane that is not stored, by its id."""

    def __init__(self, resize: Resize) -> None:
        """`resize` holds the memory of the items."""
        self._resize = resize
        self._kept: dict[str, Kept] = {}
        self._by_lane: dict[str | None, str] = {}
        self._bytes = 0

    def keep(self, stream_id: str | None, response_id: str, body: Fields, output: Items) -> None:
        """Keeps what a response to `body` has as its input and output, in place of the lane's response before."""
        self._drop(self._by_lane.get(stream_id))
        # A decoded Raw refers to the whole message, whose bytes are not counted.
        # The input of a repeated request may end with the first items of the output (repeated_responses.py).
        ids = {_id_of(item) for item in output} - {None}
        items = [item.copy() for item in (*(one for one in input_items(body) if _id_of(one) not in ids), *output)]
        size = sum(map(len, map(bytes, items)))
        if size > BYTES_MAX:
            return
        while self._bytes + size > BYTES_MAX or (self._kept and not self._resize(self._bytes + size)):
            self._drop(next(iter(self._kept)))
        if not self._resize(self._bytes + size):
            return
        self._by_lane[stream_id] = response_id
        previous = body.get("previous_response_id")
        self._kept[response_id] = Kept(items, None if previous is None else previous.copy(), size)
        self._bytes += size

    def extend(self, body: Fields) -> Fields | None:
        """Returns `body` with the items of the response that it continues; None if that one is not kept here.

        Raises Refused.
        """
        kept = self._kept.get(text_field(body, "previous_response_id") or "")
        if kept is None:
            return None
        extended = {name: value for name, value in body.items() if name != "previous_response_id"}
        if kept.previous is not None:
            extended["previous_response_id"] = kept.previous
        return extended | {"input": encode([*kept.items, *input_items(body)])}

    def _drop(self, response_id: str | None) -> None:
        if response_id is not None and (kept := self._kept.pop(response_id, None)) is not None:
            self._bytes -= kept.size
            self._resize(self._bytes)


class _Item(msgspec.Struct):
    id: str | None = None


def _id_of(item: msgspec.Raw) -> str | None:
    """Returns the id of an item; None if it has none, or is not valid."""
    try:
        return msgspec.json.decode(item, type=_Item).id
    except msgspec.ValidationError:
        return None


def input_items(body: Fields) -> Items:
    """Returns the items of `input`; a text becomes a message of the user. A wrong value is left to the route."""
    given = body.get("input", msgspec.Raw(b"[]"))
    try:
        return msgspec.json.decode(given, type=Items)
    except msgspec.ValidationError:
        return [msgspec.Raw(b'{"role":"user","content":%b}' % bytes(given))]


def encode(value: object) -> msgspec.Raw:
    """Returns the JSON of `value`."""
    return msgspec.Raw(msgspec.json.encode(value))
