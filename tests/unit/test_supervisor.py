"""What the supervisor decides: when a part starts again, and in which order parts stop."""

from itertools import accumulate

import pytest

from tailrace.deploy.local.supervisor import DELAY_S_MAX, DELAY_S_MIN, LIFE_S_MIN, ProcessSpec, next_delay_s, stop_order


def part(name: str, role: str) -> ProcessSpec:
    return ProcessSpec(name=name, role=role, command=("true",), environ={})


def test_the_wait_before_a_start_doubles_up_to_its_bound() -> None:
    """A part that dies at once is started after 0.1, 0.2, 0.4 … and at most 5 seconds."""
    delays = list(accumulate(range(8), lambda delay_s, _: next_delay_s(delay_s, lived_s=0.0), initial=0.0))
    assert delays[1:] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


@pytest.mark.parametrize("delay_s", [0.0, DELAY_S_MIN, 1.6, DELAY_S_MAX])
def test_a_part_that_lived_long_is_started_again_soon(delay_s: float) -> None:
    """Ten seconds of life end a crash loop: the next death counts as a first one."""
    assert next_delay_s(delay_s, lived_s=LIFE_S_MIN) == DELAY_S_MIN


def test_parts_stop_in_the_reverse_of_their_start_and_a_role_at_a_time() -> None:
    """What serves people stops first, what it needs stops last, and equals do not wait for each other."""
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


def test_nothing_started_is_nothing_to_stop() -> None:
    """Ctrl-C before the first part has begun is no error."""
    assert stop_order([]) == []
