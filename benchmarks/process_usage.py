"""CPU time and memory of a process, and the limit of open files of this one."""

import resource
import time
from pathlib import Path


def cpu_s(pid: int) -> float:
    """Returns the CPU time of a process in seconds, from its CPU clock. /proc has only hundredths."""
    # The id of the clock, from ~pid and CPUCLOCK_SCHED (<linux/posix-timers.h>).
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


def resident_bytes(pid: int) -> int:
    """Returns the memory of a process (RSS) in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def pss_kb(pid: int) -> float:
    """Returns the private memory of a process and its share of what it has in common with others, in kB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return float(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])


def raise_file_limit() -> None:
    """Permits as many connections as the hard limit: the soft one is often 1,024."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
