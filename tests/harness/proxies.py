"""The proxies of deploy/proxies, run with their files in front of two gateways."""

import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from signal import SIGKILL
from typing import NamedTuple

import httpx2

from tailrace.deploy.local import ports
from tests.harness.processes import CHECKOUT
from tests.harness.system import System
from tests.harness.until import until

START_S_MAX = 30.0
# Docker and systemd start programs with a soft limit of 1024 files, and a much higher hard limit.
FILES = 256
CADDY, ENVOY = (Path(sys.executable).with_name(program) for program in ("caddy", "envoy"))
CERTIFICATE = (
    "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    " -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem"
)


class Kind(NamedTuple):
    """A proxy: its file in deploy/proxies, the command that checks it and the command that runs it."""

    file: str
    check: Callable[[Path], list[str | Path]]
    run: Callable[[Path], list[str | Path]]


def nginx(path: Path) -> list[str | Path]:
    return ["nginx", "-c", path, "-g", f"daemon off; pid {path.parent}/pid; error_log {path.parent}/output warn;"]


KINDS = {
    "nginx": Kind("nginx.conf", lambda path: [*nginx(path), "-t"], nginx),
    "haproxy": Kind(
        "haproxy.cfg", lambda path: ["haproxy", "-c", "-f", path], lambda path: ["haproxy", "-db", "-f", path]
    ),
    str(CADDY): Kind(
        "Caddyfile",
        lambda path: [CADDY, "validate", "--config", path, "--adapter", "caddyfile"],
        lambda path: [CADDY, "run", "--config", path, "--adapter", "caddyfile"],
    ),
    str(ENVOY): Kind(
        "envoy.yaml",
        lambda path: [ENVOY, "--mode", "validate", "-c", path],
        lambda path: [ENVOY, "-c", path, "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"],
    ),
}


def loopback_name() -> str:
    """Returns the name of this machine if it leads to 127.0.0.1: gateways have names, which they refuse as a `Host`."""
    with suppress(OSError):
        if socket.gethostbyname(name := socket.gethostname()) == "127.0.0.1":
            return name
    return "127.0.0.1"


class Proxy(NamedTuple):
    client: httpx2.AsyncClient
    port: int
    plain_port: int
    output: Path


def ports_of(system: System) -> list[int]:
    return [int(gateway.url.rpartition(":")[2]) for gateway in system.gateways]


def read_file(program: str) -> str:
    return (CHECKOUT / "deploy/proxies" / KINDS[program].file).read_text()


def proxy_of(
    program: str, text: str, gateways: Sequence[int], folder: Path, files: int = FILES
) -> tuple[Proxy, subprocess.Popen[bytes]]:
    """Starts the proxy with the text of its file in deploy/proxies; only names, ports and paths are other ones.

    `gateways`: the ports of the two gateways; `files`: how many the proxy may have open at first.
    """
    kind, tls = KINDS[program], folder / "tls"
    tls.mkdir()
    subprocess.run(["openssl", *CERTIFICATE.split()], cwd=tls, check=True, capture_output=True)
    (tls / "site.pem").write_text((tls / "cert.pem").read_text() + (tls / "key.pem").read_text())
    port, plain_port = ports.find_free(2)
    first, second = (f"{loopback_name()}:{gateway}" for gateway in gateways)
    for pattern, value in (
        (r"/etc/tailrace/tls", str(tls)),
        (r"/var/log/nginx/access.log", f"{folder}/output"),
        (r"gateway-1:8000", first),
        (r"gateway-2:8000", second),
        (r"chat\.example\.com", "localhost"),
        (r"\b443\b", str(port)),
        (r"address: gateway-1, port_value: 8000", f"address: {first.replace(':', ', port_value: ')}"),
        (r"address: gateway-2, port_value: 8000", f"address: {second.replace(':', ', port_value: ')}"),
        (r"worker_processes auto", "worker_processes 1"),
        (r"(listen |http_port |bind :|port_value: )80\b", rf"\g<1>{plain_port}"),
    ):
        text = re.sub(pattern, value, text)
    if kind.file == "Caddyfile":
        text = text.replace("{\n", "{\n\tadmin off\n", 1)
    path = folder / kind.file
    path.write_text(text)
    subprocess.run(kind.check(path), check=True, capture_output=True, timeout=30)
    output = folder / "output"
    with output.open("ab") as log:
        process = subprocess.Popen(
            ["sh", "-c", f'ulimit -Sn {files}; exec "$@"', "sh", *kind.run(path)],
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, "HOME": str(folder)},
            start_new_session=True,
        )
    trusted = ssl.create_default_context(cafile=tls / "cert.pem")
    client = httpx2.AsyncClient(base_url=f"https://localhost:{port}", verify=trusted, timeout=30, trust_env=False)
    return Proxy(client, port, plain_port, output), process


@asynccontextmanager
async def running_proxy(
    program: str, text: str, gateways: Sequence[int], folder: Path, files: int = FILES
) -> AsyncIterator[Proxy]:
    proxy, process = proxy_of(program, text, gateways, folder, files)
    try:
        async with proxy.client:
            await until(lambda: answers(proxy.client), START_S_MAX)
            yield proxy
    finally:
        # Its group: the workers of nginx outlive a killed master.
        os.killpg(process.pid, SIGKILL)
        process.wait(20)


async def answers(client: httpx2.AsyncClient) -> bool:
    try:
        return (await client.get("/healthz")).status_code == 200
    except httpx2.TransportError:
        return False


async def open_streams(client: httpx2.AsyncClient) -> int:
    text = (await client.get("/metrics")).text
    return int(sum(map(float, re.findall(r"^tailrace_gateway_streams_open\{.*\} (\S+)", text, re.MULTILINE))))
