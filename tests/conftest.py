"""Fixtures for all tests: a real nats-server, a connection, the log, a tenant.

One server for each pytest process (so also for each xdist worker), on free ports and in its own folder. Tests keep out
of each other's way by tenant: `tenant` is a new one each time. A test that kills, fills or pauses a server asks for
`own_server`.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import importlib.util
import multiprocessing.util
import os
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import structlog
import uvloop
from hypothesis import HealthCheck, settings

from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tests.harness.patches import patch_process, write_authority
from tests.harness.timeouts import Timeouts

if TYPE_CHECKING:
    # Imported by the fixtures: a test of a pure function imports no client of NATS. That of PostgreSQL is none of the
    # packages of locks/test.lock.
    from tailrace.deploy.local.nats_server import NatsServer
    from tailrace.proto.nats import Connection, TurnLog
    from tests.harness.postgresql import PostgreSQLServer

# The streams must fit into the store of a test server, which is 1 GiB (NatsServer's default).
BYTES_MAX = 768 * 1024**2

# How many short tests are between two files of long ones. About 2,500 short tests use servers, and come first.
SHORT_BETWEEN = 60

CLIENTS, INTEGRATION = (Path(__file__).parent / name for name in ("clients", "integration"))
# The fixtures of servers that tests share or own.
SERVERS = {"nats_server", "own_server", "postgresql", "system"}
BROWSERS = {"browser", "firefox", "webkit", "each_browser"}
# As many as cores. A container may report the cores of its host.
BROWSERS_AT_ONCE = 2
# Slow cores need several times as long for a browser or an SDK as for the servers of a test.
CLIENT_S = 120
# How many lines of each process are part of the report of a failure.
LINES_SHOWN = 50
BEGAN_AT = pytest.StashKey[float]()

# Two cores are shared with servers and browsers: one slow example does not fail.
SLOW_OR_LARGE = [HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large]
settings.register_profile("tests", max_examples=60, deadline=None, suppress_health_check=SLOW_OR_LARGE, print_blob=True)
settings.load_profile("tests")

# structlog prints the local variables of every frame by default, which takes seconds: leases would expire.
configure = structlog.configure


def configure_uncached(**settings: Any) -> None:
    """Like structlog's, but no logger keeps the captured output of the first test that used it."""
    configure(**settings | {"cache_logger_on_first_use": False})


structlog.configure = configure_uncached  # type: ignore[assignment]
console = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*structlog.get_config()["processors"][:-1], console])

# As the processes run. It also takes an eighth less CPU time than asyncio's loop. Not by pytest-asyncio's hook: that
# makes the loop's factory a parameter of each test, and a new parameter ends the loop of the session with its servers.
# Python 3.14 deprecates policies, and 3.16 has none. pytest-asyncio still uses them.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

# No garbage collection while pytest collects the tests: it would take a sixth of that time and free nothing.
gc.disable()


QUICK = "leave out tests/clients, long integration tests, and tests with servers that hold no numbered rule"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help=QUICK)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.getoption("quick") and collection_path == CLIENTS else None


