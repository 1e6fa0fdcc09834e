"""A client whose requests are recorded: POST, reads over several connections, GET, cancel, DELETE."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from time import monotonic_ns

import httpx2
import msgspec

from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnId
from tailrace.proto.subjects import TurnKey
from tests.checker.history import HISTORY, Cancel, Delete, Get, Post, Read, Recorder, digest
from tests.harness import readers
from tests.harness.sse_parser import EventStream, Sent
from tests.promises import Frame

OK, ENDED = 200, 204
RETRY_S = 0.05


class Client:
    """One process of the history. It sends each request to the next of `gateways`; `tenant` is the one of its key."""

    def __init__(self, folder: Path, name: str, gateways: Sequence[httpx2.AsyncClient], tenant: Tenant) -> None:
        self._recorder = Recorder(folder / HISTORY, name)
        self._gateways = gateways
        self._requests = 0
        self.seen: Seq = BEFORE_FIRST
        """The last entry that it received in the dialect `tailrace`, of any turn."""
        self._tenant = tenant

    def close(self) -> None:
        self._recorder.close()

    async def post(self, question: str, key: str | None = None, **given: object) -> TurnKey | None:
        """Returns the turn's key, or None when it was refused or there was no response."""
        body = msgspec.json.encode({"message": question, **given})
        headers = {"content-type": "application/json"} | ({"idempotency-key": key} if key is not None else {})
        begun = Post(tenant=self._tenant, question=question, body_sha256=digest(body), idempotency_key=key)
        with self._recorder.recording(begun) as posting:
            try:
                response = await self._gateway().post("/v1/turns", content=body, headers=headers)
            except httpx2.HTTPError:
                return None
            if response.status_code != 202:
                # After a 5xx the request may be stored all the same.
                record = posting.info if response.status_code >= 500 else posting.fail
                record(status=response.status_code)
                return None
            turn = TurnId(response.json()["turn"])
            posting.ok(status=202, turn=turn)
            return TurnKey(self._tenant, turn)

    async def read(
        self, key: TurnKey, cursor: Seq = BEFORE_FIRST, *, most: int | None = None, life_s: float | None = None
    ) -> Read:
        """Reads one connection in the dialect `tailrace`; closes it after `most` frames or `life_s` seconds."""
        with self._recorder.recording(Read(tenant=key.tenant, turn=key.turn, cursor=cursor)) as begun:
            frames: list[Frame] = []
            arrived: list[int] = []
            rest: list[Sent] = []
            over, status = "cut", None
            headers = {"last-event-id": str(cursor)} if cursor else {}
            url = f"/v1/turns/{key.turn}/events"
            try:
                async with asyncio.timeout(life_s), self._gateway().stream("GET", url, headers=headers) as response:
                    status, stream = response.status_code, EventStream()
                    over = "ended" if status == ENDED else "cut"
                    async for received in response.aiter_raw():
                        if status != OK:
                            break
                        for event in stream.feed(received):
                            rest.append(event)
                            if event.id is not None:
                                some, rest = readers.frames(rest), []
                                frames += some
                                arrived += [monotonic_ns()] * len(some)
                                self.seen = Seq(event.id)
                            if event.data.startswith(readers.ENDS):
                                over = "ended"
                        if most is not None and len(frames) >= most and over != "ended":
                            over = "left"
                            break
            except (httpx2.HTTPError, TimeoutError):
                pass
            finally:
                record = begun.ok if status in (OK, ENDED) else begun.fail if status is not None else begun.info
                kept = slice(most if over == "left" else None)
                record(frames=tuple(frames[kept]), arrived=tuple(arrived[kept]), over=over, status=status)
            return begun.operation

    async def read_to_end(self, key: TurnKey, cursor: Seq = BEFORE_FIRST) -> list[Read]:
        """Reads until the turn's end, with each connection at the next gateway."""
        reads: list[Read] = []
        while not reads or reads[-1].over != "ended":
            if reads and not reads[-1].frames:
                await asyncio.sleep(RETRY_S)
            reads.append(await self.read(key, cursor))
            cursor = reads[-1].frames[-1].seq if reads[-1].frames else cursor
        return reads

    async def read_text(self, key: TurnKey) -> Read:
        """Reads one connection in the dialect `text`."""
        begun = Read(tenant=key.tenant, turn=key.turn, dialect="text", text="")
        with self._recorder.recording(begun) as reading:
            received_bytes, is_whole = bytearray(), False
            try:
                url = f"/v1/turns/{key.turn}/events?dialect=text"
                async with self._gateway().stream("GET", url) as response:
                    async for received in response.aiter_raw():
                        received_bytes += received
                    is_whole = response.status_code == OK
            except httpx2.HTTPError:
                pass
            reading.ok(text=received_bytes.decode(errors="ignore"), over="ended" if is_whole else "cut")
            return reading.operation

    async def get(self, key: TurnKey) -> Get:
        with self._recorder.recording(Get(tenant=key.tenant, turn=key.turn)) as getting:
            try:
                response = await self._gateway().get(f"/v1/turns/{key.turn}")
            except httpx2.HTTPError:
                return getting.operation
            if response.status_code == OK:
                turn = response.json()
                getting.ok(status=OK, cursor=Seq(turn["cursor"]), text=turn["text"])
            else:
                getting.fail(status=response.status_code)
            return getting.operation

    async def cancel(self, key: TurnKey) -> Cancel:
        with self._recorder.recording(Cancel(tenant=key.tenant, turn=key.turn)) as cancelling:
            try:
                response = await self._gateway().post(f"/v1/turns/{key.turn}/cancel")
            except httpx2.HTTPError:
                return cancelling.operation
            record = cancelling.ok if response.status_code == OK else cancelling.info
            record(status=response.status_code)
            return cancelling.operation

    async def delete(self, key: TurnKey) -> Delete:
        with self._recorder.recording(Delete(tenant=key.tenant, turn=key.turn)) as deleting:
            try:
                response = await self._gateway().delete(f"/v1/turns/{key.turn}")
            except httpx2.HTTPError:
                return deleting.operation
            record = deleting.ok if response.is_success else deleting.info
            record(status=response.status_code)
            return deleting.operation

    def _gateway(self) -> httpx2.AsyncClient:
        self._requests += 1
        return self._gateways[self._requests % len(self._gateways)]
