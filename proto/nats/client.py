"""nats-py's client with the behaviour for which nats-py has no hook. All use of its private parts is here.

ADR 26 has a table of these parts, with the reason and the upstream issue of each.
"""

import asyncio
import dataclasses
import re
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import ParseResult

import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.client import Srv
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro.service import Service
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

from tailrace.proto.errors import EntryTooLarge
from tailrace.proto.runtime.name_lookup import look_up

NO_RESPONDERS = b"NATS/1.0 503"
LINE_END = b"\r\n"
HEADERS_BEGIN = "NATS/1.0"
WHITE_SPACE = re.compile(r"\s")
# How often requests are checked for their timeouts. One timer for all of them costs less than one for each.
CHECK_TIMEOUTS_EVERY_S = 0.05
# The words of the line before a message: the operation, subject, subscription, perhaps a reply subject, and sizes.
MESSAGE_WORDS = {b"MSG": (4, 5), b"HMSG": (5, 6)}


class Message(NamedTuple):
    """A message as it was read. Its headers are parsed when they are needed."""

    subject: str
    data: bytes
    header_block: bytes
    reply: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """All headers, and the code of a status line as `Status`. Of a repeated header the last one counts."""
        first, _, lines = self.header_block.decode(errors="replace").partition("\r\n")
        headers = parse_header_lines(lines)
        if code := first.removeprefix(HEADERS_BEGIN).split():
            headers["Status"] = code[0]
        return headers

    def header(self, name: bytes) -> str:
        """Returns one header without parsing the others; "" without it. Of a repeated header the last one counts."""
        block = self.header_block
        at = block.rfind(b"\r\n%s:" % name)
        if at < 0:
            return ""
        begin = at + len(name) + 3
        return block[begin : block.find(LINE_END, begin)].decode(errors="replace").strip()


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
        self._receivers: dict[int, Callable[[Message], None]] = {}
        self._inbox = ""
        self._requests = 0
        self._replies: dict[str, _Reply] = {}
        self._timeouts: asyncio.TimerHandle | None = None
        self._will_write = False
        self._tries: Counter[str] = Counter()
        """Tries to connect, by the host in the URL."""

    async def subscribe_directly(self, subject: str, receive: Callable[[Message], None]) -> Subscription:
        """Calls `receive` with each message as it is read, without a queue and a task. It must return at once.

        Raises nats-py's errors.
        """
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
        """Like nats-py's request. nats-py calls it for JetStream's API. Raises as `ask` does."""
        message = await self.ask(subject, payload, timeout, headers)
        return Msg(self, message.subject, "", message.data, message.headers or None)

    async def ask(
        self, subject: str, payload: bytes, timeout_s: float, headers: dict[str, str] | None = None
    ) -> Message:
        """Sends a request and returns its reply, with a counter in the reply subject and one timer for all requests.

        Raises as `send` does, and nats-py's TimeoutError and NoRespondersError.
        """
        if not self._inbox:
            # Set first, so that concurrent requests share the subscription.
            self._inbox = f"{self.new_inbox()}."
            try:
                await self.subscribe_directly(f"{self._inbox}*", self._receive_reply)
            except BaseException:
                self._inbox = ""
                raise
        self._requests += 1
        subject_of_reply, loop = f"{self._inbox}{self._requests}", asyncio.get_running_loop()
        self.send(subject, subject_of_reply, payload, headers)
        reply: asyncio.Future[Message] = loop.create_future()
        self._replies[subject_of_reply] = _Reply(reply, loop.time() + timeout_s)
        if self._timeouts is None:
            self._timeouts = loop.call_later(CHECK_TIMEOUTS_EVERY_S, self._check_timeouts)
        try:
            message = await reply
        finally:
            del self._replies[subject_of_reply]
            # The future of a request that has timed out keeps its error, whose traceback keeps this frame. So they
            # would stay in memory until a garbage collection.
            del reply
        if message.header_block.startswith(NO_RESPONDERS):
            raise nats.errors.NoRespondersError
        return message

    def send(self, subject: str, reply: str, payload: bytes, headers: dict[str, str] | None = None) -> None:
        """Publishes without nats-py's checks of each character.

        Raises EntryTooLarge above the server's limit, and nats-py's errors: those of a connection that is lost or
        closed, BadSubjectError for white space in the subject, and BadHeaderError for a line break in a header.
        """
        if not subject or WHITE_SPACE.search(subject):
            raise nats.errors.BadSubjectError
        block = b""
        if headers:
            # nats-py names headers by members of an Enum of strings. An f-string may write the member's own name;
            # `join` always uses its value.
            lines = [HEADERS_BEGIN, *("".join((name, ": ", headers[name])) for name in headers), "", ""]
            block = "\r\n".join(lines).encode()
            if block.count(b"\n") != len(headers) + 2:
                raise nats.errors.BadHeaderError(str(headers))
        size = len(block) + len(payload)
        # nats-py checks the payload alone, and the server closes the connection for good at one byte too many.
        if size > self.max_payload:
            raise EntryTooLarge(f"{size} bytes exceed the NATS server's limit of {self.max_payload}: send less")
        if not self.is_connected:
            raise nats.errors.ConnectionClosedError if self.is_closed else nats.errors.ConnectionReconnectingError
        line = f"HPUB {subject} {reply} {len(block)} {size}\r\n" if headers else f"PUB {subject} {reply} {size}\r\n"
        self._pending.append(b"".join((line.encode(), block, payload, LINE_END)))
        self._write_soon()

    def abort(self) -> None:
        """Closes the socket at once and drops unsent bytes. nats-py has no public method for it."""
        if self._transport:
            self._transport._io_writer.transport.abort()  # type: ignore[attr-defined]  # noqa: SLF001

    def _receive_reply(self, message: Message) -> None:
        waiting = self._replies.get(message.subject)
        if waiting is not None and not waiting.reply.done():
            waiting.reply.set_result(message)

    def _check_timeouts(self) -> None:
        loop = asyncio.get_running_loop()
        # First: after a MemoryError below, or in `call_later`, the checks must go on.
        self._timeouts = None
        if self._replies:
            self._timeouts = loop.call_later(CHECK_TIMEOUTS_EVERY_S, self._check_timeouts)
        now = loop.time()
        for waiting in self._replies.values():
            if waiting.deadline <= now and not waiting.reply.done():
                waiting.reply.set_exception(nats.errors.TimeoutError())

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        receive = self._receivers.get(sid)
        if receive is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        try:
            # nats-py passes None for no headers.
            receive(Message(subject.decode(), data, headers or b"", reply.decode()))
        except Exception as error:  # noqa: BLE001  # as in nats-py: an error of a function is reported
            await self._error_cb(error)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._receivers.pop(sid, None)
        super()._remove_sub(sid, max_msgs)
        if self.is_reconnecting:
            # nats-py sends no UNSUB then. But a SUB of this outage is queued, and would be sent after the reconnect.
            self._pending.append(b"UNSUB %d\r\n" % sid)

    async def _process_pong(self) -> None:
        """Takes no notice of the answer to a flush that has timed out or was cancelled.

        nats-py raises for it, and the loop that reads ends.
        """
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _flush_pending(self, force_flush: bool = False) -> None:  # noqa: ARG002  # nats-py's parameter
        """Writes what is pending after this iteration of the event loop, without nats-py's task.

        nats-py raises uvloop's RuntimeError to a caller that subscribes when the socket has just closed.
        """
        self._write_soon()

    def _write_soon(self) -> None:
        if not self._will_write:
            self._will_write = True
            asyncio.get_running_loop().call_soon(self._write_pending)

    def _write_pending(self) -> None:
        self._will_write = False
        if self.is_connected and self._pending and self._transport:
            pending, self._pending, self._pending_data_size = self._pending, [], 0
            # uvloop raises RuntimeError for a closed socket: the connection is about to be replaced. Unsent
            # bytes are dropped.
            with suppress(OSError, RuntimeError):
                self._transport.writelines(pending)

    async def _attempt_reconnect(self) -> None:
        # The callers of unsent requests receive an error, so nats-py must not send these requests after the reconnect.
        self._pending, self._pending_data_size = [], 0
        self.abort()
        await super()._attempt_reconnect()

    async def _connect_to_server(self, s: Srv) -> None:
        # A connection that the server refused is still open, and each of four attempts a second would add one.
        self.abort()
        # nats-py sets it in the copy below.
        s.last_attempt = time.monotonic()
        addresses = await self._look_up(s.uri)
        for number, address in enumerate(addresses, 1):
            uri = s.uri._replace(netloc=f"[{address}]:{s.uri.port}" if ":" in address else f"{address}:{s.uri.port}")
            try:
                # `s` keeps the name, which TLS checks.
                await super()._connect_to_server(dataclasses.replace(s, uri=uri))
                break
            except TimeoutError:
                # The next try begins with the next address.
                raise
            except OSError:
                if number == len(addresses):
                    raise

    async def _look_up(self, uri: ParseResult) -> list[str]:
        """Returns the addresses of a server's name, beginning with another one at each try.

        asyncio always begins with the same address. If this one does not answer, every try would time out.
        """
        host = uri.hostname or ""
        try:
            async with asyncio.timeout(self.options["connect_timeout"]):
                found = await asyncio.wrap_future(look_up(host, uri.port or 0))
        except TimeoutError as error:
            raise socket.gaierror(socket.EAI_AGAIN, "the DNS does not answer") from error
        addresses = deque(dict.fromkeys(str(address[0]) for *_, address in found))
        addresses.rotate(-self._tries[host])
        self._tries[host] += 1
        return list(addresses)

    async def _ping_interval(self) -> None:
        """Sends pings, and goes on after a MemoryError.

        A MemoryError ends the loops of nats-py. If it has ended the loop that reads, the pings get no answers, and the
        connection is then replaced.
        """
        while True:
            with suppress(MemoryError):
                return await super()._ping_interval()


