"""Restarts a nats-server without JetStream, as after a configuration that lost the line."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from signal import SIGKILL

import pytest

from tailrace.deploy.local import nats_server
from tailrace.deploy.local.nats_server import NatsServer


@asynccontextmanager
async def without_jetstream(server: NatsServer) -> AsyncIterator[None]:
    """Runs the server without JetStream at the same address during the block, then kills it. The store stays."""
    config = nats_server.config

    def without(site: nats_server.ServerSpec) -> str:
        written = json.loads(config(site))
        written.pop("jetstream")
        for account in written.get("accounts", {}).values():
            account.pop("jetstream", None)
        return json.dumps(written)

    await server.stop(SIGKILL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nats_server, "config", without)
        await server.start()
    try:
        yield
    finally:
        await server.stop(SIGKILL)
