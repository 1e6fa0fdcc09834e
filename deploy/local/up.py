"""`tailrace up`: the whole system on one machine, from the first check to the last process.

Order: judge the settings, hold the folder and the port, so that what can be refused is refused before anything starts;
nats-server, or three of them, and the streams, and with their keys the door is judged; then the rest at once, because
each of them waits for what it needs. Stopping is the same backwards.
"""

import asyncio
import os
import signal
import socket
import sys
from asyncio import TaskGroup
from collections.abc import Mapping
from typing import Any, NamedTuple

from tailrace.deploy.cli import streams
from tailrace.deploy.local import check_environment, data_dir, migrate_log, nats_cluster, nats_server
from tailrace.deploy.local import ports as port
from tailrace.deploy.local.banner import welcome, who_answers
from tailrace.deploy.local.console import Console, is_coloured
from tailrace.deploy.local.data_dir import write_private
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.full_disk import mend
from tailrace.deploy.local.nats_log import FILE, NatsLines
from tailrace.deploy.local.nats_server import Site
from tailrace.deploy.local.options import Options
from tailrace.deploy.local.processes import Plan, parts
from tailrace.deploy.local.readiness import ready
from tailrace.deploy.local.supervisor import ProcessSpec, Supervisor
from tailrace.gateway.__main__ import door_of
from tailrace.proto.nats.permissions import ADMIN, GATEWAY, RIGHTS
from tailrace.proto.runtime import settings
from tailrace.proto.runtime.logging_setup import configure
from tailrace.proto.runtime.main import ProcessSettings

NATS_S_MAX = 30.0
NAME_WIDTH = len("simulated-claude")


class Listening(NamedTuple):
    """The socket that the gateways inherit."""

    port: int
    fd: int


def run(options: Options, environ: Mapping[str, str]) -> int:
    """Returns 0 after a signal stopped it.

    Raises SettingsInvalid or UpRefused, or LogError when NATS is set up for another version.
    """
    asyncio.run(check_environment.check(environ))
    configure("up", "console", level="error")  # a part that is not there yet is no news while starting
    os.umask(0o077)  # what anybody writes into the folder is ours alone
    with data_dir.held(options.folder), port.listen(options.host, options.port) as listener:
        return asyncio.run(up(options, environ, listener))


async def up(options: Options, environ: Mapping[str, str], listener: socket.socket) -> int:
    screen = Console(sys.stdout, width=NAME_WIDTH, coloured=is_coloured(sys.stdout, environ))
    async with TaskGroup() as tasks:
        supervisor = Supervisor(tasks, screen)
        life = asyncio.create_task(live(options, environ, listener, supervisor))
        asked = asyncio.create_task(obey_signals(supervisor).wait())
        try:
            ends: list[asyncio.Future[Any]] = [life, asked, supervisor.hopeless]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # A request, not more: nats-py may swallow it. The supervisor starts nothing from here on.
            life.cancel()
            # Or who comes back meanwhile would hang in the queue of a socket that nobody serves any more.
            listener.close()
            await supervisor.stop()
    if asked.done():
        return 0
    if supervisor.hopeless.done():
        raise UpRefused(f"a setting of {supervisor.hopeless.result()} is wrong: see its lines above")
    life.result()  # raises: a life does not end by itself
    return 1


def obey_signals(supervisor: Supervisor) -> asyncio.Event:
    """Set by the first signal. A second Ctrl-C kills all there is."""
    asked = asyncio.Event()

    def obey(number: signal.Signals) -> None:
        if not asked.is_set() and not supervisor.is_stopping:
            supervisor.screen.say(f"{number.name}: stopping; Ctrl-C again stops at once")
            asked.set()
        # Only Ctrl-C is a person's hurry: `make` passes on a SIGTERM that its whole group has already got.
        elif number == signal.SIGINT:
            supervisor.kill()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, obey, number)
    return asked


async def live(options: Options, environ: Mapping[str, str], listener: socket.socket, supervisor: Supervisor) -> None:
    """Start everything, say so, and mend what stands still until it is cancelled."""
    screen = supervisor.screen
    # Asked now: `up` closes it when it stops, and a cancellation may be heard late.
    listening = Listening(listener.getsockname()[1], listener.fileno())
    await migrate_log.move(options, screen)
    sites = migrate_log.sites_of(options, options.folder)
    nats_urls = await start_log(options, sites, supervisor)
    door = await door_of(check_environment.of_gateway(options, environ, nats_urls[GATEWAY]))
    ground = survey(options, environ, listening, nats_urls)
    screen.say(who_answers(environ))
    others = parts(options, ground, environ)
    for part in others:
        supervisor.start(part)
    await ready(ground.host, ground.port, {part.name: part.readiness for part in others if part.readiness})
    rows = [(name, str(child.pid or "-"), *child.part.where) for name, child in supervisor.children.items()]
    screen.show(welcome(rows, ground.url, str(options.folder), is_key_needed=not door.is_open))
    screen.show(f"ready {ground.url}")
    await mend(sites, supervisor)


async def start_log(options: Options, sites: list[Site], supervisor: Supervisor) -> dict[str, str]:
    """nats-server, or three of them, with the streams; what each user is told to connect to."""
    for site in sites:
        supervisor.start(
            ProcessSpec(
                name=site.name,
                role=nats_server.NAME,
                command=nats_server.command(site),
                is_told=NatsLines(site.folder).heard,
                environ={},
                where=(f"127.0.0.1:{site.port}", f"monitoring http://127.0.0.1:{site.monitor_port}"),
            )
        )
    try:
        async with asyncio.timeout(NATS_S_MAX):
            for site in sites:
                await nats_server.answers(site.port)
    except TimeoutError as error:
        where = " and ".join(str(site.folder / FILE) for site in sites)
        raise UpRefused(f"nats-server does not answer after {NATS_S_MAX:g} s: see {where}") from error
    urls = {user: nats_cluster.url(sites, user) for user in RIGHTS}
    write_private(options.folder / nats_server.URL_FILE, urls[ADMIN])
    await streams.apply(urls[ADMIN], file_bytes_max=sites[0].file_bytes_max, replicas=len(sites), wait_s=NATS_S_MAX)
    if options.cluster:
        supervisor.screen.say(f"{len(sites)} nats-servers keep a copy of the log each, and any one of them may be lost")
    return urls


def survey(options: Options, environ: Mapping[str, str], listening: Listening, nats_urls: Mapping[str, str]) -> Plan:
    """Asked for when nats-server has taken its ports, so that no other part is given one of them."""
    claude_port, *metrics_ports = port.free(2 + options.generators + options.gateways)
    if first := settings.read(ProcessSettings, environ).metrics_port:
        metrics_ports = port.counted(first, len(metrics_ports))
    return Plan(
        nats_urls=nats_urls,
        host=port.reachable(options.host),
        port=listening.port,
        listen_fd=listening.fd,
        claude_port=claude_port,
        metrics_ports=tuple(metrics_ports),
    )
