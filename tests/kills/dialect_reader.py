"""A reader of a turn in any dialect, which reconnects as that dialect's clients do."""

import asyncio
import json
from collections.abc import Sequence

import httpx2

from tailrace.features.gateway import DIALECTS
from tailrace.proto.ids import TurnKey
from tests.harness.sse_parser import EventStream, SseEvent

# Plain text has no cursor: a reader that was disconnected reads all of it again.
WITHOUT_CURSOR = "text"
# Its events are numbered, and a route of its own resumes them.
NUMBERED = "openai-responses"
# The message of a restart in dialects that cannot reset: they report it and close. The text before it is void.
RESTARTED = "starts again"
RETRY_S = 0.05


class Reader:
    """Reads from one gateway after the other. `kept` has the bytes that its client keeps."""

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
        """Reads until the client has received the turn's end."""
        while not self.is_whole:
            if not await self._connect(self._gateways[self.connections % len(self._gateways)]):
                await asyncio.sleep(RETRY_S)

    async def _connect(self, gateway: httpx2.AsyncClient) -> bool:
        """Reads one connection; returns whether the gateway answered it."""
        self.connections += 1
        url, headers = self._request()
        sent, stream, is_closed, is_over = list[SseEvent](), EventStream(), False, False
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
        if any(RESTARTED in one.data for one in sent) or self._was_restarted():
            self.kept, self.cursor = b"", None
            return True
        # An error is the end, also in protocols whose errors have no cursor.
        has_failed = any('"error"' in one.data for one in sent)
        self.is_whole = is_closed or has_failed
        if self.is_whole:
            self.kept += b"".join(one.raw for one in sent)
        return True

    def _request(self) -> tuple[str, dict[str, str]]:
        if self.dialect == NUMBERED and self.cursor is not None:
            return f"/v1/responses/resp_{self.key.turn}?stream=true&starting_after={self.cursor}", {}
        headers = {"last-event-id": str(self.cursor)} if self.cursor is not None else {}
        return f"/v1/turns/{self.key.turn}/events?dialect={self.dialect}", headers

    def _keep(self, sent: list[SseEvent]) -> list[SseEvent]:
        """Keeps the events up to the last cursor; returns the rest, which may be half of an entry."""
        last = max((n for n, one in enumerate(sent) if self._cursor_of(one) is not None), default=-1)
        if last >= 0:
            self.cursor = self._cursor_of(sent[last])
            self.kept += b"".join(one.raw for one in sent[: last + 1] if not is_heartbeat(one))
        return sent[last + 1 :]

    def _was_restarted(self) -> bool:
        """Whether the last kept event reports a restart."""
        return not DIALECTS[self.dialect].can_reset and RESTARTED in self.kept.decode().rpartition("data: ")[2]

    def _cursor_of(self, sent: SseEvent) -> int | None:
        if sent.id is not None or not sent.data.startswith("{"):
            return sent.id
        found: int | None = json.loads(sent.data).get("sequence_number" if self.dialect == NUMBERED else "cursor")
        return found

    async def _has_failed(self, gateway: httpx2.AsyncClient) -> bool:
        """Whether the turn has failed, which plain text cannot say."""
        try:
            return bool((await gateway.get(f"/v1/turns/{self.key.turn}")).json().get("outcome") == "failed")
        except (httpx2.HTTPError, ValueError):
            return False


def is_heartbeat(sent: SseEvent) -> bool:
    return sent.event == "ping" and sent.id is None
