"""Dashboards and alerts with a real Prometheus that scrapes a loaded system, which then has one fault after the other.

Every query of every panel has a value, also in Chromium at `/ops`, whose history gives the values of Prometheus; what a
fault should move has moved; each alert fires for its fault. With `-s` the test prints each query with its values at the
end: `pytest -s tests/integration/test_dashboards.py`.
"""

import asyncio
import socket
import sqlite3
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import Any, NamedTuple

import httpx2
import msgspec
import pytest

from tailrace.deploy.local import ports
from tailrace.deploy.monitoring.rules import ALERTS
from tailrace.deploy.nats import setup
from tailrace.features.ops.panels import DASHBOARDS, HEALTH, Panel
from tailrace.gateway.http.http_protocol import UNREAD_TIMEOUT_S
from tailrace.persistence.migrations import migrations
from tailrace.proto import entries, subjects
from tailrace.proto.end_entry import build_end
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats.stream_leader import Leader
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import PERSISTENCE, STREAM, WEBHOOKS
from tests.clients import node
from tests.clients.node import find_browser
from tests.harness import turn_builder
from tests.harness.freeze import freeze
from tests.harness.processes import Process, as_user, generator_environ
from tests.harness.prometheus import Prometheus, Series, needs_prometheus
from tests.harness.readers import read_all_entries
from tests.harness.system import Settings, System
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.harness.webhook_receiver import Receiver, answer_with

pytestmark = [needs_prometheus, pytest.mark.timeout(600)]

TENANT = Tenant("local")
FIRES_S_MAX = 60.0
LASTING_S_MAX = 240.0
# Prometheus scrapes and evaluates as often.
LOOK_EVERY_S = 0.5
BROWSER_S_MAX = 120.0
LOOKS_MAX = 3
NO_VALUE = "\N{EN DASH}"
# How far a value of Prometheus may be beyond the values of the history around its time.
CLOSE = 0.25
# Gauges, such as waiting entries, may change between two reads.
DIFFERENT_MAX = 4
# The history must go on for so long after the minute: one sample of a value that changes says little.
COMPARED_S = 45.0
# The slow gateway refuses more streams than that.
STREAMS_MAX = 8
SETTINGS: Settings = {
    "gateway": {
        "TAILRACE_WEBHOOKS": "true",
        "TAILRACE_WEBHOOK_PRIVATE_HOSTS": "127.0.0.1",
        "TAILRACE_DISK": "/",
    },
    "generator": {
        "TAILRACE_CALL_WAIT_S": 0.02,
        "TAILRACE_CALL_TRIES_MAX": 2,
        "TAILRACE_STALL_TIMEOUT_S": 8,
        "TAILRACE_METRICS_TENANTS": "local",
    },
    "persistence": {
        "TAILRACE_WEBHOOK_KEY": "a-key-that-only-this-test-has-0123",
        "TAILRACE_WEBHOOK_PRIVATE_HOSTS": "127.0.0.1",
        # A webhook is late after ten seconds.
        "TAILRACE_WEBHOOK_GIVE_UP_S": 240,
        "TAILRACE_WEBHOOK_SHARE": 20,
    },
}


