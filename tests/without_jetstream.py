"""A nats-server that lacks its log: as one whose configuration was written anew, and a line was forgotten."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from signal import SIGKILL

import pytest

from tailrace.deploy.local import nats_server
from tailrace.deploy.local.nats_server import NatsServer


@asynccontextmanager
async def without_jetstream(server: NatsServer) -> AsyncIterator[None]:
    """At the same address, for the same users, while the block runs; then it is killed. What was stored stays."""
    config = nats_server.config

    def without(site: nats_server.ServerSpec) -> str:
        return re.sub(r"jetstream \{.*?\n\}\n", "", config(site), flags=re.DOTALL).replace("jetstream: enabled", "")

    await server.stop(SIGKILL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nats_server, "config", without)
        await server.start()
    try:
        yield
    finally:
        await server.stop(SIGKILL)
