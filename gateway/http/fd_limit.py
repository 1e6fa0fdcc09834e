"""How many connections this process can hold: each is a file descriptor, and the system lends only so many."""

import resource

import structlog

logger = structlog.get_logger()

# NATS, the log, metrics, processes that judge; and connections that are told that there are too many.
RESERVED = 256
# Of the connections, so many may be streams: whoever asks for health, or cancels, gets in beside them.
STREAMS_SHARE = 0.9


def raise_limit(streams_wanted: int) -> None:
    """Takes what a process may have: half of all systems give it 1,024, and more if it asks. Says when that is few."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if streams_wanted > streams_max():
        logger.warning("file descriptors are few: raise `ulimit -Hn`", limit=hard, streams=streams_max())


def connections_max() -> int:
    """The most connections that there may be."""
    return max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED, 1)


def streams_max() -> int:
    """How many of them may be streams."""
    return max(int(connections_max() * STREAMS_SHARE), 1)
