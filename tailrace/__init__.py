"""Tailrace: streams of Claude's answers that survive the death of any process.

The packages lie at the top of the repository; the links in this folder put them under one import name. Programs use
`from tailrace import Client` (docs/PYTHON.md).
"""

import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    # Windows lacks uvloop, inherited sockets, process groups and file locks of this kind.
    raise ImportError("Tailrace runs on Linux and macOS. On Windows, install it in WSL 2.")

if TYPE_CHECKING:
    from tailrace.client import (
        Answer,
        AsyncAnswer,
        AsyncClient,
        AsyncResumingTransport,
        Client,
        End,
        ProxiedRequest,
        ResumingTransport,
        TailraceError,
        TurnEvent,
        proxy,
    )

__all__ = [
    "Answer",
    "AsyncAnswer",
    "AsyncClient",
    "AsyncResumingTransport",
    "Client",
    "End",
    "ProxiedRequest",
    "ResumingTransport",
    "TailraceError",
    "TurnEvent",
    "proxy",
]


def __getattr__(name: str) -> Any:
    """Imports the client when it is first used: the processes of the server do without it."""
    if name not in __all__:
        raise AttributeError(f"module 'tailrace' has no attribute {name!r}")
    from tailrace import client  # noqa: PLC0415

    return getattr(client, name)
