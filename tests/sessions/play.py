"""Plays the session of a seed, and judges its model calls."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar
from unittest.mock import patch

import msgspec
import structlog

from tailrace.features.structured_output.json_schema import SchemaChecker
from tailrace.generators import attempt_runner
from tailrace.generators.continuation import bind_thinking
from tailrace.proto.errors import Refused
from tailrace.proto.ids import TurnKey
from tests.promises import History, nothing_held
from tests.sessions.client import SESSION, Asked, Client, Step
from tests.sessions.judge import Verdict, judge
from tests.sessions.world import World

T = TypeVar("T")

TURNS = (3, 9)


async def find_mismatch(_judge: object, _schema: object, text: str, _tenant: object) -> str | None:
    """Replaces SchemaChecker.find_mismatch, which starts a process."""
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return "no JSON"
    return None


async def run_here(function: Callable[..., T], *args: Any, **options: Any) -> T:
    """Replaces asyncio.to_thread."""
    return function(*args, **options)


@contextmanager
def patched() -> Iterator[None]:
    """No process checks schemas, and nothing is logged."""

    def drop(*_: object) -> Any:
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[drop])
    try:
        # A thread would take a tenth of the time.
        with patch.object(SchemaChecker, "find_mismatch", find_mismatch), patch.object(asyncio, "to_thread", run_here):
            yield
    finally:
        structlog.configure(**before)


async def play(seed: int) -> Verdict:
    """Plays the session of a seed."""
    world = World(seed)
    client = Client(world.random)
    with patch.object(attempt_runner, "bind_thinking", partial(world.note_bound, bind_thinking)):
        for _ in range(world.random.randint(*TURNS)):
            step = client.next()
            world.happened.update(f"change of {one}" for one in step.changed)
            try:
                await play_step(world, client, step)
            except Refused as refused:
                world.happened.add(f"refused by the gateway: {refused.code}")
    verdict = judge(seed, world, client.profile.name, client.protocol)
    held = nothing_held(History(budgets=tuple(await world.budgets())))
    return verdict if held.is_green else verdict._replace(wrong=[*verdict.wrong, held.evidence])


async def play_step(world: World, client: Client, step: Step) -> None:
    """Posts a turn, and runs it and what is asked meanwhile. Raises Refused."""
    if step.patch is not None:
        world.history.systems[SESSION] = step.patch["system_prompt"]
    key = await world.post(step.sent)
    world.happened.add(f"model {client.model}")
    if not step.at_delta:
        world.happened.add(step.kind)
    if step.refusal:
        world.bad[key.turn] = step.refusal
    second: list[TurnKey] = []
    world.claude.special = step.special
    if step.at_delta:
        world.claude.at_delta = step.at_delta, partial(disturb, world, step, key, second)
    record = await world.run(key)
    world.claude.at_delta = world.claude.special = None
    if step.kind == "older":
        world.history.older.add(key.turn)
    if step.kind != "branch" or not second:
        client.branch.append(Asked(step.messages, record))
    for key in second:
        assert step.second is not None
        client.branch.append(Asked(step.second.messages, await world.run(key)))


async def disturb(world: World, step: Step, key: TurnKey, second: list[TurnKey]) -> None:
    """Does what the kind of the turn says, while its answer runs."""
    world.happened.add(step.kind)
    match step:
        case Step(kind="kill"):
            await world.kill(again=world.random.randint(0, 3))
        case Step(kind="drain"):
            await world.drain()
        case Step(kind="cancel"):
            await world.cancel(key)
        case Step(kind="steer", second=Step(sent)):
            second.append(await world.steer(sent, key))
        case Step(second=Step(sent)):
            second.append(await world.post(sent))


def play_all(seeds: range) -> list[Verdict]:
    """Plays the sessions of the seeds, one after the other."""

    async def play_each() -> list[Verdict]:
        return [await play(seed) for seed in seeds]

    with patched():
        return asyncio.run(play_each())
