"""Headers and paths by raw socket: no byte of a client's becomes a header of an answer, and no path leads to a file."""

import asyncio
import re

import pytest

from tests.integration.conftest import KEY, Gateway, NewGateway

ORIGIN = "https://app.example"
FORGED = b"forged: 1"
# What ends a line, or is cut down to what does, or ends a string.
BREAKS = (
    *(b"\r", b"\n", b"\r\n", b"\r\n ", b"\0", b"\x0b", b"\x0c", b"\x1b[2J", b"\x7f", b"%0d%0a", b"\\r\\n"),
    *("\u560d\u560a".encode(), "\u2028".encode(), "\u0085".encode(), b"\x85", b"\xff"),
)
NAMED = (
    *("x-request-id", "request-id", "x-correlation-id", "traceparent", "tracestate", "idempotency-key"),
    *("origin", "access-control-request-headers", "access-control-request-method", "last-event-id", "cookie"),
    *("x-session-id", "x-project-id", "anthropic-version", "anthropic-beta", "authorization", "x-api-key", "host"),
    *("x-forwarded-for", "x-forwarded-proto", "forwarded", "user-agent", "referer", "accept", "content-type"),
)
ANTHROPIC = b'{"model": "claude-haiku-5-5", "max_tokens": 9, "stream": true, "messages": []}'
# With what each of them is read by somebody.
REQUESTS = (
    ("GET", "/v1/turns/*/events", b""),
    ("OPTIONS", "/v1/turns", b""),
    ("POST", "/v1/turns", b'{"message": ""}'),
    ("POST", "/v1/messages", ANTHROPIC),
    ("POST", "/chat", b'{"message": ""}'),
)
# All that an answer of these may have.
HEADER = re.compile(rb"[!-~]+: [\t -~]*")


def asking(method: str, path: str, body: bytes, name: str, value: bytes) -> bytes:
    usual = {
        "host": b"localhost",
        "x-api-key": KEY.encode(),
        "content-type": b"application/json",
        "origin": ORIGIN.encode(),
        "access-control-request-method": b"POST",
        "connection": b"close",
        "content-length": str(len(body)).encode(),
    }
    headers = {**usual, name: value}
    lines = [f"{method} {path} HTTP/1.1".encode(), *(b"%s: %s" % (k.encode(), v) for k, v in headers.items())]
    return b"\r\n".join([*lines, b"", body])


async def answered(gateway: Gateway, request: bytes) -> bytes:
    """All that comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.rule("S6")
@pytest.mark.parametrize(("method", "path", "body"), REQUESTS, ids=[path for _, path, _ in REQUESTS])
async def test_no_header_of_a_client_becomes_one_of_an_answer(
    nats_url: str, new_gateway: NewGateway, method: str, path: str, body: bytes
) -> None:
    """FAULTS S6: each is refused, or left out, or comes back as what it is: one value, on one line."""
    gateway = await new_gateway(nats_url, origins=ORIGIN)
    for name in NAMED:
        for ends in BREAKS:
            request = asking(method, path, body, name, b"x" + ends + FORGED)
            head, found, _ = (await answered(gateway, request)).partition(b"\r\n\r\n")
            assert found, (name, ends)
            status, *lines = head.split(b"\r\n")
            assert re.fullmatch(rb"HTTP/1.1 [2-4]\d\d [ A-Za-z]+", status), (name, ends, status)
            assert [line for line in lines if HEADER.fullmatch(line) is None] == [], (name, ends)
            assert not [line for line in lines if line.startswith((b"forged", b"set-cookie"))], (name, ends)


CLIMBS = (
    *(
        "../",
        "..%2f",
        "%2e%2e/",
        "%2e%2e%2f",
        "..%5c",
        "..\\",
        "%252e%252e%252f",
        "....//",
        "..;/",
        "..%00/",
        "..%c0%af",
    ),
    *("%c0%ae%c0%ae/", "//", "/./"),
)
FROM = ("/", "/docs/", "/openapi.json/", "/v1/", "/v1/blobs/", "/v1/prompts/", "/static/", "/chat/")
FILES = ("etc/passwd", "pyproject.toml", "gateway/app.py", ".git/config", "proc/self/environ")
HIDDEN = (
    *("/.env", "/.git/config", "/.git/HEAD", "/.htaccess", "/.ssh/id_rsa", "/.tailrace/nats.conf", "/.well-known/x"),
    *("/docs/", "/static/", "/assets/", "/pyproject.toml", "/gateway/app.py", "/favicon.ico", "/docs/API.md"),
    *("/file:///etc/passwd", "//etc/passwd", "/C:/windows/win.ini", "/%2fetc%2fpasswd", "/nats.url", "/tailrace.db"),
)


@pytest.mark.rule("S9")
async def test_no_path_leads_to_a_file_or_to_a_list_of_them(lone_gateway: Gateway) -> None:
    """FAULTS S9: nothing is served from a folder. What climbs, what is hidden and what is a folder are not there."""
    climbing = [begin + climb * deep + file for begin in FROM for climb in CLIMBS for deep in (1, 6) for file in FILES]
    reader, writer = await asyncio.open_connection("127.0.0.1", lone_gateway.port)
    for path in (*climbing, *HIDDEN):
        writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {KEY}\r\n\r\n".encode())
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None, path
            body = await reader.readexactly(int(length[1]))
        assert head.startswith(b"HTTP/1.1 404 "), (path, head)
        assert body.startswith(b'{"error":'), path
    writer.close()
