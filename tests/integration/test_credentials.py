"""Every route, every carrier of a credential, every way in which one can be wrong: rows from the route table.

A credential that is good but not enough is refused with 403, one that is not good with 401 and always the same body.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec
import pytest
import pytest_asyncio

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.__main__ import build
from tailrace.gateway.app import app
from tailrace.gateway.auth.api_keys import ApiKeyCache
from tailrace.gateway.auth.authenticate import Authenticator
from tailrace.gateway.auth.jwt import LEEWAY_S
from tailrace.gateway.auth.scopes import NEEDS
from tailrace.gateway.auth.signed_tokens import TokenSigner
from tailrace.gateway.http import server
from tailrace.gateway.settings import Settings
from tailrace.proto.api_key import SCOPES, NewKey, Scope, new_key
from tailrace.proto.ids import Tenant, new_id
from tailrace.proto.nats import Connection
from tailrace.proto.nats.api_keys import ApiKeyStore
from tests.conftest import apply_streams
from tests.harness import jwts
from tests.harness.route_table import ROWS, named
from tests.integration.conftest import KEY, api_keys, on_shared_loop

TENANT = Tenant("acme")
UNKNOWN = (new_id(), new_id(), new_id())
REFRESH = ("POST", "/v1/login/refresh")
CLOSED = [route for route, need in NEEDS.items() if need != "public"]
IDS = [f"{method} {path}" for method, path in CLOSED]
# As of CVE-2026-42208 and those like it. A header takes no NUL, and httptools refuses it before anybody looks.
ATTACKS = {
    "nobody's": b"tr_nobodys",
    "SQL": b"' OR '1'='1' --",
    "SQL that ends one": b"x'; DROP TABLE keys;--",
    "a wildcard": b"*",
    "not ASCII": "ключ".encode(),
    "not UTF-8": b"\xff\xfe\xfd",
    "long": b"k" * 60_000,
    "a key's beginning": KEY.encode()[:-1],
    "a key and more": KEY.encode() + b"x",
    "a key in capitals": KEY.upper().encode(),
    "alg none": jwts.by_hand({"alg": "none"}, jwts.claims()),
    "another's secret": jwts.token("another-secret-that-is-also-more-than-32-bytes-long"),
    "expired": jwts.token(exp=int(time.time()) - LEEWAY_S - 60),
    "another audience": jwts.token(aud="anon"),
    "another issuer": jwts.token(iss="https://evil.example"),
    "a public key for a secret": jwts.token(jwts.RSA_KEY, "RS256", {"kid": "../../etc/passwd"}),
}


def carried(carrier: str, credential: bytes) -> list[tuple[bytes, bytes]]:
    """A credential in one of the headers that take any."""
    return [(b"x-api-key", credential)] if carrier == "x-api-key" else [(b"authorization", b"Bearer " + credential)]


class Doors:
    """A gateway that takes every kind of credential, and one of each kind that is good for each scope.

    It drains, so that whoever is let in is answered at once: no generator is there.
    """

    def __init__(self, client: httpx2.AsyncClient, keys: dict[Scope, NewKey], revoked: NewKey) -> None:
        self.client = client
        self.revoked = revoked.secret.encode()
        self.of_key = {scope: key.secret.encode() for scope, key in keys.items()}
        self.of_token = {scope: jwts.token(sub=TENANT, scope=scope) for scope in SCOPES}

    async def ask(self, route: tuple[str, str], headers: list[tuple[bytes, bytes]], query: str = "") -> httpx2.Response:
        method, path = route
        url = path.format(**named(*UNKNOWN)) + query
        return await self.client.request(method, url, json=ROWS[route].body, headers=headers)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def doors(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Doors]:
    async with NatsServer(tmp_path_factory.mktemp("doors")) as nats:
        await apply_streams(nats.url)
        connection = await Connection.open(nats.url, "test")
        stored, ring = ApiKeyStore(connection), ApiKeyCache()
        keys = {scope: new_key(TENANT, now=1, scopes=[scope]) for scope in SCOPES}
        revoked = new_key(TENANT, now=1, scopes=SCOPES)
        for key in (*keys.values(), revoked):
            await stored.create(key.record)
        await stored.revoke(revoked.record.id, 2)
        await ring.load(stored)
        settings = msgspec.convert(
            {**jwts.settings(), "api_keys": api_keys(TENANT), "jwt_scopes_claim": "scope", "query_timeout_s": 0.05},
            Settings,
        )
        draining, stop = asyncio.Event(), asyncio.Event()
        draining.set()
        listening = server.listen("127.0.0.1", 0, 0)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with asyncio.TaskGroup() as group:
            door = Authenticator(settings, ring)
            gateway = build(settings, connection, group, draining, door, signature=TokenSigner(b"s" * 32))
            serving = group.create_task(server.serve(app(gateway), listening, stop))
            async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=20) as client:
                yield Doors(client, keys, revoked)
            stop.set()
            await serving
            gateway.catalogue.close()
            gateway.streams.fan_out.close()
        await connection.close()


@pytest.mark.rule("S13")
@on_shared_loop
@pytest.mark.parametrize("carrier", ["authorization", "x-api-key"])
@pytest.mark.parametrize("route", CLOSED, ids=IDS)
async def test_an_invalid_credential_gets_the_same_401_on_every_route(
    doors: Doors, route: tuple[str, str], carrier: str
) -> None:
    """Whatever is wrong with it, and wherever it stands: the same status, body and header."""
    wrong = {**ATTACKS, "revoked": doors.revoked}
    answers = {name: await doors.ask(route, carried(carrier, credential)) for name, credential in wrong.items()}
    # In a query it is none, and is not even looked at, but where a ticket is.
    for parameter in ("ticket", "token", "api_key", "key", "access_token"):
        answers[f"?{parameter}"] = await doors.ask(route, [], f"?{parameter}={doors.of_key['read'].decode()}")
    answers["a cookie"] = await doors.ask(route, [(b"cookie", b"token=" + doors.of_key["read"])])
    answers["none"] = await doors.ask(route, [])
    seen = {(answer.status_code, answer.content, answer.headers["www-authenticate"]) for answer in answers.values()}
    assert {name: answer.status_code for name, answer in answers.items() if answer.status_code != 401} == {}
    assert len(seen) == 1


@on_shared_loop
@pytest.mark.parametrize("route", CLOSED, ids=IDS)
async def test_two_credentials_get_401(doors: Doors, route: tuple[str, str]) -> None:
    """Good ones, of one kind or two, in one header or two: another server in the way might take the other one."""
    key, token = doors.of_key["write"], doors.of_token["read"]
    for one, other in [(key, key), (key, token), (token, token)]:
        for pair in [
            carried("authorization", one) + carried("x-api-key", other),
            carried("authorization", one) * 2,
            carried("x-api-key", one) * 2,
            [(b"authorization", b"Bearer " + one + b", Bearer " + other)],
        ]:
            assert (await doors.ask(route, pair)).status_code == 401


@on_shared_loop
@pytest.mark.parametrize("kind", ["key", "token"])
@pytest.mark.parametrize("carrier", ["authorization", "x-api-key"])
@pytest.mark.parametrize("route", CLOSED, ids=IDS)
async def test_a_credential_needs_the_scope_of_the_route(
    doors: Doors, route: tuple[str, str], carrier: str, kind: str
) -> None:
    """CVE-2026-45339: in whichever header it stands, of whichever kind it is. Who may gets any answer but a refusal."""
    credentials = doors.of_key if kind == "key" else doors.of_token
    answers = {scope: await doors.ask(route, carried(carrier, credentials[scope])) for scope in sorted(SCOPES)}
    need = NEEDS[route]
    for scope, answer in answers.items():
        if scope != need:
            assert answer.status_code == 403, (scope, answer.text)
            error: dict[str, Any] = answer.json()["error"]
            assert (error["code"], error["type"]) == ("scope_missing", "permission_error")
            assert f"`{need}`" in error["message"]
        else:
            # What a refresh needs besides is a cookie.
            assert answer.status_code not in ({403} if route == REFRESH else {401, 403}), (scope, answer.text)
