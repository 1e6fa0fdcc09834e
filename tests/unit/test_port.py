"""Inner ports of `up`: those that are found, and those that somebody has chosen."""

import random
import socket

import pytest

from tailrace.deploy.local import ports
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.options import Options
from tailrace.deploy.local.ports import consecutive, find_free
from tailrace.deploy.local.up import Listening, make_plan


def test_metrics_ports_count_up_from_the_one_that_is_set() -> None:
    """Who scrapes an `up` finds its processes where they were, also after a restart."""
    first = random.randrange(12_000, 19_000)  # below those that everybody else is given
    listening = Listening(port=8000, fd=7)
    chosen = make_plan(Options(generators=2), {"TAILRACE_METRICS_PORT": str(first)}, listening, {})
    assert chosen.metrics_ports == (first, first + 1, first + 2, first + 3)
    assert len(set(make_plan(Options(), {}, listening, {}).metrics_ports)) == 4


def test_a_metrics_port_that_cannot_be_had_is_refused_at_once() -> None:
    """Its process would end at every start."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(UpRefused, match=f"TAILRACE_METRICS_PORT={taken}: .* {taken} is not free"):
            consecutive(taken, 1)
    with pytest.raises(UpRefused, match="65536 is not free"):
        consecutive(65536, 1)


def test_no_connection_that_goes_out_is_given_a_port_that_was_found_free() -> None:
    """It could have it when its server is started again, and that would not be told why."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert max(find_free(50)) < client.getsockname()[1]


def test_what_is_found_free_is_taken_by_nobody_and_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five, two are somebody's."""
    five = find_free(5)
    monkeypatch.setattr(ports, "FREE_RANGE", five)
    with socket.create_server(("127.0.0.1", five[0])), socket.create_server(("127.0.0.1", five[3])):
        assert sorted(find_free(3)) == sorted([five[1], five[2], five[4]])
