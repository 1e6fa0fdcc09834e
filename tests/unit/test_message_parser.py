"""The splitter of what NATS sends: the same messages as nats-py's parser, however the bytes are cut."""

import itertools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import nats.errors
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client as NatsClient
from nats.protocol.parser import Parser

from tailrace.proto.nats.client import Message, MessageSplitter, parse_header_lines
from tailrace.proto.nats.jetstream_log import find_place

HEADERS = b"NATS/1.0\r\nNats-Sequence: 7\r\nNats-Subject: turns.t.x.event\r\n\r\n"
STATUS = b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 3\r\n\r\n"
STREAM = b"".join(
    [
        b"PONG\r\n",
        b"MSG a.b 1 5\r\nhello\r\n",
        b"MSG a.b 1 _INBOX.r 0\r\n\r\n",
        b"HMSG live.t.x.event 22 %d %d\r\n%bMSG 1 1\r\n\r\n" % (len(HEADERS), len(HEADERS) + 9, HEADERS),
        b"+OK\r\nPING\r\n",
        b"HMSG _INBOX.a 3 reply.to %d %d\r\n%b\r\n" % (len(STATUS), len(STATUS), STATUS),
        b"-ERR 'Permissions Violation'\r\n",
        # The reply subject is empty.
        b"MSG a.b 3  5\r\nhello\r\n",
        b"HMSG a.b 22  %d %d\r\n%b\r\n" % (len(STATUS), len(STATUS), STATUS),
        b"MSG last 1 2\r\n\r\n\r\n",
    ]
)


class RecordingClient:
    """A client whose messages pass the splitter first. It notes them, and what nats-py's parser calls for the rest."""

    def __init__(self, direct: Sequence[int] = ()) -> None:
        """`direct`: the numbers of the direct subscriptions."""
        self.calls: list[tuple[Any, ...]] = []
        self.direct: list[tuple[Any, ...]] = []
        """Those of the calls that the splitter has made itself."""
        self.errors: list[Exception] = []
        self.aborts = 0
        self.parser = Parser(self)
        receivers = {b"%d" % number: self.receiver(number) for number in direct}
        self.feed = MessageSplitter(receivers, self.parse, self.errors.append, self.abort).feed

    def receiver(self, number: int) -> Any:
        def receive(subject: bytes, headers: bytes, payload: bytes, reply: bytes) -> None:
            self.direct.append(("_process_msg", number, subject, reply, payload, headers))
            self.calls.append(self.direct[-1])

        return receive

    def abort(self) -> None:
        self.aborts += 1

    def parse(self, data: bytes) -> None:
        with suppress(StopIteration):
            self.parser.parse(data).send(None)

    def __getattr__(self, name: str) -> Any:
        async def note(*arguments: Any) -> None:
            self.calls.append((name, *(argument or b"" for argument in arguments)))

        return note


@given(st.sets(st.integers(1, len(STREAM) - 1)), st.sets(st.sampled_from([1, 3, 22])))
@example(set(), {1, 3, 22})
@example(set(range(1, len(STREAM))), {1, 3, 22})
@example(set(range(1, len(STREAM))), set())
def test_messages_are_those_of_nats_py(cuts: set[int], direct: set[int]) -> None:
    client, theirs = RecordingClient([*direct]), RecordingClient()
    for start, end in itertools.pairwise([0, *sorted(cuts), len(STREAM)]):
        client.feed(STREAM[start:end])
    theirs.parse(STREAM)
    assert client.calls == theirs.calls
    assert len(client.calls) == 10
    # nats-py would end the connection at the second message of a direct subscription.
    assert client.direct == [call for call in client.calls if call[0] == "_process_msg" and call[1] in direct]


