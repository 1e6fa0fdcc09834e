"""The limits of connections and streams that follow from the limit of file descriptors."""

import resource

import structlog

logger = structlog.get_logger()

# For NATS, metrics, sandboxed subprocesses, and connections that are rejected with a response.
RESERVED = 256
# The share of connections that may be streams: health checks and cancellations need the rest.
STREAMS_SHARE = 0.9


def raise_limit(streams_wanted: int) -> None:
    """Raises the soft limit to the hard one (the soft limit is often 1,024). Warns when it is too low."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if streams_wanted > streams_max():
        logger.warning("too few file descriptors: raise `ulimit -Hn`", limit=hard, streams=streams_max())


def connections_max() -> int:
    """The limit of open connections."""
    return max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED, 1)


def streams_max() -> int:
    """The limit of open streams."""
    return max(int(connections_max() * STREAMS_SHARE), 1)
