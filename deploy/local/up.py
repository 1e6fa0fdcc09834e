"""`tailrace up`: starts and supervises the whole system on one machine.

Order of the start: check settings, lock the data directory and bind the port, so that errors are reported before any
process starts; then nats-server (or three) and the streams; then all other processes at once. Each process waits for
its dependencies. The stop uses the reverse order.
"""

import asyncio
import os
import resource
import shlex
import signal
import socket
import sys
from asyncio import TaskGroup
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

import msgspec

from tailrace.deploy.local import (
    check_environment,
    data_dir,
    migrate_log,
    nats_cluster,
    nats_server,
    ports,
    running,
    shadowing_copy,
)
from tailrace.deploy.local.backup import DATABASE
from tailrace.deploy.local.banner import model_banner, render_banner
from tailrace.deploy.local.console import Console
from tailrace.deploy.local.data_dir import is_private, write_private
from tailrace.deploy.local.demo import Demo, serve_demo
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.nats_log import FILE, NatsLogFile
from tailrace.deploy.local.nats_server import ServerSpec
from tailrace.deploy.local.options import Options
from tailrace.deploy.local.processes import Plan, gateway_names, generator_names, process_specs
from tailrace.deploy.local.readiness import generator_detail, wait_ok, wait_ready, wait_serving
from tailrace.deploy.local.rolling_restart import SIGNAL, Numbers, RollingRestart
from tailrace.deploy.local.status_file import FILE as STATUS_FILE
from tailrace.deploy.local.status_file import StatusFile, write_metrics_targets
from tailrace.deploy.local.supervisor import ProcessSpec, Supervisor
from tailrace.deploy.local.watch import watch
from tailrace.deploy.nats import streams
from tailrace.deploy.nats.new_log import ask_database, ask_stores
from tailrace.deploy.nats.permissions import RIGHTS
from tailrace.deploy.nats.restores import record_restore
from tailrace.features.gateway import FEATURES
from tailrace.gateway.serve import load_authenticator
from tailrace.persistence.sqlite import require_known_schema
from tailrace.proto.errors import StoreError, StoreTooNew
from tailrace.proto.nats.users import ADMIN, GATEWAY
from tailrace.proto.runtime import settings, systemd
from tailrace.proto.runtime.ip_address import is_loopback
from tailrace.proto.runtime.logging_setup import configure, is_coloured
from tailrace.proto.runtime.race import run_until
from tailrace.proto.service import BEAT_EVERY_S, ProcessSettings

NATS_S_MAX = 30.0
# `up` itself has 25 files open when three services run, and each further service adds a pipe and a port. A gateway
# reserves 48 files for itself.
FILES_MIN, FILES_PER_SERVICE = 48, 2
# The kernel counts threads. All processes together have 39 threads without load when three services run. Each service
# has at most 7, and `up` one more for each.
THREADS_MIN, THREADS_PER_SERVICE = 32, 8
NAME_WIDTH = len("simulated-claude")


def run(options: Options, environ: Mapping[str, str]) -> int:
    """Runs the system; returns 0 after a signal stopped it.

    Raises SettingsInvalid, UpRefused, or LogError if the NATS streams belong to another version.
    """
    asyncio.run(check_environment.check(environ))
    # They are for this process: the processes below it must not report that they are ready.
    environ = {name: value for name, value in environ.items() if name not in systemd.VARIABLES}
    # nats-server reads this path from a UTF-8 file, and would store the log in a directory of another name.
    if str(options.data_dir).encode(errors="replace") != os.fsencode(options.data_dir):
        raise UpRefused(
            f"the path of the data directory {options.data_dir} is not UTF-8, or the locale is not:"
            " choose another with --data, or set LC_ALL=C.UTF-8"
        )
    require_limits(options)
    configure("up", "console", level="error")  # while starting, a process that is not up yet is no warning
    os.umask(0o077)  # all files in the data directory are private
    with data_dir.lock(options.data_dir, data_dir.UP), ports.listen(options.host, options.port) as listener:
        try:
            # The file of an earlier `up`, whose pid another process may have by now.
            (options.data_dir / STATUS_FILE).unlink(missing_ok=True)
            refuse_newer_database(options.data_dir / DATABASE)
            return asyncio.run(up(options, environ, listener))
        except OSError as error:
            # Only the start writes files: a full disk, or a directory that belongs to another user.
            raise UpRefused(
                f"cannot write {error.filename or options.data_dir} ({error.strerror}): "
                "make room or correct its permissions, or choose another directory with --data"
            ) from error


