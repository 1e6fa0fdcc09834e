"""OwnSystem: a nats-server and a simulated Claude of one test, which starts the generators that it needs."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.entries import Attempt
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.service import Stop
from tests.harness import generator_in_loop, killable_generator
from tests.harness.until import until


@dataclass
class OwnSystem:
    """The test may kill, freeze and fill all of it."""

    server: NatsServer
    connection: Connection
    log: TurnLog
    claude: str
    """The URL of the simulated Claude."""

    def running_generator(self, **settings: Any) -> AbstractAsyncContextManager[Stop]:
        """Runs a generator, with short waits. The value is the event that acts as SIGTERM."""
        own: dict[str, Any] = {"nats_url": self.server.url, "claude_url": self.claude}
        return generator_in_loop.running_generator(**own | settings)

    async def run_and_kill_after(self, appends: int, **given: Any) -> bool:
        """Runs a turn in a generator that is killed after its nth append; returns False if it ended before that."""
        return await killable_generator.run_and_kill_after(appends, self.server.url, self.claude, **given)

    async def append_request(self, line: str, *tenant: Any, **given: Any) -> TurnKey:
        """Appends the request of a turn with that `#sim` line."""
        return await generator_in_loop.append_request(self.log, line, *tenant, **given)

    async def wait_for_end(self, key: TurnKey) -> Turn:
        """Returns the turn when it has ended."""
        return await generator_in_loop.wait_for_end(self.log, key)

    async def answer(self, line: str, *tenant: Any, **given: Any) -> Turn:
        """Appends a request; returns the turn when it has ended."""
        return await self.wait_for_end(await self.append_request(line, *tenant, **given))

    async def wait_until_acknowledged(self) -> None:
        """Waits until all requests are acknowledged."""
        await until(lambda: generator_in_loop.is_acknowledged(self.connection))

    async def wait_until_settled(self, key: TurnKey) -> Turn:
        """Returns the turn when it has ended and is acknowledged."""
        turn = await self.wait_for_end(key)
        await self.wait_until_acknowledged()
        return turn

    async def attempts(self, key: TurnKey) -> list[Attempt]:
        return await generator_in_loop.read_attempts(self.log, key)

    async def modes(self, key: TurnKey) -> list[str]:
        return [attempt.mode for attempt in await self.attempts(key)]

    async def calls(self) -> int:
        """Returns how often the simulated Claude was called."""
        return (await generator_in_loop.read_stats(self.claude))["calls"]

    async def wait_for_open_streams(self, count: int) -> None:
        """Waits until the simulated Claude has that many open streams."""
        await generator_in_loop.wait_for_open_streams(self.claude, count)

    async def shorten_lease(self, lease_s: float) -> None:
        """Shortens the lease of generators that start after this."""
        await generator_in_loop.shorten_lease(self.connection, lease_s)
