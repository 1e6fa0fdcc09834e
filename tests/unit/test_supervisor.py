"""The restart delays of the supervisor."""

from itertools import accumulate

from tailrace.deploy.local.supervisor import next_delay_s


def test_the_restart_delay_doubles_up_to_its_maximum() -> None:
    """A process that ends at once is restarted after 0.1, 0.2, 0.4 … and at most 5 seconds."""
    delays = list(accumulate(range(8), lambda delay_s, _: next_delay_s(delay_s, lived_s=0.0), initial=0.0))
    assert delays[1:] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
