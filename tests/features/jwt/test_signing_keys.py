"""The JWKS cache against a real HTTP server that moves, fails or stalls."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.requests import Request

from tailrace.features.jwt.jwks import JwksCache
from tailrace.features.jwt.settings import Settings
from tailrace.features.jwt.verifier import JwtVerifier
from tailrace.proto.errors import CODES, Refused
from tests.harness import jwts
from tests.harness.jwts import EC_KEY, RSA_KEY
from tests.harness.until import until

OTHER_KEY = ec.generate_private_key(ec.SECP256R1())

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Issuer:
    """A server of key sets with a settable answer; one request per connection. `received` has all requests."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.answer: Answer = close_at_once

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                self.received.append(await reader.readuntil(b"\r\n\r\n"))
                await self.answer(writer)
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/.well-known/jwks.json"

    def set_response(self, body: bytes, status: str = "200 OK", *headers: str) -> None:
        head = "\r\n".join(
            [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers, "", ""]
        )

        async def answer(writer: asyncio.StreamWriter) -> None:
            writer.write(head.encode() + body)
            await writer.drain()

        self.answer = answer


async def close_at_once(writer: asyncio.StreamWriter) -> None:
    """Closes the connection without an answer."""


@pytest.fixture
async def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
async def url(issuer: Issuer) -> AsyncIterator[str]:
    async with issuer.running() as url:
        yield url


async def test_keys_are_read_once(issuer: Issuer, url: str) -> None:
    """Fifty concurrent tokens with a new key cause one request; a thousand later ones cause none."""
    issuer.set_response(jwts.key_set(rsa=RSA_KEY, ec=EC_KEY))
    keys = JwksCache(url)
    found = await asyncio.gather(*(keys.find("ec") for _ in range(50)))
    assert {key.algorithm for key in found if key} == {"ES256"}
    assert len(found) == len([key for key in found if key])
    for _ in range(1000):
        assert await keys.find("rsa") is not None
    assert len(issuer.received) == 1
    assert issuer.received[0].startswith(b"GET /.well-known/jwks.json HTTP/1.1\r\n")


async def test_an_unknown_kid_causes_one_read_per_cooldown(issuer: Issuer, url: str) -> None:
    """The first token with a new key shows a rotation; invented key ids cause no further requests."""
    issuer.set_response(jwts.key_set(old=EC_KEY))
    keys = JwksCache(url, cooldown_s=0)
    assert await keys.find("old") is not None
    issuer.set_response(jwts.key_set(new=OTHER_KEY))
    assert await keys.find("new") is not None
    assert await keys.find("old") is None
    patient = JwksCache(url)
    before = len(issuer.received)
    for number in range(200):
        assert await patient.find(f"../../{number}' OR 1=1") is None
    assert len(issuer.received) == before + 1


INVALID = (
    *(b"<html>", b"{}", b'{"keys": {}}', b'{"keys": [1]}', b'\xff\xfe{"keys": []}', b"[" * 100_000),
    *(b'{"keys": [{"kty": ' + b"[" * 100_000, b" " * 300_000 + b'{"keys": []}'),
)


async def test_an_invalid_answer_keeps_the_known_keys(issuer: Issuer, url: str) -> None:
    """A broken issuer locks no client out."""
    issuer.set_response(jwts.key_set(ec=EC_KEY))
    keys = JwksCache(url, cooldown_s=0)
    await keys.read()
    failed = [(b"", status) for status in ("500 Internal Server Error", "404 Not Found", "204 No Content")]
    for body, status in (*failed, *((body, "200 OK") for body in INVALID)):
        issuer.set_response(body, status)
        await keys.read()
        assert await keys.find("ec") is not None, (status, body[:40])
    issuer.answer = close_at_once
    await keys.read()
    assert await keys.find("ec") is not None


