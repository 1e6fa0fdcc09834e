"""A reader of a turn in any dialect, who comes back as its clients do; what it has by then. It judges nothing."""

import asyncio
import json
from collections.abc import Sequence

import httpx2

from tailrace.gateway.clients.registry import DIALECTS
from tailrace.proto.subjects import TurnKey
from tests.harness.sse_parser import EventStream, Sent

# Bare text has no place for a cursor: who was cut asks for all of it again.
WITHOUT_CURSOR = "text"
# Its events are numbered, and taken up at a route of their own.
NUMBERED = "openai-responses"
# The message of a restart, in dialects that can only report it and break the connection off: the text before is void.
ANEW = "starts again"
AGAIN_S = 0.05


class Reader:
    """Asks the first gateway, and after each cut the next. `kept` is what its client has by now."""

    def __init__(self, key: TurnKey, dialect: str, gateways: Sequence[httpx2.AsyncClient]) -> None:
        self.key = key
        self.dialect = dialect
        self.kept = b""
        self.cursor: int | None = None
        self.is_whole = False
        self.connections = 0
        self._gateways = gateways
        self._is_event_stream = dialect != WITHOUT_CURSOR

    async def read(self) -> None:
        """Until the turn has ended for this client."""
        while not self.is_whole:
            if not await self._connect(self._gateways[self.connections % len(self._gateways)]):
                await asyncio.sleep(AGAIN_S)

    async def _connect(self, gateway: httpx2.AsyncClient) -> bool:
        """One connection; whether anything came of it."""
        self.connections += 1
        url, headers = self._asking()
        sent, stream, is_closed, is_over = list[Sent](), EventStream(), False, False
        if not self._is_event_stream:
            is_over = await self._has_failed(gateway)
            self.kept = b""
        try:
            async with gateway.stream("GET", url, headers=headers) as response:
                if response.status_code not in (200, 204):
                    return False
                async for received in response.aiter_raw():
                    if self._is_event_stream:
                        sent += stream.feed(received)
                        sent = self._keep(sent)
                    else:
                        self.kept += received
                is_closed = True
        except httpx2.HTTPError:
            pass
        if not self._is_event_stream:
            self.is_whole = is_closed or is_over
            return True
        if any(ANEW in one.data for one in sent) or self._is_told_anew():
            self.kept, self.cursor = b"", None
            return True
        # A failure has no cursor where the protocol knows none, and is the end all the same.
        has_failed = any('"error"' in one.data for one in sent)
        self.is_whole = is_closed or has_failed
        if self.is_whole:
            self.kept += b"".join(one.raw for one in sent)
        return True

    def _asking(self) -> tuple[str, dict[str, str]]:
        if self.dialect == NUMBERED and self.cursor is not None:
            return f"/v1/responses/resp_{self.key.turn}?stream=true&starting_after={self.cursor}", {}
        headers = {"last-event-id": str(self.cursor)} if self.cursor is not None else {}
        return f"/v1/turns/{self.key.turn}/events?dialect={self.dialect}", headers

    def _keep(self, sent: list[Sent]) -> list[Sent]:
        """Takes what ends with a cursor; what is behind it may be half of an entry, and is given back."""
        last = max((n for n, one in enumerate(sent) if self._cursor_of(one) is not None), default=-1)
        if last >= 0:
            self.cursor = self._cursor_of(sent[last])
            self.kept += b"".join(one.raw for one in sent[: last + 1] if not is_heartbeat(one))
        return sent[last + 1 :]

    def _is_told_anew(self) -> bool:
        """Whether the last that was kept says so."""
        return not DIALECTS[self.dialect].can_reset and ANEW in self.kept.decode().rpartition("data: ")[2]

    def _cursor_of(self, sent: Sent) -> int | None:
        if sent.id is not None or not sent.data.startswith("{"):
            return sent.id
        told = json.loads(sent.data)
        found: int | None = told.get("sequence_number" if self.dialect == NUMBERED else "cursor")
        return found

    async def _has_failed(self, gateway: httpx2.AsyncClient) -> bool:
        """Whether the turn has, of which text has no word to say so."""
        try:
            return bool((await gateway.get(f"/v1/turns/{self.key.turn}")).json().get("outcome") == "failed")
        except (httpx2.HTTPError, ValueError):
            return False


def is_heartbeat(sent: Sent) -> bool:
    return sent.event == "ping" and sent.id is None
