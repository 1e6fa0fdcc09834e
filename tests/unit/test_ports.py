"""Ports of the processes of `up`: free ones, and consecutive ones."""

import errno
import random
import socket
import sys

import pytest

from tailrace.deploy.local import ports
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.options import Options
from tailrace.deploy.local.ports import find_fixed, find_free, listen
from tailrace.deploy.local.up import make_plan


def test_another_number_of_generators_changes_no_other_metrics_port() -> None:
    """Otherwise Prometheus would take a gateway for a generator, and report a process that is down."""
    first = random.randrange(12_000, 19_000)  # below the ports of find_free

    def choose(generators: int, gateways: int) -> tuple[int, ...]:
        options = Options(generators=generators, gateways=gateways)
        return make_plan(options, {"TAILRACE_METRICS_PORT": str(first)}, 8000, 7, {}).metrics_ports

    assert choose(1, 2) == (first, first + 101, first + 1, first + 2)
    assert choose(4, 1) == (first, *range(first + 101, first + 105), first + 1)
    # The ranges of the largest numbers do not meet.
    assert len(set(choose(64, 64))) == 129
    assert len(set(make_plan(Options(), {}, 8000, 7, {}).metrics_ports)) == 4


def test_a_metrics_port_that_is_not_free_is_refused_before_the_start() -> None:
    """Otherwise its process would end at every start."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(UpRefused, match=f"TAILRACE_METRICS_PORT={taken}: .* {taken} is not free"):
            find_fixed(taken, 1, 1)
    with pytest.raises(UpRefused, match="65536 is not free"):
        find_fixed(65536, 1, 1)


@pytest.mark.parametrize("host", ["ä..b", "a\0b", "host.invalid"])
def test_a_host_that_is_no_name_is_refused(host: str) -> None:
    with pytest.raises(UpRefused, match=r"with --host$"):
        listen(host, 0)


def test_free_ports_are_below_those_of_outgoing_connections() -> None:
    """An outgoing connection could get the port of a server that is being restarted."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert max(find_free(50)) < client.getsockname()[1]


def test_free_ports_are_unused_and_distinct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five ports, two are in use."""
    first = random.randrange(12_000, 19_000)  # below the ports of find_free
    monkeypatch.setattr(ports, "FREE_RANGE", range(first, first + 5))
    with socket.create_server(("127.0.0.1", first)), socket.create_server(("127.0.0.1", first + 3)):
        assert sorted(find_free(3)) == [first + 1, first + 2, first + 4]


@pytest.mark.skipif(sys.platform != "linux", reason="macOS lets no server bind a port that is held")
def test_a_free_port_is_held_for_its_server() -> None:
    """No other process finds it, before the server has started and while it restarts."""
    [port] = find_free(1)
    for _ in range(2):
        with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
            other.bind(("127.0.0.1", port))
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
        with socket.create_server(("127.0.0.1", port)) as server:
            socket.create_connection(server.getsockname()).close()
