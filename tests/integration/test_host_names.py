"""The Host header on every route, public ones too, with and without keys."""

import asyncio

import pytest

from tests.harness.refusals import problem_of
from tests.harness.route_table import ROWS, path_parameters
from tests.integration.conftest import NewGateway

UNKNOWN = path_parameters("0", "0", "0")
PATHS = [(method, path.format(**UNKNOWN)) for method, path in ROWS]


@pytest.mark.rule("S16")
@pytest.mark.parametrize("given", [{"api_keys": ""}, {"hosts": "box.example"}], ids=["without keys", "with a list"])
async def test_host_not_allowed_is_403_on_every_route(
    nats_url: str, new_gateway: NewGateway, given: dict[str, object]
) -> None:
    """Prevents DNS rebinding, which would make an attacker's page same-origin with this server."""
    gateway = await new_gateway(nats_url, **given)
    # Anybody can send the headers of a proxy; they are ignored.
    headers = {"host": "evil.example", "x-forwarded-host": "localhost", "forwarded": "host=localhost"}
    for method, path in PATHS:
        answer = await gateway.client.request(method, path, headers=headers)
        assert (answer.status_code, problem_of(answer.content).code) == (403, "host_refused"), (method, path)


async def test_request_without_host_is_403_and_says_so(nats_url: str, new_gateway: NewGateway) -> None:
    """HTTP/1.0 needs no Host header."""
    gateway = await new_gateway(nats_url, api_keys="")
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"The request has no Host header; send one." in answer
    writer.close()
