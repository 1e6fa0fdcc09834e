"""Large events of a model, such as a fetched document: decoded in steps, and within a limit of memory.

msgspec decodes 30 MB in 20 to 50 ms, in which no other turn of the process goes on. So the long strings are cut out of
the JSON (proto/long_strings.py), the small rest is read and checked like any event, and the strings are put back.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec

from tailrace.generators.backends.model_event import ModelEvent
from tailrace.generators.backends.sse_decoder import EVENT_BYTES_MAX
from tailrace.proto import events, long_strings
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import BackendError
from tailrace.proto.runtime.fair_semaphore import FairSemaphore

LARGE_BYTES = 512 * 1024
# Copies of an event until it is stored: the stream's, the whole line, its strings, and the chunks of its blob.
COPIES = 4
# Two events of EVENT_BYTES_MAX. Calls with further large events are not read meanwhile.
MEMORY_BYTES = 2 * COPIES * EVENT_BYTES_MAX
# Each value takes time and memory, too: 30 MB of numbers would take a second and 500 MB.
VALUES_MAX = 400_000


class LargeEventMemory:
    """The memory for large events of all calls of a process. Tenants take turns."""

    def __init__(self) -> None:
        self._semaphore = FairSemaphore(MEMORY_BYTES)

    @asynccontextmanager
    async def reserve(self, tenant: str) -> AsyncIterator[None]:
        """Waits for the memory of the largest event.

        A smaller reservation would have to grow later, and two calls with growing reservations could deadlock.
        """
        async with self._semaphore.reserve(COPIES * EVENT_BYTES_MAX, tenant=tenant):
            yield


async def cut(data: bytes) -> tuple[bytes, dict[str, str]]:
    """Returns the JSON of an event with names in place of its long strings, and the strings by name.

    Raises BackendError for an event with too many values.
    """
    if len(data) <= LARGE_BYTES:
        return data, {}
    try:
        rest, strings = await long_strings.replace_long_strings(data)
    except DECODE_ERRORS:
        # A long string is invalid for msgspec: `read_event` keeps or refuses the event.
        rest, strings = data, {}
    if rest.count(b",") > VALUES_MAX:
        raise BackendError("backend_event_too_large", f"the model sent an event with more than {VALUES_MAX} values")
    return rest, strings


async def restore(event: ModelEvent, data: bytes, rest: bytes, strings: Mapping[str, str]) -> ModelEvent:
    """Returns an event with its long strings. The strings come from `rest`, which `cut` has returned for `data`."""
    if not strings or not any(name.encode() in bytes(event.raw) for name in strings):
        return event
    fields = long_strings.put_back(msgspec.json.decode(event.raw), strings)
    # An event that was made from a part of `rest` has no bytes in `data`.
    raw = data if bytes(event.raw) == rest else b"".join(await long_strings.encode(fields))
    whole: events.Event | events.UnknownEvent
    match event.event:
        case events.OtherDelta(index, _):
            whole = events.OtherDelta(index, fields["delta"])
        case events.UnknownEvent():
            whole = event.event
        case _:
            whole = msgspec.convert(fields, events.Event)
    return msgspec.structs.replace(event, event=whole, raw=msgspec.Raw(raw))