def require_limits(options: Options) -> None:
    """Raises UpRefused if a limit of this user is too low for all processes, which would fail one after the other.

    Many clients need higher limits: the gateway warns about that.
    """
    services = options.generators + options.gateways
    for which, what, option, needed in (
        (resource.RLIMIT_NOFILE, "open files", "-n", FILES_MIN + FILES_PER_SERVICE * services),
        (resource.RLIMIT_NPROC, "processes", "-u", THREADS_MIN + THREADS_PER_SERVICE * services),
    ):
        limit, _ = resource.getrlimit(which)
        # Without a limit, the value is -1, or on macOS the largest number.
        if 0 <= limit < needed:
            raise UpRefused(f"the limit of {what} is {limit}: raise it with `ulimit {option}` to {needed} or more")


def refuse_newer_database(database: Path) -> None:
    """Raises UpRefused before nats-server or the streams change. Persistence reports all other errors."""
    try:
        require_known_schema(database)
    except StoreTooNew as error:
        raise UpRefused(str(error)) from error
    except StoreError:
        return


async def up(options: Options, environ: Mapping[str, str], listener: socket.socket) -> int:
    """Runs all processes until a signal; returns the exit status. Raises UpRefused if they cannot run."""
    console = Console(sys.stdout, width=NAME_WIDTH, coloured=is_coloured(sys.stdout, environ))
    async with TaskGroup() as tasks, AsyncExitStack() as stack:
        supervisor = Supervisor(tasks, console)
        demo = await start_demo(supervisor, stack) if is_loopback(options.host) else None
        watching = asyncio.create_task(start_and_watch(options, environ, listener, supervisor, demo))
        beating = asyncio.create_task(beat())
        try:
            stop_requested = await run_until(handle_signals(supervisor).wait(), watching, supervisor.fatal_config)
        finally:
            # nats-py may swallow the cancellation. The supervisor starts no process from here on.
            watching.cancel()
            # Otherwise a client that reconnects now would wait in the queue of a socket that no process serves.
            listener.close()
            systemd.notify("STOPPING=1")
            await supervisor.stop()
            beating.cancel()
    if not stop_requested.cancelled():
        return 0
    if supervisor.fatal_config.done():
        raise UpRefused(f"{supervisor.fatal_config.result()}: see its lines above")
    watching.result()  # raises: `watching` never returns
    return 1


async def beat() -> None:
    """Tells systemd's watchdog every second that the event loop runs, forever."""
    while True:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(BEAT_EVERY_S)


async def start_demo(supervisor: Supervisor, stack: AsyncExitStack) -> Demo | None:
    """Serves the demo until `stack` is left; prints why if that is impossible, for example with a long TMPDIR."""
    try:
        return await stack.enter_async_context(serve_demo(supervisor))
    except OSError as error:
        supervisor.console.log(f"the page has no demo: its socket cannot be made ({error}); set another TMPDIR")
        return None


def handle_signals(supervisor: Supervisor) -> asyncio.Event:
    """Returns an event that the first signal sets. A second Ctrl-C kills all processes."""
    stop_requested = asyncio.Event()

    def handle(number: signal.Signals) -> None:
        if not stop_requested.is_set() and not supervisor.is_stopping:
            supervisor.console.log(f"{number.name}: stopping all processes in order; Ctrl-C again kills them")
            stop_requested.set()
        # Only a second Ctrl-C is from a person: `make` forwards a SIGTERM that its whole group already got.
        elif number == signal.SIGINT:
            supervisor.kill()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # `nohup` ignores SIGHUP for its command.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, handle, number)
    return stop_requested


