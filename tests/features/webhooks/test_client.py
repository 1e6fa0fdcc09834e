"""HTTP client for webhooks with real receivers: allowed and refused addresses, TLS, timeouts, broken responses."""

import asyncio
import gzip
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.web import Request, Response, StreamResponse

from tailrace.features.webhooks import system_resolver
from tailrace.features.webhooks.http import WebhookClient
from tailrace.proto.errors import WebhookFailed, WebhookRefused
from tests.features.webhooks.test_ssrf import NO_URL, NOT_HTTPS, NOT_PUBLIC
from tests.harness.certificates import make_self_signed
from tests.harness.stop_server import stop
from tests.harness.webhook_receiver import ReceivedWebhook, Receiver, answer_with

LOOPBACK = frozenset({"127.0.0.1"})
NAMED = frozenset({"hooks.test"})
HEADERS = {"webhook-id": "turn-1"}


class Names(AbstractResolver):
    """A resolver that returns these addresses for every name. `asked` are the names that were looked up."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.looked_up: list[str] = []

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002  # as aiohttp calls it
    ) -> list[ResolveResult]:
        self.looked_up.append(host)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self.addresses
        ]

    async def close(self) -> None:
        """Does nothing."""


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate of `hooks.test`, and its key."""
    return make_self_signed(tmp_path_factory.mktemp("tls"), "hooks.test")


def tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    return context


def webhooks(private: frozenset[str] = LOOPBACK, names: Names | None = None, timeout_s: float = 5.0) -> WebhookClient:
    return WebhookClient(private, timeout_s=timeout_s, resolver=names)


