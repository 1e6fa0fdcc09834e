"""The pause of readers when a gateway ends: `python -m benchmarks.gateway_kills`.

Two gateways behind a proxy with its file in deploy/proxies, over TLS. Readers of each kind follow one turn of 20 deltas
a second: this Python client, tailrace.js and EventSource (in Node.js), and, with `--crowd`, as many bare connections
that wait for their `retry:`, of a turn of 2 deltas a second. One gateway after the other is lost: by SIGKILL, by
SIGSTOP, or with its machine (`vanish`, for root): its connections stay open, and no packet arrives.

Prints, of the readers that were cut, how long no delta came; of the crowd also the time beyond their own `retry:`, and
the longest pause of readers of the gateway that goes on.
"""

import asyncio
import re
import signal
import ssl
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import httpx2

from benchmarks.command_line import count, new_parser
from benchmarks.latencies import percentile
from benchmarks.process_usage import raise_file_limit
from benchmarks.vanishing_machine import Machine, vanishing_machine
from tailrace.client import AsyncClient
from tests.clients.node import NODE
from tests.harness.proxies import KINDS, Proxy, open_streams, ports_of, read_file, running_proxy
from tests.harness.system import System
from tests.harness.until import until

SCRIPT = Path(__file__).with_suffix(".mjs")
LINE, CROWD_LINE = "#sim words=200000 rate=20", "#sim words=200000 rate=2"
# Until all readers have connected.
CONNECTED_S_MAX, SETTLED_S = 120.0, 4.0
RETRY = re.compile(rb"retry: (\d+)\n")
STATUS = re.compile(rb"HTTP/1.1 (\d+) ")
ID = re.compile(rb"\nid: ([0-9-]+)\n")


class Pauses:
    """The measured pauses in seconds, by the kind of reader."""

    def __init__(self) -> None:
        self.cut: dict[str, list[float]] = defaultdict(list)
        """Of a reader whose connection was lost: the time without a delta."""
        self.beyond_retry: list[float] = []
        """Of a bare connection: this time beyond the `retry:` that it had received."""
        self.uncut: list[float] = []
        """The longest time between two pieces of each bare connection that was not cut, around a signal."""
        self.statuses: Counter[int] = Counter()


async def read_with_client(client: AsyncClient, turn: str, pauses: Pauses) -> None:
    """Reads the turn with the Python client."""
    last, is_cut = time.monotonic(), False

    def on_state(state: str) -> None:
        nonlocal is_cut
        is_cut = is_cut or state != "live"

    async with await client.resume(turn, on_state=on_state) as answer:
        is_cut = False
        async for event in answer:
            if event.type != "delta":
                continue
            now = time.monotonic()
            if is_cut:
                pauses.cut["Python client"].append(now - last)
            last, is_cut = now, False


class Bare:
    """One reader of the crowd: a bare connection, and another one after its `retry:`."""

    def __init__(self, port: int, trusted: ssl.SSLContext, turn: str, pauses: Pauses) -> None:
        self._port, self._trusted, self._turn, self._pauses = port, trusted, turn, pauses
        self._cursor = b""
        self.longest_s = 0.0
        """The longest time between two deltas; infinite as soon as the connection was lost."""

    async def run(self) -> None:
        last, retry_s, is_cut = time.monotonic(), 1.0, False
        while True:
            with suppress(OSError, ssl.SSLError):
                async for piece in self._pieces():
                    now = time.monotonic()
                    if found := RETRY.search(piece):
                        next_retry_s = int(found[1]) / 1000
                    if b'"delta"' not in piece:
                        continue
                    if is_cut:
                        self._pauses.cut["bare connection"].append(now - last)
                        self._pauses.beyond_retry.append(now - last - retry_s)
                    else:
                        self.longest_s = max(self.longest_s, now - last)
                    last, is_cut, retry_s = now, False, next_retry_s
            is_cut, self.longest_s = True, float("inf")
            await asyncio.sleep(retry_s)

    async def _pieces(self) -> AsyncIterator[bytes]:
        reader, writer = await asyncio.open_connection("localhost", self._port, ssl=self._trusted)
        try:
            path = f"/v1/turns/{self._turn}/events"
            cursor = b"last-event-id: %b\r\n" % self._cursor if self._cursor else b""
            writer.write(b"GET %b HTTP/1.1\r\nhost: localhost\r\n%b\r\n" % (path.encode(), cursor))
            piece = await reader.read(65536)
            if status := STATUS.match(piece):
                self._pauses.statuses[int(status[1])] += 1
            while piece:
                yield piece
                if ids := ID.findall(piece):
                    self._cursor = ids[-1]
                piece = await reader.read(65536)
        finally:
            writer.transport.abort()


@asynccontextmanager
async def node_readers(url: str, ca: Path, turn: str, readers: int, pauses: Pauses) -> AsyncIterator[None]:
    """Runs readers in Node.js."""
    argv = [str(NODE), "--experimental-eventsource", "--no-warnings", str(SCRIPT), url, turn, str(readers)]
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, env={"NODE_EXTRA_CA_CERTS": str(ca)}
    )
    assert process.stdout is not None

    async def collect(stdout: asyncio.StreamReader) -> None:
        async for line in stdout:
            kind, pause_ms = line.decode().split()
            pauses.cut[kind].append(int(pause_ms) / 1000)

    collecting = asyncio.create_task(collect(process.stdout))
    try:
        yield
    finally:
        process.kill()
        await process.wait()
        await collecting