async def start_and_watch(
    options: Options, environ: Mapping[str, str], listener: socket.socket, supervisor: Supervisor, demo: Demo | None
) -> None:
    """Starts all processes, prints the banner, and watches over the system until it is cancelled."""
    console = supervisor.console
    # Read these now: `up` closes the socket when it stops, and a cancellation may arrive late.
    port, listen_fd = listener.getsockname()[1], listener.fileno()
    await migrate_log.migrate(options, console)
    servers = migrate_log.server_specs(options, options.data_dir)
    nats_urls = await start_nats(options, environ, servers, supervisor)
    gateway_settings = check_environment.gateway_settings(options, environ, nats_urls[GATEWAY])
    authenticator = await load_authenticator(gateway_settings, FEATURES)
    plan = make_plan(options, environ, port, listen_fd, nats_urls, demo)
    for warning in check_environment.find_mistyped(environ):
        console.log(warning)
    if copy := shadowing_copy.find():
        console.log(f"{copy} is a copy of the checkout and may run in its place; remove it: {shadowing_copy.ACTION}")
    log_format = "colour" if console.coloured else "console"
    of_processes = {"TAILRACE_LOG_FORMAT": log_format, **environ}
    specs = process_specs(options, plan, of_processes)

    def scale(numbers: Numbers, metrics_ports: Mapping[str, int]) -> list[ProcessSpec]:
        changed = msgspec.structs.replace(options, generators=numbers.generators, gateways=numbers.gateways)
        require_limits(changed)
        return process_specs(changed, scale_plan(plan, changed, environ, metrics_ports), of_processes)

    with suppress(OSError):  # `watch` writes it again
        write_metrics_targets(options.data_dir, specs)
    for spec in specs:
        supervisor.start(spec)
    checks = {spec.name: spec.readiness for spec in specs if spec.readiness}
    await wait_ready(checks, console.log)
    unready = await wait_serving(plan.host, plan.port)
    supervisor.has_started = True
    rows = [(name, str(child.pid or "-"), *child.spec.where) for name, child in supervisor.children.items()]
    console.print(
        render_banner(
            rows,
            plan.url,
            str(options.data_dir),
            page=f"{plan.url}/#demo={demo.token}" if demo is not None else f"{plan.url}/",
            model=model_banner(environ),
            needs_key=not authenticator.is_open,
            warning=await generator_detail(plan.host, plan.port),
        )
    )
    status = StatusFile(options.data_dir, plan.url, supervisor)
    restart = RollingRestart(specs, supervisor, status, options.data_dir, scale)
    # Before the file is written: its reader may send the signal.
    asyncio.get_running_loop().add_signal_handler(SIGNAL, restart.requested.set)
    with suppress(OSError):  # `watch` reports it and tries again
        status.write()
    if not running.record(options.data_dir):
        console.log(
            "other commands do not find this system, because this user has no home directory that can be written: "
            f"add --data {shlex.quote(str(options.data_dir))} to them, or set XDG_STATE_HOME for `up` and for them"
        )
    async with TaskGroup() as tasks:
        tasks.create_task(watch(servers, nats_urls[ADMIN], supervisor, status))
        tasks.create_task(restart.run())
        # Also with a full log or disk: stored turns can be read, running ones end, and `watch` repairs nats-server.
        if unready:
            why = "; ".join(f"{name}: {detail}" for name, detail in unready.items())
            console.log(f"not ready: {why} (docs/RUNBOOK.md, A part is not ready). The processes continue")
            systemd.notify_status(f"waiting for {why}")
            await wait_ok(plan.host, plan.port)
        console.print(f"ready {plan.url}")
        systemd.notify_status(f"ready {plan.url}", "READY=1")


