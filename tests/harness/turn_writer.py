"""Writes a turn into a real log, entry by entry, as a generator does."""

from tailrace.proto import entries, events
from tailrace.proto.chain import START, Chain
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Entry, Failure, Mode, Outcome
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey
from tests.harness import turn_builder

# As the API sends it: the SDKs need all fields, while `handwritten` encodes only those that the fold reads.
MESSAGE: dict[str, object] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": turn_builder.MODEL,
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {"input_tokens": 10, "output_tokens": 1},
}


OURS = Tenant("ours")


class Writer:
    """The only writer of its turn; its chain is the log's."""

    def __init__(self, log: TurnLog, key: TurnKey) -> None:
        self.log = log
        self.key = key
        self.chain: Chain = START

    async def store(self, entry: Entry) -> Seq:
        self.chain = await self.log.append(self.key, self.chain, entry)
        return self.chain.last

    async def store_request(self, **given: object) -> Seq:
        return await self.store(turn_builder.request(**given))

    async def begin(self, *texts: str, mode: Mode = "fresh") -> None:
        """Begins an attempt, opens its message and writes `texts`."""
        await self.store(turn_builder.attempt(self.chain, mode))
        start = turn_builder.raw({"type": "message_start", "message": MESSAGE})
        await self.store(entries.Event(prev=self.chain.last, attempt=self.chain.attempt, event=start))
        await self.store_events(events.BlockStart(0, {"type": "text", "text": ""}))
        await self.store_texts(*texts)

    async def store_events(self, *what: events.Event) -> None:
        for one in what:
            await self.store(turn_builder.event(self.chain, one))

    async def store_texts(self, *texts: str) -> None:
        for text in texts:
            await self.store(turn_builder.text_delta(self.chain, text))

    async def open(self, *texts: str) -> None:
        """Writes a request and an attempt without an end."""
        await self.store_request()
        await self.begin(*texts)

    async def end(self, outcome: Outcome = "completed", error: Failure | None = None) -> Seq:
        if outcome == "completed":
            await self.store_events(*turn_builder.closing_events(5))
        return await self.store(build_end(await self.log.read_turn(ScopedKey.whole(self.key)), outcome, error))


def new_writer(log: TurnLog, tenant: Tenant = OURS) -> Writer:
    """Returns the writer of a new turn."""
    return Writer(log, TurnKey(tenant, TurnId(new_id())))


async def write_turn(log: TurnLog, *texts: str, tenant: Tenant = OURS, **request: object) -> TurnKey:
    """Writes a completed turn with the answer `texts`; `request` are fields of its request. Returns its key."""
    writer = new_writer(log, tenant)
    await writer.store_request(**request)
    await writer.begin(*texts)
    await writer.end()
    return writer.key
