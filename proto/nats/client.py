"""nats-py's client with the behaviour for which nats-py has no hook. All use of its private parts is here.

tools/nats_py_overrides.csv has these parts, with the reason and the upstream issue of each. ADR 26 says why.
"""

import asyncio
import dataclasses
import re
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import ParseResult

import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.client import Srv
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro.service import Service

from tailrace.proto.errors import EntryTooLarge
from tailrace.proto.runtime.name_lookup import look_up

NO_RESPONDERS = b"NATS/1.0 503"
LINE_END = b"\r\n"
HEADERS_BEGIN = "NATS/1.0"
WHITE_SPACE = re.compile(r"\s")
# How often requests are checked for their timeouts. One timer for all of them costs less than one for each.
CHECK_TIMEOUTS_EVERY_S = 0.05
# The line before a message: whether it has headers, subject, subscription, reply subject, bytes of headers, all bytes.
# A subject may contain vertical tabs and form feeds, at which nats-py's parser would split it. Around an empty reply
# subject, as in the answer to the reset of a consumer, nats-server sends both spaces (`msgHeader`).
MESSAGE_LINE = re.compile(rb"(H)?MSG ([^ \r\n]+) (\d+) (?:([^ \r\n]*) )?(?(1)(\d+) )(\d+)\r\n")
WITHOUT_WHITE_SPACE = bytes.maketrans(b"\v\f", b"__")

Receive = Callable[[bytes, bytes, bytes, bytes], None]
"""Receives a message as it is read: subject, header block, payload, and reply subject. Must return at once."""


class Message(NamedTuple):
    """A message as it was read. Its headers are parsed when they are needed."""

    subject: bytes
    header_block: bytes
    data: bytes
    reply: bytes = b""

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
        return find_header(self.header_block, name).decode(errors="replace")


