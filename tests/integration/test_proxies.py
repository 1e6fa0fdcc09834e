"""The configurations of deploy/proxies with the real proxies: TLS, streams, rolling restarts, limits, headers, logs."""

import asyncio
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGTERM
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tailrace.features.gateway import ROUTES
from tailrace.generators.settings import Settings as GeneratorSettings
from tailrace.proto.ids import BEFORE_FIRST, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.ownership import ScopedKey
from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.freeze import freeze
from tests.harness.generator_in_loop import words
from tests.harness.processes import CHECKOUT
from tests.harness.proxies import (
    CADDY,
    ENVOY,
    FILES,
    KINDS,
    START_S_MAX,
    Proxy,
    open_streams,
    ports_of,
    read_file,
    running_proxy,
)
from tests.harness.readers import read
from tests.harness.system import System
from tests.harness.until import until
from tests.promises import Frame

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

# A gateway that does not answer for so long is busy. One that does not answer for the other time has vanished.
BUSY_S, VANISHED_S_MAX = 3.0, 10.0
BODY_BYTES_MAX = 32 * 1024 * 1024
STREAMS_ADDRESS_MAX = 6
# The limits of silence in the files: of a stream, and of a response that comes when its turn has ended.
STREAM_LIMIT = re.compile(r"((?:proxy_read_timeout|timeout client|timeout server|stream_idle_timeout:) )90s")
JSON_LIMIT = re.compile(r"((?:proxy_read_timeout|set-timeout server|\bidle_timeout:) )([0-9]+m|[0-9]{3,}s)")
SILENCE = "#sim words=3 rate=0 wait=4"
# The end of a stream as curl sees it: a whole body, a body that was cut, or nothing within curl's limit of time.
CURL_ENDS = {0: "whole", 18: "cut", 28: "silent", 56: "cut", 92: "cut"}
CURL_S_MAX = "8"
CURL_TRIES = 10
# The first one has no end of its own.
CUT_DIALECTS = ("text", "tailrace", "ui", "openai-chat")
CUTS = {"fin": Cut(3000, "fin"), "rst": Cut(3000, "rst"), "silence": Cut(3000, "silence"), "none": None}
PROGRAMS = [
    pytest.param(
        program, marks=pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is missing"), id=kind.file
    )
    for program, kind in KINDS.items()
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxied_system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    settings = {"TAILRACE_PROXIES": "127.0.0.1,::1", "TAILRACE_STREAMS_ADDRESS_MAX": STREAMS_ADDRESS_MAX}
    async with System(tmp_path_factory.mktemp("proxied"), settings={"gateway": settings}) as system:
        await system.start(gateways=2)
        yield system


@pytest_asyncio.fixture(params=PROGRAMS, loop_scope="module")
async def proxied_client(
    request: pytest.FixtureRequest, proxied_system: System, tmp_path: Path
) -> AsyncIterator[tuple[Proxy, System]]:
    async with running_proxy(request.param, read_file(request.param), ports_of(proxied_system), tmp_path) as proxy:
        yield proxy, proxied_system


async def wait_for_cancellation(client: httpx2.AsyncClient, turn: str) -> bool:
    # 502 while the proxy believes that both gateways are down.
    return (await client.post(f"/v1/turns/{turn}/cancel")).status_code < 300


async def follow(client: httpx2.AsyncClient, turn: str) -> list[Frame]:
    """Reads a turn to its end over as many connections as that takes."""
    frames: list[Frame] = []
    while True:
        try:
            received = await read(client, turn, frames[-1].seq if frames else BEFORE_FIRST)
        except (AssertionError, httpx2.TransportError):
            await asyncio.sleep(0.1)  # 502 or no connection: a client waits for `retry`
            continue
        frames += received.frames
        if received.over == "ended":
            return frames


async def test_readers_resume_through_the_proxy_while_both_gateways_are_restarted(
    proxied_client: tuple[Proxy, System],
) -> None:
    """One is killed, the other drains. Each reader has every entry once, and the first ones before the answer ends."""
    proxy, system = proxied_client
    created = await proxy.client.post("/v1/turns", json={"message": "#sim words=100000 rate=40"})
    turn = created.json()["turn"]
    assert (await read(proxy.client, turn, most=3)).over == "left"
    readers = [asyncio.create_task(follow(proxy.client, turn)) for _ in range(2)]
    try:
        for number, signal in ((0, SIGKILL), (1, SIGTERM)):
            await until(lambda: have_readers(system, 2), START_S_MAX)
            gateway, other = system.gateways[number], system.clients[1 - number]
            await gateway.stop(signal)
            await until(lambda other=other: is_count(other, 2), START_S_MAX)  # type: ignore[misc]
            await gateway.start()
        await until(lambda: wait_for_cancellation(proxy.client, turn), START_S_MAX)
        whole = await read(system.clients[0], turn)
        for reader in readers:
            assert await reader == list(whole.frames)
    finally:
        for reader in readers:
            reader.cancel()
    assert (await system.log.read_turn(ScopedKey.whole(TurnKey(Tenant("local"), TurnId(turn))))).end is not None


async def test_a_websocket_goes_on_through_the_proxy_when_its_gateway_is_killed(
    proxied_client: tuple[Proxy, System],
) -> None:
    """Each event comes once, over two connections."""
    proxy, system = proxied_client
    trusted = ssl.create_default_context()
    trusted.check_hostname, trusted.verify_mode = False, ssl.CERT_NONE
    url, events = f"wss://localhost:{proxy.port}/v1/responses", list[dict[str, Any]]()
    create = {"type": "response.create", "model": "claude-haiku-5-5", "input": "#sim words=200 rate=40"}
    async with connect(url, ssl=trusted, max_size=None) as first:
        await first.send(json.dumps(create))
        while len(events) < 10:
            events.append(json.loads(await first.recv()))
        serving = [await open_streams(client) for client in system.clients].index(1)
        await system.gateways[serving].stop(SIGKILL)
        with suppress(ConnectionClosed):
            while True:
                events.append(json.loads(await first.recv()))
    try:
        after = {"response_id": events[0]["response_id"], "starting_after": events[-1]["sequence_number"]}
        second = await until(lambda: connected(url, trusted), START_S_MAX)
        assert second is not None
        async with second:
            await second.send(json.dumps({"type": "response.resume", **after}))
            while events[-1]["type"] != "response.completed":
                events.append(json.loads(await second.recv()))
    finally:
        await system.gateways[serving].start()
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(event["delta"] for event in events if event["type"].endswith("text.delta")) == words(200)


async def connected(url: str, context: ssl.SSLContext) -> ClientConnection | None:
    # 502 while the proxy believes that the killed gateway is up.
    with suppress(InvalidHandshake, OSError):
        return await connect(url, ssl=context, max_size=None)
    return None


@pytest.mark.rule("F41")
@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is missing")
async def test_haproxy_cuts_the_streams_of_a_gateway_that_has_vanished_and_not_those_of_a_busy_one(
    proxied_system: System, tmp_path: Path
) -> None:
    """A frozen gateway is like a machine without power: its connections stay open, and nothing comes."""
    async with running_proxy("haproxy", read_file("haproxy"), ports_of(proxied_system), tmp_path) as proxy:
        turn = (await proxy.client.post("/v1/turns", json={"message": "#sim words=100000 rate=40"})).json()["turn"]
        reading = asyncio.create_task(read(proxy.client, turn))
        try:
            await until(lambda: have_readers(proxied_system, 1), START_S_MAX)
            serving = [await open_streams(client) for client in proxied_system.clients].index(1)
            frozen = proxied_system.gateways[serving]
            freeze(frozen)
            await asyncio.sleep(BUSY_S)
            frozen.signal(SIGCONT)
            # Longer than it takes HAProxy to notice.
            assert not (await asyncio.wait([reading], timeout=VANISHED_S_MAX))[0]
            freeze(frozen)
            async with asyncio.timeout(VANISHED_S_MAX):
                first = await reading
                assert first.over == "cut"
                assert (await read(proxy.client, turn, first.frames[-1].seq, most=3)).over == "left"
        finally:
            reading.cancel()
            proxied_system.gateways[0].signal(SIGCONT)
            proxied_system.gateways[1].signal(SIGCONT)
        await until(lambda: wait_for_cancellation(proxy.client, turn), START_S_MAX)


@pytest.mark.rule("F41")
async def test_the_kernel_probes_the_machine_of_a_gateway(proxied_client: tuple[Proxy, System]) -> None:
    """In this way, all but HAProxy notice that a machine has vanished; HAProxy has checks of its own for it."""
    proxy, system = proxied_client
    turn = (await proxy.client.post("/v1/turns", json={"message": "#sim words=100000 rate=1"})).json()["turn"]
    reading = asyncio.create_task(read(proxy.client, turn))
    try:
        await until(lambda: have_readers(system, 1), START_S_MAX)
        ports = " or ".join(f"dport = :{port}" for port in ports_of(system))
        printed = await asyncio.to_thread(subprocess.check_output, ["ss", "-Htnpo", ports], text=True)
        of_proxy = [line for line in printed.splitlines() if re.search(r'"(nginx|caddy|envoy|haproxy)"', line)]
        assert of_proxy
        assert all("timer:(keepalive," in line or '"haproxy"' in line for line in of_proxy), of_proxy
    finally:
        reading.cancel()
    await until(lambda: wait_for_cancellation(proxy.client, turn), START_S_MAX)


async def have_readers(system: System, count: int) -> bool:
    return sum([await open_streams(client) for client in system.clients]) == count


async def is_count(client: httpx2.AsyncClient, count: int) -> bool:
    return await open_streams(client) == count


def require_large_body_refused(port: int, context: ssl.SSLContext) -> None:
    """Posts a body above the limit. In a thread: uvloop's TLS sometimes failed to decrypt Caddy's response."""
    context.set_alpn_protocols(["http/1.1"])
    head = "POST /v1/turns HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\n"
    head += "content-type: application/json\r\n"
    # Otherwise Caddy keeps the connection open if the gateway has refused the request before Caddy did.
    head += f"connection: close\r\ncontent-length: {BODY_BYTES_MAX + 1}\r\n\r\n"
    with (
        socket.create_connection(("localhost", port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
        connection.makefile("rb") as response,
    ):
        connection.sendall(head.encode())
        if b" 413 " in (first := response.readline()):
            return
        # Caddy reads on, and then breaks the connection off: a client may miss the 413.
        assert first.startswith(b"HTTP/1.1 100 ")
        with suppress(ConnectionError, ssl.SSLEOFError):
            connection.sendall(b" " * (BODY_BYTES_MAX + 1))
            assert b"HTTP/1.1 2" not in response.read()


async def test_proxy_raises_its_soft_limit_of_files(proxied_client: tuple[Proxy, System]) -> None:
    proxy, _ = proxied_client
    idle = [await asyncio.open_connection("localhost", proxy.plain_port) for _ in range(FILES)]
    try:
        async with httpx2.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://localhost:{proxy.plain_port}/v1/turns")).status_code == 308
    finally:
        for _, writer in idle:
            writer.close()


# Hundreds of streams over TLS, and a body of 32 MB.
async def test_tls_limits_headers_and_logs(proxied_client: tuple[Proxy, System]) -> None:
    """A redirect to TLS, 413 for a large body, no metrics; no forged address; tickets are not logged."""
    proxy, _ = proxied_client
    trusted = ssl.create_default_context()
    trusted.check_hostname, trusted.verify_mode = False, ssl.CERT_NONE
    async with httpx2.AsyncClient(trust_env=False) as plain:
        moved = await plain.get(f"http://localhost:{proxy.plain_port}/v1/turns")
    assert (moved.status_code, moved.headers["location"].startswith("https://localhost")) == (308, True)

    await asyncio.to_thread(require_large_body_refused, proxy.port, trusted)
    for path in ("/metrics", "/%6Detrics"):
        assert (await proxy.client.get(path)).status_code == 404
    turn = (await proxy.client.post("/v1/turns", json={"message": "#sim words=100000 rate=10"})).json()["turn"]
    statuses = set()
    streams = []
    for number in range(2 * STREAMS_ADDRESS_MAX + 1):
        forged = {"x-forwarded-for": f"203.0.113.{number}"}
        request = proxy.client.build_request("GET", f"/v1/turns/{turn}/events?dialect=tailrace", headers=forged)
        streams.append(await proxy.client.send(request, stream=True))
        statuses.add(streams[-1].status_code)
    for stream in streams:
        await stream.aclose()
    assert 429 in statuses
    assert "dialect=" not in proxy.output.read_text()


def json_requests() -> dict[str, dict[str, Any]]:
    """Returns a request without a stream for each route that responds to it when the turn has ended."""
    messages: dict[str, Any] = {
        "model": "claude-haiku-5-5",
        "max_tokens": 99,
        "messages": [{"role": "user", "content": SILENCE}],
    }
    responses = {"model": "claude-haiku-5-5", "input": SILENCE}
    bodies = {"/v1/chat/completions": messages, "/v1/messages": messages, "/v1/responses": responses}
    made = {one.path for one in ROUTES if one.method == "POST" and one.streams and one.result is not None}
    assert made == bodies.keys()
    return bodies


@pytest.mark.parametrize("program", [program for program in PROGRAMS if program.id != "Caddyfile"])
async def test_a_response_without_a_stream_may_be_silent_for_longer_than_a_stream(
    proxied_system: System, tmp_path: Path, program: str
) -> None:
    """With 1 s instead of 90 s, the proxy closes a silent stream, and waits for the responses without a stream."""
    text, count = STREAM_LIMIT.subn(r"\g<1>1s", read_file(program))
    assert count
    async with running_proxy(program, text, ports_of(proxied_system), tmp_path) as proxy:
        turn = (await proxy.client.post("/v1/turns", json={"message": SILENCE})).json()["turn"]
        reading = asyncio.create_task(read(proxy.client, turn))
        posts = [proxy.client.post(path, json=body) for path, body in json_requests().items()]
        assert [answer.status_code for answer in await asyncio.gather(*posts)] == [200] * len(posts)
        assert (await reading).over == "cut"


@pytest.mark.parametrize("program", [program for program in PROGRAMS if program.id != "Caddyfile"])
async def test_a_response_without_a_stream_has_a_limit_of_its_own(
    proxied_system: System, tmp_path: Path, program: str
) -> None:
    """With 1 s instead of 20 minutes, the proxy answers with 504, and goes on with a silent stream."""
    text, count = JSON_LIMIT.subn(r"\g<1>1s", read_file(program))
    assert count == 1
    async with running_proxy(program, text, ports_of(proxied_system), tmp_path) as proxy:
        turn = (await proxy.client.post("/v1/turns", json={"message": SILENCE})).json()["turn"]
        reading = asyncio.create_task(read(proxy.client, turn))
        posts = [proxy.client.post(path, json=body) for path, body in json_requests().items()]
        assert [answer.status_code for answer in await asyncio.gather(*posts)] == [504] * len(posts)
        assert (await reading).over == "ended"


@pytest.mark.parametrize(
    "path", ["proxies/nginx.conf", "proxies/haproxy.cfg", "proxies/envoy.yaml", "container/nginx.conf"]
)
async def test_the_limit_of_a_response_without_a_stream_is_above_the_deadline_of_a_turn(path: str) -> None:
    """By a minute at least, in which a turn may wait for a generator."""
    ((_, limit),) = JSON_LIMIT.findall((CHECKOUT / "deploy" / path).read_text())
    assert int(limit[:-1]) * {"m": 60, "s": 1}[limit[-1]] >= GeneratorSettings().deadline_s + 60


needs_envoy = pytest.mark.skipif(not ENVOY.exists(), reason="envoy is missing")
# The retry rule of the shipped file, and one that many meshes have.
RETRY_ON, RESET = "retry_on: connect-failure,refused-stream", "retry_on: reset"


@needs_envoy
@pytest.mark.rule("R115")
@pytest.mark.parametrize(
    ("changes", "status", "turns"),
    [
        ({}, 503, 1),
        ({RETRY_ON: RESET}, 200, 1),
        ({RETRY_ON: RESET, "include_request_attempt_count: true": "include_request_attempt_count: false"}, 200, 2),
    ],
    ids=["the file", "reset", "reset, not counted"],
)
@pytest.mark.parametrize("headers", [{}, {"x-stainless-retry-count": "0"}], ids=["no SDK", "an SDK"])
async def test_a_post_that_envoy_repeats_is_one_turn(
    proxied_system: System, tmp_path: Path, changes: dict[str, str], status: int, turns: int, headers: dict[str, str]
) -> None:
    """The connection to the gateway is reset after the turn is stored. An SDK counts only its own repetitions."""
    text = read_file(str(ENVOY))
    for before, after in changes.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    tag = new_id()
    messages = [{"role": "user", "content": "#sim words=40 rate=20"}]
    body = {"model": "claude-haiku-5-5", "metadata": {"tag": tag}, "messages": messages}

    async def stored() -> list[dict[str, Any]]:
        listed = await proxied_system.clients[0].get("/v1/turns", params={"metadata[tag]": tag})
        found: list[dict[str, Any]] = listed.json()["data"]
        return found

    async def have_ended() -> bool:
        return all(turn["outcome"] == "completed" for turn in await stored())

    async with AsyncExitStack() as stack:
        cutters = [await stack.enter_async_context(Cutting(port)) for port in ports_of(proxied_system)]
        ports = [one.port for one in cutters]
        proxy = await stack.enter_async_context(running_proxy(str(ENVOY), text, ports, tmp_path))
        asking = asyncio.create_task(proxy.client.post("/v1/chat/completions", json=body, headers=headers))
        await until(stored)
        for one in cutters:
            one.cut_all()
        answer = await asking
    assert answer.status_code == status
    if status == httpx2.codes.OK:
        assert answer.json()["choices"][0]["message"]["content"] == words(40)
    await until(have_ended)
    assert len(await stored()) == turns


@needs_envoy
async def test_envoy_passes_on_an_answer_that_takes_longer_than_its_default_limit(
    proxied_system: System, tmp_path: Path
) -> None:
    """By default, a route cuts each response after 15 s."""
    async with running_proxy(str(ENVOY), read_file(str(ENVOY)), ports_of(proxied_system), tmp_path) as proxy:
        turn = (await proxy.client.post("/v1/turns", json={"message": "#sim words=85 rate=5"})).json()["turn"]
        assert (await read(proxy.client, turn)).over == "ended"


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is missing")
async def test_nginx_of_other_sites_takes_the_content_of_http_and_logs_no_ticket(
    proxied_system: System, tmp_path: Path
) -> None:
    """Such an nginx logs each request with its query string, unless a `server` has its own log."""
    (content,) = re.findall(r"^http \{\n(.*)^\}$", read_file("nginx"), re.MULTILINE | re.DOTALL)
    other_log = tmp_path / "other"
    text = f"events {{}}\nhttp {{\n  access_log {other_log} combined;\n{content}}}\n"
    async with (
        running_proxy("nginx", text, ports_of(proxied_system), tmp_path) as proxy,
        httpx2.AsyncClient(trust_env=False) as plain,
    ):
        assert (await proxy.client.get("/v1/turns/none/events?ticket=secret")).status_code == httpx2.codes.UNAUTHORIZED
        assert (await plain.get(f"http://localhost:{proxy.plain_port}/v1/turns?ticket=secret")).is_redirect
        logged = {"GET /v1/turns/none/events", "GET /v1/turns"}
        await until(lambda: logged <= set(re.findall(r'"(GET .*?)"', proxy.output.read_text())))
    assert "secret" not in proxy.output.read_text() + other_log.read_text()


# HTTP/2 is what a browser asks for; behind HAProxy, it gets HTTP/1.1 (deploy/proxies/haproxy.cfg).
@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_cut_stream_looks_cut(proxied_system: System, tmp_path: Path, program: str) -> None:
    """Over HTTP/1.1 and HTTP/2, in each dialect, if the gateway's connection is closed, reset or silent.

    nginx and HAProxy close a silent stream (here after 3 s). Caddy has no limit, so the client's own limit ends it.
    """
    text = STREAM_LIMIT.sub(r"\g<1>3s", read_file(program))
    async with AsyncExitStack() as stack:
        cutters = [await stack.enter_async_context(Cutting(port)) for port in ports_of(proxied_system)]
        proxy = await stack.enter_async_context(running_proxy(program, text, [one.port for one in cutters], tmp_path))
        seen = {}
        # Whole streams come last: the proxy keeps their connections, whose earlier bytes a cut would count.
        for how, cut in CUTS.items():
            for version in ("1.1", "2"):
                for one in cutters:
                    one.left = [cut] * CURL_TRIES * len(CUT_DIALECTS) if cut else []
                line = f"#sim words={4000 if cut else 60} rate=400"
                curls = [curl_turn(proxied_system, proxy.port, version, line, dialect) for dialect in CUT_DIALECTS]
                seen[version, how] = set(await asyncio.gather(*curls))
    versions = {"1.1": "1.1", "2": "1.1" if program == "haproxy" else "2"}
    ends = {"none": "whole", "fin": "cut", "rst": "cut", "silence": "silent" if program == str(CADDY) else "cut"}
    assert seen == {
        (version, how): {(spoken, end)} for version, spoken in versions.items() for how, end in ends.items()
    }


async def curl_turn(system: System, port: int, version: str, line: str, dialect: str) -> tuple[str, str]:
    """Reads a new turn with curl. Returns the version of HTTP that it spoke, and how the stream ended for it.

    On a busy machine, a proxy may answer with an error of its own, such as 504, which curl repeats.
    """
    turn = (await system.clients[0].post("/v1/turns", json={"message": line})).json()["turn"]
    arguments = [f"--http{version}", "-ksN", "--max-time", CURL_S_MAX, "-o", os.devnull]
    url = f"https://localhost:{port}/v1/turns/{turn}/events?dialect={dialect}"
    for _ in range(CURL_TRIES):
        process = await asyncio.create_subprocess_exec(
            "curl", *arguments, "-w", "%{http_version} %{http_code}", url, stdout=subprocess.PIPE
        )
        printed, _ = await process.communicate()
        spoken, status = printed.decode().split()
        if status == "200":
            break
        await asyncio.sleep(1)
    await system.clients[0].post(f"/v1/turns/{turn}/cancel")
    end = CURL_ENDS.get(process.returncode or 0, f"curl exits with {process.returncode}")
    return spoken, end if status == "200" else f"status {status}"
