"""Decisions of the supervisor: restart delays, and the order in which processes stop."""

from itertools import accumulate

import pytest

from tailrace.deploy.local.supervisor import DELAY_S_MAX, DELAY_S_MIN, LIFE_S_MIN, next_delay_s


def test_the_restart_delay_doubles_up_to_its_maximum() -> None:
    """A process that ends at once is restarted after 0.1, 0.2, 0.4 … and at most 5 seconds."""
    delays = list(accumulate(range(8), lambda delay_s, _: next_delay_s(delay_s, lived_s=0.0), initial=0.0))
    assert delays[1:] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


@pytest.mark.parametrize("delay_s", [0.0, DELAY_S_MIN, 1.6, DELAY_S_MAX])
def test_a_process_that_ran_for_a_while_is_restarted_at_once(delay_s: float) -> None:
    """The delay is for processes that fail at their start; after a longer life it begins anew."""
    assert next_delay_s(delay_s, lived_s=LIFE_S_MIN) == 0.0
    assert next_delay_s(0.0, lived_s=0.0) == DELAY_S_MIN