def pytest_configure(config: pytest.Config) -> None:
    """Puts the temporary files of the run, also those of killed processes, into one folder and removes it at the end.

    Workers and their children inherit it. What pytest keeps of the last runs stays where it is looked for.
    """
    config.pluginmanager.register(Timeouts())
    if not hasattr(config, "workerinput"):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        # multiprocessing removes its own folder when Python exits, and fails if it is gone by then.
        multiprocessing.util.get_temp_dir()
        folder = tempfile.TemporaryDirectory(prefix="tailrace-tests-", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        # pytest may run several times in one process (mutmut): each run needs a folder that exists.
        patched = pytest.MonkeyPatch()
        config.add_cleanup(patched.undo)
        patched.setenv("TMPDIR", folder.name)
        patched.setattr(tempfile, "tempdir", folder.name)
        patched.setenv("SSL_CERT_FILE", str(write_authority(Path(folder.name))))


# What the absence of a package of `make setup` looks like: of a module, of its metadata, of its program, for msgspec.
ABSENT = re.compile(
    r"No module named '(?P<module>\w+)|PackageNotFoundError: .* for (?P<package>\S+)"
    rf"|{re.escape(str(Path(sys.prefix, 'bin')))}/(?P<program>[\w-]+)'|requires (?P<library>\w+) be installed"
    r"|(?P<extra>\w+) is not installed: make setup"
)


def skip_without_package(report: pytest.CollectReport | pytest.TestReport) -> None:
    """Makes a failure a skip if it says that a package of `make setup` is absent, after `make setup-test`."""
    found = ABSENT.search(str(report.longrepr)) if report.failed else None
    if found is not None and found["module"] != "tailrace" and importlib.util.find_spec("openai") is None:
        report.outcome = "skipped"
        report.longrepr = (
            report.nodeid,
            1,
            f"Skipped: {found[found.lastgroup or 0]} is not installed: run `make setup`",
        )


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skips a file that imports a package of `make setup`, after `make setup-test`."""
    report = yield
    skip_without_package(report)
    return report


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Moves the files of long tests and of browsers forward, in equal distances: few run at once. Longest first.

    A long test that is one of the last runs while the other workers have nothing left to do. `--quick` deselects
    tests. Tests of clients have a longer timeout.
    """
    limit_s = float(config.getini("timeout"))

    def seconds(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return float(marker.args[0]) if marker is not None else limit_s

    if config.getoption("quick"):
        left_out = [item for item in items if not is_quick(item, is_long=seconds(item) > limit_s)]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    spread = {item for item in items if seconds(item) > limit_s or has_browser(item)}
    long: dict[Path, list[pytest.Item]] = {}
    for item in sorted((item for item in items if item in spread), key=seconds, reverse=True):
        long.setdefault(item.path, []).append(item)
    files = iter(long.values())
    ordered = list[pytest.Item]()
    for number, item in enumerate(item for item in items if item not in spread):
        if number % SHORT_BETWEEN == 0:
            ordered += next(files, [])
        ordered.append(item)
    items[:] = ordered + [item for together in files for item in together]
    for item in items:
        if CLIENTS in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(CLIENT_S))


def has_browser(item: pytest.Item) -> bool:
    return not BROWSERS.isdisjoint(getattr(item, "fixturenames", ())) or "Chromium" in item.name


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Runs at most BROWSERS_AT_ONCE browsers: among more, a page shows too late what it was sent.

    A test waits for the others before its timeout begins.
    """
    if not has_browser(item):
        return (yield)
    slot = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % BROWSERS_AT_ONCE
    with Path(tempfile.gettempdir(), f"browser-{slot}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return (yield)


def is_quick(item: pytest.Item, *, is_long: bool) -> bool:
    """Returns whether `--quick` runs the test. It takes as little time as proves each rule of the protocol once."""
    if CLIENTS in item.path.parents:
        return False
    is_integration = INTEGRATION in item.path.parents
    if is_integration and is_long:
        return False
    needs_server = is_integration or not SERVERS.isdisjoint(getattr(item, "fixturenames", ()))
    return not needs_server or item.get_closest_marker("rule") is not None


def pytest_collection_finish() -> None:
    """Patches what the tests have imported. Enables garbage collection, without the million objects loaded by now."""
    if not {"uvicorn.server", "tailrace.proto.nats"}.isdisjoint(sys.modules):
        patch_process()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds to the report of a failure the last lines of each process that has logged since the test began.

    Skips a test that uses a package of `make setup`, after `make setup-test`.
    """
    report = yield
    skip_without_package(report)
    began_at = item.stash.setdefault(BEGAN_AT, call.start)
    factory = getattr(item, "funcargs", {}).get("tmp_path_factory")
    if report.failed and factory is not None:
        root = factory.getbasetemp()
        for path in sorted(path for suffix in ("txt", "log") for path in root.rglob(f"*.{suffix}")):
            if path.is_file() and path.stat().st_mtime >= began_at:
                lines = path.read_text(errors="replace").splitlines()[-LINES_SHOWN:]
                report.sections.append((f"last lines of {path.relative_to(root)}", "\n".join(lines)))
    return report


@pytest.fixture(scope="session", autouse=True)
def hangup() -> None:
    """Starts processes that end when the terminal is closed, also in a run that `nohup` has started.

    Programs inherit an ignored signal, and not a handler.
    """
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.fixture(autouse=True)
def log_lines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Restores where log lines go: a command that ran in this process sends them to its own captured output."""
    del tmp_path_factory  # pytest_runtest_makereport reads the logs of processes there
    before = structlog.get_config()
    yield
    if structlog.get_config() != before:
        structlog.configure(**before)
        structlog.contextvars.unbind_contextvars("role")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def nats_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsServer]:
    """The nats-server that tests share, with all streams, buckets and consumers. Tests must not stop it."""
    from tailrace.deploy.local.nats_server import NatsServer

    async with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        await apply_streams(server.url)
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgresql() -> AsyncIterator[PostgreSQLServer]:
    """The PostgreSQL server that tests share, each with databases of its own. Tests must not stop it."""
    pytest.importorskip("asyncpg", reason="asyncpg is not installed: run `make setup`")
    from tests.harness.postgresql import PostgreSQLMissing, PostgreSQLServer

    try:
        server = PostgreSQLServer()
    except PostgreSQLMissing as error:
        pytest.skip(str(error))
    async with server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def either_server(request: pytest.FixtureRequest) -> PostgreSQLServer | None:
    return request.getfixturevalue("postgresql") if request.param == "postgresql" else None


@pytest_asyncio.fixture
async def either_database(either_server: PostgreSQLServer | None, tmp_path: Path) -> Path | str:
    """An empty database, once in SQLite and once in PostgreSQL: its path or URL."""
    return await either_server.new_database() if either_server else tmp_path / "folder" / "tailrace.db"


@pytest.fixture
def nats_url(nats_server: NatsServer) -> str:
    return nats_server.url


@pytest_asyncio.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A nats-server for one test, with all streams: the test may kill, freeze, fill and restart it."""
    from tailrace.deploy.local.nats_server import NatsServer

    async with NatsServer(tmp_path) as server:
        await apply_streams(server.url)
        yield server


@pytest_asyncio.fixture
async def connection(nats_url: str) -> AsyncIterator[Connection]:
    from tailrace.proto.nats import Connection

    connection = await Connection.open(nats_url, "test")
    yield connection
    await connection.close()


@pytest_asyncio.fixture
async def own_connection(own_server: NatsServer) -> AsyncIterator[Connection]:
    from tailrace.proto.nats import Connection

    connection = await Connection.open(own_server.url, "test")
    yield connection
    await connection.close()


@pytest.fixture
def one_cpu_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits the CPU time of a sandboxed check to one second instead of three."""
    monkeypatch.setattr("tailrace.features.common.sandbox.CPU_S_MAX", 1)


@pytest.fixture
def log(connection: Connection) -> TurnLog:
    from tailrace.proto.nats import TurnLog

    return TurnLog(connection)


@pytest.fixture
def own_log(own_connection: Connection) -> TurnLog:
    from tailrace.proto.nats import TurnLog

    return TurnLog(own_connection)


@pytest.fixture
def tenant() -> Tenant:
    """A tenant that no other test has."""
    return Tenant(f"tenant-{new_id()}")


@pytest.fixture
def key(tenant: Tenant) -> TurnKey:
    """The key of a turn that does not exist yet."""
    return TurnKey(tenant, TurnId(new_id()))


async def apply_streams(url: str) -> None:
    from tailrace.deploy.nats import setup
    from tailrace.proto.nats import Connection

    connection = await Connection.open(url, "test-streams")
    try:
        await setup.apply(connection, bytes_max=BYTES_MAX)
    finally:
        await connection.close()
