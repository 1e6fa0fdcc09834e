"""Plays the sessions through the public API of real processes, and kills the generator of a turn in each session.

The simulated Claude is a process, too, and answers what its directives say: an answer that only a StandIn can give is a
plain one here.
"""

import asyncio
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from signal import SIGKILL
from typing import Any

import httpx2
import msgspec

from tailrace.proto.fold import Turn
from tailrace.proto.ids import LOCAL, TurnId, TurnKey
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.runtime.gather import gather_limited
from tests.harness.budget_audit import BudgetAudit, limit_settings
from tests.harness.generator_in_loop import read_stats
from tests.harness.system import System
from tests.harness.until import until
from tests.promises import History, nothing_held
from tests.sessions.client import Asked, Client, Sent, Step
from tests.sessions.judge import FOREIGN, REFUSED, Verdict
from tests.sessions.play import TURNS

GENERATORS = 4
SESSIONS_AT_ONCE = 10
# Slow enough for a kill in the middle of an answer.
DIRECTIVES = " rate=10"
ENDED_S_MAX = 120.0
# Inputs of a batch that takes a second to be stored.
LARGE_BATCH = 3000
BUSY_S_MAX = 30.0
NET = "thinking was refused; the call is repeated without it"
CONFLICT = 409


class RealSession:
    """One session, and its client."""

    def __init__(self, system: System, seed: int, starting: asyncio.Lock) -> None:
        self._system = system
        self._starting = starting
        self._seed = seed
        self._random = Random(seed)
        self._session = f"s{seed}"
        self._client = Client(self._random, self._session, DIRECTIVES)
        self._http = system.clients[0]
        self.wrong: list[str] = []
        self.counts = Counter[str]({"sessions": 1})

    async def play(self) -> Verdict:
        turns = self._random.randint(*TURNS)
        killed = self._random.randrange(turns)
        for number in range(turns):
            step = self._client.next()
            # A turn may have ended before its kill. Then the next one is hit.
            is_killed = step.kind == "kill" or (number >= killed and not self.counts["kills"])
            try:
                await self._play_step(step, is_killed=is_killed)
            except (AssertionError, httpx2.HTTPError) as error:
                self.wrong.append(f"{step.kind}: {type(error).__name__} {error}")
                break
        self.counts.update(f"protocol {one}" for one in [self._client.protocol])
        return Verdict(self._seed, self.wrong, self.counts)

    async def _play_step(self, step: Step, *, is_killed: bool) -> None:
        if step.patch is not None:
            await self._http.patch(f"/v1/sessions/{self._session}", json=step.patch)
        reading, key = await self._post(step.sent)
        if key is None:
            self.counts["refused by the gateway"] += 1
            return
        keys, messages = [key], [step.messages]
        if is_killed:
            await self._kill_generator_of(key)
        if step.second is not None or step.kind == "cancel":
            await self._until_begun(key)
        if step.kind == "cancel":
            await self._http.post(f"/v1/turns/{key.turn}/cancel")
        if step.second is not None:
            path = f"/v1/turns/{key.turn}/steer" if step.kind == "steer" else step.second.sent.path
            second, second_key = await self._post(step.second.sent._replace(path=path))
            await second
            assert second_key is not None, f"{step.kind} was refused"
            keys, messages = [*keys, second_key], [*messages, step.second.messages]
        asked = [Asked(*one) for one in zip(messages, [await self._ended(one) for one in keys], strict=True)]
        await reading
        self._note(step, asked)
        self._client.branch += asked[1:] if step.kind == "branch" and len(asked) > 1 else asked

    def _note(self, step: Step, asked: Sequence[Asked]) -> None:
        kind = "plain" if step.special is not None else step.kind
        self.counts.update({f"with {kind}": 1, "turns": len(asked)})
        for _, record in asked:
            code = record.error.code if record.error is not None else None
            is_bad = bool(step.refusal) and code == REFUSED
            self.counts["turns with bad input"] += is_bad
            # A tampered block that was written after an addition of the product is left out.
            if not is_bad and (code is not None or step.kind == "stripped"):
                self.wrong.append(f"{record.turn}, {step.kind}: ended with {record.error}")

    async def _post(self, sent: Sent) -> tuple["asyncio.Task[None]", TurnKey | None]:
        """Returns the reading of the response, and the turn; None if the gateway refused it.

        A turn that has just ended may still run in the database.
        """
        begun: asyncio.Future[tuple[int, str | None]] = asyncio.get_running_loop().create_future()
        body = sent.body if sent.path.startswith(("/v1/turns", "/api/")) else sent.body | {"stream": True}

        async def read() -> None:
            async with self._http.stream("POST", sent.path, json=body, headers=sent.headers) as response:
                begun.set_result((response.status_code, response.headers.get("tailrace-turn")))
                try:
                    await response.aread()
                except httpx2.RemoteProtocolError:
                    # The protocol cannot show that an answer begins again. Its client would ask once more.
                    self.counts[f"responses cut, {self._client.protocol}"] += 1

        loop = asyncio.get_running_loop()
        until_s = loop.time() + BUSY_S_MAX
        while True:
            reading = asyncio.create_task(read())
            either: list[asyncio.Future[Any]] = [reading, begun]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not begun.done():
                await reading
            status, turn = begun.result()
            if turn is not None or status != CONFLICT or loop.time() > until_s:
                break
            await reading
            await asyncio.sleep(0.1)
            begun = loop.create_future()
        return reading, None if turn is None else TurnKey(LOCAL, TurnId(turn))

    async def _until_begun(self, key: TurnKey) -> None:
        async def begun() -> bool:
            turn = await self._system.log.read_turn(ScopedKey.whole(key))
            return bool(turn.blocks) or turn.end is not None

        await until(begun, ENDED_S_MAX)

    async def _kill_generator_of(self, key: TurnKey) -> None:
        """Sends SIGKILL when the answer has begun, and starts the generator again."""
        await self._until_begun(key)
        _, generator = await self._system.generator_of(key)
        if generator.is_gone or (await self._system.log.read_turn(ScopedKey.whole(key))).end is not None:
            return
        pid = generator.pid
        generator.signal(SIGKILL)
        self.counts["kills"] += 1
        async with self._starting:
            if generator.pid == pid:
                # No other session, which has killed it at the same time, has started it again.
                await until(lambda: generator.is_gone)
                await generator.start()

    async def _ended(self, key: TurnKey) -> TurnRecord:
        async def ended() -> Turn | None:
            turn = await self._system.log.read_turn(ScopedKey.whole(key))
            return turn if turn.end is not None else None

        turn = await until(ended, ENDED_S_MAX)
        assert turn is not None
        self.counts["turns with a further attempt"] += turn.attempt > 1
        return record_from_fold(key, turn)


