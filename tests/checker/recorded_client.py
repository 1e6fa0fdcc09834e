"""A client whose requests are recorded: POST, reads over several connections, GET, cancel, DELETE; batches."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from time import monotonic_ns
from typing import TypeVar

import httpx2
import msgspec
from msgspec.structs import replace

from tailrace.proto.entries import Via
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnId, TurnKey
from tests.checker.history import (
    HISTORY,
    Cancel,
    Delete,
    Get,
    GetBatch,
    Line,
    Post,
    Read,
    Recorder,
    Results,
    Steer,
    digest,
)
from tests.harness import readers
from tests.harness.sse_parser import EventStream, SseEvent
from tests.promises import Frame

C = TypeVar("C", Cancel, Delete)

OK, ENDED = 200, 204
RETRY_S = 0.05
BATCHES = "/v1/turn-batches"
# The model of all batches.
MODEL = "claude-haiku-5-5"


_line = msgspec.json.Decoder(Line)


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
        return await self._post("/v1/turns", {"message": question, **given}, Post(question=question), key)

    async def post_batch(self, inputs: dict[str, str], key: str, via: Via) -> TurnKey | None:
        """Posts a batch of questions by `custom_id`. Returns as `post` does."""
        requests = [
            {"custom_id": name, "params": {"model": MODEL, "message": question}} for name, question in inputs.items()
        ]
        return await self._post(BATCHES, {"requests": requests, "via": via}, Post(inputs=inputs, via=via), key)

    async def _post(self, path: str, content: dict[str, object], begun: Post, key: str | None) -> TurnKey | None:
        body = msgspec.json.encode(content)
        begun = replace(begun, tenant=self._tenant, body_sha256=digest(body), idempotency_key=key)
        return await self._send(path, body, begun, key)

    async def _send(self, path: str, body: bytes, begun: Post | Steer, key: str | None) -> TurnKey | None:
        headers = {"content-type": "application/json"} | ({"idempotency-key": key} if key is not None else {})
        with self._recorder.recording(begun) as posting:
            try:
                response = await self._gateway().post(path, content=body, headers=headers)
            except httpx2.HTTPError:
                return None
            if not response.is_success:
                # After a 5xx the request may be stored all the same.
                record = posting.info if response.status_code >= 500 else posting.fail
                record(status=response.status_code)
                return None
            turn = TurnId(response.headers["tailrace-turn"])
            posting.ok(status=response.status_code, turn=turn)
            return TurnKey(self._tenant, turn)

    async def steer(self, key: TurnKey, question: str, idempotency_key: str) -> TurnKey | None:
        """Puts a message into the answer of a turn. Returns the turn of the message, or None as `post` does."""
        steered = Steer(tenant=self._tenant, steered=key.turn, question=question, idempotency_key=idempotency_key)
        return await self._send(
            f"/v1/turns/{key.turn}/steer", msgspec.json.encode({"message": question}), steered, idempotency_key
        )

    async def read(
        self, key: TurnKey, cursor: Seq = BEFORE_FIRST, *, most: int | None = None, life_s: float | None = None
    ) -> Read:
        """Reads one connection in the dialect `tailrace`; closes it after `most` frames or `life_s` seconds."""
        with self._recorder.recording(Read(tenant=key.tenant, turn=key.turn, cursor=cursor)) as begun:
            frames: list[Frame] = []
            arrived: list[int] = []
            rest: list[SseEvent] = []
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
        return await self._change(Cancel(tenant=key.tenant, turn=key.turn), "POST", f"/v1/turns/{key.turn}/cancel")

    async def delete(self, key: TurnKey) -> Delete:
        return await self._change(Delete(tenant=key.tenant, turn=key.turn), "DELETE", f"/v1/turns/{key.turn}")

    async def _change(self, begun: C, method: str, path: str) -> C:
        with self._recorder.recording(begun) as changing:
            try:
                response = await self._gateway().request(method, path)
            except httpx2.HTTPError:
                return changing.operation
            record = changing.ok if response.status_code == OK else changing.info
            record(status=response.status_code)
            return changing.operation

    async def get_batch(self, key: TurnKey) -> GetBatch:
        with self._recorder.recording(GetBatch(tenant=key.tenant, turn=key.turn)) as getting:
            try:
                response = await self._gateway().get(f"{BATCHES}/{key.turn}")
            except httpx2.HTTPError:
                return getting.operation
            if response.status_code == OK:
                batch = response.json()
                ended = batch["outcome"] if batch["outcome"] != "running" else None
                getting.ok(status=OK, ended=ended, done=batch["done"], failed=batch["failed"])
            else:
                getting.fail(status=response.status_code)
            return getting.operation

    async def results(self, key: TurnKey, after: int = -1, *, life_s: float | None = None) -> Results:
        """Reads results over one connection, from line `after` + 1 on; closes it after `life_s` seconds."""
        with self._recorder.recording(Results(tenant=key.tenant, turn=key.turn, after=after)) as reading:
            received, is_whole, status = bytearray(), False, None
            url = f"{BATCHES}/{key.turn}/results" + (f"?after={after}" if after >= 0 else "")
            try:
                async with asyncio.timeout(life_s), self._gateway().stream("GET", url) as response:
                    status = response.status_code
                    async for piece in response.aiter_raw():
                        received += piece
                    is_whole = True
            except (httpx2.HTTPError, TimeoutError):
                pass
            finally:
                if status == OK:
                    # The last line may be incomplete.
                    lines = bytes(received).split(b"\n")[:-1]
                    reading.ok(status=OK, lines=tuple(map(_line.decode, lines)), is_whole=is_whole)
                elif status is not None:
                    reading.fail(status=status)
            return reading.operation

    def _gateway(self) -> httpx2.AsyncClient:
        self._requests += 1
        return self._gateways[self._requests % len(self._gateways)]
