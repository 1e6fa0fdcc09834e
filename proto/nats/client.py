"""nats-py's client with the behaviour for which nats-py has no hook. All use of its private methods is here."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.client import Srv
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

NO_RESPONDERS = "503"
LINE_END = b"\r\n"
# The words of the line before a message: the operation, subject, subscription, perhaps a reply subject, and sizes.
MESSAGE_WORDS = {b"MSG": (4, 5), b"HMSG": (5, 6)}


class Client(NatsClient):
    """Handles messages with fewer steps (ADR 26), and closes the socket without waiting for a frozen server.

    nats-py wakes a task for each message of a subscription and another one for each publish. Here a subscription may
    have a plain function, and what is published in one iteration of the event loop is written at once after it.

    nats-py flushes and closes a connection before it connects to another server. A frozen server reads neither the
    pending bytes, for which nats-py waits without a limit, nor TLS's close_notify, for which it waits 30 s. So this
    client aborts the socket first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ps = MessageParser(self)
        self._receivers: dict[int, Callable[[Msg], None]] = {}
        self._requests = 0
        self._will_write = False

    async def subscribe_directly(self, subject: str, receive: Callable[[Msg], None]) -> Subscription:
        """Calls `receive` with each message as it is read, without a queue and a task. It must return at once."""
        sid = self._sid + 1
        self._receivers[sid] = receive
        try:
            # With a future, nats-py starts no task.
            return await self.subscribe(subject, future=asyncio.get_running_loop().create_future())
        except BaseException:
            self._receivers.pop(sid, None)
            raise

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,  # nats-py's name
        old_style: bool = False,  # noqa: ARG002  # nats-py's parameter
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        """Like nats-py's request, with a counter in the reply subject and without a task that waits."""
        if self._resp_sub_prefix is None:
            self._resp_sub_prefix = bytearray(f"{self.new_inbox()}.".encode())
            await self.subscribe_directly(f"{self._resp_sub_prefix.decode()}*", self._receive_reply)
        self._requests += 1
        token, loop = str(self._requests), asyncio.get_running_loop()
        reply: asyncio.Future[Msg] = loop.create_future()
        self._resp_map[token] = reply
        timer = loop.call_later(timeout, _give_up, reply)
        try:
            await self.publish(subject, payload, reply=f"{self._resp_sub_prefix.decode()}{token}", headers=headers)
            message = await reply
        finally:
            timer.cancel()
            del self._resp_map[token]
        if message.headers and message.headers.get("Status") == NO_RESPONDERS:
            raise nats.errors.NoRespondersError
        return message

    def abort(self) -> None:
        """Closes the socket at once and drops unsent bytes. nats-py has no public method for it."""
        if self._transport:
            self._transport._io_writer.transport.abort()  # type: ignore[attr-defined]  # noqa: SLF001

    def _receive_reply(self, message: Msg) -> None:
        reply = self._resp_map.get(message.subject.rpartition(".")[2])
        if reply is not None and not reply.done():
            reply.set_result(message)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        receive = self._receivers.get(sid)
        if receive is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        try:
            parsed = await self._process_headers(headers)
            receive(Msg(self, subject.decode(), reply.decode(), data, parsed))
        except Exception as error:  # noqa: BLE001  # as in nats-py: an error of a function is reported
            await self._error_cb(error)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._receivers.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        """Parses headers in a third of nats-py's time, which also checks for names with white space."""
        headers = {}
        for line in raw.decode(errors="replace").split("\r\n"):
            name, colon, value = line.partition(":")
            if colon:
                headers[name] = value.strip()
        return headers

    async def _flush_pending(self, force_flush: bool = False) -> None:  # noqa: ARG002  # nats-py's parameter
        """Writes what is pending after this iteration of the event loop, without nats-py's task."""
        if not self._will_write and self.is_connected:
            self._will_write = True
            asyncio.get_running_loop().call_soon(self._write_pending)

    def _write_pending(self) -> None:
        self._will_write = False
        if self.is_connected and self._pending and self._transport:
            pending, self._pending, self._pending_data_size = self._pending, [], 0
            # uvloop raises RuntimeError for a closed socket: the connection is about to be replaced. What was not sent
            # is not sent later either.
            with suppress(OSError, RuntimeError):
                self._transport.writelines(pending)

    async def _attempt_reconnect(self) -> None:
        self.abort()
        await super()._attempt_reconnect()

    async def _connect_to_server(self, s: Srv) -> None:
        # A connection that the server refused is still open, and each of four attempts a second would add one.
        self.abort()
        await super()._connect_to_server(s)

    async def _ping_interval(self) -> None:
        """Sends pings also after a MemoryError, which ends nats-py's loops: unanswered pings replace the connection."""
        while True:
            with suppress(MemoryError):
                return await super()._ping_interval()


class TlsClient(Client):
    """Requires TLS. nats-py continues without TLS, and sends the password, if the server says that it has none.

    Its successor nats-core refuses such a server (nats-io/nats.py#912).
    """

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and not info.get("tls_required"):
            raise nats.errors.Error("nats: the server has no TLS")
        await super()._process_info(info, initial_connection)


class MessageParser(Parser):
    """Parses complete messages without regular expressions, and leaves everything else to nats-py's parser."""

    async def parse(self, data: bytes = b"") -> None:
        buffer, parsed = self.buf, 0
        buffer += data
        try:
            while self.state == AWAITING_CONTROL_LINE and (line_end := buffer.find(LINE_END, parsed)) >= 0:
                words = bytes(buffer[parsed:line_end]).split()
                if not words or len(words) not in MESSAGE_WORDS.get(words[0], ()):
                    break
                start = line_end + len(LINE_END)
                end = start + int(words[-1])
                if len(buffer) < end + len(LINE_END):
                    return
                parsed = end + len(LINE_END)
                has_headers = words[0] == b"HMSG"
                body = start + int(words[-2]) if has_headers else start
                reply = words[3] if len(words) == MESSAGE_WORDS[words[0]][1] else b""
                await self.nc._process_msg(  # noqa: SLF001
                    int(words[2]), words[1], reply, bytes(buffer[body:end]), bytes(buffer[start:body])
                )
        except ValueError as error:
            raise nats.errors.ProtocolError("nats: malformed message") from error
        finally:
            del buffer[:parsed]
        if buffer:
            await super().parse()


def _give_up(reply: asyncio.Future[Msg]) -> None:
    if not reply.done():
        reply.set_exception(nats.errors.TimeoutError())
