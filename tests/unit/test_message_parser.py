"""The parser of messages from NATS: the same messages as nats-py's parser, however the bytes are split."""

import asyncio
import itertools
from typing import Any

import nats.errors
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client as NatsClient
from nats.protocol.parser import Parser

from tailrace.proto.nats.client import Message, MessageParser, parse_header_lines

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
        b"MSG last 1 2\r\n\r\n\r\n",
    ]
)


class RecordingClient:
    """A client that notes what its parser calls."""

    def __init__(self, parser: type[Parser]) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.parser = parser(self)

    def __getattr__(self, name: str) -> Any:
        async def note(*arguments: Any) -> None:
            self.calls.append((name, *(argument or b"" for argument in arguments)))

        return note

    async def parse(self, pieces: list[bytes]) -> list[tuple[Any, ...]]:
        for piece in pieces:
            await self.parser.parse(piece)
        return self.calls


@given(st.sets(st.integers(1, len(STREAM) - 1)))
@example(set())
@example(set(range(1, len(STREAM))))
def test_messages_are_those_of_nats_py(cuts: set[int]) -> None:
    bounds = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in itertools.pairwise(bounds)]
    calls = asyncio.run(RecordingClient(MessageParser).parse(pieces))
    assert calls == asyncio.run(RecordingClient(Parser).parse([STREAM]))
    assert len(calls) == 8


@pytest.mark.parametrize("line", [b"MSG a 1 x\r\n", b"HMSG a one 12 12\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n", b"MSG\r\n"])
def test_a_malformed_message_breaks_the_connection(line: bytes) -> None:
    with pytest.raises(nats.errors.ProtocolError):
        asyncio.run(RecordingClient(MessageParser).parse([line]))


def test_white_space_in_a_subject_does_not_choose_the_subscription() -> None:
    """nats-server accepts it. A publisher would otherwise send to any subscription of the connection."""
    (call,) = asyncio.run(RecordingClient(MessageParser).parse([b"MSG live.t.a.x\x0b2 1 2\r\nhi\r\n"]))
    assert call[:3] == ("_process_msg", 1, b"live.t.a.x\x0b2")


def test_headers_are_those_of_nats_py() -> None:
    for raw in (HEADERS[10:], b"a:b\r\nc: d: e \r\nno colon\r\n\r\n", b"utf: \xc3\xa4\xff\r\n\r\n"):
        theirs = NatsClient._parse_header_lines(raw)  # noqa: SLF001  # parse_header_lines replaces it
        assert parse_header_lines(raw.decode(errors="replace")) == theirs


def test_the_last_of_repeated_headers_counts() -> None:
    """A writer may store headers with the names that the server appends when it republishes a message."""
    forged = b"NATS/1.0\r\nNats-Subject: turns.other.x.end\r\nNats-Sequence: 7\r\nNats-Subject: turns.t.x.event\r\n\r\n"
    message = Message("live.t.x.event", b"\r\nNats-Sequence: 9\r\n", forged)
    assert (message.header(b"Nats-Subject"), message.header(b"Nats-Sequence")) == ("turns.t.x.event", "7")
    assert message.header(b"Subject") == message.header(b"Nats-Seq") == ""
    assert message.headers == {"Nats-Subject": "turns.t.x.event", "Nats-Sequence": "7"}
    assert Message("a", b"", STATUS).headers == {"Status": "204", "Nats-Num-Pending": "3"}
    assert Message("a", b"", b"").headers == {}
