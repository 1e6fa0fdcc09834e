"""Inner ports of `up` that somebody has chosen."""

import random
import socket

import pytest

from deploy.options import Options
from deploy.port import counted
from deploy.refusal import UpRefused
from deploy.up import Listening, survey


def test_metrics_ports_count_up_from_the_one_that_is_set() -> None:
    """Who scrapes an `up` finds its processes where they were, also after a restart."""
    first = random.randrange(12_000, 30_000)  # below those that everybody else is given
    listening = Listening(port=8000, fd=7)
    chosen = survey(Options(generators=2), {"TAILRACE_METRICS_PORT": str(first)}, listening, {})
    assert chosen.metrics_ports == (first, first + 1, first + 2, first + 3)
    assert len(set(survey(Options(), {}, listening, {}).metrics_ports)) == 4


def test_a_metrics_port_that_cannot_be_had_is_refused_at_once() -> None:
    """Its process would end at every start."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(UpRefused, match=f"TAILRACE_METRICS_PORT={taken}: .* {taken} cannot be had"):
            counted(taken, 1)
    with pytest.raises(UpRefused, match="65536 cannot be had"):
        counted(65536, 1)