async def post(client: httpx2.AsyncClient, line: str) -> str:
    posted = await client.post("/v1/turns", json={"message": line})
    posted.raise_for_status()
    return str(posted.json()["turn"])


async def run_round(
    system: System, proxy: Proxy, readers: int, crowd: int, victim: int, lose: Callable[[int], None], pauses: Pauses
) -> str:
    """Lets readers connect, loses a gateway and waits until all of them read the other one; returns a summary."""
    folder, url, expected = proxy.output.parent, f"https://localhost:{proxy.port}", 3 * readers + crowd
    trusted = ssl.create_default_context(cafile=folder / "tls/cert.pem")
    turn, crowd_turn = [await post(proxy.client, line) for line in (LINE, CROWD_LINE)]
    before = {kind: len(found) for kind, found in pauses.cut.items()}
    async with AsyncExitStack() as stack:
        limits = httpx2.Limits(max_connections=None)
        http = await stack.enter_async_context(httpx2.AsyncClient(verify=trusted, trust_env=False, limits=limits))
        client = AsyncClient(url, http=http, tries_max=float("inf"))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        await stack.enter_async_context(node_readers(url, folder / "tls/cert.pem", turn, readers, pauses))
        tasks = [group.create_task(read_with_client(client, turn, pauses)) for _ in range(readers)]
        bare = [Bare(proxy.port, trusted, crowd_turn, pauses) for _ in range(crowd)]
        tasks += [group.create_task(one.run()) for one in bare]

        async def are_read(gateways: list[httpx2.AsyncClient]) -> bool:
            return sum([await open_streams(one) for one in gateways]) == expected

        await until(lambda: are_read(system.clients), CONNECTED_S_MAX)
        await asyncio.sleep(SETTLED_S)
        were_read = await open_streams(system.clients[victim])
        for one in bare:
            one.longest_s = 0.0
        at = time.monotonic()
        lose(victim)
        await until(lambda: are_read([system.clients[1 - victim]]), CONNECTED_S_MAX)
        took_s = time.monotonic() - at
        # Until each has had a delta.
        await asyncio.sleep(SETTLED_S)
        pauses.uncut += [one.longest_s for one in bare if one.longest_s < float("inf")]
        for task in tasks:
            task.cancel()
    for ended in (turn, crowd_turn):
        await system.clients[1 - victim].post(f"/v1/turns/{ended}/cancel")
    most = {kind: f"{max(found[before.get(kind, 0) :], default=0):.2f}" for kind, found in pauses.cut.items()}
    return f"{were_read} of {expected} readers were cut, all were back after {took_s:.1f} s; longest pauses: {most}"


async def main(kind: str, readers: int, crowd: int, kills: int, how: str) -> None:
    raise_file_limit()
    pauses, program = Pauses(), next(name for name, one in KINDS.items() if one.file == kind)
    given = {"TAILRACE_PROXIES": "127.0.0.1,::1", "TAILRACE_STREAMS_ADDRESS_MAX": 10_000}
    text = read_file(program)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "proxy").mkdir()
        system = await stack.enter_async_context(System(folder, settings={"gateway": given}))
        await system.start(gateways=2)
        ports, machines = ports_of(system), list[Machine]()
        for number in range(2 if how == "vanish" else 0):
            machines.append(await stack.enter_async_context(vanishing_machine(number, ports[number])))
            host, port = machines[-1].address.split(":")
            text = text.replace(f"gateway-{number + 1}:8000", f"{host}:{port}")
            text = text.replace(f"gateway-{number + 1}, port_value: 8000", f"{host}, port_value: {port}")

        def lose(victim: int) -> None:
            if machines:
                machines[victim].set_link("down")
            else:
                system.gateways[victim].signal(signal.SIGKILL if how == "kill" else signal.SIGSTOP)

        proxy = await stack.enter_async_context(running_proxy(program, text, ports, folder / "proxy", 4 * crowd + 1000))
        for kill in range(kills):
            victim = kill % 2
            print(await run_round(system, proxy, readers, crowd, victim, lose, pauses), flush=True)
            if machines:
                machines[victim].set_link("up")
            elif how == "kill":
                await system.gateways[victim].stop(signal.SIGKILL)
                await system.gateways[victim].start()
            system.gateways[victim].signal(signal.SIGCONT)
            # Until the proxy has seen that it is back.
            await asyncio.sleep(SETTLED_S)
    for what, times in [
        *pauses.cut.items(),
        ("bare connection, beyond its retry", pauses.beyond_retry),
        ("readers of the other gateway", pauses.uncut),
    ]:
        if times:
            p50, p95 = percentile(times, 50), percentile(times, 95)
            print(f"{what}: n={len(times)}, p50 {p50:.2f} s, p95 {p95:.2f} s, most {max(times):.2f} s")
    print(f"statuses of the bare connections: {dict(pauses.statuses)}")


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--proxy", choices=[kind.file for kind in KINDS.values()], default="haproxy.cfg")
    parser.add_argument("--readers", type=count, default=20, help="readers of each kind")
    parser.add_argument("--crowd", type=int, default=0, help="bare connections besides them")
    parser.add_argument("--kills", type=count, default=10)
    parser.add_argument("--how", choices=("kill", "stop", "vanish"), default="kill")
    given = parser.parse_args()
    asyncio.run(main(given.proxy, given.readers, given.crowd, given.kills, given.how))
