"""`python -m tests.upgrade.record NAME [CHECKOUT]` records what a version of Tailrace stores and sends.

The version in CHECKOUT (this one by default) answers turns of each kind. Its log, its streams in every dialect and its
database become `NAME.jsonl` and `NAME.sql`. Later versions must send the same.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import nats

from tailrace.deploy.local.nats_server import NatsServer
from tests.harness.processes import CHECKOUT, Process, simulated_claude
from tests.upgrade.recording import FOLDER, Entry, Received, dump, write

TOOLS = [{"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}]
# What a turn of each kind is asked with. How it is cut, cancelled and taken over says `Recorder`.
BODY: dict[str, dict[str, Any]] = {
    "text": {"message": "#sim words=6 rate=0", "system": "Be brief.", "metadata": {"of": "a client"}},
    "thinking": {"message": "#sim thinking=3 words=4 rate=0"},
    "tool": {"message": '#sim words=2 tool=look json={"at":"the sky"} rate=0', "tools": TOOLS},
    "cited": {"message": "#sim words=3 cites=2 rate=0"},
    "continued": {"message": "#sim words=9 rate=0 fault=cut@4x1"},
    "restarted": {"message": "#sim words=7 rate=0 fault=cut@3x1", "on_interrupt": "restart"},
    "interrupted": {"message": "#sim words=8 rate=0 fault=cut@5x1", "on_interrupt": "fail"},
    "refused": {"message": "#sim words=5 rate=0 fault=500@0"},
    "cancelled": {"message": "#sim words=900 rate=20"},
    "taken_over": {"message": "#sim words=24 rate=10"},
}
# A version from before batches says 404.
BATCH = {
    "requests": [
        {"custom_id": f"input-{n}", "params": {"message": f"#sim words={n + 2} rate=0 tag=b{n}x"}} for n in range(2)
    ]
}
DELTAS_MIN = 5
QUICK = {"TAILRACE_CALL_WAIT_S": 0.02, "ANTHROPIC_API_KEY": "sk-test"}
STREAMS = (
    # Older versions have no `is_new`.
    "import asyncio, inspect, sys; from tailrace.deploy.cli.streams import apply;"
    " new = {'is_new': True} if 'is_new' in inspect.signature(apply).parameters else {};"
    " asyncio.run(apply(sys.argv[1], file_bytes_max=1 << 30, **new))"
)


class Recorder:
    """A running version."""

    def __init__(self, checkout: Path, folder: Path, nats_url: str, claude_url: str) -> None:
        self.checkout = checkout
        self.folder = folder
        self.environ = {"PYTHONPATH": checkout, "TAILRACE_NATS_URL": nats_url}
        self.claude_url = claude_url
        self.received: list[Received] = []

    def part(self, module: str, **environ: object) -> Process:
        return Process(module, self.folder, **self.environ, **environ)

    def generator(self) -> Process:
        return self.part("generators", ANTHROPIC_BASE_URL=self.claude_url, **QUICK)

    async def play(self) -> None:
        """Posts each turn when the one before it has ended."""
        persistence = self.part("persistence", TAILRACE_DATABASE=self.folder / "tailrace.db")
        async with AsyncExitStack() as stack:
            gateway = self.part("gateway", TAILRACE_PORT=0)
            first = self.generator()
            for part in (persistence, gateway, first):
                await stack.enter_async_context(part)
            client = httpx2.AsyncClient(base_url=gateway.url, timeout=60, trust_env=False)
            await stack.enter_async_context(client)
            session = None
            for name, body in BODY.items():
                if name == "taken_over":
                    await stack.enter_async_context(self.generator())
                turn = await post_turn(client, body | {"session": session})
                session = session or turn["session"]
                if name in ("cancelled", "taken_over"):
                    await wait_for_words(client, turn["turn"])
                if name == "cancelled":
                    await client.post(f"/v1/turns/{turn['turn']}/cancel")
                if name == "taken_over":
                    await first.stop()
                await self.read_stream_to_end(client, name, turn["turn"])
                # A turn that was not completed is no turn to go on from.
                session = session if name in ("text", "thinking") else None
            answer = await client.post("/v1/turn-batches", json=BATCH)
            if answer.is_success:
                await self.read_stream_to_end(client, "batch", answer.json()["batch"])
            # It answers when it has all of them.
            (await client.get("/v1/sessions")).raise_for_status()

    async def read_stream_to_end(self, client: httpx2.AsyncClient, name: str, turn: str) -> None:
        streams: dict[str, str] = {}
        await client.get(f"/v1/turns/{turn}/events")
        refused = (await client.get(f"/v1/turns/{turn}/events?dialect=none")).json()
        sentence = refused["error"]["message"] if isinstance(refused["error"], dict) else str(refused["message"])
        for dialect in sentence.rpartition(" one of ")[2].split(", "):
            streams[dialect] = await read_stream(client, turn, dialect)
        record = (await client.get(f"/v1/turns/{turn}")).json()
        self.received.append(Received(name=name, turn=turn, record=record, streams=streams))


async def post_turn(client: httpx2.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    given = {name: what for name, what in body.items() if what is not None}
    answer = await client.post("/v1/turns", json=given)
    assert answer.status_code == 202, answer.text
    accepted: dict[str, Any] = answer.json()
    return accepted


async def wait_for_words(client: httpx2.AsyncClient, turn: str) -> None:
    """Waits until the stream has some words of the answer."""
    async with client.stream("GET", f"/v1/turns/{turn}/events") as response:
        deltas = 0
        async for line in response.aiter_lines():
            deltas += '"delta"' in line
            if deltas >= DELTAS_MIN:
                return


async def read_stream(client: httpx2.AsyncClient, turn: str, dialect: str) -> str:
    """Returns the whole stream of a turn, or what came before the connection broke."""
    received = b""
    try:
        url = f"/v1/turns/{turn}/events?dialect={dialect}"
        async with client.stream("GET", url, headers={"accept": "text/event-stream"}) as response:
            async for some in response.aiter_raw():
                received += some
    except httpx2.RemoteProtocolError:
        pass
    return received.decode()


async def read_messages(nats_url: str) -> list[Entry]:
    """Returns all messages of the stream TURNS."""
    connection = await nats.connect(nats_url)
    try:
        jetstream = connection.jetstream()
        state = (await jetstream.stream_info("TURNS")).state
        found: list[Entry] = []
        for seq in range(state.first_seq, state.last_seq + 1):
            try:
                one = await jetstream.get_msg("TURNS", seq=seq)
            except nats.js.errors.NotFoundError:
                continue
            assert one.subject is not None
            assert one.time is not None
            found.append(Entry(seq=seq, at=one.time, subject=one.subject, payload=(one.data or b"").decode()))
    finally:
        await connection.close()
    return found


async def record(name: str, checkout: Path) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        # `python -m` looks into the folder that it is started in before it looks into PYTHONPATH.
        os.chdir(folder)
        async with NatsServer(folder) as server, simulated_claude(folder) as claude:
            command = [sys.executable, "-c", STREAMS, server.url]
            subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(checkout)})  # noqa: ASYNC221
            recorder = Recorder(checkout, folder, server.url, claude.url)
            await recorder.play()
            write(name, await read_messages(server.url), recorder.received)
        (FOLDER / f"{name}.sql").write_text(dump(folder / "tailrace.db"), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.upgrade.record", description="Record what a version tells.")
    parser.add_argument("name", help="of the recording")
    parser.add_argument("checkout", type=Path, nargs="?", default=CHECKOUT, help="of the version (default: this one)")
    given = parser.parse_args()
    asyncio.run(record(given.name, given.checkout.resolve()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
