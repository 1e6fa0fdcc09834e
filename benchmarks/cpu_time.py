"""The CPU time of a process."""

import time


def cpu_s(pid: int) -> float:
    """Returns the CPU time of a process in seconds, from its CPU clock. /proc has only hundredths."""
    # The id of the clock, from ~pid and CPUCLOCK_SCHED (<linux/posix-timers.h>).
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9
