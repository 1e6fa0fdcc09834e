"""A reader whose connection is cut again and again, and who comes back with the last id that it has. Judges nothing."""

import asyncio
import random
from collections.abc import Sequence
from time import monotonic
from typing import NamedTuple

import httpx2

from proto.ids import NOTHING, Seq
from proto.subjects import TurnKey
from tests import reading
from tests.event_stream import EventStream, Sent
from tests.promises import Connected, Reader

# Sockets that die take a moment to be missed; a browser waits about this long.
AWAY_S_MAX = 0.2


class Arrival(NamedTuple):
    """When a delta came."""

    at: float
    seq: Seq


class CutReader:
    """Reads one turn at whichever gateway, over as many connections as it takes to see the end."""

    def __init__(self, name: str, key: TurnKey, clients: Sequence[httpx2.AsyncClient], chance: random.Random) -> None:
        self.key = key
        self.connections: list[Connected] = []
        self.arrivals: list[Arrival] = []
        self._name = name
        self._clients = clients
        self._chance = chance

    async def read(self, cut_after_s: float) -> None:
        """Returns when it has seen the end; `cut_after_s` is how long a connection lives on the average."""
        cursor = NOTHING
        while not self.connections or self.connections[-1].over != "ended":
            connected = await self._connect(cursor, self._chance.expovariate(1 / cut_after_s))
            cursor = connected.frames[-1].seq if connected.frames else cursor
            self.connections.append(connected)
            await asyncio.sleep(self._chance.uniform(0, AWAY_S_MAX))

    def reader(self) -> Reader:
        """As the promises want to see it."""
        return reading.reader(self._name, self.key, *self.connections)

    async def _connect(self, cursor: Seq, life_s: float) -> Connected:
        client = self._chance.choice(self._clients)
        headers = {"last-event-id": str(cursor)} if cursor else {}
        sent: list[Sent] = []
        try:
            async with (
                asyncio.timeout(life_s),
                client.stream("GET", f"/v1/turns/{self.key.turn}/events", headers=headers) as response,
            ):
                assert response.status_code == 200, await response.aread()
                stream = EventStream()
                async for received in response.aiter_raw():
                    self._note(events := stream.feed(received))
                    sent += events
        except (TimeoutError, httpx2.HTTPError):
            pass
        is_ended = bool(sent) and sent[-1].data.startswith(reading.ENDS)
        return Connected(cursor, tuple(reading.frames(sent)), "ended" if is_ended else "cut")

    def _note(self, events: list[Sent]) -> None:
        deltas = [Seq(sent.id) for sent in events if sent.id is not None and sent.data.startswith('{"type":"delta"')]
        self.arrivals += [Arrival(monotonic(), seq) for seq in deltas]
