"""Writes a reply to the client at the directed rate, and performs its fault."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tailrace.deploy.simulated_claude import event
from tailrace.deploy.simulated_claude.account import Call
from tailrace.deploy.simulated_claude.directive import Directive
from tailrace.deploy.simulated_claude.reply import Reply
from tailrace.deploy.simulated_claude.stats import Stats
from tailrace.proto.runtime.race import run_until

PING_S = 0.1
CHUNK_BYTES = 32_768  # at rate=0 this many bytes are written at once
Writer = Callable[[Send], Awaitable[None]]


class WriterResponse(Response):
    """A 200 response whose body `writer` sends. When the client disconnects, the writer is cancelled at once.

    If a writer returns before the last part, uvicorn drops the connection without the chunked terminator.
    """

    def __init__(self, writer: Writer, headers: Mapping[str, str]) -> None:
        super().__init__(headers=headers)
        del self.headers["content-length"]
        self.writer = writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's shape
        async def write() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self.writer(send)

        leaving = asyncio.create_task(wait_for_disconnect(receive))
        try:
            writing = await run_until(write(), leaving)
        finally:
            leaving.cancel()
            await asyncio.wait((leaving,))
        if not writing.cancelled():
            writing.result()


async def wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class StreamWriter:
    """Sends the events of a stream, with at most one wake-up a delta."""

    def __init__(self, reply: Reply, directed: Directive, stats: Stats, call: Call) -> None:
        self.reply = reply
        self.interval_s = 1 / directed.rate if directed.rate else 0.0
        self.wait_s = directed.wait_s
        self.stats = stats
        self.call = call

    async def __call__(self, send: Send) -> None:
        self.stats.streams_open += 1
        try:
            await self.write_events(send)
            await finish(self.reply, self.stats, self.call, send)
        except asyncio.CancelledError:
            self.stats.streams_aborted += 1
            self.call.close("aborted")
            raise
        else:
            self.call.close("whole")
        finally:
            self.stats.streams_open -= 1

    async def write_events(self, send: Send) -> None:
        """Sends the events up to the fault. Deltas come at the directed rate, or as fast as the client reads."""
        now = asyncio.get_running_loop().time
        due = now() + self.wait_s
        unsent = bytearray()
        for frame in event.frames(self.reply):
            if frame.is_delta:
                if (early_s := due - now()) > 0:
                    await send(part(unsent))
                    unsent.clear()
                    await asyncio.sleep(early_s)
                due += self.interval_s
                self.stats.output_tokens += 1
                self.call.deltas += 1
            if frame.result is not None:
                self.stats.execute(self.reply.turn, frame.call, frame.result["tool_use_id"])
            if frame.data is event.GARBAGE:
                # If the client disconnects because of the garbage, the fault is the reason.
                self.call.over = "garbage"
            unsent += frame.data
            if len(unsent) >= CHUNK_BYTES:
                await send(part(unsent))  # waits while the client does not read
                unsent.clear()
                await asyncio.sleep(0)
        await send(part(unsent))


class MessageWriter:
    """Sends the whole message at once, after the time that its deltas would have taken."""

    def __init__(self, reply: Reply, directed: Directive, stats: Stats, call: Call) -> None:
        self.reply = reply
        self.took_s = directed.wait_s + (reply.part.deltas / directed.rate if directed.rate else 0.0)
        self.stats = stats
        self.call = call

    async def __call__(self, send: Send) -> None:
        try:
            await asyncio.sleep(self.took_s)
            body = event.message(self.reply)
            for frame in event.frames(self.reply):
                if frame.result is not None:
                    self.stats.execute(self.reply.turn, frame.call, frame.result["tool_use_id"])
            await send(part(body if self.reply.breaks is None else body[: len(body) // 2]))
            await finish(self.reply, self.stats, self.call, send)
        except asyncio.CancelledError:
            self.call.close("aborted")
            raise
        self.call.close("whole")
        self.call.deltas = self.reply.part.deltas
        self.stats.output_tokens += self.reply.part.deltas


async def finish(reply: Reply, stats: Stats, call: Call, send: Send) -> None:
    """Ends the response or performs the fault: `cut` leaves out the last chunk, `stall` and `pings` never return."""
    if reply.breaks:
        stats.by_fault[reply.breaks.kind] += 1
        call.over = reply.breaks.kind
        if reply.breaks.kind == "cut":
            return
        if reply.breaks.kind == "stall":
            await asyncio.Event().wait()
        while reply.breaks.kind == "pings":
            await send(part(event.PING))
            await asyncio.sleep(PING_S)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def part(body: bytes | bytearray) -> Message:
    return {"type": "http.response.body", "body": bytes(body), "more_body": True}