class LoadedSystem:
    """A system under load, its Prometheus, and the values of all panels while nothing was wrong."""

    def __init__(self, system: System, prometheus: Prometheus) -> None:
        self.system = system
        self.prometheus = prometheus
        self.healthy: dict[str, float] = {}

    @property
    def client(self) -> httpx2.AsyncClient:
        return self.system.clients[0]

    async def post(self, line: str, **body: object) -> TurnKey:
        # The simulated Claude counts the calls of each question: `x1` is the first call of this turn.
        message = f"{new_id()}\n#sim {line}"
        posted = await self.client.post("/v1/turns", json={"message": message, **body})
        assert posted.is_success, posted.text
        return TurnKey(TENANT, TurnId(posted.json()["turn"]))

    async def read(self, key: TurnKey, dialect: str = "tailrace", cursor: str = "", most: int = 10**6) -> str:
        """Reads at most `most` events of a turn; returns the last id."""
        headers = {"last-event-id": cursor} if cursor else {}
        url = f"/v1/turns/{key.turn}/events?dialect={dialect}"
        async with self.client.stream("GET", url, headers=headers) as response:
            async for line in response.aiter_lines():
                if line.startswith("id:"):
                    cursor, most = line.removeprefix("id:").strip(), most - 1
                if not most:
                    break
        return cursor

    async def answer(self, line: str, dialect: str = "tailrace") -> None:
        await self.read(await self.post(line), dialect)

    @asynccontextmanager
    async def again(self, every_s: float, work: Callable[[], Coroutine[Any, Any, object]]) -> AsyncIterator[None]:
        """Begins `work` every `every_s` seconds while the block runs. Requests that fail are part of a fault."""

        async def one() -> None:
            with suppress(httpx2.HTTPError, AssertionError):
                await work()

        async def repeat() -> None:
            async with asyncio.TaskGroup() as group:
                while True:
                    group.create_task(one())
                    await asyncio.sleep(every_s)

        working = asyncio.create_task(repeat())
        try:
            yield
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def values(self, panel: Panel, window: str = "10s") -> dict[str, float]:
        """Returns the value of each series of a panel."""
        return {
            f"{number} {series}": value
            for number, query in enumerate(panel.queries)
            for series, value in (await self.prometheus.query(query.expression.promql(window))).items()
        }

    async def worst(self, panel: Panel) -> float | None:
        """Returns the value of a panel that its threshold judges: its highest, or its lowest."""
        values = (await self.values(panel)).values()
        return (min if panel.threshold.is_minimum else max)(values) if values else None

    async def has_moved(self, panel: Panel) -> bool:
        """Whether a panel is worse than it was while nothing was wrong."""
        now, before = await self.worst(panel), self.healthy.get(panel.title)
        if now is None or before is None:
            return now is not None
        return now < before if panel.threshold.is_minimum else now > before


Cause = Callable[[LoadedSystem], AbstractAsyncContextManager[None]]


class Fault(NamedTuple):
    """A fault that lasts while `cause` is entered, the alerts that it fires, and the panels that it moves."""

    cause: Cause
    alerts: tuple[str, ...]
    panels: tuple[str, ...]


@asynccontextmanager
async def broken_answers(loaded: LoadedSystem) -> AsyncGenerator[None]:
    """The model repeats itself in continuations, gives errors, and some answers never continue."""
    async with (
        loaded.again(0.6, lambda: loaded.answer("words=40 rate=0 repeat=5 fault=cut@17x2")),
        loaded.again(1, lambda: loaded.answer("words=40 rate=0 fault=429@0x1 retry_after=0")),
        loaded.again(1, lambda: loaded.answer("words=40 rate=0 fault=cut@17+")),
    ):
        yield


@asynccontextmanager
async def webhooks_answered(loaded: LoadedSystem, code: int, every_s: float) -> AsyncGenerator[None]:
    """Posts a turn with a webhook every so often. The receiver answers with this status."""
    async with Receiver() as receiver:
        receiver.answer = answer_with(code)
        async with loaded.again(every_s, lambda: loaded.post("words=2 rate=0", webhook=receiver.url)):
            yield


def refused_webhooks(loaded: LoadedSystem) -> AbstractAsyncContextManager[None]:
    return webhooks_answered(loaded, 410, every_s=1)


@asynccontextmanager
async def busy_gateway(loaded: LoadedSystem) -> AsyncGenerator[None]:
    """More readers than the second gateway accepts."""
    key, second = await loaded.post("words=2000 rate=20"), loaded.system.clients[1]
    async with AsyncExitStack() as open_streams, loaded.again(0.3, lambda: second.get(f"/v1/turns/{key.turn}/events")):
        for _ in range(STREAMS_MAX):
            await open_streams.enter_async_context(second.stream("GET", f"/v1/turns/{key.turn}/events"))
        yield
    await loaded.client.post(f"/v1/turns/{key.turn}/cancel")


@asynccontextmanager
async def spent_budget(loaded: LoadedSystem) -> AsyncGenerator[None]:
    """The second gateway has a budget, which the turns of before have spent."""
    turn = {"message": "#sim words=2 rate=0", "max_tokens": 20}
    async with loaded.again(1, lambda: loaded.system.clients[1].post("/v1/turns", json=turn)):
        yield