async def test_an_unknown_key_gets_a_503_while_the_keys_cannot_be_read(issuer: Issuer, url: str) -> None:
    """The issuer may have changed its key just before. A 401 would end the logins of its users."""
    issuer.set_response(jwts.key_set(old=EC_KEY))
    keys = JwksCache(url, cooldown_s=0)
    assert await keys.find("new") is None
    issuer.set_response(b"", "502 Bad Gateway")
    with pytest.raises(Refused) as refused:
        await keys.find("new")
    assert refused.value.code == "jwt_keys_unavailable"
    assert await keys.find("old") is not None
    issuer.set_response(jwts.key_set(old=EC_KEY, new=OTHER_KEY))
    assert await keys.find("new") is not None
    assert await keys.find("other") is None


async def test_a_token_gets_a_503_until_the_keys_were_read(issuer: Issuer, url: str) -> None:
    """A gateway that starts while the issuer is down cannot tell which tokens are valid. A 401 would end logins."""
    verifier = JwtVerifier(Settings(**jwts.settings(jwt_keys=url)))
    asking = Request({"type": "http", "method": "GET", "headers": []})
    signed = jwts.token(EC_KEY, "ES256", {"kid": "ec"})
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            await verifier.verify(signed, asking)
        assert CODES[refused.value.code].status == 503
    issuer.set_response(jwts.key_set(ec=EC_KEY))
    refreshing = asyncio.create_task(verifier.refresh_periodically())
    await until(lambda: is_accepted(verifier, signed, asking))
    refreshing.cancel()
    assert await verifier.verify(jwts.token(OTHER_KEY, "ES256", {"kid": "other"}), asking) is None


async def is_accepted(verifier: JwtVerifier, token: bytes, request: Request) -> bool:
    with suppress(Refused):
        return await verifier.verify(token, request) is not None
    return False


async def test_a_redirect_is_not_followed(issuer: Issuer, url: str) -> None:
    """Only the settings have the address of the keys."""
    elsewhere = Issuer()
    elsewhere.set_response(jwts.key_set(ec=OTHER_KEY))
    async with elsewhere.running() as other:
        for status in ("301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"):
            for location in (other, "file:///etc/passwd", "ftp://127.0.0.1/"):
                issuer.set_response(b"", status, f"location: {location}")
                with pytest.raises(Refused):
                    await JwksCache(url).find("ec")
    assert elsewhere.received == []


async def test_a_stalling_issuer_is_given_up_after_the_timeout(
    issuer: Issuer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent one, and one that sends a byte now and then; the known keys stay valid."""
    issuer.set_response(jwts.key_set(ec=EC_KEY))
    keys = JwksCache(url)
    await keys.read()
    monkeypatch.setattr("tailrace.features.jwt.jwks.TIMEOUT_S", 0.3)
    over = asyncio.Event()

    async def silent(writer: asyncio.StreamWriter) -> None:
        await over.wait()

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while not over.is_set():
            writer.write(b" ")
            await asyncio.sleep(0.01)

    for answer in (silent, drip):
        issuer.answer = answer
        await asyncio.wait_for(keys.read(), 10)
        assert await keys.find("ec") is not None
    over.set()


async def test_keys_from_a_file_are_refreshed(tmp_path: Path) -> None:
    """An operator can replace the file without a restart."""
    path = tmp_path / "keys.json"
    path.write_bytes(jwts.key_set(old=EC_KEY))
    keys = JwksCache(str(path), cooldown_s=0)
    assert await keys.find("old") is not None
    path.write_bytes(jwts.key_set(new=OTHER_KEY))
    assert await keys.find("new") is not None
    path.unlink()
    await keys.read()
    assert await keys.find("new") is not None


async def test_a_token_causes_no_fetch_of_its_own_urls(issuer: Issuer, url: str) -> None:
    """`jku`, `x5u`, an issuer that is a URL: requests go only to the address in the settings."""
    elsewhere = Issuer()
    issuer.set_response(jwts.key_set(ec=EC_KEY))
    verifier = JwtVerifier(Settings(**jwts.settings(jwt_keys=url)))
    asking = Request({"type": "http", "method": "GET", "headers": []})
    async with elsewhere.running() as other:
        for header in ("jku", "x5u"):
            signed = jwts.token(OTHER_KEY, "ES256", {header: other, "kid": "x"}, iss=other)
            assert await verifier.verify(signed, asking) is None
    assert elsewhere.received == []
    assert len(issuer.received) == 1