async def kill_reserving_gateway(system: System, budgets: BudgetAudit) -> None:
    """Kills the second gateway when it has reserved the money of a large batch, and has not stored the batch."""
    params = {"model": "claude-sonnet-5-5", "message": "x" * 500}
    requests = [{"custom_id": f"c{number}", "params": params} for number in range(LARGE_BATCH)]
    posting = asyncio.create_task(system.clients[1].post("/v1/turn-batches", json={"requests": requests}))

    async def has_reserved() -> bool:
        return posting.done() or any(budget.held for budget in await budgets.read())

    await until(has_reserved)
    assert not posting.done(), f"its reservation was not seen: {posting.result().text}"
    await system.gateways[1].stop(SIGKILL)
    with suppress(httpx2.HTTPError):
        await posting


async def play_real(seeds: range) -> list[Verdict]:
    """Plays the sessions of the seeds, some at once. The last verdict is about all of them, and about the budgets."""
    with tempfile.TemporaryDirectory() as folder:
        async with System(Path(folder), settings={"gateway": limit_settings()}) as system:
            await system.start(generators=GENERATORS, gateways=2)
            starting = asyncio.Lock()
            budgets = BudgetAudit(system.connection, system.database)
            sampling = asyncio.create_task(budgets.sample())
            await kill_reserving_gateway(system, budgets)

            async def play(seed: int) -> Verdict:
                return await RealSession(system, seed, starting).play()

            found = await gather_limited(play, list(seeds), SESSIONS_AT_ONCE)
            net = sum(len(generator.find_lines(NET)) for generator in system.generators)
            stats: Any = await read_stats(system.claude.url)
            await system.wait_until_settled(ENDED_S_MAX)
            left = tuple(await budgets.wait_until_exact())
            sampling.cancel()
    held = nothing_held(History(budgets=left, samples=tuple(budgets.worst.values())))
    refused = Counter[str](stats["refused"])
    bad = sum(one.counts["turns with bad input"] for one in found)
    counts = Counter[str](
        {
            "calls": stats["calls"],
            "refused": refused.total() - bad,
            "refused, bad input": bad,
            "calls of the net": net,
        }
    )
    wrong = [f"{net} calls of the net"] if net else []
    wrong += [] if held.is_green else [held.evidence]
    if refused.total() != bad or any(FOREIGN in one for one in refused):
        wrong.append(f"refused: {msgspec.json.encode(refused).decode()}, bad input: {bad}")
    return [*found, Verdict(seeds[0], wrong, counts)]
