"""The network of a company: an HTTP proxy to the model, and TLS that the company's own authority signs."""

import asyncio
import ssl
from asyncio import StreamReader, StreamWriter
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.harness.certificates import make_self_signed
from tests.harness.forks import run_module
from tests.harness.system import System

USER, PASSWORD = "ops", "pass@word"
HEADER = b"proxy-authorization: basic " + b64encode(f"{USER}:{PASSWORD}".encode()).lower()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate of `localhost`, and its key."""
    return make_self_signed(tmp_path_factory.mktemp("tls"), "localhost")


async def relay(reader: StreamReader, writer: StreamWriter, host: str, port: int) -> None:
    """Connects both sides of a connection until one of them ends."""

    async def copy(source: StreamReader, target: StreamWriter) -> None:
        with closing(target):
            while data := await source.read(65_536):
                target.write(data)
                await target.drain()

    far_reader, far_writer = await asyncio.open_connection(host, port)
    await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer), return_exceptions=True)


@asynccontextmanager
async def proxied_model(claude: str, certificate: tuple[Path, Path]) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Yields the URL of a proxy behind which `https://localhost` is the simulated Claude, and what it was asked."""
    address = urlsplit(claude)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    requests: list[bytes] = []

    async def serve_model(reader: StreamReader, writer: StreamWriter) -> None:
        await relay(reader, writer, str(address.hostname), address.port or 80)

    async def serve_proxy(reader: StreamReader, writer: StreamWriter) -> None:
        requests.append((await reader.readuntil(b"\r\n\r\n")).lower())
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await relay(reader, writer, *model.sockets[0].getsockname()[:2])

    model = await asyncio.start_server(serve_model, "127.0.0.1", 0, ssl=context)
    proxy = await asyncio.start_server(serve_proxy, "127.0.0.1", 0)
    async with model, proxy:
        yield f"http://{USER}:{PASSWORD.replace('@', '%40')}@127.0.0.1:{proxy.sockets[0].getsockname()[1]}", requests


@pytest.mark.parametrize("trust", ["the company's authority", "other authorities"])
async def test_a_generator_calls_the_model_through_a_proxy(
    system: System, claude: str, certificate: tuple[Path, Path], trust: str
) -> None:
    """`SSL_CERT_FILE` names the authority. Without it, the error says that the certificate is the reason."""
    environ = {"TAILRACE_NATS_URL": system.nats_url, "ANTHROPIC_API_KEY": "sk-test"}
    environ |= {"ANTHROPIC_BASE_URL": "https://localhost"}
    async with proxied_model(claude, certificate) as (proxy, requests):
        environ["HTTPS_PROXY"] = proxy
        if trust == "the company's authority":
            environ["SSL_CERT_FILE"] = str(certificate[0])
        status, stdout, stderr = await run_module("tailrace.generators", "--check", **environ)
    assert requests[0].startswith(b"connect localhost:443 ")
    assert HEADER in requests[0]
    if trust == "the company's authority":
        assert (status, stdout, stderr) == (0, "generators: settings and connections are valid\n", "")
        return
    assert status == 1
    assert "https://localhost: no connection to the model (backend_unreachable: Cannot connect to host" in stderr
    assert "certificate verify failed: self-signed certificate" in stderr
    assert PASSWORD not in stderr


async def test_the_reason_of_a_proxy_that_refuses_has_no_password(system: System) -> None:
    """The URL of the proxy has one. Log lines of failed calls have the same reason."""

    async def refuse(reader: StreamReader, writer: StreamWriter) -> None:
        with closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        environ = {"TAILRACE_NATS_URL": system.nats_url, "ANTHROPIC_API_KEY": "sk-test"}
        environ |= {"ANTHROPIC_BASE_URL": "https://localhost", "HTTPS_PROXY": f"http://{USER}:secret@127.0.0.1:{port}"}
        status, _, stderr = await run_module("tailrace.generators", "--check", **environ)
    assert status == 1
    assert "no connection to the model (backend_unreachable: 407" in stderr
    assert "secret" not in stderr


@pytest.mark.parametrize("role", ["generators", "gateway", "persistence"])
async def test_a_file_without_authorities_is_refused_at_start(system: System, tmp_path: Path, role: str) -> None:
    """Also by the command line. Each HTTP client reads the file."""
    (tmp_path / "empty.pem").touch()
    environ = {"TAILRACE_NATS_URL": system.nats_url, "SSL_CERT_FILE": str(tmp_path / "none.pem")}
    status, _, stderr = await run_module(f"tailrace.{role}", "--check", **environ)
    assert (status, stderr.count("\n")) == (2, 1)
    assert f"{role}: SSL_CERT_FILE={tmp_path / 'none.pem'} cannot be used (No such file or directory)" in stderr
    environ["SSL_CERT_FILE"] = str(tmp_path / "empty.pem")
    status, _, stderr = await run_module("tailrace", "turns", "--url", "http://127.0.0.1:1", **environ)
    assert (status, stderr.count("\n")) == (2, 1)
    assert stderr.startswith("tailrace: SSL_CERT_FILE=")
    assert "name a PEM file of certificate authorities" in stderr