def test_a_large_message_in_many_pieces_is_copied_once() -> None:
    """Copied at each of 100,000 pieces, it would take minutes."""
    client, payload = RecordingClient([1]), bytes(4_000_000)
    data = b"MSG a.b 1 %d\r\n%b\r\n" % (len(payload), payload)
    for start in range(0, len(data), 40):
        client.feed(data[start : start + 40])
    assert client.calls == [("_process_msg", 1, b"a.b", b"", payload, b"")]


def test_a_line_that_was_begun_before_the_splitter_is_ended_by_its_line_feed() -> None:
    client = RecordingClient([1])
    client.parse(b"PING\r")
    client.feed(b"\n")
    client.feed(b"MSG a.b 1 0\r\n\r\n")
    assert client.calls == [("_process_ping",), ("_process_msg", 1, b"a.b", b"", b"", b"")]


@pytest.mark.parametrize("line", [b"MSG a 1 x\r\n", b"HMSG a one 12 12\r\n", b"MSG a\t1 15\r\n", b"MSG\r\n"])
def test_a_malformed_message_breaks_the_connection_and_its_payload_is_no_message(line: bytes) -> None:
    client = RecordingClient([1])
    client.feed(line + b"MSG b 1 0\r\n\r\n")
    assert client.aborts == 1
    assert [type(error) for error in client.errors] == [nats.errors.ProtocolError]
    assert client.calls == []


@pytest.mark.parametrize(("direct", "subject"), [([1], b"live.t.a.x\x0b2"), ([], b"live.t.a.x_2")])
def test_white_space_in_a_subject_does_not_choose_the_subscription(direct: list[int], subject: bytes) -> None:
    """nats-server accepts it. A publisher would otherwise send to any subscription of the connection."""
    client = RecordingClient(direct)
    client.feed(b"MSG live.t.a.x\x0b2 1 2\r\nhi\r\n")
    (call,) = client.calls
    assert call[:3] == ("_process_msg", 1, subject)


def test_headers_are_those_of_nats_py() -> None:
    for raw in (HEADERS[10:], b"a:b\r\nc: d: e \r\nno colon\r\n\r\n", b"utf: \xc3\xa4\xff\r\n\r\n"):
        theirs = NatsClient._parse_header_lines(raw)  # noqa: SLF001  # parse_header_lines replaces it
        assert parse_header_lines(raw.decode(errors="replace")) == theirs


def test_the_last_of_repeated_headers_counts() -> None:
    """A writer may store headers with the names that the server appends when it republishes a message."""
    forged = b"NATS/1.0\r\nNats-Subject: turns.other.x.end\r\nNats-Sequence: 7\r\nNats-Subject: turns.t.x.event\r\n\r\n"
    message = Message(b"live.t.x.event", forged, b"\r\nNats-Sequence: 9\r\n")
    assert (message.header(b"Nats-Subject"), message.header(b"Nats-Sequence")) == ("turns.t.x.event", "7")
    assert message.header(b"Subject") == message.header(b"Nats-Seq") == ""
    assert message.headers == {"Nats-Subject": "turns.t.x.event", "Nats-Sequence": "7"}
    assert Message(b"a", STATUS, b"").headers == {"Status": "204", "Nats-Num-Pending": "3"}
    assert Message(b"a", b"", b"").headers == {}


@pytest.mark.parametrize(
    "order", list(itertools.permutations(["Subject: turns.t.x.event", "Sequence: 7", "Time-Stamp: a"]))
)
def test_the_place_of_an_entry_is_in_the_last_headers_in_any_order(order: tuple[str, ...]) -> None:
    forged = "Nats-Subject: turns.other.x.end\r\nNats-Sequence: 9\r\nNats-Time-Stamp: then\r\n"
    servers = "".join(f"Nats-{one}\r\n" for one in order)
    block = f"NATS/1.0\r\n{forged}Nats-Stream: TURNS\r\n{servers}Nats-Last-Sequence: 6\r\n\r\n".encode()
    assert [*find_place(block)] == [b"turns.t.x.event", b"7", b"a"]
    assert [*find_place(STATUS)] == [b"", b"", b""]
