"""`python -m tests.upgrade.roll COMMIT` replaces the version of COMMIT by this one, and this one by it.

It replaces one process after the other, in the order of docs/RUNBOOK.md, while turns are posted and read. Every turn
must be received whole, once, with its end. Exit status 1 if one is not.

Half of the turns have server tools and pauses. A version that does not know `on_pause` ends such a turn at a pause:
then all readers must have the same beginning of the answer, and the record too. The other half are turns of sessions,
with thinking, which the model refuses after a change of its prompt: each version goes on from turns of the other. While
gateways of both versions run, each opens the tickets of the other.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from time import monotonic

import httpx2

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.tickets.older_gateways import CHECK_S
from tailrace.proto.errors import TailraceError
from tests.harness import readers
from tests.harness.event_source import EventSource
from tests.harness.generator_in_loop import words
from tests.harness.processes import CHECKOUT, Process, simulated_claude
from tests.harness.until import until
from tests.upgrade.record import QUICK, STREAMS

AT_ONCE = 6
WORDS, RATE = 60, 30
PAUSES = "server=web_search*2 pauses=2"
THINKING = "thinking=3"
GIVE_UP_S = 60.0
CHECKED_S_MAX = CHECK_S + 10


class Rolling:
    """The running processes of either version, and the results of the turns."""

    def __init__(self, process: type[Process], folder: Path, nats_url: str, claude_url: str) -> None:
        self.process = process
        self.folder = folder
        self.nats_url = nats_url
        self.claude_url = claude_url
        self.parts: dict[str, Process] = {}
        self.clients: dict[str, httpx2.AsyncClient] = {}
        """Clients of the gateways by URL."""
        self.turns_ended = self.reconnected = self.paused = self.whole_over_pauses = self.tickets = 0
        self.last_turn = ""
        self.wrong: list[str] = []
        self.is_over = False

    def part(self, module: str, checkout: Path) -> Process:
        environ: dict[str, object] = {"PYTHONPATH": checkout, "TAILRACE_NATS_URL": self.nats_url}
        if module == "generators":
            environ |= {"ANTHROPIC_BASE_URL": self.claude_url, **QUICK}
        elif module == "gateway":
            environ |= {"TAILRACE_PORT": 0}
        else:
            # An older version does not take a newer one's file.
            environ |= {"TAILRACE_DATABASE": self.folder / f"{checkout.name}.db"}
        return self.process(module, self.folder, **environ)

    async def exchange(self, module: str, checkout: Path) -> None:
        """Starts a process of the other version, and stops the old one."""
        print(f"{module} of {checkout.name}", flush=True)
        was, new = self.parts.get(module), self.part(module, checkout)
        if module == "persistence" and was is not None:
            await was.stop()
        await new.start()
        if module == "gateway":
            self.clients[new.url] = httpx2.AsyncClient(base_url=new.url, timeout=20, trust_env=False)
        self.parts[module] = new
        if module == "gateway" and was is not None:
            # Going back, the older version starts after the last check of the newer one.
            await until(partial(self.share_tickets, was, new), 0 if checkout == CHECKOUT else CHECKED_S_MAX)
        if was is not None and not was.is_gone:
            await was.stop()

    async def share_tickets(self, *gateways: Process) -> bool:
        """Returns whether a ticket of each of the gateways opens its turn at all of them."""
        clients, turn = [self.clients[one.url] for one in gateways], self.last_turn
        made = [await one.post(f"/v1/turns/{turn}/tickets", json={"is_shared": True}) for one in clients]
        opened = [await one.get(ticket.json()["events"]) for one in clients for ticket in made]
        self.tickets += len(made)
        return {one.status_code for one in opened} == {200}

    async def wait_for_turns(self) -> None:
        """Waits until more turns have ended than run at once, so that each exchange interrupts other turns."""
        enough = self.turns_ended + len(self.wrong) + AT_ONCE + 1
        await until(lambda: self.turns_ended + len(self.wrong) >= enough, GIVE_UP_S)

    def streams(self, checkout: Path) -> None:
        command = [sys.executable, "-c", STREAMS, self.nats_url]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(checkout)})

    async def keep_asking(self, number: int) -> None:
        turns = 0
        while not self.is_over:
            turns += 1
            tag = f"t{number}x{turns}x"
            try:
                async with asyncio.timeout(GIVE_UP_S):
                    await self.ask(tag, None if number % 2 else f"session-{number}")
            except (TimeoutError, AssertionError, TailraceError) as error:
                self.wrong.append(f"{tag}: {type(error).__name__} {error}")

    async def ask(self, tag: str, session: str | None) -> None:
        """Posts a turn until it is accepted, and reads it to the end at any gateway."""
        has_pauses = session is None
        source = EventSource(lambda: [self.clients[self.parts["gateway"].url]])
        message = f"#sim words={WORDS} rate={RATE} tag={tag} {PAUSES if has_pauses else THINKING}"
        turn = await source.post(tag, message, session=session)
        connections = await source.read(turn)
        found = [frame for connected in connections for frame in connected.frames]
        self.turns_ended += 1
        self.last_turn = turn
        self.reconnected += len(connections) - 1
        story, seqs = readers.story_of(frame.sent for frame in found), [frame.seq for frame in found]
        text = await self.recorded_text(turn) if has_pauses else words(WORDS, tag)
        self.paused += has_pauses
        self.whole_over_pauses += has_pauses and text == words(WORDS, tag)
        is_right = story.text == text and words(WORDS, tag).startswith(text) and bool(text)
        if not is_right or story.outcome != "completed" or seqs != sorted(set(seqs)):
            self.wrong.append(f"{tag}: received {story.outcome}, {story.text!r}")

    async def recorded_text(self, turn: str) -> str:
        """Returns the text of an ended turn as `GET /v1/turns/{turn}` has it."""
        shown = await self.clients[self.parts["gateway"].url].get(f"/v1/turns/{turn}")
        text: str = shown.json()["text"]
        return text


async def roll(before: Path, folder: Path, process: type[Process] = Process) -> Rolling:
    """Returns the results. `folder` is for the data of the processes."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(NatsServer(folder))
        claude = await stack.enter_async_context(simulated_claude(folder))
        rolling = Rolling(process, folder, server.url, claude.url)
        rolling.streams(before)
        for module in ("persistence", "generators", "gateway"):
            await rolling.exchange(module, before)
        asking = [asyncio.create_task(rolling.keep_asking(number)) for number in range(AT_ONCE)]
        await rolling.wait_for_turns()
        rolling.streams(CHECKOUT)
        upwards = [(module, CHECKOUT) for module in ("persistence", "generators", "gateway")]
        for module, checkout in (*upwards, *((module, before) for module, _ in reversed(upwards))):
            await rolling.exchange(module, checkout)
            await rolling.wait_for_turns()
        rolling.is_over = True
        await asyncio.gather(*asking)
        for part in rolling.parts.values():
            await part.stop()
        for client in rolling.clients.values():
            await client.aclose()
    return rolling


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.upgrade.roll", description="Upgrade, and go back.")
    parser.add_argument("commit", help="the version before")
    commit, began = parser.parse_args().commit, monotonic()
    with tempfile.TemporaryDirectory() as checkout, tempfile.TemporaryDirectory() as folder:
        before = Path(checkout)
        archive = subprocess.run(["git", "archive", commit], cwd=CHECKOUT, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "x"], cwd=before, input=archive, check=True)
        # `python -m` looks into the folder that it is started in before it looks into PYTHONPATH.
        os.chdir(folder)
        done = asyncio.run(roll(before, Path(folder)))
    print(
        f"{done.turns_ended} turns in {monotonic() - began:.0f} s, {done.reconnected} resumed connections, "
        f"{done.whole_over_pauses} of {done.paused} with pauses whole, {done.tickets} tickets, {len(done.wrong)} wrong"
    )
    print(*done.wrong, sep="\n")
    return 1 if done.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
