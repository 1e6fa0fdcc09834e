"""Turns and batches that are cancelled, deleted and erased while all processes are killed, with budgets for all.

    python -m tests.kills.budgets --purchases 500

Each session posts turns and batches one after the other, and cancels, deletes or erases most of them at a random
moment. A request without an answer is repeated at any gateway, with its key. At the end no budget and no slot may be
held, and at no moment may more have been left than the limit less the recorded cost.
"""

import asyncio
import random
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import httpx2
import msgspec

from tests.harness.budget_audit import BudgetAudit, limit_settings
from tests.harness.system import System
from tests.kills.steers import REPEAT_S, WAIT_S_MAX, run_command, run_sessions
from tests.promises import History, Verdict, nothing_held

SESSIONS = 6
QUESTION = "#sim words={words} rate={rate} tag={name}-"
MODEL = "claude-haiku-5-5"
INPUTS = 3
USED_S_MAX = 1.5
Fate = Literal["read", "cancel", "delete", "erase"]
FATES: tuple[Fate, ...] = get_args(Fate)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The counts of one run, and the verdict of the promise `nothing_held`."""

    accepted: int
    fates: dict[str, int]
    kills: dict[str, int]
    held: Verdict
    waited_s: float
    """How long after the run the budgets were right."""

    @property
    def is_green(self) -> bool:
        return self.held.is_green

    def report(self) -> str:
        return (
            f"{self.accepted} turns and batches, {self.fates}; kills: {self.kills}\n"
            f"budgets: {self.held.evidence or 'right'} after {self.waited_s:.1f} s"
        )


class Session:
    """A client that buys turns and batches."""

    def __init__(self, clients: list[httpx2.AsyncClient], name: str, chance: random.Random) -> None:
        self.accepted = 0
        self.fates: list[Fate] = []
        self._clients = clients
        self._name = name
        self._chance = chance

    async def run(self, purchases: int) -> None:
        for number in range(purchases):
            await self._buy(f"{self._name}n{number}", FATES[(number + int(self._name[1:])) % len(FATES)])

    async def _buy(self, name: str, fate: Fate) -> None:
        user = f"user-{name}"
        if self._chance.random() < 1 / 3:
            inputs = [
                {"custom_id": f"c{n}", "params": {"model": MODEL, "message": self._question(f"{name}x{n}")}}
                for n in range(INPUTS)
            ]
            path, body = "/v1/turn-batches", {"requests": inputs, "via": "messages"}
        else:
            path, body = "/v1/turns", {"message": self._question(name), "user": user}
        answer = await self._send("POST", path, body, key=f"key-{name}")
        turn = str(answer.headers["tailrace-turn"])
        self.accepted += 1
        self.fates.append(fate)
        await asyncio.sleep(self._chance.random() * USED_S_MAX)
        match fate:
            case "read":
                await self._send("GET", f"/v1/turns/{turn}/events?dialect=text")
            case "cancel":
                await self._send("POST", f"/v1/turns/{turn}/cancel")
            case "erase" if path == "/v1/turns":
                await self._send("DELETE", f"/v1/users?user={user}")
            case _:
                await self._send("DELETE", f"/v1/turns/{turn}")

    def _question(self, name: str) -> str:
        return QUESTION.format(words=self._chance.randint(2, 60), rate=self._chance.choice((0, 20)), name=name)

    async def _send(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> httpx2.Response:
        """Sends the request until it is answered without an error of the server."""
        headers = {"idempotency-key": key} if key is not None else {}
        until_s = time.monotonic() + WAIT_S_MAX
        while time.monotonic() < until_s:
            with suppress(httpx2.HTTPError):
                answer = await self._chance.choice(self._clients).request(method, path, json=body, headers=headers)
                # 404: deleted before; 409: it has ended, or is being deleted.
                if answer.is_success or (key is None and answer.status_code in (404, 409)):
                    return answer
                assert answer.status_code >= 500 or answer.status_code == 429, answer.text
            await asyncio.sleep(REPEAT_S)
        raise AssertionError(f"{method} {path} was not answered")


async def measure(folder: Path, purchases: int, *, sessions: int, kill_every_s: float, seed: int) -> Result:
    """Runs the purchases in a system of its own, and waits until the budgets are right."""
    audits = list[BudgetAudit]()
    sampling = set[asyncio.Task[None]]()

    def watch(system: System) -> None:
        audits.append(BudgetAudit(system.connection, system.database))
        sampling.add(asyncio.create_task(audits[0].sample()))

    settings: Any = {"gateway": limit_settings()}
    async with run_sessions(Session, folder, purchases, sessions, kill_every_s, seed, settings, watch) as (
        system,
        made,
        kills,
    ):
        await system.wait_until_settled(WAIT_S_MAX)
        (audit,) = audits
        left = tuple(await audit.wait_until_exact())
        for one in sampling:
            one.cancel()
    fates = [fate for session in made for fate in session.fates]
    return Result(
        accepted=sum(session.accepted for session in made),
        fates={fate: fates.count(fate) for fate in FATES},
        kills=kills,
        held=nothing_held(History(budgets=left, samples=tuple(audit.worst.values()))),
        waited_s=audit.waited_s,
    )


if __name__ == "__main__":
    sys.exit(run_command("budgets", __doc__, "purchases", SESSIONS, measure))
