"""The Prometheus endpoint of a process: which Host headers and addresses it accepts; its health checks."""

import socket
import time

import httpx2
import pytest

from tailrace.deploy.local.ports import find_free
from tailrace.proto.errors import AddressInUse
from tailrace.proto.runtime.metrics_server import check_host, serve
from tailrace.proto.service import BEAT_LATE_S, HEALTH, HEALTH_CHECKS


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


def test_a_port_in_use_is_refused_with_the_settings_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        with pytest.raises(AddressInUse, match=f"^TAILRACE_METRICS_PORT: port {port} on 127.0.0.1 is in use: stop"):
            serve("127.0.0.1", port, {})


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
