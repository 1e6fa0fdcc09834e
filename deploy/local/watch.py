"""The checks that `up` makes while the system runs: full disks, processes that hang, and the setup of NATS."""

import asyncio
from collections.abc import Sequence

from tailrace.deploy.local.failed_writes import restart_stuck_server
from tailrace.deploy.local.liveness import Liveness
from tailrace.deploy.local.nats_server import ServerSpec
from tailrace.deploy.local.readiness import HealthCheck
from tailrace.deploy.local.repair_setup import SetupRepair
from tailrace.deploy.local.status_file import StatusFile
from tailrace.deploy.local.supervisor import ProcessSpec, Supervisor

INTERVAL_S = 5.0


async def watch(
    servers: Sequence[ServerSpec],
    specs: Sequence[ProcessSpec],
    admin_url: str,
    supervisor: Supervisor,
    status: StatusFile,
) -> None:
    """Checks everything every `INTERVAL_S` seconds, and writes `status`, until it is cancelled.

    A check that fails, because the data directory is away for a moment or the disk is full, is reported once and
    repeated: `up` continues as long as its processes do.
    """
    checks = {server.name: HealthCheck(server.monitor_port, "/varz") for server in servers}
    checks |= {spec.name: spec.readiness for spec in specs if spec.readiness}
    liveness = Liveness(checks, supervisor)
    repair = SetupRepair(admin_url, supervisor.console, servers)
    failure = ""
    try:
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                await restart_stuck_server(servers, supervisor)
                await liveness.restart_hanging()
                await repair.check()
                status.write()
            except OSError as error:
                now = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
            else:
                now = ""
            if now and now != failure:
                supervisor.console.log(f"{now}. Waiting for it; the processes continue")
            failure = now
    finally:
        await repair.close()
