"""Browser logins: log in with a key, refresh with a cookie, log out; rotation, theft, CSRF and expiry."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator

import httpx2
import msgspec
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.logins.logins import COOKIE, Access, Refresh
from tailrace.features.logins.store import Login, LoginStore
from tailrace.gateway.auth.signed_tokens import TokenSigner
from tailrace.gateway.auth.signing_secret import signing_secret
from tailrace.proto.errors import LogMisconfigured
from tailrace.proto.nats import Connection
from tailrace.proto.subjects import SECRETS
from tests.integration.conftest import KEY, Gateway, NewGateway

# No turn has this id: with a valid credential the answer is 404.
PATH = "/v1/turns/NONE"


@pytest.fixture
async def page(lone_gateway: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    """A client without a key and without cookies of its own."""
    async with httpx2.AsyncClient(base_url=lone_gateway.url, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
async def other_gateway(nats_url: str, new_gateway: NewGateway) -> Gateway:
    return await new_gateway(nats_url)


@pytest.fixture
async def signer(connection: Connection) -> TokenSigner:
    return TokenSigner(await signing_secret(connection))


def cookie(token: str) -> dict[str, str]:
    return {"cookie": f"{COOKIE}={token}"}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def tokens(answer: httpx2.Response) -> tuple[str, str]:
    """Returns the access token and the refresh token."""
    assert answer.status_code == 200, answer.text
    name, _, rest = answer.headers["set-cookie"].partition("=")
    assert name == COOKIE
    return answer.json()["access_token"], rest.partition(";")[0]


async def log_in(page: httpx2.AsyncClient) -> tuple[str, str]:
    return tokens(await page.post("/v1/login", headers=bearer(KEY)))


async def refresh(page: httpx2.AsyncClient, token: str, url: str = "", **headers: str) -> httpx2.Response:
    return await page.post(f"{url}/v1/login/refresh", headers={**cookie(token), **headers})


async def status(page: httpx2.AsyncClient, token: str, url: str = "") -> int:
    return (await page.get(f"{url}{PATH}", headers=bearer(token))).status_code


def is_refused(answer: httpx2.Response) -> bool:
    return (answer.status_code, answer.json()["error"]["code"]) == (401, "credential_invalid")


async def test_a_login_returns_an_access_token_and_a_cookie(page: httpx2.AsyncClient) -> None:
    answer = await page.post("/v1/login", headers={"x-api-key": KEY})
    access, refresh_token = tokens(answer)
    assert answer.json() == {"access_token": access, "token_type": "Bearer", "expires_in": 600}
    assert (answer.headers["cache-control"], answer.headers["referrer-policy"]) == ("no-store", "no-referrer")
    assert KEY not in answer.text + refresh_token
    assert (await status(page, access), await status(page, refresh_token)) == (404, 401)


@pytest.mark.rule("R40")
async def test_a_refresh_token_is_replaced_at_each_use_at_any_gateway(
    page: httpx2.AsyncClient, other_gateway: Gateway
) -> None:
    access, token = await log_in(page)
    for url in (other_gateway.url, "", other_gateway.url):
        next_access, next_token = tokens(await refresh(page, token, url))
        assert next_token != token
        assert await status(page, next_access, other_gateway.url) == 404
        token = next_token
    assert await status(page, access) == 404


@pytest.mark.rule("R40")
async def test_using_an_old_refresh_token_ends_the_login(page: httpx2.AsyncClient) -> None:
    """One of the two users has a stolen copy. Other logins with the same key go on."""
    _, first = await log_in(page)
    _, second = tokens(await refresh(page, first))
    _, third = tokens(await refresh(page, second))
    for token in (first, third, second, first):
        assert is_refused(await refresh(page, token))
    _, other = await log_in(page)
    assert (await refresh(page, other)).status_code == 200


@pytest.mark.rule("R40")
async def test_concurrent_refreshes_get_the_same_next_token(
    page: httpx2.AsyncClient, lone_gateway: Gateway, other_gateway: Gateway
) -> None:
    """Two tabs of a browser share one cookie."""
    _, token = await log_in(page)
    urls = (lone_gateway.url, other_gateway.url) * 5
    answers = await asyncio.gather(*(refresh(page, token, url) for url in urls))
    assert [answer.status_code for answer in answers] == [200] * 10
    (following,) = {tokens(answer)[1] for answer in answers}
    assert (await refresh(page, following)).status_code == 200


async def test_a_login_is_stored_only_over_the_revision_that_was_read(connection: Connection) -> None:
    """A slow refresh neither reverts a login nor restores one that has ended."""
    logins, name = LoginStore(connection), secrets.token_hex(16)
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


async def test_a_logout_ends_the_login_and_removes_the_cookie(page: httpx2.AsyncClient) -> None:
    """Also without a cookie, or with an unknown one."""
    _, token = await log_in(page)
    for headers in (cookie(token), cookie("unknown"), {}):
        answer = await page.post("/v1/logout", headers=headers)
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["set-cookie"].startswith(f"{COOKIE}=; Path=/; Max-Age=0;")
    assert is_refused(await refresh(page, token))


@pytest.mark.rule("S7")
async def test_another_origin_cannot_use_the_cookie(
    page: httpx2.AsyncClient, nats_url: str, new_gateway: NewGateway
) -> None:
    """CSRF: neither a login, a refresh nor a logout, also by an origin that CORS allows."""
    listing = await new_gateway(nats_url, origins="https://app.example")
    _, token = await log_in(page)
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://app.example", "content-type": "application/json"},
    ):
        for url in ("", listing.url):
            answers = [
                await page.post(f"{url}/v1/login", headers={"x-api-key": KEY, **headers}),
                await page.post(f"{url}/v1/login/refresh", headers={**cookie(token), **headers}),
                await page.post(f"{url}/v1/logout", headers={**cookie(token), **headers}),
            ]
            assert {(one.status_code, one.json()["error"]["code"]) for one in answers} == {(403, "origin_refused")}
            assert not [one for one in answers if "set-cookie" in one.headers]
            # TAILRACE_ORIGINS does not help here, so the message must not advise it.
            assert all("add the page's origin" not in one.json()["error"]["message"] for one in answers)
    own = {"origin": str(page.base_url).rstrip("/"), "sec-fetch-site": "same-origin"}
    assert (await refresh(page, token, **own)).status_code == 200


async def test_each_token_is_accepted_on_its_own_route_only(page: httpx2.AsyncClient) -> None:
    """An access token cannot log in: a login would never end."""
    access, token = await log_in(page)
    assert is_refused(await page.get(PATH, headers=cookie(token)))
    assert is_refused(await page.post("/v1/turns", json={"message": "hi"}, headers=cookie(token)))
    assert is_refused(await page.post("/v1/login", headers=cookie(token)))
    for wrong in (access, KEY, "", token[:-1], f"{token}x"):
        assert is_refused(await refresh(page, wrong)), wrong
    assert is_refused(await page.post("/v1/login/refresh", headers=bearer(token)))
    assert is_refused(await page.post("/v1/login/refresh", headers={**cookie(token), **bearer(KEY)}))
    again = await page.post("/v1/login", headers=bearer(access))
    assert (again.status_code, again.json()["error"]["code"]) == (400, "request_invalid")


async def test_tokens_and_logins_expire(page: httpx2.AsyncClient, connection: Connection, signer: TokenSigner) -> None:
    access, token = await log_in(page)
    signed, now = signer.read(access.encode(), Access), int(time.time())
    assert signed is not None
    assert await status(page, signer.sign(Access(key=signed.key, until=now + 60))) == 404
    assert await status(page, signer.sign(Access(key=signed.key, until=now - 1))) == 401
    payload = signer.read(token.encode(), Refresh)
    assert payload is not None
    for changed in ({"until": now - 1}, {"login": "0" * 32}):
        assert is_refused(await refresh(page, signer.sign(msgspec.structs.replace(payload, **changed))))
    logins = LoginStore(connection)
    found = await logins.get(payload.login)
    assert found is not None
    await logins.put(payload.login, msgspec.structs.replace(found[0], until=now - 1), found[1])
    assert is_refused(await refresh(page, token))


async def test_without_keys_a_login_is_refused(own_server: NatsServer, new_gateway: NewGateway) -> None:
    gateway = await new_gateway(own_server.url, api_keys="")
    answer = await gateway.client.post("/v1/login")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")
    assert is_refused(await gateway.client.post("/v1/login/refresh"))


@pytest.mark.rule("R39")
async def test_concurrent_gateways_create_one_signing_secret_and_a_deleted_one_is_replaced(
    own_connection: Connection,
) -> None:
    """An operator deletes it to end all tickets and logins."""
    found = await asyncio.gather(*(signing_secret(own_connection) for _ in range(20)))
    assert (len(set(found)), len(found[0])) == (1, 32)
    await (await own_connection.jetstream.key_value(SECRETS)).delete("signing")
    new = await signing_secret(own_connection)
    assert new not in found
    assert new == await signing_secret(own_connection)


async def test_a_signing_secret_that_is_too_short_is_refused(own_connection: Connection) -> None:
    """Anybody could guess an empty one, and forge tickets and logins of every tenant."""
    await (await own_connection.jetstream.key_value(SECRETS)).put("signing", b"")
    with pytest.raises(LogMisconfigured, match="has 0 bytes, and needs 32"):
        await signing_secret(own_connection)
