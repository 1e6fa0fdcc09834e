"""`tailrace top`: a live screen of processes, the queue, tokens a second and the slowest running turns."""

import argparse
import asyncio
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import msgspec

from tailrace.client import Client
from tailrace.deploy.cli import status
from tailrace.deploy.cli.arguments import add_connection, add_json
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.conversations import excerpt, text_of
from tailrace.deploy.cli.result import print_json
from tailrace.deploy.local.terminal_text import has_cursor, make_printable, table
from tailrace.proto.errors import SettingsInvalid

DESCRIPTION = "Watch processes, the queue, tokens a second and the slowest running turns."
EXAMPLES = """\
examples:
  tailrace top                                          repeated every two seconds until Ctrl-C
  tailrace top > now.txt                                once
  tailrace top --json                                   a line of JSON every two seconds
  TAILRACE_KEY=… tailrace top --url https://tailrace.example

It shows the processes and the queue of the running `up` of this user. With --url, or without a running `up`, it shows
only turns.
"""
EVERY_S = 2.0
# The most running turns that are read for a sample.
TURNS_READ_MAX = 1000
TURNS_SHOWN = 15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser, "print a line of JSON every two seconds")
    add_connection(parser)


class RunningTurn(msgspec.Struct, frozen=True):
    """A row of the screen. `first_token_s` is None before the first token."""

    turn: str
    age_s: float
    first_token_s: float | None
    output_tokens: int
    model: str
    question: str


class Screen(msgspec.Struct, frozen=True, kw_only=True):
    """One sample. `tokens_s` is None in the first sample; `system` is None without a local `up`."""

    system: status.Status | None
    running: int
    tokens_s: float | None
    slowest: list[RunningTurn]


class Sampler:
    """Reads the gateway and the local `up`, and computes the tokens a second since the last sample."""

    def __init__(self, client: Client, args: argparse.Namespace, environ: Mapping[str, str]) -> None:
        self._client = client
        self._args = args
        self._environ = environ
        self._before: tuple[float, int] | None = None

    def sample(self) -> Screen:
        """Raises client.TailraceError."""
        is_local = not (self._args.url or self._environ.get("TAILRACE_URL"))
        try:
            system = asyncio.run(status.fetch(self._args.data, self._environ)) if is_local else None
        except SettingsInvalid:
            system = None
        turns = list(islice(self._client.turns(), TURNS_READ_MAX))
        now, tokens = time.monotonic(), self._tokens(turns)
        before, self._before = self._before, (now, tokens)
        # The sum falls when a turn is deleted and when the next day begins.
        tokens_s = max(0.0, (tokens - before[1]) / (now - before[0])) if before else None
        slowest = sorted(map(running_turn, turns), key=lambda turn: -turn.age_s)[:TURNS_SHOWN]
        return Screen(system=system, running=len(turns), tokens_s=tokens_s, slowest=slowest)

    def _tokens(self, turns: Sequence[Mapping[str, Any]]) -> int:
        """Returns the output tokens of today's turns, ended and running."""
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        ended = self._client.request("GET", "/v1/usage", params={"by": "day", "from": today, "to": today})["data"]
        return sum(one["usage"].get("output_tokens", 0) for one in (*ended, *turns))


def running_turn(turn: Mapping[str, Any]) -> RunningTurn:
    age_s = (datetime.now(UTC) - datetime.fromisoformat(turn["asked_at"])).total_seconds()
    question = text_of(turn["input"][-1]["content"]) if turn["input"] else ""
    tokens = turn["usage"].get("output_tokens", 0)
    return RunningTurn(turn["turn"], age_s, turn["first_token_s"], tokens, turn["model"], excerpt(question))


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """On a terminal and with --json, prints samples until Ctrl-C; otherwise prints one sample."""
    is_screen = has_cursor(sys.stdout) and not args.json
    with connect(args, environ) as client, open_alternate_screen() if is_screen else nullcontext():
        sampler = Sampler(client, args, environ)
        while True:
            found = sampler.sample()
            if args.json:
                print_json(found)
            elif is_screen:
                draw(render(found))
            else:
                print(render(found))
                return 0
            time.sleep(EVERY_S)


def render(screen: Screen) -> str:
    rate = "" if screen.tokens_s is None else f", {screen.tokens_s:.0f} tokens a second"
    parts = [] if screen.system is None else [status.render(screen.system)]
    parts.append(f"Turns of your key's tenant: {screen.running} running{rate}")
    if screen.slowest:
        rows = [
            (
                one.turn,
                f"{one.age_s:.1f}",
                "-" if one.first_token_s is None else f"{one.first_token_s:.1f}",
                str(one.output_tokens),
                one.model,
                one.question,
            )
            for one in screen.slowest
        ]
        parts.append(table([("SLOWEST TURNS", "SECONDS", "FIRST TOKEN", "OUTPUT", "MODEL", "QUESTION"), *rows]))
    return make_printable("\n\n".join(parts))


def draw(text: str) -> None:
    """Overwrites the last screen, because clearing it first would flicker. Cuts text that does not fit."""
    size = shutil.get_terminal_size()
    lines = [line[: size.columns] for line in text.splitlines()[: size.lines - 1]]
    sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
    sys.stdout.flush()


@contextmanager
def open_alternate_screen() -> Iterator[None]:
    """Switches the terminal to its alternate screen without a cursor, and back at the end."""
    sys.stdout.write("\x1b[?1049h\x1b[?25l")
    try:
        yield
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
