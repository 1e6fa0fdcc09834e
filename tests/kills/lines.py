"""Steers and queued messages that arrive at the same moment, while all processes are killed at random.

    python -m tests.kills.lines --messages 500

Each session sends some of both at once, again and again, each to a gateway by chance; a request without an answer is
repeated at any gateway, with its key. At the end each accepted message is one turn, and no two turns of a session have
one parent: otherwise they would be branches that do not know of each other.
"""

import asyncio
import random
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from tests.kills.steers import REPEAT_S, WAIT_S_MAX, run_command, run_sessions

SESSIONS = 5
STEERS, QUEUED = 2, 2
FIRST = "#sim words=4000 rate=20 tag={name}"
ANSWER = "#sim words=3 rate=0 tag={name}"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The counts of one run."""

    accepted: int
    turns: int
    """Turns of the accepted messages in the sessions' lists; each once."""
    forks: list[str]
    """The turns that more than one turn follows."""
    repeated: int
    """Requests that were sent again, because they got no answer."""
    kills: dict[str, int]

    @property
    def is_green(self) -> bool:
        return self.turns == self.accepted and not self.forks

    def report(self) -> str:
        return (
            f"{self.accepted} messages accepted, {self.turns} turns in lines, {len(self.forks)} forks {self.forks}; "
            f"{self.repeated} requests repeated; kills: {self.kills}"
        )


class Session:
    """A conversation to which several clients send messages at once."""

    def __init__(self, clients: list[httpx2.AsyncClient], name: str, chance: random.Random) -> None:
        self._clients = clients
        self._name = name
        self._chance = chance
        self.session = ""
        self.accepted: list[str] = []
        self.repeated = 0

    async def run(self, messages: int) -> None:
        first = await self._post("/v1/turns", {"message": FIRST.format(name=f"{self._name}x")}, f"{self._name}-begins")
        self.session, newest, number = first["session"], first["turn"], 0
        while number < messages:
            count = min(STEERS + QUEUED, messages - number)
            steered = [one < count * STEERS // (STEERS + QUEUED) for one in range(count)]
            sending = [self._send(number + one, newest, is_steer=is_steer) for one, is_steer in enumerate(steered)]
            turns = await asyncio.gather(*self._chance.sample(sending, count))
            self.accepted += turns
            number += count
            newest = turns[-1]
            await asyncio.sleep(self._chance.random() / 2)

    async def _send(self, number: int, newest: str, *, is_steer: bool) -> str:
        key, text = f"{self._name}-{number}", ANSWER.format(name=f"{self._name}n{number}")
        if is_steer:
            at = self._chance.choice(("now", "boundary"))
            return str((await self._post(f"/v1/turns/{newest}/steer", {"message": text, "at": at}, key))["turn"])
        body = {"message": text, "session": self.session, "on_busy": "queue"}
        return str((await self._post("/v1/turns", body, key))["turn"])

    async def _post(self, path: str, body: dict[str, Any], key: str) -> dict[str, Any]:
        """Sends the request with the same key until it is accepted."""
        until_s = time.monotonic() + WAIT_S_MAX
        while time.monotonic() < until_s:
            with suppress(httpx2.HTTPError):
                response = await self._chance.choice(self._clients).post(
                    path, json=body, headers={"idempotency-key": key}
                )
                if response.status_code == 202:
                    accepted: dict[str, Any] = response.json()
                    return accepted
                # 409: too many messages in a row wait.
                assert response.status_code >= 500 or response.status_code in (409, 429), response.text
            self.repeated += 1
            await asyncio.sleep(REPEAT_S)
        raise AssertionError(f"{path} was not accepted")

    async def parents(self, client: httpx2.AsyncClient) -> dict[str, str | None]:
        """Returns the parent of each turn of the session."""
        found: dict[str, str | None] = {}
        after = ""
        while True:
            answer = await client.get(f"/v1/sessions/{self.session}/turns?limit=200{after}")
            if answer.status_code != httpx2.codes.OK:
                # Persistence has just started again.
                await asyncio.sleep(REPEAT_S)
                continue
            page = answer.json()
            found |= {turn["turn"]: turn["parent"] for turn in page["turns"]}
            if page["next"] is None:
                return found
            after = f"&after={page['next']}"


async def measure(folder: Path, messages: int, *, sessions: int, kill_every_s: float, seed: int) -> Result:
    """Sends the messages in a system of its own, and counts."""
    async with run_sessions(Session, folder, messages, sessions, kill_every_s, seed) as (system, made, kills):
        parents = [await session.parents(system.clients[0]) for session in made]
        counts = Counter(parent for found in parents for parent in found.values() if parent is not None)
        return Result(
            accepted=sum(len(session.accepted) for session in made),
            turns=sum(
                turn in found for session, found in zip(made, parents, strict=True) for turn in {*session.accepted}
            ),
            forks=[turn for turn, count in counts.items() if count > 1],
            repeated=sum(session.repeated for session in made),
            kills=kills,
        )


if __name__ == "__main__":
    sys.exit(run_command("lines", __doc__, "messages", SESSIONS, measure))
