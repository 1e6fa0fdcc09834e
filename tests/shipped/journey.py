"""One journey in a home: steps during which a client reads an answer, and what the promises about turns say of each."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import httpx2
import msgspec

from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.history_client import HistoryClient
from tailrace.proto.errors import Refused, TailraceError
from tailrace.proto.ids import Tenant, TurnKey, new_id
from tailrace.proto.nats import Connection, Rpc, TurnLog
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.proto.records import GetTurn, TurnRecord
from tests.harness import readers
from tests.harness.cluster_system import longest_pause
from tests.harness.event_source import EventSource
from tests.harness.generator_in_loop import words
from tests.harness.until import until
from tests.promises import History, ReaderConnection, judge
from tests.shipped.machine import CommandFailed

WORDS, RATE = 160, 20
BEFORE_STEP_S = 2.0
READY_S_MAX = 120.0
ANSWER_S_MAX = 300.0
QUERY_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 20.0

Say = Callable[[str], None]


class Step(msgspec.Struct, frozen=True):
    """The pause, losses and repeated calls that a reader saw during a step, and the verdict of the promises."""

    home: str
    step: str
    pause_s: float
    """The longest time without an entry."""
    words_lost: int
    calls_repeated: int
    broken: str
    """The evidence against a promise, or how the step itself has failed; empty if all is well."""

    @property
    def is_green(self) -> bool:
        return not self.broken and not self.words_lost


class Journey:
    """The steps in a home. `nats_url` returns the administrator's URL, which a restart may change."""

    def __init__(self, home: str, url: str, nats_url: Callable[[], str], say: Say) -> None:
        self.home, self.url, self.say = home, url, say
        self.key = ""
        """The API key; without one, the tenant is the local one."""
        self.tenant: Tenant = LOCAL.access.tenant
        self.steps: list[Step] = []
        self._nats_url = nats_url

    def use_key(self, printed: str, tenant: str) -> None:
        """Takes the API key from the output of `tailrace keys create`."""
        self.key, self.tenant = next(word for word in printed.split() if word.startswith("tr_")), Tenant(tenant)

    def step(self, name: str, action: Callable[[], Any] = lambda: None, *, count: int = WORDS) -> None:
        """Runs `action` while an answer of `count` words is read. A step that fails does not end the journey."""
        try:
            step = asyncio.run(self._step(name, action, count))
        except (AssertionError, TimeoutError) as error:
            step = Step(self.home, name, 0, count, 0, f"no answer within {ANSWER_S_MAX:.0f} s: {error}")
        self.steps.append(step)
        self.say(f"{name}: pause {step.pause_s} s, words lost {step.words_lost}, calls repeated {step.calls_repeated}")
        if step.broken:
            self.say(f"  FAILED: {step.broken}")

    async def _step(self, name: str, action: Callable[[], Any], count: int) -> Step:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        async with (
            asyncio.timeout(ANSWER_S_MAX),
            httpx2.AsyncClient(
                base_url=self.url, headers=headers, timeout=REQUEST_TIMEOUT_S, trust_env=False
            ) as client,
        ):
            await self._wait_until_ready()
            source, tag, arrived = EventSource(lambda: [client]), f"{new_id()[-6:]}-", [monotonic()]
            turn = await source.post(tag, f"#sim words={count} rate={RATE} tag={tag}")
            reading = asyncio.create_task(source.read(turn, lambda: arrived.append(monotonic())))
            await asyncio.sleep(BEFORE_STEP_S)
            failed = ""
            try:
                await asyncio.to_thread(action)
            except (AssertionError, CommandFailed) as error:
                failed = str(error)
            connections = await reading
            history = await self._read_history(TurnKey(self.tenant, turn), connections)
        verdict = judge(history)
        text = readers.story_of(frame.sent for one in connections for frame in one.frames).text
        lost = len(set(words(count, tag).split()) - set(text.split()))
        (folded,) = (history.fold(key) for key in history.posted)
        broken = failed or ("" if verdict.is_green else verdict.evidence)
        return Step(self.home, name, round(longest_pause(arrived, 0), 1), lost, folded.attempt - 1, broken)

    async def _read_history(self, key: TurnKey, connections: tuple[ReaderConnection, ...]) -> History:
        """Reads the log and the record, as soon as NATS and persistence answer."""
        connection = await until(self._connect, READY_S_MAX, 0.2)
        assert connection is not None
        try:
            history = HistoryClient(Rpc(connection), QUERY_TIMEOUT_S)

            async def record() -> TurnRecord | None:
                with suppress(Refused):
                    found = await history.query(Scope(key.tenant, WHOLE), GetTurn(key.turn))
                    return found if found is not None and found.outcome != "running" else None
                return None

            recorded = await until(record, READY_S_MAX, 0.2)
            assert recorded is not None
            reader = readers.build_reader("reader", key, *connections)
            return await readers.read_history(TurnLog(connection), key, reader, records={key: recorded})
        finally:
            await connection.close()

    async def _connect(self) -> Connection | None:
        with suppress(TailraceError, CommandFailed):
            return await Connection.open(self._nats_url(), "shipped")
        return None

    async def _wait_until_ready(self) -> None:
        async with httpx2.AsyncClient(base_url=self.url, timeout=2, trust_env=False) as client:

            async def is_ready() -> bool:
                with suppress(httpx2.HTTPError):
                    return (await client.get("/readyz")).status_code == 200
                return False

            await until(is_ready, READY_S_MAX, 0.1)
