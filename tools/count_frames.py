"""Counts the project's functions on the core path: one POST, one delta to one reader, one resume, one model's delta.

Run `.venv/bin/python -m tools.count_frames`. It starts a nats-server, a gateway and a generator in this thread; the
client, the writer of the log and the simulated Claude run in another thread, whose frames are not counted.
A function is counted once, however often it is called; so is a coroutine, however often it is resumed. Of several
runs the shortest path counts: background tasks (health checks, key cache) disturb single runs.
"""

import argparse
import asyncio
import json
import logging
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType

import msgspec
import structlog

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.nats import setup
from tailrace.deploy.simulated_claude.server import run_simulated_claude
from tailrace.features.gateway import FEATURES
from tailrace.features.generators import FEATURES as GENERATOR_FEATURES
from tailrace.gateway.serve import serve
from tailrace.gateway.settings import Settings
from tailrace.generators.serve import serve as serve_generator
from tailrace.generators.settings import Settings as GeneratorSettings
from tailrace.proto import entries, events
from tailrace.proto.chain import START, Chain
from tailrace.proto.ids import SessionId, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.service import Stop

ROOT = str(Path(__file__).resolve().parent.parent)
FOLDERS = tuple(f"{ROOT}/{name}/" for name in ("features", "gateway", "generators", "proto", "protocols"))
BYTES_MAX = 768 * 1024**2
ROUNDS = 12
# After this long nothing of the last delta is under way any more.
QUIET_S = 0.02
LINGER_S = 0.1
BODY = json.dumps({"message": "Why is the sky blue?"}).encode()

Functions = list[CodeType]


class Counter:
    """Records the project's functions that this thread enters while it is switched on, in order of first call."""

    def __init__(self) -> None:
        self.is_on = False
        self.seen: dict[CodeType, None] = {}

    def profile(self, frame: FrameType, event: str, _: object) -> None:
        if self.is_on and event == "call" and _is_function(frame.f_code):
            self.seen.setdefault(frame.f_code)

    def start(self) -> None:
        self.seen = {}
        self.is_on = True

    def stop(self) -> Functions:
        self.is_on = False
        return list(self.seen)


def _is_function(code: CodeType) -> bool:
    # Imported through the links of the folder `tailrace`, whose files have their resolved or their linked name.
    name = code.co_filename.replace(f"{ROOT}/tailrace/", f"{ROOT}/")
    return name.startswith(FOLDERS) and not code.co_name.endswith("comp>") and code.co_name != "<genexpr>"