async def start_nats(
    options: Options, environ: Mapping[str, str], servers: list[ServerSpec], supervisor: Supervisor
) -> dict[str, str]:
    """Starts the nats-servers, makes missing streams, and returns the NATS URL of each user."""
    for server in servers:
        supervisor.start(
            ProcessSpec(
                name=server.name,
                role=nats_server.NAME,
                command=nats_server.command(server),
                is_shown=NatsLogFile(server.directory).write,
                environ=nats_server.go_runtime(environ, len(servers)),
                where=(f"127.0.0.1:{server.port}", f"monitoring http://127.0.0.1:{server.monitor_port}"),
                # A Go program ends with the same status when it has no memory. An invalid setting would be status 1.
                usage_error="crashed; the limit of memory (`ulimit -v`) or of processes (`ulimit -u`) may be too low",
            )
        )
    for server in servers:
        await wait_for_nats(server, supervisor)
    urls = {user: nats_cluster.url(servers, user) for user in RIGHTS}
    write_private(url_file := options.data_dir / data_dir.URL_FILE, urls[ADMIN])
    if not is_private(url_file):
        supervisor.console.log(
            f"the file system of {options.data_dir} ignores permissions, and other users of this machine may read all "
            "conversations and keys: choose another directory with --data"
        )
    await streams.apply(
        urls[ADMIN],
        file_bytes_max=servers[0].file_bytes_max,
        replicas=len(servers),
        wait_s=NATS_S_MAX,
        # The server and its streams are `up`'s own.
        repairs=True,
        is_new=options.is_new,
        others=[
            partial(ask_database, str(options.data_dir / DATABASE), if_absent=False),
            partial(ask_stores, [server.store for server in servers]),
        ],
    )
    restored = options.data_dir / data_dir.RESTORED
    if restored.exists():
        await record_restore(urls[GATEWAY])
        restored.unlink()
    if options.cluster:
        supervisor.console.log(f"{len(servers)} nats-servers have a copy of the log each; any one of them may fail")
    return urls


async def wait_for_nats(server: ServerSpec, supervisor: Supervisor) -> None:
    """Waits until a nats-server has read its log: after a crash, gigabytes take minutes.

    Raises UpRefused after `NATS_S_MAX` if it does not run.
    """
    while True:
        try:
            async with asyncio.timeout(NATS_S_MAX):
                return await nats_server.wait_started(server.port)
        except TimeoutError as error:
            log = server.directory / FILE
            if supervisor.children[server.name].pid is None:
                raise UpRefused(f"{server.name} did not start within {NATS_S_MAX:g} s: see {log}") from error
            supervisor.console.log(f"{server.name} still reads its log: see {log}")


def make_plan(
    options: Options,
    environ: Mapping[str, str],
    port: int,
    listen_fd: int,
    nats_urls: Mapping[str, str],
    demo: Demo | None = None,
) -> Plan:
    """Chooses the ports of the other processes. Called when nats-server has bound its ports, so none is given twice."""
    claude_port, *metrics_ports = ports.find_free(2 + options.generators + options.gateways)
    configured = settings.read(ProcessSettings, environ)
    if configured.metrics_port:
        metrics_ports = ports.find_fixed(configured.metrics_port, options.generators, options.gateways)
    return Plan(
        nats_urls=nats_urls,
        host=ports.loopback_of(options.host),
        port=port,
        listen_fd=listen_fd,
        claude_port=claude_port,
        metrics_ports=tuple(metrics_ports),
        metrics_host=ports.loopback_of(configured.metrics_host),
        demo_socket=str(demo.path) if demo is not None else "",
    )


def scale_plan(plan: Plan, options: Options, environ: Mapping[str, str], running_ports: Mapping[str, int]) -> Plan:
    """Returns the plan for other numbers of processes. Running processes, which are in `running_ports`, keep their
    ports."""
    if first := settings.read(ProcessSettings, environ).metrics_port:
        chosen = ports.find_fixed(first, options.generators, options.gateways, running_ports.values())
    else:
        names = ["persistence", *generator_names(options), *gateway_names(options)]
        chosen = [running_ports.get(name) or ports.find_free(1)[0] for name in names]
    return msgspec.structs.replace(plan, metrics_ports=tuple(chosen))
