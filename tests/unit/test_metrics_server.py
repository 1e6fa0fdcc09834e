"""The Prometheus endpoint of a process: which Host headers and addresses it accepts; its health checks."""

import socket
import struct
import threading
import time
from pathlib import Path

import httpx2
import pytest

from tailrace.deploy.local.ports import find_free
from tailrace.proto.runtime import metrics_targets
from tailrace.proto.runtime.metrics_server import check_host, serve
from tailrace.proto.service import HEALTH_CHECKS
from tailrace.proto.waiting import BEAT_LATE_S, HEALTH
from tests.harness.until import until


@pytest.mark.rule("S3")
@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:9100", 200), ("localhost", 200), ("[::1]:9100", 200), ("rebound.example:9100", 403), ("", 403)],
)
def test_on_loopback_only_addresses_and_localhost_are_accepted(host: str, status: int) -> None:
    """A page of a browser on this machine could otherwise read the metrics under its own host name."""
    [port] = find_free(1)
    serve("127.0.0.1", port, {})
    with httpx2.Client(trust_env=False) as client:
        answer = client.get(f"http://127.0.0.1:{port}/metrics", headers={"host": host})
    assert answer.status_code == status
    assert ("tailrace_" in answer.text) == (status == 200)


def test_on_another_address_a_scraper_may_use_any_name() -> None:
    def app(*_: object) -> list[bytes]:
        return [b""]

    assert check_host(app, "0.0.0.0") is app
    assert check_host(app, "127.0.0.1") is not app


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_metrics_are_served_on_an_ipv6_address() -> None:
    [port] = find_free(1)
    serve("::1", port, {})
    with httpx2.Client(trust_env=False) as client:
        assert "tailrace_" in client.get(f"http://[::1]:{port}/metrics").text


def test_targets_are_listed_under_the_address_that_the_client_has_used(tmp_path: Path) -> None:
    """`up` knows only an address of this machine. Prometheus keeps its targets when it receives an error."""
    file = tmp_path / "targets.json"
    [port] = find_free(1)
    serve("127.0.0.1", port, {}, str(file))
    with httpx2.Client(trust_env=False, base_url=f"http://127.0.0.1:{port}") as client:
        missing = client.get("/targets")
        assert (missing.status_code, str(file) in missing.text) == (503, True)
        file.write_bytes(metrics_targets.encode({"127.0.0.1:9101": "gateway", "127.0.0.1:9102": "gateway"}))
        for name, host in (("localhost:19100", "localhost"), ("[::1]:19100", "[::1]")):
            answer = client.get("/targets", headers={"host": name})
            assert answer.headers["content-type"] == "application/json"
            assert answer.json() == [{"targets": [f"{host}:9101", f"{host}:9102"], "labels": {"part": "gateway"}}]
        assert client.get("/targets", headers={"host": "rebound.example"}).status_code == 403


async def test_a_client_that_is_silent_or_resets_its_connection_leaves_no_thread_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard error has one JSON object a line."""
    monkeypatch.setattr("tailrace.proto.runtime.metrics_server.SILENCE_S_MAX", 1.0)
    [port] = find_free(1)
    serve("127.0.0.1", port, {})
    before = threading.active_count()
    with socket.create_connection(("127.0.0.1", port)) as silent, socket.create_connection(("127.0.0.1", port)) as lost:
        await until(lambda: threading.active_count() == before + 2)
        lost.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        lost.close()
        await until(lambda: threading.active_count() == before)
        assert silent.recv(1) == b""
    assert capsys.readouterr().err == ""


def test_health_checks_tell_a_start_and_an_event_loop_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """`/readyz` fails until the process does its work, `/healthz` while its event loop does not run."""
    [port] = find_free(1)
    serve("127.0.0.1", port, HEALTH_CHECKS)
    monkeypatch.setattr(HEALTH, "is_ready", False)

    def statuses() -> tuple[int, int]:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            return client.get("/healthz").status_code, client.get("/readyz").status_code

    HEALTH.beat_at = time.monotonic()
    starting = statuses()
    HEALTH.is_ready = True
    ready = statuses()
    HEALTH.beat_at -= BEAT_LATE_S
    assert (starting, ready, statuses()) == ((200, 503), (200, 200), (503, 200))
