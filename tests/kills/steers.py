"""Messages that are put into running answers while all processes are killed at random, with the default settings.

    python -m tests.kills.steers --steers 500

Each session has a client that steers the newest turn again and again, at most 64 times, and a reader that goes on over
all answers. A request without an answer is repeated at any gateway, with its key. Prints how many messages were
accepted, are in the conversation once, and are lost; the kills; and the time from the request to the first delta of its
answer.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any, Protocol, TypeVar

import httpx2
import msgspec

from tailrace.features.queued_turns.generator import prepare_queued
from tailrace.proto.ids import LOCAL, TurnId, TurnKey
from tailrace.proto.ownership import ScopedKey
from tests.harness.system import Settings, System
from tests.harness.until import until

SESSIONS = 20
ANSWER = "#sim words=1200 rate=40 tag={name}"
LAST = "#sim words=3 rate=0 tag={name}"
WAIT_S_MAX = 240.0
REPEAT_S = 0.2
ROLES = ("gateway", "generator", "persistence", "nats-server")


class Sender(Protocol):
    """A session that sends so many messages."""

    def run(self, messages: int, /) -> Coroutine[Any, Any, None]: ...


S = TypeVar("S", bound=Sender)
Measure = Callable[..., Coroutine[Any, Any, Any]]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The counts and times of one run."""

    accepted: int
    once: int
    """Accepted messages that the model gets once for the last answer of their session, in the order of acceptance."""
    lost: int
    later: int
    """Accepted messages whose turn began after the whole answer before it, which the steer did not meet or end."""
    repeated: int
    """Requests that were sent again."""
    readers: int
    """Readers that have received each answer's turn in this order, with growing ids, and the last end."""
    wrong: list[str]
    """A line for each other reader: the events that it has received."""
    kills: dict[str, int]
    delta_s: list[float]
    """From each request to the first delta of its answer."""

    @property
    def is_green(self) -> bool:
        return self.once == self.accepted and not self.lost and not self.wrong and all(self.kills.values())

    def report(self) -> str:
        """Describes the result."""
        cuts = statistics.quantiles(self.delta_s, n=100, method="inclusive")
        return (
            f"{self.accepted} accepted, {self.once} applied once, {self.lost} lost; "
            f"{self.later} after the whole answer; {self.repeated} requests sent again; {self.readers} readers whole\n"
            f"kills: {self.kills}; first steered delta: p50 {cuts[49]:.2f} s, p99 {cuts[98]:.2f} s"
            + "".join(f"\n{one}" for one in self.wrong)
        )