@asynccontextmanager
async def full_log(loaded: LoadedSystem) -> AsyncGenerator[None]:
    """The log has less space: 85 % are used."""
    jetstream = loaded.system.connection.jetstream
    info = await jetstream.stream_info(STREAM)
    before = info.config.max_bytes
    await jetstream.update_stream(info.config.evolve(max_bytes=int(info.state.bytes / 0.85)))
    try:
        yield
    finally:
        await jetstream.update_stream(info.config.evolve(max_bytes=before))


@asynccontextmanager
async def deleted_consumer(loaded: LoadedSystem) -> AsyncGenerator[None]:
    await loaded.system.connection.jetstream.delete_consumer(STREAM, WEBHOOKS)
    try:
        yield
    finally:
        await setup.apply(loaded.system.connection)


@asynccontextmanager
async def forks(loaded: LoadedSystem) -> AsyncGenerator[None]:
    """Another program writes into the log."""

    async def disturb() -> None:
        key = await loaded.post("words=60 rate=20")
        await loaded.read(key, most=10)
        stale = entries.Event(prev=Seq(1), attempt=1, event=turn_builder.raw({"type": "ping"}))
        await loaded.system.connection.jetstream.publish(subjects.entry(key, "event"), entries.encode(stale))
        await loaded.read(key)

    async with loaded.again(2, disturb):
        yield


@asynccontextmanager
async def damaged_log(loaded: LoadedSystem) -> AsyncGenerator[None]:
    """The log loses an entry of an ended turn, which a client then reads."""
    key = await loaded.post("words=5 rate=0")
    await loaded.read(key)
    stored = await read_all_entries(loaded.system.log, key)
    await Leader(loaded.system.connection, STREAM).delete(stored[-2].seq)
    await loaded.client.get(f"/v1/turns/{key.turn}")
    yield


@asynccontextmanager
async def late_tokens(loaded: LoadedSystem) -> AsyncGenerator[None]:
    async with loaded.again(0.6, lambda: loaded.answer("words=5 wait=6")):
        yield


@asynccontextmanager
async def dead_generator(loaded: LoadedSystem) -> AsyncGenerator[None]:
    """A generator dies with running turns."""
    turns = [await loaded.post("words=400 rate=20") for _ in range(6)]
    for key in turns:
        await loaded.read(key, most=3)
    await loaded.system.generators[0].stop(SIGKILL)
    yield
    await loaded.system.generators[0].start()


@asynccontextmanager
async def no_generator(loaded: LoadedSystem) -> AsyncGenerator[None]:
    """Turns wait, and one has begun. Beside it, a turn is stored whose text does not match its hash."""
    await loaded.read(await loaded.post("words=400 rate=20"), most=3)
    for generator in loaded.system.generators:
        await generator.stop(SIGKILL)
    writer = Writer(loaded.system.log, TurnKey(TENANT, TurnId(new_id())))
    await writer.store_request()
    await writer.begin("Light scatters.")
    await writer.store_events(*turn_builder.closing_events(5))
    end = build_end(await writer.log.read_turn(ScopedKey.whole(writer.key)), "completed")
    await writer.store(msgspec.structs.replace(end, text_sha256="0" * 64))
    async with loaded.again(1, lambda: loaded.post("words=2 rate=0")):
        yield
    await asyncio.gather(*(generator.start() for generator in loaded.system.generators))


@asynccontextmanager
async def refused_key(loaded: LoadedSystem) -> AsyncGenerator[None]:
    """A generator starts with a key that the model's API refuses. It has the metrics port of another one."""
    await loaded.system.generators[0].stop()
    settings = generator_environ(loaded.system.nats_url, loaded.system.claude.url) | {
        "ANTHROPIC_API_KEY": "bad-key",
        "TAILRACE_METRICS_PORT": loaded.prometheus.targets["generators"][0],
    }
    async with Process("generators", loaded.system.folder, **settings):
        yield
    await loaded.system.generators[0].start()


