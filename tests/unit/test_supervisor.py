"""The supervisor: restart delays, and a process that ends at the moment in which it is stopped."""

import asyncio
from itertools import accumulate
from typing import Any

from tailrace.deploy.local.supervisor import Child, ProcessSpec, next_delay_s


class EndedProcess:
    """A process that has ended, but whose end is not reported yet."""

    def terminate(self) -> None:
        raise ProcessLookupError

    async def wait(self) -> int:
        await asyncio.sleep(0.01)
        return -9


def test_the_restart_delay_doubles_up_to_its_maximum() -> None:
    """A process that ends at once is restarted after 0.1, 0.2, 0.4 … and at most 5 seconds."""
    delays = list(accumulate(range(8), lambda delay_s, _: next_delay_s(delay_s, lived_s=0.0), initial=0.0))
    assert delays[1:] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


async def test_a_process_that_ends_while_it_is_stopped_has_its_status() -> None:
    supervisor: Any = type("Supervisor", (), {"console": None})
    process: Any = EndedProcess()
    child = Child(ProcessSpec("a", "a", ("a",), {}), supervisor)
    child.stopping.set()
    assert await child.wait_or_stop(process) == -9