class Session:
    """A conversation whose client steers the newest turn, and the reader of it."""

    def __init__(self, clients: list[httpx2.AsyncClient], name: str, chance: random.Random) -> None:
        self.accepted: list[tuple[str, TurnId]] = []
        """Each accepted message with its turn."""
        self.delta_s: list[float] = []
        self.repeated = 0
        self.turns: list[str] = []
        """The turns that the reader has received, in order."""
        self.later = 0
        """Turns that began after the whole answer before them, because the steer could not end it."""
        self.ids: list[int] = []
        """The ids of the present stream. They grow over the turns that it goes on into."""
        self.is_growing = True
        self.is_over = False
        self._clients = clients
        self._name = name
        self._chance = chance
        self._has_delta = self._has_ended = False
        """Whether the newest of `turns` has a delta, and an end without a successor."""

    @property
    def _client(self) -> httpx2.AsyncClient:
        return self._chance.choice(self._clients)

    async def run(self, steers: int) -> None:
        """Steers so many times, and reads until the end of the last answer."""
        self._steers = steers
        first = await self._post("/v1/turns", {"message": ANSWER.format(name=f"{self._name}x")}, f"{self._name}-begins")
        self.turns.append(first["turn"])
        reading = asyncio.create_task(self._read())
        await until(lambda: self._has_delta, WAIT_S_MAX)
        turn = first["turn"]
        for number in range(steers):
            text = (ANSWER if number < steers - 1 else LAST).format(name=f"{self._name}n{number}")
            began = time.monotonic()
            turn = (await self._post(f"/v1/turns/{turn}/steer", {"message": text}, f"{self._name}-{number}"))["turn"]
            self.accepted.append((text, TurnId(turn)))
            await until(partial(self._is_answered_by, turn), WAIT_S_MAX)
            self.delta_s.append(time.monotonic() - began)
            await asyncio.sleep(self._chance.random())
        await asyncio.wait_for(reading, WAIT_S_MAX)

    def _is_answered_by(self, turn: str) -> bool:
        return self.turns[-1] == turn and self._has_delta

    async def _post(self, path: str, body: dict[str, Any], key: str) -> dict[str, Any]:
        """Sends the request with the same key until it is accepted."""
        until_s = time.monotonic() + WAIT_S_MAX
        while time.monotonic() < until_s:
            with suppress(httpx2.HTTPError):
                response = await self._client.post(path, json=body, headers={"idempotency-key": key})
                if response.status_code in (201, 202):
                    accepted: dict[str, Any] = response.json()
                    return accepted
                assert response.status_code >= 500 or response.status_code == 429, response.text
            self.repeated += 1
            await asyncio.sleep(REPEAT_S)
        raise AssertionError(f"{path} was not accepted")

    async def _read(self) -> None:
        """Reads the events, over as many connections as it takes."""
        while not self.is_over:
            headers = {"last-event-id": str(self.ids[-1])} if self.ids else {}
            path = f"/v1/turns/{self.turns[-1]}/events"
            with suppress(httpx2.HTTPError):
                async with self._client.stream("GET", path, headers=headers) as response:
                    self._has_ended |= response.status_code == 204
                    if response.status_code == 200:
                        async for line in response.aiter_lines():
                            self._receive(line)
            if self._has_ended:
                self._read_accepted()
            await asyncio.sleep(REPEAT_S)

    def _read_accepted(self) -> None:
        """Begins to read the turn of the newest accepted message, as a client that knows it from the response."""
        newest = self.accepted[-1][1] if self.accepted else self.turns[0]
        # The reader may have the answer before the client has the response.
        if newest not in self.turns:
            self.later += 1
            self._begin(newest)
            self.ids.clear()
        self.is_over = self._has_ended and len(self.accepted) == self._steers

    def _begin(self, turn: str) -> None:
        self.turns.append(turn)
        self._has_delta = self._has_ended = False

    def _receive(self, line: str) -> None:
        if line.startswith("id: "):
            self.is_growing &= not self.ids or int(line[4:]) > self.ids[-1]
            self.ids.append(int(line[4:]))
        elif line.startswith("data: "):
            event = msgspec.json.decode(line[6:])
            if event["type"] == "steered":
                self._begin(event["turn"])
            elif event["type"] == "delta":
                self._has_delta = True
            elif event["type"] in ("done", "error"):
                self._has_ended = True

    async def conversation(self, system: System) -> list[str]:
        """Returns the messages of the user in the model call of the last answer."""
        key = TurnKey(LOCAL, self.accepted[-1][1])
        prepared = await prepare_queued(
            system.log, key, msgspec.structs.replace(await system.log.read_turn(ScopedKey.whole(key)), end=None)
        )
        assert prepared is not None
        assert prepared.request is not None
        return [str(one.content) for one in prepared.request.messages if one.role == "user"]

    def describe(self) -> str:
        return (
            f"{self._name}: {self.turns[1:]} for {[turn for _, turn in self.accepted]}, "
            f"ids grow: {self.is_growing}, over: {self.is_over}"
        )

    def is_whole(self) -> bool:
        """Whether the reader has received all turns in the order in which they were accepted."""
        return self.is_over and self.is_growing and self.turns[1:] == [turn for _, turn in self.accepted]


