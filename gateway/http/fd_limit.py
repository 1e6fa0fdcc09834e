"""The limits of connections and streams that follow from the limit of file descriptors.

The event loop accepts all connections of the kernel's queue at once, before the first of them can be refused. A
connection that gets no descriptor is closed without a response. Descriptors are therefore reserved for the queue, and
for the connections that wait for their refusal.
"""

import resource
from contextlib import suppress

import structlog

logger = structlog.get_logger()

# For NATS, metrics, sandboxed subprocesses and files.
RESERVED = 48
# The kernel limits its queue to net.core.somaxconn.
BACKLOG_MAX = 16_384
EXCESS_MAX = 256
# The share of connections that may be streams: health checks and cancellations need the rest.
STREAMS_SHARE = 0.9
# Soft limits to try after the hard one. On macOS the hard limit is usually unlimited, but the soft one may not be:
# each version has its own maximum (`kern.maxfilesperproc`), and all accept OPEN_MAX, 10,240 (setrlimit(2)).
TRIED = (65_536, 24_576, 10_240)


def raise_limit(streams_wanted: int) -> None:
    """Raises the soft limit (often 1,024, on macOS 256). Warns when it is too low."""
    limit = raise_soft_limit()
    if streams_wanted > streams_max():
        logger.warning("too few file descriptors: raise `ulimit -Hn`", limit=limit, streams=streams_max())


def raise_soft_limit() -> int:
    """Raises the soft limit to the hard one, or as far as the system permits. Returns the soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, *(limit for limit in TRIED if limit > soft)):
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            break
    return _limit()


def backlog() -> int:
    """Returns the length of the kernel's queue of connections that were not accepted yet."""
    return min(BACKLOG_MAX, _limit() // 8)


def excess_max() -> int:
    """Returns the limit of connections above `connections_max` whose requests are read and refused with a response."""
    return min(EXCESS_MAX, _limit() // 8)


def connections_max() -> int:
    """Returns the limit of open connections."""
    return max(_limit() - RESERVED - backlog() - excess_max(), 1)


def streams_max() -> int:
    """Returns the limit of open streams."""
    return max(int(connections_max() * STREAMS_SHARE), 1)


def _limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