@asynccontextmanager
async def blocked_start(loaded: LoadedSystem) -> AsyncGenerator[None]:
    """A process waits for a lock of its database when it starts. It has the metrics port of a dead generator."""
    database = loaded.system.folder / "blocked" / "tailrace.db"
    database.parent.mkdir()
    with (
        closing(sqlite3.connect(loaded.system.database)) as recorded,
        closing(sqlite3.connect(database, isolation_level=None)) as other,
    ):
        # A copy has the same id; with another one, the process would not start. It is of the version before, so it has
        # to be migrated, and not to be filled from the log.
        recorded.backup(other)
        other.executescript(f"PRAGMA journal_mode = WAL; PRAGMA user_version = {migrations()[-2].number}")
        other.execute("BEGIN IMMEDIATE")
        process = Process(
            "persistence",
            loaded.system.folder,
            TAILRACE_NATS_URL=as_user(loaded.system.nats_url, PERSISTENCE),
            TAILRACE_DATABASE=database,
            TAILRACE_BUSY_TIMEOUT_S=FIRES_S_MAX,
            TAILRACE_METRICS_PORT=loaded.prometheus.targets["generators"][0],
        )
        starting = asyncio.create_task(process.start())
        yield
        await process.stop(SIGKILL)
        await asyncio.gather(starting, return_exceptions=True)


def silent_receiver(loaded: LoadedSystem) -> AbstractAsyncContextManager[None]:
    """The receiver of webhooks is unavailable."""
    return webhooks_answered(loaded, 503, every_s=1)


@asynccontextmanager
async def unread_streams(loaded: LoadedSystem) -> AsyncGenerator[None]:
    """Clients request a long answer and do not read it."""
    key = await loaded.post("words=60000 rate=0", max_tokens=100_000)
    request = f"GET /v1/turns/{key.turn}/events HTTP/1.1\r\nhost: localhost\r\n\r\n"
    address = ("127.0.0.1", loaded.client.base_url.port)

    async def connect() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as raw:
            raw.setblocking(False)
            # A small buffer: the gateway soon has to wait for the client.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await loop.sock_connect(raw, address)
            await loop.sock_sendall(raw, request.encode())
            await asyncio.sleep(UNREAD_TIMEOUT_S + 10)

    async with loaded.again(4, connect):
        yield