async def measure(folder: Path, steers: int, *, sessions: int, kill_every_s: float, seed: int) -> Result:
    """Runs the steers in a system of its own, and counts."""
    async with run_sessions(Session, folder, steers, sessions, kill_every_s, seed) as (system, made, kills):
        said = [await session.conversation(system) for session in made]
        accepted = [[text for text, _ in session.accepted] for session in made]
        return Result(
            accepted=sum(map(len, accepted)),
            once=sum(
                found.count(text) == 1
                for found, texts in zip(said, accepted, strict=True)
                if found[1:] == texts
                for text in texts
            ),
            lost=sum(text not in found for found, texts in zip(said, accepted, strict=True) for text in texts),
            later=sum(session.later for session in made),
            repeated=sum(session.repeated for session in made),
            readers=sum(session.is_whole() for session in made),
            wrong=[session.describe() for session in made if not session.is_whole()],
            kills=kills,
            delta_s=[one for session in made for one in session.delta_s],
        )


@asynccontextmanager
async def run_sessions(
    make: Callable[[list[httpx2.AsyncClient], str, random.Random], S],
    folder: Path,
    messages: int,
    sessions: int,
    kill_every_s: float,
    seed: int,
    settings: Settings | None = None,
    watch: Callable[[System], None] = lambda _: None,
) -> AsyncIterator[tuple[System, list[S], dict[str, int]]]:
    """Yields a system of its own, its sessions, which have sent so many messages in all, and the kills by role.

    `watch` is called with the system before they begin.
    """
    async with System(folder, sync="default", settings=settings) as system:
        await system.start(gateways=2, generators=2)
        watch(system)
        made = [make(system.clients, f"s{number}", random.Random(seed + number)) for number in range(sessions)]
        runs = [one.run(messages // sessions + (number < messages % sessions)) for number, one in enumerate(made)]
        yield system, made, dict(await _run_with_kills(system, runs, random.Random(seed), kill_every_s))


async def _run_with_kills(
    system: System, runs: Iterable[Coroutine[Any, Any, None]], chance: random.Random, every_s: float
) -> Counter[str]:
    """Runs `runs` at once while processes are killed, and waits until the system is healed; returns kills by role.

    With `every_s` 0, no process is killed.
    """
    kills = Counter[str](dict.fromkeys(ROLES if every_s else (), 0))
    killing = asyncio.create_task(_kill_at_random(system, kills, chance, every_s)) if every_s else None
    try:
        async with asyncio.TaskGroup() as group:
            for run in runs:
                group.create_task(run)
    finally:
        if killing is not None:
            killing.cancel()
            with suppress(asyncio.CancelledError):
                await killing
    await system.wait_until_healed()
    return kills


async def _kill_at_random(system: System, kills: Counter[str], chance: random.Random, every_s: float) -> None:
    """Kills a process of a random role every so many seconds, and starts it again at once."""
    while True:
        await asyncio.sleep(every_s * 2 * chance.random())
        # Each role is killed at least once.
        role = min(ROLES, key=lambda one: (kills[one] > 0, chance.random()))
        victims: dict[str, list[Any]] = {
            "gateway": system.gateways,
            "generator": system.generators,
            "persistence": [system.persistence],
            "nats-server": list(system.servers),
        }
        victim = chance.choice(victims[role])
        await victim.stop(SIGKILL)
        kills[role] += 1
        await asyncio.shield(_start_again(victim.start))


async def _start_again(start: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Starts a process. One that needs NATS exits while it is away."""
    for _ in range(20):
        with suppress(AssertionError):
            await start()
            return
        await asyncio.sleep(REPEAT_S)


def run_command(name: str, description: str | None, sent: str, sessions: int, measure: Measure) -> int:
    """Runs a measurement of this folder as a command, and prints its result. Returns the exit status: 0 if it is green.

    `sent` is the option for the number of messages.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m tests.kills.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(f"--{sent}", dest="sent", type=int, default=500, help="messages in all (default: 500)")
    parser.add_argument("--sessions", type=int, default=sessions, help=f"conversations (default: {sessions})")
    parser.add_argument("--kill-every", type=float, default=2.0, metavar="SECONDS", help="0: no kills (default: 2)")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        result = asyncio.run(
            measure(Path(folder), given.sent, sessions=given.sessions, kill_every_s=given.kill_every, seed=given.seed)
        )
    print(f"{result.report()}\n{time.monotonic() - began:.0f} s")
    return 0 if result.is_green else 1


if __name__ == "__main__":
    sys.exit(run_command("steers", __doc__, "steers", SESSIONS, measure))
