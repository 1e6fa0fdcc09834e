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
from tests.sessions.client import Asked, Client
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
    happened: list[str] = []
    with patch.object(attempt_runner, "bind_thinking", partial(world.note_bound, bind_thinking)):
        for _ in range(world.random.randint(*TURNS)):
            step = client.next()
            happened += [step.kind, *(f"change of {one}" for one in step.changed)]
            try:
                key = await world.post(step.new_turn)
            except Refused as refused:
                happened.append(f"refused by the gateway: {refused.code}")
                continue
            world.claude.special = step.special
            match step.kind:
                case "kill" if step.at_delta:
                    world.claude.at_delta = step.at_delta, world.kill
                case "drain" if step.at_delta:
                    world.claude.at_delta = step.at_delta, world.drain
                case "cancel" if step.at_delta:
                    world.claude.at_delta = step.at_delta, partial(world.cancel, key)
            record = await world.run(key)
            world.claude.at_delta = world.claude.special = None
            client.branch.append(Asked(step.messages, record))
    return judge(seed, world, client.profile.name, client.protocol, happened)


def play_all(seeds: range) -> list[Verdict]:
    """Plays the sessions of the seeds, one after the other."""

    async def play_each() -> list[Verdict]:
        return [await play(seed) for seed in seeds]

    with patched():
        return asyncio.run(play_each())