@asynccontextmanager
async def locked_database(loaded: LoadedSystem) -> AsyncGenerator[None]:
    with closing(sqlite3.connect(loaded.system.database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        async with (
            loaded.again(0.2, lambda: loaded.post("words=2 rate=0")),
            loaded.again(0.5, lambda: loaded.client.get("/v1/sessions")),
        ):
            yield
        other.execute("ROLLBACK")


@asynccontextmanager
async def frozen_log(loaded: LoadedSystem) -> AsyncGenerator[None]:
    freeze(loaded.system.servers[0])
    try:
        yield
    finally:
        loaded.system.servers[0].signal(SIGCONT)


@asynccontextmanager
async def slow_log(loaded: LoadedSystem) -> AsyncGenerator[None]:
    """nats-server is frozen for most of the time, while turns are written and readers resume."""
    key = await loaded.post("words=50 rate=0")
    cursor = await loaded.read(key, most=2)

    async def hold() -> None:
        freeze(loaded.system.servers[0])
        await asyncio.sleep(0.8)
        loaded.system.servers[0].signal(SIGCONT)

    async with (
        loaded.again(1, hold),
        loaded.again(0.4, lambda: loaded.read(key, cursor=cursor)),
        loaded.again(0.5, lambda: loaded.answer("words=40 rate=50")),
    ):
        yield
    loaded.system.servers[0].signal(SIGCONT)


# These take longer than a round.
LASTING = (
    Fault(silent_receiver, ("WebhooksWait ticket", "WebhooksBeyondShare ticket"), ("Webhooks that wait",)),
    Fault(unread_streams, ("ClientsDoNotRead ticket",), ("Clients that do not read",)),
)
# The faults of a round are there at once.
ROUNDS = (
    (
        Fault(
            broken_answers,
            (
                "AnswersBreakOff ticket",
                "ModelFails ticket",
                "AttemptsExhausted ticket",
                "AnswersRepeat ticket",
                "StreamsNotWhole page",
                "StreamsNotWhole ticket",
            ),
            (
                "Streams that did not end whole",
                "Use of the error budgets",
                "Broken attempts and repeated calls, by code",
                "Failed turns, by code",
                "Calls for each turn",
            ),
        ),
        Fault(refused_webhooks, ("WebhooksGivenUp ticket",), ("Webhooks",)),
        Fault(busy_gateway, ("GatewaysBusy page",), ("Refused requests, by code",)),
        Fault(spent_budget, ("BudgetReached ticket",), ()),
        Fault(forks, ("EntriesSkipped ticket",), ("Invalid entries and records",)),
        Fault(dead_generator, ("ProcessDown page",), ("Takeover",)),
    ),
    (
        Fault(late_tokens, ("FirstTokensLate page", "FirstTokensLate ticket"), ("Time to first token",)),
        Fault(deleted_consumer, ("NatsPartsMissing page",), ("Missing parts of NATS",)),
    ),
    (
        Fault(
            no_generator,
            ("TurnsWait ticket", "RecordsInvalid ticket"),
            ("Waiting turns", "Oldest waiting turn", "Orphaned turns"),
        ),
        Fault(blocked_start, ("ProcessNotReady page",), ()),
        Fault(
            locked_database,
            ("DatabaseFails page", "DatabaseBehind page", "TurnsRefused page"),
            ("Backlog of persistence",),
        ),
        Fault(full_log, ("LogNearlyFull page",), ("Fullness of the log", "Fullness of each stream")),
    ),
    (Fault(frozen_log, ("LogNotWritable page",), ("Log takes entries",)),),
    (
        Fault(
            slow_log, ("LogSlow ticket", "ResumesLate page", "ResumesLate ticket"), ("Append", "Resume to first byte")
        ),
    ),
    # The last ones: the first stops a generator, which changes what is orphaned, and the other one cannot be undone.
    (
        Fault(refused_key, ("ModelKeyRefused page",), ("Refused keys of models",)),
        Fault(damaged_log, ("TurnsDamaged ticket",), ()),
    ),
)


# These need three nats-servers, a small disk, a wrong clock, and TLS: test_missing_server.py, test_full_disk.py,
# test_setup_state.py and test_nats_tls.py cause the fault and read the gauges, and promtool compares the rule with such
# values. test_missing_processes.py has a Prometheus with discovery.
ELSEWHERE = {
    "LogNotRedundant ticket",
    "DiskNearlyFull page",
    "ClocksDiffer ticket",
    "CertificateEnds ticket",
    "ProcessesMissing ticket",
    "ProcessFrozen page",
}


def panels() -> Iterator[Panel]:
    for page in DASHBOARDS:
        yield from page.panels


async def test_every_panel_has_values_and_every_alert_fires_for_its_fault(tmp_path: Path) -> None:
    faults = [*LASTING, *(fault for together in ROUNDS for fault in together)]
    caused = {name for one in faults for name in one.alerts}
    assert {f"{alert.name} {alert.severity}" for alert in ALERTS} == caused | ELSEWHERE
    found = ports.find_free(5)
    targets = {"persistence": found[:1], "generators": found[1:3], "gateway": found[3:]}
    async with AsyncExitStack() as stack:
        system = System(tmp_path, sync="default", settings=SETTINGS)
        await stack.enter_async_context(system)
        await start(system, targets)
        prometheus = await stack.enter_async_context(Prometheus(tmp_path, targets))
        loaded = LoadedSystem(system, prometheus)
        await system.new_gateway(TAILRACE_PROMETHEUS_URL=prometheus.url)
        await system.gateways[-1].start()
        problems = await use_everything(loaded, tmp_path)
        async with AsyncExitStack() as lasting:
            for fault in LASTING:
                await lasting.enter_async_context(fault.cause(loaded))
            missing = [asyncio.create_task(find_unseen(loaded, fault, LASTING_S_MAX)) for fault in LASTING]
            for together in ROUNDS:
                problems += await run(loaded, together)
            for one in missing:
                problems += await one
        for panel in (*HEALTH, *panels()):
            for expr in (query.expression.promql("10m") for query in panel.queries):
                values = await prometheus.query(expr)
                sys.stdout.write(f"{panel.title}: {expr}\n{format_values(values)}\n")
                if not values:
                    problems.append(f"{panel.title} is empty: {expr}")
        assert problems + await find_differences(loaded) == []


async def run(loaded: LoadedSystem, together: Sequence[Fault]) -> list[str]:
    """Causes faults at once; returns what they should have changed, and have not."""
    begun_at = time.monotonic()
    async with AsyncExitStack() as causes:
        for fault in together:
            await causes.enter_async_context(fault.cause(loaded))
        # At once: a rate of the first fault is over when the last one has fired its alerts.
        found = await asyncio.gather(*(find_unseen(loaded, fault) for fault in together))
    names = ", ".join(fault.cause.__name__ for fault in together)
    sys.stdout.write(f"{names}: {time.monotonic() - begun_at:.0f} s\n")
    return [problem for problems in found for problem in problems]


def format_values(values: Mapping[Series, float]) -> str:
    """Returns each series with its value, on lines of their own."""
    return "\n".join(f"  {' '.join(series) or '-'}: {value:.4g}" for series, value in sorted(values.items()))


async def find_differences(loaded: LoadedSystem) -> list[str]:
    """Returns the panels of `/ops` whose history differs from Prometheus, if there are too many.

    A panel differs if it never has a value of Prometheus, or if it has not most of them while nothing changes: then
    turns run as before the faults, for longer than rates look back. A process that was killed has taken growth with it
    that only one of both had read. Rates of the first minute are left out: Prometheus divides by its whole window.
    """
    sampling, asking = loaded.system.clients[0], loaded.system.clients[-1]

    async def read(client: httpx2.AsyncClient) -> dict[str, Any]:
        values: dict[str, Any] = (await client.get("/ops/values")).json()
        return values

    async def is_steady() -> bool:
        kept = await read(sampling)
        return bool(kept["times"][-1] >= begun_at + kept["window_s"] + COMPARED_S)

    async with loaded.again(0.6, lambda: loaded.answer("words=30 rate=50")):
        begun_at = (await read(sampling))["times"][-1]
        await until(is_steady, FIRES_S_MAX + 2 * COMPARED_S, LOOK_EVERY_S)
        history, prometheus = await read(sampling), await read(asking)
    assert (history["problems"], prometheus["problems"]) == ([], [])
    assert (history["source"], prometheus["source"]) == ("history", "prometheus")
    window_s, every_s, problems = history["window_s"], history["every_s"], list[str]()
    for page, expected_page in zip(history["groups"], prometheus["groups"], strict=True):
        for chart, expected in zip(page["charts"], expected_page["charts"], strict=True):
            lines = {line["name"]: line["values"] for line in chart["lines"]}
            compared, steady = list[bool](), list[bool]()
            for line in expected["lines"]:
                found = list(zip(history["times"], lines.get(line["name"], []), strict=False))
                for at, value in zip(prometheus["times"], line["values"], strict=True):
                    # A zero is no evidence.
                    if value and at >= history["times"][0] + window_s:
                        near = [one for time, one in found if one is not None and abs(time - at) <= every_s]
                        compared.append(bool(near) and min(near) * (1 - CLOSE) <= value <= max(near) * (1 + CLOSE))
                        if at >= begun_at + window_s:
                            steady.append(compared[-1])
            for found_equal in (compared, steady):
                sys.stdout.write(
                    f"/ops: {chart['title']}: {sum(found_equal)} of {len(found_equal)} values as in Prometheus\n"
                )
            if (compared and not any(compared)) or 2 * sum(steady) < len(steady):
                problems.append(f"/ops: {chart['title']} has not the values of Prometheus")
    return problems if len(problems) > DIFFERENT_MAX else []


async def start(system: System, targets: dict[str, list[int]]) -> None:
    (of_persistence,), of_generators, of_gateways = targets.values()
    sampled = ",".join(f"{part}=127.0.0.1:{port}" for part, found in targets.items() for port in found)
    await system.start_claude()
    parts = [
        await system.new_persistence(TAILRACE_METRICS_PORT=of_persistence),
        *[await system.new_generator(TAILRACE_METRICS_PORT=port) for port in of_generators],
        await system.new_gateway(TAILRACE_METRICS_PORT=of_gateways[0], TAILRACE_OPS_TARGETS=sampled),
        await system.new_gateway(
            TAILRACE_METRICS_PORT=of_gateways[1],
            TAILRACE_STREAMS_MAX=STREAMS_MAX,
            TAILRACE_LIMITS_TENANT="usd_month=0.01",
        ),
    ]
    async with asyncio.TaskGroup() as group:
        for part in parts:
            group.create_task(part.start())


async def use_everything(loaded: LoadedSystem, folder: Path) -> list[str]:
    """Turns in several client protocols, a reader that resumes, a cancelled turn: then no alert fires.

    Returns the panels that have a value in Prometheus, and none in a browser at `/ops`.
    """

    async def cancel() -> None:
        key = await loaded.post("words=1000 rate=20")
        await loaded.read(key, most=3)
        await loaded.client.post(f"/v1/turns/{key.turn}/cancel")

    async def resume() -> None:
        key = await loaded.post("words=30 rate=50")
        await loaded.read(key, cursor=await loaded.read(key, most=5))

    async def is_quiet() -> bool:
        return not await loaded.prometheus.firing()

    async with (
        loaded.again(0.6, lambda: loaded.answer("words=30 rate=50")),
        loaded.again(1, lambda: loaded.answer("words=30 rate=50", "anthropic")),
        loaded.again(1, resume),
        loaded.again(1, cancel),
    ):
        waiting = {"Time to first token", "Resume to first byte", "Recording lag", "Use of the error budgets"}
        await until(lambda: all_have_values(loaded, waiting), FIRES_S_MAX, LOOK_EVERY_S)
        # A rate needs two scrapes, the longest wait of a page is five seconds here.
        await asyncio.sleep(8)
        # On a busy machine persistence may fall behind for a moment.
        await until(is_quiet, FIRES_S_MAX, LOOK_EVERY_S)
        for panel in panels():
            if (worst := await loaded.worst(panel)) is not None:
                loaded.healthy[panel.title] = worst
        if find_browser() is None:
            return []
        empty = list[str]()
        # On a busy machine a process may miss one sample, and its panels have no value until the next.
        for _ in range(LOOKS_MAX):
            seen_at = time.time()
            await until(partial(has_sampled_since, loaded.client, seen_at), FIRES_S_MAX, LOOK_EVERY_S)
            url = str(loaded.client.base_url).rstrip("/")
            pages = await node.run("ops.mjs", url, folder, deadline_s=BROWSER_S_MAX, CHROMIUM=find_browser())
            assert [page["complaints"] for page in pages] == [[], []]
            empty = [title for title in loaded.healthy for page in pages if page["panels"][title] == NO_VALUE]
            if not empty:
                break
        return [f"/ops: {title} is empty" for title in empty]


async def has_sampled_since(client: httpx2.AsyncClient, at: float) -> bool:
    times = (await client.get("/ops/values")).json()["times"]
    # A rate needs two samples.
    return len(times) > 1 and bool(times[-1] > at)


async def all_have_values(loaded: LoadedSystem, titles: set[str]) -> bool:
    return all([await loaded.values(panel) for panel in panels() if panel.title in titles])


async def find_unseen(loaded: LoadedSystem, fault: Fault, within_s: float = FIRES_S_MAX) -> list[str]:
    """Waits until the alerts of a fault have fired and its panels have moved; returns those that have not."""
    alerts, titles = set(fault.alerts), set(fault.panels)

    begun_at = time.monotonic()

    async def is_seen() -> bool:
        missing = alerts | titles
        alerts.difference_update(await loaded.prometheus.firing())
        for panel in panels():
            if panel.title in titles and await loaded.has_moved(panel):
                titles.discard(panel.title)
        for name in missing - alerts - titles:
            sys.stdout.write(f"{fault.cause.__name__}: {name} after {time.monotonic() - begun_at:.0f} s\n")
        return not alerts and not titles

    with suppress(AssertionError):
        await until(is_seen, within_s, LOOK_EVERY_S)
    return [f"{fault.cause.__name__}: {name} has not changed" for name in (*alerts, *titles)]