@asynccontextmanager
async def answering_server(raw: bytes) -> AsyncIterator[str]:
    """A server that sends `raw` to each connection and closes it. Yields its URL."""

    async def answer_connection(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    server = await asyncio.start_server(answer_connection, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        await stop(server)


async def test_a_post_sends_headers_and_body_and_returns_the_status(receiver: Receiver) -> None:
    receiver.answer = answer_with(503, **{"retry-after": "7"})
    async with webhooks() as client:
        assert await client.post(receiver.url, HEADERS, b'{"a":1}') == (503, 7.0)
    (webhook,) = receiver.received
    assert webhook.body == b'{"a":1}'
    assert webhook.headers["webhook-id"] == "turn-1"
    assert webhook.headers["content-type"] == "application/json"
    assert webhook.headers["user-agent"].startswith("tailrace/")


@pytest.mark.parametrize("url", [*NO_URL, *NOT_HTTPS, *NOT_PUBLIC])
async def test_a_forbidden_url_is_refused_without_a_dns_lookup(url: str) -> None:
    """Also if it is in the log already: it is checked again."""
    names = Names("127.0.0.1")
    async with webhooks(frozenset(), names) as client:
        with pytest.raises(WebhookRefused):
            await client.post(url, HEADERS, b"{}")
    assert names.looked_up == []


@pytest.mark.rule("S10")
@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0"])
async def test_a_host_that_resolves_to_a_private_address_is_not_connected(receiver: Receiver, address: str) -> None:
    """DNS rebinding: the address is checked at the socket."""
    names = Names(address)
    async with webhooks(LOOPBACK, names) as client:
        with pytest.raises(WebhookRefused, match="not public"):
            await client.post(f"https://hooks.test:{receiver.port}/", HEADERS, b"{}")
    assert names.looked_up == ["hooks.test"]
    assert receiver.received == []


async def test_a_host_is_resolved_once_for_each_call(receiver: Receiver) -> None:
    """The checked address is the connected one, and no DNS answer is cached."""
    names = Names("127.0.0.1")
    async with webhooks(NAMED, names) as client:
        for times in (1, 2):
            assert await client.post(f"http://hooks.test:{receiver.port}/", HEADERS, b"{}") == (204, None)
            assert len(names.looked_up) == times
        names.addresses = ()
        with pytest.raises(WebhookFailed):
            await client.post(f"http://hooks.test:{receiver.port}/", HEADERS, b"{}")


def test_names_that_no_dns_server_answers_do_not_delay_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop's own look-ups share a few threads, and no look-up can be stopped."""
    silent, look_up = threading.Event(), socket.getaddrinfo

    def look_up_or_wait(host: str, *args: Any, **kwargs: Any) -> Any:
        if host.startswith("silent"):
            silent.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return look_up("127.0.0.1" if host == "hooks.test" else host, *args, **kwargs)

    async def post_to_all() -> None:
        async with Receiver() as receiver, WebhookClient(NAMED, timeout_s=2) as client:
            posts = [client.post(f"https://silent-{number}.test/", HEADERS, b"{}") for number in range(40)]
            slow = [asyncio.create_task(post) for post in posts]
            try:
                await asyncio.sleep(0.1)
                assert await client.post(f"http://hooks.test:{receiver.port}/", HEADERS, b"{}") == (204, None)
                failed = await asyncio.gather(*slow, return_exceptions=True)
                assert {str(error) for error in failed} == {"no answer within 2 s"}
            finally:
                silent.set()

    monkeypatch.setattr(socket, "getaddrinfo", look_up_or_wait)
    # uvloop's own look-ups would not call the patched function.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(post_to_all())


async def test_further_names_fail_while_too_many_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up counts until its thread ends, also after its webhook has timed out."""
    silent = threading.Event()
    monkeypatch.setattr(system_resolver, "LOOKUPS_MAX", 3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: silent.wait(30) and [])
    async with WebhookClient(frozenset(), timeout_s=0.5) as client:
        try:
            for number in range(4):
                with pytest.raises(WebhookFailed, match="no answer within" if number < 3 else "ClientConnector"):
                    await client.post(f"https://silent-{number}.test/", HEADERS, b"{}")
        finally:
            silent.set()


async def test_a_name_fails_while_the_machine_allows_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not count as a look-up after that."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    resolver = system_resolver.SystemResolver()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        patched.setattr(system_resolver, "LOOKUPS_MAX", 1)
        for _ in range(2):
            with pytest.raises(OSError, match="can't start new thread"):
                await resolver.resolve("localhost")
    assert await resolver.resolve("localhost")


async def test_cookies_are_not_kept_and_proxies_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver's cookie is not sent to another; a proxy would connect to unchecked addresses."""
    receiver.answer = answer_with(204, **{"set-cookie": "a=b; Path=/"})
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    async with webhooks() as client:
        for _ in range(2):
            await client.post(receiver.url, HEADERS, b"{}")
    assert ["cookie" in webhook.headers for webhook in receiver.received] == [False, False]


async def test_an_endless_response_is_not_read(receiver: Receiver) -> None:
    """Only its status counts; the connection is closed."""
    is_left = asyncio.Event()

    async def endless(_: ReceivedWebhook, request: Request) -> StreamResponse:
        response = StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(65536))
        finally:
            is_left.set()

    receiver.answer = endless
    async with webhooks() as client:
        assert (await client.post(receiver.url, HEADERS, b"{}")).status == 200
        await asyncio.wait_for(is_left.wait(), 5)


async def test_a_compressed_response_is_not_unpacked(receiver: Receiver) -> None:
    """A decompression bomb has a status like any other response."""

    async def bomb(_: ReceivedWebhook, __: Request) -> Response:
        return Response(body=gzip.compress(bytes(50_000_000)), headers={"content-encoding": "gzip"})

    receiver.answer = bomb
    async with webhooks() as client:
        assert (await client.post(receiver.url, HEADERS, b"{}")).status == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff garbage\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 204 No Content\r\n" + b"x: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 99999999999 X\r\n\r\n",
        b"HTTP/1.1 204 No",
    ],
    ids=["nothing", "garbage", "another protocol", "a header of 1 MB", "no status", "half a line"],
)
async def test_an_invalid_response_is_a_failure(raw: bytes) -> None:
    async with answering_server(raw) as url, webhooks(timeout_s=2) as client:
        with pytest.raises(WebhookFailed):
            await client.post(url, HEADERS, b"{}")


async def test_https_verifies_the_certificates_host_name(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the operator's certificate authorities, although the connection is made by address."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    async with Receiver(tls(certificate)) as receiver, webhooks(NAMED, Names("127.0.0.1")) as client:
        assert await client.post(f"https://hooks.test:{receiver.port}/", HEADERS, b"{}") == (204, None)


@pytest.mark.parametrize(("is_trusted", "host"), [(False, "hooks.test"), (True, "other.test")])
async def test_an_invalid_certificate_gets_no_body(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, host: str, *, is_trusted: bool
) -> None:
    """An unknown authority, or another host's certificate."""
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    async with Receiver(tls(certificate)) as receiver, webhooks(frozenset({host}), Names("127.0.0.1")) as client:
        with pytest.raises(WebhookFailed, match="Certificate"):
            await client.post(f"https://{host}:{receiver.port}/", HEADERS, b"{}")
        assert receiver.received == []