class Client:
    """Speaks HTTP over a plain socket, and writes the log of its turns as a generator would."""

    def __init__(self, port: int, nats_url: str, counter: Counter) -> None:
        self._port = port
        self._nats_url = nats_url
        self._counter = counter
        self.paths: dict[str, list[Functions]] = {"POST": [], "delta": [], "resume": []}

    async def run(self) -> None:
        """Fills `paths`: ROUNDS times a POST, a delta and a resume."""
        connection = await Connection.open(self._nats_url, "count-frames")
        try:
            log = TurnLog(connection)
            for _ in range(ROUNDS):
                # What the last reader's departure sets off is over by then.
                await asyncio.sleep(LINGER_S + QUIET_S)
                turn = await self._post()
                await self._read(log, TurnKey(Tenant("local"), turn))
        finally:
            await connection.close()

    async def _post(self) -> TurnId:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        # The gateway accepts the connection a moment later.
        await asyncio.sleep(QUIET_S)
        self._counter.start()
        writer.write(
            b"POST /v1/turns HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
        )
        answer = await reader.read()
        self.paths["POST"].append(self._counter.stop())
        writer.close()
        turn: str = json.loads(answer.partition(b"\r\n\r\n")[2])["turn"]
        return TurnId(turn)

    async def _read(self, log: TurnLog, key: TurnKey) -> None:
        chain = Chain((await log.read_entries(ScopedKey.whole(key)))[0].seq)
        attempt = entries.Attempt(prev=chain.last, attempt=1, generator="generator", backend="claude", mode="fresh")
        chain = await log.append(key, chain, attempt)
        chain = await log.append(key, chain, _event(chain, events.BlockStart(0, {"type": "text", "text": ""})))
        reader, writer = await self._open(key, cursor=0)
        chain = await log.append(key, chain, _event(chain, events.BlockDelta(0, events.TextDelta("first"))))
        await reader.readuntil(b"first")
        await asyncio.sleep(QUIET_S)
        self._counter.start()
        chain = await log.append(key, chain, _event(chain, events.BlockDelta(0, events.TextDelta("counted"))))
        await reader.readuntil(b"counted")
        await asyncio.sleep(QUIET_S)
        self.paths["delta"].append(self._counter.stop())
        cursor = chain.last
        writer.close()
        chain = await log.append(key, chain, _event(chain, events.BlockDelta(0, events.TextDelta("missed"))))
        # The turn's other readers have long gone, so that the log is read again.
        await asyncio.sleep(LINGER_S + QUIET_S)
        self._counter.start()
        reader, writer = await self._open(key, cursor)
        await reader.readuntil(b"missed")
        self.paths["resume"].append(self._counter.stop())
        writer.close()

    async def _open(self, key: TurnKey, cursor: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        path = f"/v1/turns/{key.turn}/events"
        cursor_header = f"last-event-id: {cursor}\r\n" if cursor else ""
        head = f"GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n{cursor_header}\r\n"
        writer.write(head.encode())
        return reader, writer


def _event(chain: Chain, event: events.Event) -> entries.Event:
    return entries.Event(prev=chain.last, attempt=chain.attempt, event=events.encode(event))


class Model:
    """A simulated Claude, whose deltas a generator in the other thread appends to a turn's log."""

    def __init__(self, nats_url: str, counter: Counter) -> None:
        self._nats_url = nats_url
        self._counter = counter
        self.deltas: list[Functions] = []

    async def run(self, on_url: Callable[[str], object]) -> None:
        """Fills `deltas`. Calls `on_url` with the address of the simulated Claude before the first turn."""
        async with run_simulated_claude() as url:
            on_url(url)
            connection = await Connection.open(self._nats_url, "count-frames-model")
            try:
                await self._count(TurnLog(connection))
            finally:
                await connection.close()

    async def _count(self, log: TurnLog) -> None:
        key = TurnKey(Tenant("local"), TurnId(new_id()))
        message = entries.Message("user", f"#sim words={ROUNDS + 8} rate=10")
        await log.append(
            key,
            START,
            entries.Request(model="claude-sonnet-5", max_tokens=999, messages=[message], session=SessionId(new_id())),
        )
        async for some in log.follow(ScopedKey.whole(key)):
            if not any(
                isinstance(one.entry, entries.Event) and b"text_delta" in bytes(one.entry.event) for one in some
            ):
                continue
            # What the delta before this one has caused is over by then, and the next one has not come.
            await asyncio.sleep(QUIET_S)
            self.deltas.append(self._counter.stop())
            self._counter.start()


async def count() -> dict[str, Functions]:
    """Returns the functions of the shortest run of each path, in order of their first call."""
    with tempfile.TemporaryDirectory() as folder:
        async with NatsServer(Path(folder)) as server:
            admin = await Connection.open(server.url, "count-frames-streams")
            await setup.apply(admin, bytes_max=BYTES_MAX)
            await admin.close()
            return await _count(server.url) | {"model": await _count_model(server.url)}


async def _count_model(nats_url: str) -> Functions:
    """Returns the functions from the arrival of a model's delta until its append is acknowledged."""
    counter, stop = Counter(), Stop()
    model = Model(nats_url, counter)
    loop, url = asyncio.get_running_loop(), asyncio.Queue[str]()
    counting = asyncio.create_task(
        asyncio.to_thread(asyncio.run, model.run(lambda found: loop.call_soon_threadsafe(url.put_nowait, found)))
    )
    given = {"nats_url": nats_url, "anthropic_base_url": await url.get(), "anthropic_api_key": "sk-simulated"}
    connection = await Connection.open(nats_url, "count-frames-generator")
    sys.setprofile(counter.profile)
    serving = asyncio.create_task(
        serve_generator(msgspec.convert(given, GeneratorSettings), connection, stop, features=GENERATOR_FEATURES)
    )
    try:
        await counting
    finally:
        sys.setprofile(None)
        stop.set()
        await serving
        await connection.close()
    # The first count also has the beginning of the call. A delta that comes early is in the count before its own, which
    # then lacks a part.
    whole = [count for count in model.deltas[1:-1] if {"receive", "publish_soon"} <= {one.co_name for one in count}]
    return min(whole, key=len)


async def _count(nats_url: str) -> dict[str, Functions]:
    listening = socket.create_server(("127.0.0.1", 0))
    port: int = listening.getsockname()[1]
    given = {"nats_url": nats_url, "listen_fd": listening.detach(), "linger_s": LINGER_S}
    settings = msgspec.convert(given, Settings)
    counter, stop = Counter(), asyncio.Event()
    client = Client(port, nats_url, counter)
    connection = await Connection.open(nats_url, "count-frames-gateway")
    sys.setprofile(counter.profile)
    serving = asyncio.create_task(serve(settings, connection, stop, features=FEATURES))
    try:
        await asyncio.to_thread(asyncio.run, client.run())
    finally:
        sys.setprofile(None)
        stop.set()
        await serving
        await connection.close()
    # On a busy machine the turn's feed may still be there when its reader resumes, which then reads no log.
    client.paths["resume"] = [run for run in client.paths["resume"] if "page" in {one.co_name for one in run}]
    return {name: min(runs, key=len) for name, runs in client.paths.items()}


def _until_append(functions: Functions) -> Functions:
    """Returns the functions of a POST before the log takes over."""
    names = [function.co_name for function in functions]
    return functions[: names.index("append") + 1]


def main() -> None:
    """Prints how many functions each path runs through, and in how many files."""
    parser = argparse.ArgumentParser(prog="python -m tools.count_frames", description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the functions, in order of their first call")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    # The simulated Claude is stopped in the middle of its answers, which uvicorn logs as errors.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    found = asyncio.run(count())
    found["append"] = _until_append(found["POST"])
    for name, functions in found.items():
        files = {function.co_filename for function in functions}
        print(f"{name:8}{len(functions):4} functions in {len(files)} files")
        if arguments.list:
            for function in functions:
                print(f"    {Path(function.co_filename).relative_to(ROOT)}: {function.co_name}")


if __name__ == "__main__":
    main()
