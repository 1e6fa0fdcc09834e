"""Patches of the tests' process: shorter waiting times, and no loading of the system's certificate authorities.

A gateway's stop waits less, and skips no step. A query that no process answers waits less: many tests have no
persistence, and queries would wait 4 s for its restart.

An HTTP client reads the 144 certificate authorities of the system, which takes longer than a request. Tests connect to
loopback addresses only, with certificates of their own.
"""

import asyncio
from pathlib import Path
from types import ModuleType
from typing import Any

import certifi

# How often uvicorn checks whether to stop, and whether its connections are closed.
LOOK_EVERY_S = 0.01
RESTART_S_MAX = 0.2


class Asyncio(ModuleType):
    """The `asyncio` of uvicorn's server in tests, which stop thousands of gateways one after the other."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(delay: float) -> None:
        await asyncio.sleep(min(delay, LOOK_EVERY_S))


def patch_process() -> None:
    """Patches all servers and clients of queries of this process. Imports them, which takes a second."""
    import httpcore2
    import uvicorn.server

    from tailrace.gateway.http import server
    from tailrace.proto.nats import rpc

    uvicorn.server.asyncio = Asyncio("asyncio")  # type: ignore[attr-defined]
    server.ARRIVAL_S = LOOK_EVERY_S
    rpc.RESTART_S_MAX = RESTART_S_MAX
    original = httpcore2.default_ssl_context
    # Clients with `trust_env=False` read SSL_CERT_FILE too.
    httpcore2.default_ssl_context = lambda **_: original()


def write_authority(folder: Path) -> Path:
    """Writes one certificate authority for SSL_CERT_FILE, which processes inherit; returns the file."""
    end = "-----END CERTIFICATE-----\n"
    path = folder / "authority.pem"
    path.write_text(certifi.contents().partition(end)[0] + end)
    return path
