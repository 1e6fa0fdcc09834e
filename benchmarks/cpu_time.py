"""The CPU time of a process."""

import time


def cpu_s(pid: int) -> float:
    """Returns the seconds that a process has been at work, by its own clock: /proc counts hundredths."""
    # The id of the clock, from ~pid and CPUCLOCK_SCHED (<linux/posix-timers.h>).
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9
