"""By which names a gateway is asked: the same on every route, the public ones too, with keys and without."""

import asyncio

import httpx2
import pytest

from tests.integration.conftest import Gateway, NewGateway
from tests.routes import ROWS, named

NOBODYS = named("0", "0", "0")
PATHS = [(method, path.format(**NOBODYS)) for method, path in ROWS]


async def refused(gateway: Gateway, host: str, **headers: str) -> set[tuple[int, str]]:
    """What all routes said to who asked for `host`."""
    said = set()
    for method, path in PATHS:
        answer = await gateway.client.request(method, path, headers={"host": host, **headers})
        code = answer.json()["error"]["code"] if answer.status_code == 403 else ""
        said.add((answer.status_code, code))
    return said


@pytest.mark.rule("S16")
@pytest.mark.parametrize("given", [{"api_keys": ""}, {"hosts": "box.example"}], ids=["without keys", "with a list"])
async def test_a_strangers_name_is_refused_on_every_route(
    nats_url: str, new_gateway: NewGateway, given: dict[str, object]
) -> None:
    """DNS rebinding: its page would be this server's own, and read metrics as well as turns."""
    gateway = await new_gateway(nats_url, **given)
    for host in ("evil.example", "localhost.evil.example", "a/health?x=", ""):
        assert await refused(gateway, host) == {(403, "host_refused")}, host
    # What a proxy in the way says that it was asked for may be anybody's words.
    assert await refused(gateway, "evil.example", **{"x-forwarded-host": "localhost"}) == {(403, "host_refused")}
    assert await refused(gateway, "evil.example", forwarded="host=localhost") == {(403, "host_refused")}


async def test_who_names_none_is_told_so(nats_url: str, new_gateway: NewGateway) -> None:
    """HTTP/1.0 need not, and no list of names would let it in."""
    gateway = await new_gateway(nats_url, api_keys="")
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
    said = await asyncio.wait_for(reader.read(), 10)
    assert said.startswith(b"HTTP/1.1 403")
    assert b"the request names no host" in said
    writer.close()


async def test_a_name_that_is_listed_is_let_in(nats_url: str, new_gateway: NewGateway) -> None:
    """Whatever else a proxy says; and addresses, which health checks use."""
    gateway = await new_gateway(nats_url, hosts="box.example")
    for host in ("box.example", "BOX.example:8443", "localhost", f"127.0.0.1:{gateway.port}", "10.9.8.7"):
        answers = [await gateway.client.get(path, headers={"host": host}) for path in ("/healthz", "/v1/turns/NONE")]
        assert [answer.status_code for answer in answers] == [200, 404], host


async def test_behind_a_proxy_a_key_is_enough(lone_gateway: Gateway) -> None:
    """The name is the operator's, and whoever has a key is no stranger: no setting is needed."""
    for host in ("api.acme.example", "gateway:8000"):
        assert (await lone_gateway.client.get("/v1/turns/NONE", headers={"host": host})).status_code == 404


@pytest.mark.rule("S16")
async def test_a_path_is_the_one_that_was_asked_for_whatever_the_host_says(lone_gateway: Gateway) -> None:
    """CVE-2026-48710: a Host with a path in it made a guarded route look like a public one."""
    async with httpx2.AsyncClient(base_url=lone_gateway.url, trust_env=False) as nobody:
        for host in ("x/health?y=", "x/healthz#", "x/healthz", "localhost/docs?"):
            answer = await nobody.get("/v1/sessions", headers={"host": host})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_refused"), host
