"""Decisions of the supervisor: restart delays, and the order in which processes stop."""

from itertools import accumulate

import pytest

from tailrace.deploy.local.supervisor import DELAY_S_MAX, DELAY_S_MIN, LIFE_S_MIN, ProcessSpec, next_delay_s, stop_order


def part(name: str, role: str) -> ProcessSpec:
    return ProcessSpec(name=name, role=role, command=("true",), environ={})


def test_the_restart_delay_doubles_up_to_its_maximum() -> None:
    """A process that ends at once is restarted after 0.1, 0.2, 0.4 … and at most 5 seconds."""
    delays = list(accumulate(range(8), lambda delay_s, _: next_delay_s(delay_s, lived_s=0.0), initial=0.0))
    assert delays[1:] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


@pytest.mark.parametrize("delay_s", [0.0, DELAY_S_MIN, 1.6, DELAY_S_MAX])
def test_a_process_that_ran_for_a_while_is_restarted_at_once(delay_s: float) -> None:
    """The delay is for processes that fail at their start; after a longer life it begins anew."""
    assert next_delay_s(delay_s, lived_s=LIFE_S_MIN) == 0.0
    assert next_delay_s(0.0, lived_s=0.0) == DELAY_S_MIN


def test_processes_stop_in_reverse_order_role_by_role() -> None:
    """Gateways stop first and nats-server last; processes of one role stop together."""
    started = [
        part("nats-server", "nats-server"),
        part("persistence", "persistence"),
        part("generator-1", "generators"),
        part("generator-2", "generators"),
        part("gateway-1", "gateway"),
        part("gateway-2", "gateway"),
    ]
    assert [[part.name for part in rank] for rank in stop_order(started)] == [
        ["gateway-2", "gateway-1"],
        ["generator-2", "generator-1"],
        ["persistence"],
        ["nats-server"],
    ]


def test_stopping_before_the_first_process_started_is_no_error() -> None:
    """Ctrl-C may come at any time."""
    assert stop_order([]) == []