class Client(NatsClient):
    """Handles messages with fewer steps (ADR 26), and closes the socket without waiting for a frozen server.

    nats-py wakes a task for each message of a subscription and another one for each publish. Here a subscription may
    have a plain function, and messages published in one iteration of the event loop are written together after it.

    nats-py flushes and closes a connection before it connects to another server. A frozen server reads neither the
    pending bytes, for which nats-py waits without a limit, nor TLS's close_notify, for which it waits 30 s. So this
    client aborts the socket first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.report: Callable[[Exception], None] = lambda _: None
        """Called with the errors of functions that receive messages."""
        # Python 3.11 asks the kernel for the process id at each `get_running_loop`.
        self._event_loop = asyncio.get_running_loop()
        self._receivers: dict[bytes, Receive] = {}
        """The functions of direct subscriptions, by the subscription's number."""
        self._inbox = b""
        self._requests = 0
        self._waiting: dict[bytes, _Waiting] = {}
        """The requests without a reply yet, by the reply subject."""
        self._timeouts: asyncio.TimerHandle | None = None
        self._will_write = False
        self._tries: Counter[str] = Counter()
        """Tries to connect, by the host in the URL."""

    async def subscribe_directly(self, subject: str, receive: Receive) -> Subscription:
        """Calls `receive` with each message as it is read, without a queue and a task. Raises nats-py's errors."""
        number = b"%d" % (self._sid + 1)
        self._receivers[number] = receive
        try:
            # With a future, nats-py starts no task.
            subscription = await self.subscribe(subject, future=self._event_loop.create_future())
        except BaseException:
            self._receivers.pop(number, None)
            raise
        # The queue gets no message, and would take 3 kB for each turn that a gateway reads.
        subscription._pending_queue = None  # type: ignore[assignment]  # noqa: SLF001
        return subscription

    async def open_inbox(self) -> None:
        """Subscribes to the replies of requests. Raises nats-py's errors."""
        inbox = f"{self.new_inbox()}."
        await self.subscribe_directly(f"{inbox}*", self._receive_reply)
        self._inbox = inbox.encode()

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
        return Msg(self, message.subject.decode(), "", message.data, message.headers or None)

    async def ask(
        self, subject: str, payload: bytes, timeout_s: float, headers: dict[str, str] | None = None
    ) -> Message:
        """Sends a request and returns its reply. Raises as `send` does, TimeoutError, NoRespondersError."""
        replied: asyncio.Future[Message | None] = self._event_loop.create_future()

        def reply(message: Message | None) -> None:
            if not replied.done():
                replied.set_result(message)

        reply_subject = self.ask_directly(*_encode(subject, headers), payload, timeout_s, reply)
        try:
            message = await replied
        finally:
            self._waiting.pop(reply_subject, None)
        if message is None:
            raise nats.errors.TimeoutError
        if message.header_block.startswith(NO_RESPONDERS):
            raise nats.errors.NoRespondersError
        return message

    def ask_directly(
        self, subject: bytes, headers: bytes, payload: bytes, timeout_s: float, reply: Callable[[Message | None], None]
    ) -> bytes:
        """Sends a request. Calls `reply` with the reply, or with None after `timeout_s`, checked now and then.

        Returns the reply subject. Without a responder, the reply has the header block NO_RESPONDERS. Raises as
        `send_bytes` does.
        """
        self._requests += 1
        reply_subject = b"%b%d" % (self._inbox, self._requests)
        self.send_bytes(subject, reply_subject, headers, payload)
        self._waiting[reply_subject] = _Waiting(reply, self._event_loop.time() + timeout_s)
        if self._timeouts is None:
            self._timeouts = self._event_loop.call_later(CHECK_TIMEOUTS_EVERY_S, self._check_timeouts)
        return reply_subject

    def send(self, subject: str, reply: str, payload: bytes, headers: dict[str, str] | None = None) -> None:
        """Publishes without nats-py's checks of each character.

        Raises as `send_bytes` does, BadSubjectError for white space in the subject, and BadHeaderError for a line break
        in a header.
        """
        encoded, block = _encode(subject, headers)
        self.send_bytes(encoded, reply.encode(), block, payload)

    def send_bytes(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Publishes a message whose subject and header block are known to be valid.

        Raises EntryTooLarge above the server's limit, and nats-py's errors of a connection that is lost or closed.
        """
        size = len(headers) + len(payload)
        # nats-py checks the payload alone, and the server closes the connection for good at one byte too many.
        if size > self.max_payload:
            raise EntryTooLarge(f"{size} bytes exceed the NATS server's limit of {self.max_payload}: send less")
        if not self.is_connected:
            raise nats.errors.ConnectionClosedError if self.is_closed else nats.errors.ConnectionReconnectingError
        if headers:
            line = b"HPUB %b %b %d %d\r\n" % (subject, reply, len(headers), size)
        else:
            line = b"PUB %b %b %d\r\n" % (subject, reply, size)
        self._pending.append(b"".join((line, headers, payload, LINE_END)))
        self._write_soon()

    @property
    def server(self) -> tuple[str, str]:
        """The name and the id of the nats-server that this client was last connected to."""
        return str(self._server_info.get("server_name", "")), str(self._server_info.get("server_id", ""))

    def abort(self) -> None:
        """Closes the socket at once and drops unsent bytes. nats-py has no public method for it."""
        if self._transport:
            self._transport._io_writer.transport.abort()  # type: ignore[attr-defined]  # noqa: SLF001

    def _receive_reply(self, subject: bytes, headers: bytes, payload: bytes, reply: bytes) -> None:
        if (waiting := self._waiting.get(subject)) is not None:
            waiting.reply(Message(subject, headers, payload, reply))
            # Not before: without memory for it, the request times out.
            self._waiting.pop(subject, None)

    def _check_timeouts(self) -> None:
        # First: after a MemoryError below, or in `call_later`, the checks must go on.
        self._timeouts = None
        if self._waiting:
            self._timeouts = self._event_loop.call_later(CHECK_TIMEOUTS_EVERY_S, self._check_timeouts)
        now = self._event_loop.time()
        for subject in [subject for subject, waiting in self._waiting.items() if waiting.deadline <= now]:
            try:
                self._waiting[subject].reply(None)
            except MemoryError:
                # `reply` is called again at the next check.
                continue
            except Exception as error:  # noqa: BLE001  # the others must time out, too
                self.report(error)
            self._waiting.pop(subject, None)

    async def _process_connect_init(self) -> None:
        await super()._process_connect_init()
        # Not earlier: TLS has a reader of its own. The server has sent no message yet.
        reader: asyncio.StreamReader = self._transport._io_reader  # type: ignore[union-attr]  # noqa: SLF001
        splitter = MessageSplitter(self._receivers, reader.feed_data, self.report, self.abort)
        reader.feed_data = splitter.feed  # type: ignore[assignment, method-assign]

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._receivers.pop(b"%d" % sid, None)
        super()._remove_sub(sid, max_msgs)
        if self.is_reconnecting:
            # nats-py sends no UNSUB then. But a SUB of this outage is queued, and would be sent after the reconnect.
            self._pending.append(b"UNSUB %d\r\n" % sid)

    async def _process_pong(self) -> None:
        """Ignores the answer to a flush that has timed out or was cancelled.

        nats-py would raise an error, and the loop that reads would end.
        """
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = self._event_loop.create_future()
        await super()._process_pong()

    async def _flush_pending(self, force_flush: bool = False) -> None:  # noqa: ARG002  # nats-py's parameter
        """After this iteration of the event loop, writes the pending bytes, without nats-py's task.

        nats-py raises uvloop's RuntimeError to a caller that subscribes when the socket has just closed.
        """
        self._write_soon()

    def _write_soon(self) -> None:
        if not self._will_write:
            self._will_write = True
            self._event_loop.call_soon(self._write_pending)

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
        # nats-py sets this in the copy below.
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
    """Requires TLS. nats-py continues without TLS, and sends the password, if the server says that it has no TLS.

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


class MessageSplitter:
    """Passes messages of direct subscriptions to their functions, and everything else to nats-py's reader."""

    def __init__(
        self,
        receivers: Mapping[bytes, Receive],
        feed: Callable[[bytes], None],
        report: Callable[[Exception], None],
        abort: Callable[[], None],
    ) -> None:
        """`receivers`: the functions, by subscription. `feed` takes the rest, `report` an error of a function.

        `abort` is called when bytes are lost for a lack of memory, and after a malformed message.
        """
        self._receivers = receivers
        self._feed = feed
        self._report = report
        self._abort = abort
        self._pieces: list[bytes] = []
        """The incomplete line or message at the end of what was read. It is joined once, when it is complete."""
        self._missing = 0
        """The bytes that it lacks, or a part of them."""
        self._left = 0
        """The bytes of nats-py's message that are still to come."""

    def feed(self, data: bytes) -> None:
        """Takes the next bytes from the server."""
        try:
            if self._pieces:
                self._pieces.append(data)
                self._missing -= len(data)
                if self._missing > 0:
                    return
                data, self._pieces = b"".join(self._pieces), []
            size = len(data)
            at = min(self._left, size)
            if at:
                self._left -= at
                self._feed(data[:at])
            while at < size:
                end = self._take(data, at, size)
                if end > size:
                    self._pieces, self._missing = [data[at:]], end - size
                    return
                at = end
        except (MemoryError, nats.errors.ProtocolError) as error:
            # uvloop would close the socket with this error, after which nats-py's loops end.
            self._abort()
            self._report(error)

    def _take(self, data: bytes, at: int, size: int) -> int:
        """Takes the line or message that begins at `at`; returns where the next one begins.

        If the result is above `size`, nothing was taken: the line or message is not complete.
        """
        line = MESSAGE_LINE.match(data, at)
        if line is None:
            # Neither a message nor a line that the first bytes of the connection have begun contains a line feed.
            end = data.find(b"\n", at) + 1
            if not end:
                return size + 1
            if data.startswith((b"MSG", b"HMSG"), at):
                # The payload would be read as lines, which the message's publisher has written.
                raise nats.errors.ProtocolError
            self._feed(data[at:end])
            return end
        start = line.end()
        _, subject, number, reply, header_bytes, all_bytes = line.groups()
        end = start + int(all_bytes)
        after = end + len(LINE_END)
        receive = self._receivers.get(number)
        if receive is None:
            self._feed(line.group().translate(WITHOUT_WHITE_SPACE))
            self._feed(data[start:after])
            self._left = max(after - size, 0)
            return min(after, size)
        if after <= size:
            body = start + int(header_bytes or 0)
            try:
                receive(subject, data[start:body], data[body:end], reply or b"")
            except Exception as error:  # noqa: BLE001  # as in nats-py: an error of a function is reported
                self._report(error)
        return after


class _Waiting(NamedTuple):
    """A request without a reply yet, and when it times out, in the loop's time."""

    reply: Callable[[Message | None], None]
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


def find_header(block: bytes, name: bytes) -> bytes:
    """Returns one header of a header block; b"" without it. Of a repeated header the last one counts."""
    at = block.rfind(b"\r\n%b:" % name)
    begin = at + len(name) + 3
    return block[begin : block.find(LINE_END, begin)].strip() if at >= 0 else b""


def _encode(subject: str, headers: dict[str, str] | None) -> tuple[bytes, bytes]:
    """Returns a subject and a header block. Raises BadSubjectError, BadHeaderError."""
    if not subject or WHITE_SPACE.search(subject):
        raise nats.errors.BadSubjectError
    if not headers:
        return subject.encode(), b""
    # nats-py names headers by members of an Enum of strings. An f-string may write the member's own name; `join` always
    # uses its value.
    lines = [HEADERS_BEGIN, *("".join((name, ": ", headers[name])) for name in headers), "", ""]
    block = "\r\n".join(lines).encode()
    if block.count(b"\n") != len(headers) + 2:
        raise nats.errors.BadHeaderError(str(headers))
    return subject.encode(), block
