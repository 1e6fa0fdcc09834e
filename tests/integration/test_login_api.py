"""Browser logins over HTTP: log in with a key, refresh with a cookie, log out, at every gateway."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import msgspec
import pytest

from tailrace.gateway.auth.login import COOKIE, GRACE_S
from tailrace.gateway.auth.signed_tokens import Access, Refresh, TokenSigner
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection
from tailrace.proto.nats.logins import Login, Logins
from tailrace.proto.nats.signing_secret import signing_secret
from tailrace.proto.subjects import SECRETS
from tests.harness import processes
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys

# No turn has that id, so that no other part has to be asked: who may, is told 404.
LOOK = "/v1/turns/NONE"
ELSEWHERE = (
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"origin": "https://app.example", "content-type": "application/json"},
)


@pytest.fixture
async def page(lone_gateway: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    """What a browser's page has: no key, and no cookies but those that a test sends."""
    async with httpx2.AsyncClient(base_url=lone_gateway.url, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
async def signature(connection: Connection) -> TokenSigner:
    return TokenSigner(await signing_secret(connection))


async def logged_in(page: httpx2.AsyncClient) -> tuple[str, str]:
    """An access token and a refresh token."""
    answer = await page.post("/v1/login", headers={"authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200, answer.text
    return told(answer)


def told(answer: httpx2.Response) -> tuple[str, str]:
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    return answer.json()["access_token"], cookie.partition("=")[2].partition(";")[0]


async def refreshed(page: httpx2.AsyncClient, token: str, url: str = "", **headers: str) -> httpx2.Response:
    return await page.post(f"{url}/v1/login/refresh", headers={"cookie": f"{COOKIE}={token}", **headers})


async def looks(page: httpx2.AsyncClient, token: str, url: str = "") -> int:
    return (await page.get(f"{url}{LOOK}", headers={"authorization": f"Bearer {token}"})).status_code


def refused(answer: httpx2.Response) -> bool:
    return (answer.status_code, answer.json()["error"]["code"]) == (401, "credential_invalid")


async def make_older(connection: Connection, signature: TokenSigner, token: str, seconds: float) -> None:
    """As if the login had been refreshed so long ago."""
    refresh = signature.read(token.encode(), Refresh)
    assert refresh is not None
    logins = Logins(connection)
    found = await logins.get(refresh.login)
    assert found is not None
    login, revision = found
    older = msgspec.structs.replace(login, refreshed_at=login.refreshed_at - seconds)
    assert await logins.put(refresh.login, older, revision)


async def test_a_login_returns_an_access_token_and_a_cookie(page: httpx2.AsyncClient) -> None:
    """In the words of OAuth; no script, no other site and no cache ever sees the cookie."""
    answer = await page.post("/v1/login", headers={"x-api-key": KEY})
    access, refresh = told(answer)
    assert answer.json() == {"access_token": access, "token_type": "Bearer", "expires_in": 600}
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    attributes = set(answer.headers["set-cookie"].split("; ")[1:])
    assert {"Path=/", "Secure", "HttpOnly", "SameSite=Strict"} <= attributes
    assert not [one for one in attributes if one.startswith("Domain")]
    assert KEY not in answer.text + refresh
    assert await looks(page, access) == 404
    assert await looks(page, refresh) == 401


@pytest.mark.rule("R40")
async def test_a_refresh_token_is_valid_once_at_any_gateway(
    page: httpx2.AsyncClient, nats_url: str, new_gateway: NewGateway
) -> None:
    """Each is the price of the next."""
    elsewhere = await new_gateway(nats_url)
    access, refresh = await logged_in(page)
    for url in (elsewhere.url, "", elsewhere.url):
        following_access, following = told(await refreshed(page, refresh, url))
        assert following != refresh
        assert await looks(page, following_access, elsewhere.url) == 404
        refresh = following
    assert await looks(page, access) == 404


@pytest.mark.rule("R40")
async def test_using_an_old_refresh_token_ends_the_login(page: httpx2.AsyncClient) -> None:
    """There is a copy: nobody can say which of the two is the owner's, so the key is asked for again."""
    _, first = await logged_in(page)
    _, second = told(await refreshed(page, first))
    _, third = told(await refreshed(page, second))
    assert refused(await refreshed(page, first))
    for token in (third, second, first):
        assert refused(await refreshed(page, token))
    # Another login of the same key is another.
    _, other = await logged_in(page)
    assert (await refreshed(page, other)).status_code == 200


async def test_the_previous_refresh_token_is_old_after_the_grace_period(
    page: httpx2.AsyncClient, connection: Connection, signature: TokenSigner
) -> None:
    _, first = await logged_in(page)
    _, second = told(await refreshed(page, first))
    await make_older(connection, signature, first, GRACE_S + 1)
    assert refused(await refreshed(page, first))
    assert refused(await refreshed(page, second))


@pytest.mark.rule("R40")
async def test_two_tabs_may_refresh_at_once(
    page: httpx2.AsyncClient, lone_gateway: Gateway, nats_url: str, new_gateway: NewGateway
) -> None:
    """All get the same next one, whoever was first: the browser keeps one cookie, whichever answer is the last."""
    elsewhere = await new_gateway(nats_url)
    _, refresh = await logged_in(page)
    asking = [refreshed(page, refresh, gateway.url) for gateway in (lone_gateway, elsewhere) * 5]
    answers = await asyncio.gather(*asking)
    assert [answer.status_code for answer in answers] == [200] * 10
    following = {told(answer)[1] for answer in answers}
    assert len(following) == 1
    assert (await refreshed(page, following.pop())).status_code == 200


async def test_a_slower_concurrent_refresh_changes_nothing(connection: Connection) -> None:
    """What was read has changed since, or has ended: it is neither turned back nor brought back."""
    logins, name = Logins(connection), secrets.token_hex(16)
    login = Login(key="key_1", until=int(time.time()) + 60, refreshed_at=time.time())
    assert await logins.put(name, login)
    assert not await logins.put(name, login)
    found = await logins.get(name)
    assert found is not None
    assert await logins.put(name, msgspec.structs.replace(login, generation=1), found[1])
    assert not await logins.put(name, login, found[1])
    again = await logins.get(name)
    assert again is not None
    assert again[0].generation == 1
    await logins.delete(name)
    assert not await logins.put(name, login, again[1])
    assert await logins.get(name) is None


async def test_logout_ends_the_login(page: httpx2.AsyncClient) -> None:
    """And takes the cookie away; also from who has none, or one that nobody knows."""
    _, refresh = await logged_in(page)
    for cookie in ({"cookie": f"{COOKIE}={refresh}"}, {"cookie": f"{COOKIE}=unknown"}, {}):
        answer = await page.post("/v1/logout", headers=cookie)
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["set-cookie"].startswith(f"{COOKIE}=; Path=/; Max-Age=0;")
    assert refused(await refreshed(page, refresh))


@pytest.mark.rule("S7")
@pytest.mark.parametrize("headers", ELSEWHERE, ids=range(len(ELSEWHERE)))
async def test_another_origin_cannot_use_the_cookie(
    page: httpx2.AsyncClient, nats_url: str, new_gateway: NewGateway, headers: dict[str, str]
) -> None:
    """CSRF: not to log anybody in, on or out; not a page that may ask by CORS either. And nothing is used up by it."""
    listing = await new_gateway(nats_url, origins="https://app.example")
    _, refresh = await logged_in(page)
    cookie = {"cookie": f"{COOKIE}={refresh}"}
    for url in ("", listing.url):
        answers = [
            await page.post(f"{url}/v1/login", headers={"x-api-key": KEY, **headers}),
            await page.post(f"{url}/v1/login/refresh", headers={**cookie, **headers}),
            await page.post(f"{url}/v1/logout", headers={**cookie, **headers}),
        ]
        assert {(one.status_code, one.json()["error"]["code"]) for one in answers} == {(403, "origin_refused")}
        assert not [one for one in answers if "set-cookie" in one.headers]
    own = {"origin": str(page.base_url).rstrip("/"), "sec-fetch-site": "same-origin"}
    assert (await refreshed(page, refresh, **own)).status_code == 200


async def test_each_token_is_accepted_on_its_own_route_only(page: httpx2.AsyncClient) -> None:
    """A refresh token is no access token, a cookie no key, and none of them logs in: a login would never end."""
    access, refresh = await logged_in(page)
    cookie = {"cookie": f"{COOKIE}={refresh}"}
    assert refused(await page.get(LOOK, headers=cookie))
    assert refused(await page.post("/v1/turns", json={"message": "hi"}, headers=cookie))
    assert refused(await page.post("/v1/login", headers=cookie))
    for token in (access, KEY, "", refresh[:-1], f"{refresh}x"):
        assert refused(await refreshed(page, token)), token
    assert refused(await page.post("/v1/login/refresh", headers={"authorization": f"Bearer {refresh}"}))
    assert refused(await page.post("/v1/login/refresh", headers={**cookie, "authorization": f"Bearer {KEY}"}))
    again = await page.post("/v1/login", headers={"authorization": f"Bearer {access}"})
    assert (again.status_code, again.json()["error"]["code"]) == (400, "request_invalid")


async def test_tokens_expire(
    page: httpx2.AsyncClient, lone_gateway: Gateway, connection: Connection, signature: TokenSigner
) -> None:
    """Rightly signed and too old, or of a login that nobody has stored: nothing."""
    access, refresh = await logged_in(page)
    key = signature.read(access.encode(), Access)
    now = int(time.time())
    assert key is not None
    assert await looks(page, signature.sign(Access(key=key.key, until=now + 60))) == 404
    assert await looks(page, signature.sign(Access(key=key.key, until=now - 1))) == 401
    of_login = signature.read(refresh.encode(), Refresh)
    assert of_login is not None
    for changed in ({"until": now - 1}, {"login": "0" * 32}):
        assert refused(await refreshed(page, signature.sign(msgspec.structs.replace(of_login, **changed))))
    # The stored one has an end of its own.
    logins = Logins(connection)
    found = await logins.get(of_login.login)
    assert found is not None
    await logins.put(of_login.login, msgspec.structs.replace(found[0], until=now - 1), found[1])
    assert refused(await refreshed(page, refresh))


async def test_a_login_ends_with_its_key(page: httpx2.AsyncClient, nats_url: str, new_gateway: NewGateway) -> None:
    """At a gateway that does not know the key any more, both tokens are nobody's."""
    gone = await new_gateway(nats_url, api_keys=f"other:{'0' * 64}")
    access, refresh = await logged_in(page)
    assert await looks(page, access, gone.url) == 401
    assert refused(await refreshed(page, refresh, gone.url))


async def test_without_keys_a_login_is_refused(nats_url: str, new_gateway: NewGateway) -> None:
    """The page need not ask; if it does, it is told so."""
    gateway = await new_gateway(nats_url, api_keys="")
    answer = await gateway.client.post("/v1/login")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")
    assert refused(await gateway.client.post("/v1/login/refresh"))


@pytest.mark.rule("R39")
async def test_all_gateways_share_one_signing_secret(connection: Connection, nats_url: str) -> None:
    """Made once, by whoever is first; 256 bits that are no text."""
    others = [await Connection.open(nats_url, "test") for _ in range(3)]
    try:
        found = await asyncio.gather(*(signing_secret(one) for one in (connection, *others) * 5))
    finally:
        for one in others:
            await one.close()
    assert len(set(found)) == 1
    assert len(found[0]) == 32


async def test_concurrent_creation_of_the_secret_has_one_winner(own_connection: Connection) -> None:
    """The first start of several gateways at once."""
    found = await asyncio.gather(*(signing_secret(own_connection) for _ in range(20)))
    assert len(set(found)) == 1


@pytest.mark.rule("S3")
async def test_no_token_is_logged(nats_url: str, tenant: Tenant, tmp_path: Path) -> None:
    """At its most talkative: a login, a refresh, a copy that ends it, a logout."""
    environ = {"TAILRACE_API_KEYS": api_keys(tenant), "TAILRACE_LOG_LEVEL": "debug"}
    async with processes.gateway(tmp_path, nats_url, **environ) as gateway:
        async with httpx2.AsyncClient(base_url=gateway.url, timeout=20, trust_env=False) as client:
            access, first = await logged_in(client)
            _, second = told(await refreshed(client, first))
            _, third = told(await refreshed(client, second))
            assert refused(await refreshed(client, first))
            await client.post("/v1/logout", headers={"cookie": f"{COOKIE}={third}"})
        await gateway.stop()
        printed = gateway.printed.read_text()
    assert not [token for token in (access, first, second, third, KEY) if token[:24] in printed]


async def test_a_deleted_secret_is_created_again(own_connection: Connection) -> None:
    """How an operator ends all tickets and logins at once: a gateway that starts after that signs otherwise."""
    old = await signing_secret(own_connection)
    await (await own_connection.jetstream.key_value(SECRETS)).delete("signing")
    new = await signing_secret(own_connection)
    assert new != old
    assert len(new) == 32
    assert new == await signing_secret(own_connection)
