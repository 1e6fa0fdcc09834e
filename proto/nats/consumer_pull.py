"""Pull: asks a durable pull consumer for its next messages.

nats-py's `fetch` of several messages takes the end of one request for the end of the next one, so that two requests are
open. It may then hold a message back for its whole timeout, and messages to a process that stops are lost until their
leases expire (nats-py 2.16, `_fetch_n` in nats/js/client.py).
"""

import asyncio
from typing import Self

import msgspec
from nats.aio.msg import Msg

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats.client import Message
from tailrace.proto.nats.connection import Connection

# The server ends a request without a message after its timeout, and its answer takes this long at most.
ANSWER_S = 0.25
# The messages of the largest size that one request returns. All of them are in memory at once, and replies to other
# requests come after them. One message with its subject and headers is larger than `max_payload`, and must fit.
LARGEST_MAX = 2
# The codes that end a request: no further message, and no message in time.
NOTHING_MORE = ("404", "408")


class Pull:
    """The messages of one consumer. One request is open at a time."""

    def __init__(self, connection: Connection, stream: str, durable: str) -> None:
        self._connection = connection
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._inbox = f"{connection.client.new_inbox()}.".encode()
        self._requests = 0
        self._reply = b""
        self._most = 0
        self._found: list[Msg] = []
        self._answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, connection: Connection, stream: str, durable: str) -> Self:
        """Subscribes to the answers. Raises LogUnavailable."""
        pull = cls(connection, stream, durable)
        await connection.subscribe_directly(f"{pull._inbox.decode()}*", pull._receive)
        return pull

    async def fetch(self, most: int, timeout_s: float) -> list[Msg]:
        """Returns the messages that the server has now, at most `most`, and no more than LARGEST_MAX large ones;
        without any, waits for the first one.

        An empty list after `timeout_s`. The next call returns what arrives after a timeout, or during a cancelled
        call. Raises LogUnavailable.
        """
        if not self._found:
            await self._request(most, timeout_s)
        found, self._found = self._found[:most], self._found[most:]
        return found

    async def _request(self, most: int, timeout_s: float) -> None:
        self._requests += 1
        self._reply, self._most = b"%b%d" % (self._inbox, self._requests), most
        self._answered = asyncio.get_running_loop().create_future()
        # With `expires`, a request with `no_wait` waits for the first messages instead of ending at once
        # (`processNextMsgReq` of nats-server).
        bytes_max = LARGEST_MAX * self._connection.client.max_payload
        query = {"batch": most, "max_bytes": bytes_max, "expires": int(timeout_s * 1e9), "no_wait": True}
        await self._connection.publish(self._subject, msgspec.json.encode(query), reply=self._reply.decode())
        try:
            async with asyncio.timeout(timeout_s + ANSWER_S):
                status = await self._answered
        except TimeoutError:
            return
        if status not in NOTHING_MORE and not self._found:
            raise LogUnavailable(f"the consumer gives no messages (status {status}): retry")

    def _receive(self, subject: bytes, headers: bytes, payload: bytes, reply: bytes) -> None:
        if not subject.startswith(self._inbox):
            self._found.append(Msg(self._connection.client, subject.decode(), reply.decode(), payload))
            if len(self._found) >= self._most:
                self._end(NOTHING_MORE[0])
        elif subject == self._reply:
            self._end(Message(subject, headers, payload).headers.get("Status", ""))

    def _end(self, status: str) -> None:
        if not self._answered.done():
            self._answered.set_result(status)