class TlsClient(Client):
    """Requires TLS. nats-py continues without TLS, and sends the password, if the server says that it has none.

    Its successor nats-core refuses such a server (nats-io/nats.py#912).
    """

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and not info.get("tls_required"):
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, "the server has no TLS")
        await super()._process_info(info, initial_connection)

    async def _process_connect_init(self) -> None:
        await super()._process_connect_init()
        # asyncio's protocol learns from `open_connection` that it has TLS. nats-py begins TLS without it, and the event
        # loop would log a warning at the end of each connection (python/cpython, StreamReaderProtocol.eof_received).
        protocol = self._transport._io_writer.transport.get_protocol()  # type: ignore[union-attr]  # noqa: SLF001
        protocol._over_ssl = True  # noqa: SLF001


class MessageParser(Parser):
    """Parses complete messages without regular expressions, and leaves everything else to nats-py's parser."""

    async def parse(self, data: bytes = b"") -> None:
        """Passes each complete message in the buffer to the client. Raises ProtocolError for a malformed message."""
        buffer, parsed = self.buf, 0
        buffer += data
        try:
            while self.state == AWAITING_CONTROL_LINE and (line_end := buffer.find(LINE_END, parsed)) >= 0:
                # Not split(), which also splits at other white space. A subject may contain it.
                words = bytes(buffer[parsed:line_end]).split(b" ")
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


class _Reply(NamedTuple):
    """A request without a reply yet, and when it times out, in the loop's time."""

    reply: asyncio.Future[Message]
    deadline: float


async def drain_endpoints(service: Service) -> None:
    """Ends the subscriptions of a service's endpoints. Returns when each message that has arrived was passed on.

    nats-py's `Service.stop` drops these messages, and has no public way to drain an endpoint. Raises nats-py's errors.
    """
    for endpoint in service._endpoints:  # noqa: SLF001
        await endpoint._subscription.drain()  # noqa: SLF001
    service._endpoints.clear()  # noqa: SLF001


def parse_header_lines(lines: str) -> dict[str, str]:
    """Returns the headers in `lines`, which CRLF separates. Of a repeated header the last one counts."""
    headers = {}
    for line in lines.split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            headers[name] = value.strip()
    return headers
