"""OwnSystem: a nats-server and a simulated Claude of one test, which starts the generators that it needs."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.entries import Attempt
from tailrace.proto.fold import Turn
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.service import Stop
from tailrace.proto.subjects import TurnKey
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

    def working(self, **settings: Any) -> AbstractAsyncContextManager[Stop]:
        """Runs a generator, with short waits. The value is the event that acts as SIGTERM."""
        own: dict[str, Any] = {"nats_url": self.server.url, "claude_url": self.claude}
        return generator_in_loop.working(**own | settings)

    async def killed_after(self, appends: int, **given: Any) -> bool:
        """Runs a turn in a generator that is killed after its nth append; returns False if it ended before that."""
        return await killable_generator.killed_after(appends, self.server.url, self.claude, **given)

    async def ask(self, line: str, *tenant: Any, **given: Any) -> TurnKey:
        """Appends the request of a turn with that `#sim` line."""
        return await generator_in_loop.ask(self.log, line, *tenant, **given)

    async def ended(self, key: TurnKey) -> Turn:
        """Returns the turn when it has ended."""
        return await generator_in_loop.ended(self.log, key)

    async def answer(self, line: str, *tenant: Any, **given: Any) -> Turn:
        """Appends a request; returns the turn when it has ended."""
        return await self.ended(await self.ask(line, *tenant, **given))

    async def acknowledged(self) -> None:
        """Waits until all requests are acknowledged."""
        await until(lambda: generator_in_loop.is_acknowledged(self.connection))

    async def settled(self, key: TurnKey) -> Turn:
        """Returns the turn when it has ended and is acknowledged."""
        turn = await self.ended(key)
        await self.acknowledged()
        return turn

    async def attempts(self, key: TurnKey) -> list[Attempt]:
        return await generator_in_loop.attempts(self.log, key)

    async def modes(self, key: TurnKey) -> list[str]:
        return await generator_in_loop.modes(self.log, key)

    async def calls(self) -> int:
        """Returns how often the simulated Claude was called."""
        return (await generator_in_loop.stats(self.claude))["calls"]

    async def open_streams(self, count: int) -> None:
        """Waits until the simulated Claude has that many open streams."""
        await generator_in_loop.open_streams(self.claude, count)

    async def shorten_lease(self, lease_s: float) -> None:
        """Shortens the lease of generators that start after this."""
        await generator_in_loop.shorten_lease(self.connection, lease_s)
