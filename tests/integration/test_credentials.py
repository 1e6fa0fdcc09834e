"""Credentials on every route of the route table: invalid ones, two at once, and the scope that a route needs."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator

import httpx2
import msgspec
import pytest
import pytest_asyncio

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.admin.key_store import KeyStore
from tailrace.features.admin.new_key import NewKey, new_key
from tailrace.features.gateway import FEATURES, ROUTES, Settings
from tailrace.features.jwt.verifier import LEEWAY_S
from tailrace.gateway.app import app, overflow_app
from tailrace.gateway.auth.api_keys import ApiKeyCache
from tailrace.gateway.auth.signed_tokens import TokenSigner
from tailrace.gateway.http import server
from tailrace.gateway.http.scope import SCOPES, ScopeName
from tailrace.gateway.serve import build
from tailrace.gateway.startup_checks import build_authenticator
from tailrace.proto.ids import Tenant, new_id
from tailrace.proto.nats import Connection
from tailrace.proto.runtime.flag import Flag
from tests.conftest import apply_streams
from tests.harness import jwts
from tests.harness.refusals import problem_of
from tests.harness.route_table import ROWS, path_parameters
from tests.integration.conftest import KEY, api_keys, on_shared_loop

TENANT = Tenant("acme")
UNKNOWN = (new_id(), new_id(), new_id())
REFRESH = ("POST", "/v1/login/refresh")
NEEDS = {(route.method, route.path): route.need for route in ROUTES}
CLOSED = [route for route, need in NEEDS.items() if need != "public"]
SAMPLED = [("POST", "/v1/turns"), ("GET", "/v1/turns/{turn}/events")]
each_route = pytest.mark.parametrize("route", CLOSED, ids=[f"{method} {path}" for method, path in CLOSED])
# CVE-2026-42208 and similar. A header cannot contain NUL.
INVALID = {
    "unknown": b"tr_unknown",
    "SQL": b"' OR '1'='1' --",
    "SQL that ends a statement": b"x'; DROP TABLE keys;--",
    "wildcard": b"*",
    "not ASCII": "ключ".encode(),
    "not UTF-8": b"\xff\xfe\xfd",
    "long": b"k" * 60_000,
    "prefix of a key": KEY.encode()[:-1],
    "key with a suffix": KEY.encode() + b"x",
    "key in capitals": KEY.upper().encode(),
    "hash of a key": hashlib.sha256(KEY.encode()).hexdigest().encode(),
    "two keys": KEY.encode() + b", Bearer " + KEY.encode(),
    "alg none": jwts.by_hand({"alg": "none"}, jwts.claims()),
    "wrong secret": jwts.token("another-secret-that-is-also-more-than-32-bytes-long"),
    "expired": jwts.token(exp=int(time.time()) - LEEWAY_S - 60),
    "wrong audience": jwts.token(aud="anon"),
    "wrong issuer": jwts.token(iss="https://evil.example"),
    "path as key id": jwts.token(jwts.RSA_KEY, "RS256", {"kid": "../../etc/passwd"}),
}

Headers = list[tuple[bytes, bytes]]


CARRIERS = ("authorization", "x-api-key")
PARAMETERS = ("ticket", "token", "api_key", "key", "access_token")


def header(name: str, credential: bytes) -> Headers:
    return [(b"x-api-key", credential)] if name == "x-api-key" else [(b"authorization", b"Bearer " + credential)]


class Routes:
    """A draining gateway that accepts every kind of credential, and valid credentials of each scope.

    It drains so that an authenticated request is answered at once: no generator runs.
    """

    def __init__(self, client: httpx2.AsyncClient, keys: dict[ScopeName, NewKey], revoked: NewKey) -> None:
        self.client = client
        self.revoked = revoked.secret.encode()
        self.keys = {scope: key.secret.encode() for scope, key in keys.items()}
        self.tokens = {scope: jwts.token(sub=TENANT, scope=scope) for scope in SCOPES}

    async def send(self, route: tuple[str, str], headers: Headers, query: str = "") -> httpx2.Response:
        method, path = route
        url = path.format(**path_parameters(*UNKNOWN)) + query
        return await self.client.request(method, url, json=ROWS[route].body, headers=headers)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def routes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Routes]:
    async with NatsServer(tmp_path_factory.mktemp("credentials")) as nats:
        await apply_streams(nats.url)
        connection = await Connection.open(nats.url, "test")
        stored, cache = KeyStore(connection), ApiKeyCache()
        keys = {scope: new_key(TENANT, now=1, scopes=[scope]) for scope in SCOPES}
        revoked = new_key(TENANT, now=1, scopes=SCOPES)
        for key in (*keys.values(), revoked):
            await stored.create(key.record)
        await stored.revoke(revoked.record.id, 2)
        await cache.load(stored)
        settings = msgspec.convert(
            {**jwts.settings(), "api_keys": api_keys(TENANT), "jwt_scopes_claim": "scope", "query_timeout_s": 0.05},
            Settings,
        )
        draining, stop = Flag(), asyncio.Event()
        draining.set()
        listening = server.listen("127.0.0.1", 0, 0)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with asyncio.TaskGroup() as group:
            authenticator = build_authenticator(settings, FEATURES, cache)
            gateway = build(settings, connection, group, draining, authenticator, signer=TokenSigner(b"s" * 32))
            started = [(feature, feature.start(gateway, feature.settings())) for feature in FEATURES]
            application, overflow = app(gateway, started), overflow_app(gateway)
            serving = group.create_task(server.serve(application, overflow, listening, stop, Flag()))
            async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=20) as client:
                yield Routes(client, keys, revoked)
            stop.set()
            await serving
            gateway.catalogue.close()
            gateway.streams.fan_out.close()
        await connection.close()


def assert_same_401(answers: dict[str, httpx2.Response]) -> None:
    assert {name: answer.status_code for name, answer in answers.items() if answer.status_code != 401} == {}
    assert len({(answer.content, answer.headers["www-authenticate"]) for answer in answers.values()}) == 1


@pytest.mark.rule("S13")
@on_shared_loop
@pytest.mark.parametrize("route", SAMPLED, ids=[f"{method} {path}" for method, path in SAMPLED])
async def test_each_invalid_credential_gets_the_same_401(routes: Routes, route: tuple[str, str]) -> None:
    """Where a ticket is accepted, too, and where none is. Each in both headers, and a valid key in the query."""
    answers = {
        f"{name} in {carrier}": await routes.send(route, header(carrier, credential))
        for name, credential in {**INVALID, "revoked": routes.revoked}.items()
        for carrier in CARRIERS
    }
    for value in (KEY.encode(), b"Basic " + KEY.encode(), b"Bearer"):
        answers[f"authorization: {value!r}"] = await routes.send(route, [(b"authorization", value)])
    answers["empty x-api-key"] = await routes.send(route, header("x-api-key", b""))
    for parameter in PARAMETERS:
        answers[f"?{parameter}"] = await routes.send(route, [], f"?{parameter}={routes.keys['read'].decode()}")
    assert_same_401(answers)


@pytest.mark.rule("S13")
@on_shared_loop
@each_route
async def test_an_invalid_credential_gets_the_same_401_on_every_route(routes: Routes, route: tuple[str, str]) -> None:
    """Two credentials are invalid, too: another server on the way might use the other one."""
    key, token = routes.keys["write"], routes.tokens["read"]
    sent = {
        "an unknown key": header("x-api-key", INVALID["unknown"]),
        "a forged token": header("authorization", INVALID["wrong secret"]),
        "in a cookie": [(b"cookie", b"token=" + key)],
        "none": [],
        "one in each header": header("authorization", key) + header("x-api-key", token),
        "two in one header": header("x-api-key", key) * 2,
    }
    answers = {name: await routes.send(route, headers) for name, headers in sent.items()}
    query = "&".join(f"{parameter}={key.decode()}" for parameter in PARAMETERS)
    answers["in the query"] = await routes.send(route, [], f"?{query}")
    two = [answers.pop(name) for name in ("one in each header", "two in one header")]
    assert [answer.status_code for answer in two] == [401, 401]
    assert "`Authorization` and `x-api-key`: send one of them" in two[0].text
    assert_same_401(answers)


@on_shared_loop
@each_route
async def test_a_credential_needs_the_scope_of_the_route(routes: Routes, route: tuple[str, str]) -> None:
    """CVE-2026-45339: keys and tokens."""
    need = NEEDS[route]
    for credentials, carrier in zip((routes.keys, routes.tokens), CARRIERS, strict=True):
        for scope in sorted(SCOPES):
            answer = await routes.send(route, header(carrier, credentials[scope]))
            # No token of a login has the scope `admin`.
            if scope != need or (need == "admin" and credentials is routes.tokens):
                error = problem_of(answer.content)
                assert (answer.status_code, error.code) == (403, "scope_missing"), (scope, answer.text)
                assert error.type == "permission_error"
                assert f"`{need}`" in error.message
            else:
                # A refresh needs a cookie, too.
                refusals = {403} if route == REFRESH else {401, 403}
                assert answer.status_code not in refusals, (scope, answer.text)
