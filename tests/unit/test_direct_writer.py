"""The direct writer writes only where uvicorn would write the same bytes at once."""

from collections.abc import Callable
from functools import partial

import pytest

from tailrace.gateway.http.deferred_response import body
from tailrace.gateway.http.http_protocol import direct_writer
from tests.unit.test_writer import Client

BLOCKED: dict[str, Callable[[Client], None]] = {
    "the client does not read": Client.stop_reading,
    "the client has left": lambda client: setattr(client.cycle, "disconnected", True),
    "the response is complete": lambda client: setattr(client.cycle, "response_complete", True),
    "HTTP/1.0 has no chunks": lambda client: setattr(client.cycle, "chunked_encoding", False),
}


async def test_it_writes_the_bytes_of_uvicorn() -> None:
    client, directly = Client(), Client()
    await client.send(body(b"data: 1\n\n", more=True))
    assert direct_writer(directly.send)(b"data: 1\n\n")
    assert client.written == directly.written == [b"9\r\ndata: 1\n\n\r\n"]


@pytest.mark.parametrize("block", BLOCKED.values(), ids=BLOCKED)
def test_it_leaves_everything_else_to_uvicorn(block: Callable[[Client], None]) -> None:
    client = Client()
    write = direct_writer(client.send)
    block(client)
    assert not write(b"data: 1\n\n")
    assert client.written == []


def test_it_never_writes_past_a_function_around_uvicorn() -> None:
    client = Client()
    assert not direct_writer(partial(client.send))(b"data: 1\n\n")
    assert client.written == []
