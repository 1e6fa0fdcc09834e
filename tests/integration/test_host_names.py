"""The Host header on every route, public ones too, with and without keys."""

import asyncio

import httpx2
import pytest

from tests.harness.refusals import problem_of
from tests.harness.route_table import ROWS, path_parameters
from tests.integration.conftest import Gateway, NewGateway

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


async def test_listed_host_localhost_and_addresses_are_allowed(nats_url: str, new_gateway: NewGateway) -> None:
    """Health checks and scrapers use addresses."""
    gateway = await new_gateway(nats_url, api_keys="", hosts="box.example, other.example")
    for host in ("box.example", "other.example:8443", "localhost", f"127.0.0.1:{gateway.port}", "10.9.8.7"):
        answers = [await gateway.client.get(path, headers={"host": host}) for path in ("/healthz", "/v1/turns/NONE")]
        assert [answer.status_code for answer in answers] == [200, 404], host


@pytest.mark.rule("S16")
async def test_a_path_in_the_host_header_does_not_change_the_route(lone_gateway: Gateway) -> None:
    """CVE-2026-48710: a Host with a path in it made a guarded route look like a public one."""
    async with httpx2.AsyncClient(base_url=lone_gateway.url, trust_env=False) as nobody:
        for host in ("x/health?y=", "x/healthz#", "x/healthz", "localhost/docs?"):
            answer = await nobody.get("/v1/sessions", headers={"host": host})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_refused"), host
