"""Fewer processes than TAILRACE_EXPECTED states are seen, also where discovery forgets the targets that are gone."""

from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGTERM

import pytest

from tailrace.deploy.cli import doctor, status
from tailrace.deploy.local import ports
from tailrace.deploy.local.options import Options
from tailrace.proto.nats.users import ADMIN
from tailrace.proto.runtime import metrics_targets
from tests.harness.freeze import freeze
from tests.harness.processes import Process, as_user
from tests.harness.prometheus import Prometheus, needs_prometheus
from tests.harness.system import System
from tests.harness.until import until

pytestmark = [needs_prometheus, pytest.mark.timeout(240)]

ALERT = "ProcessesMissing"
TICKET = f"{ALERT} ticket"
FIRES_S_MAX = 60.0
EXPECTED = "gateway=2,generators=2,persistence=1"


class Discovered:
    """A system whose Prometheus asks persistence for the targets, which are those of the processes that run."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        self._file = folder / "targets.json"
        self._parts = dict[str, str]()

    async def start(self) -> str:
        """Starts persistence, three generators and two gateways; returns the URL of the targets."""
        of_all = ports.find_free(6)
        self.forget()
        await self.system.start_claude()
        persistence = await self.system.new_persistence(
            TAILRACE_EXPECTED=EXPECTED, TAILRACE_METRICS_TARGETS=self._file, TAILRACE_METRICS_PORT=of_all[0]
        )
        await self._start(persistence, "persistence", of_all[0])
        for port in of_all[1:4]:
            generator = await self.system.new_generator(TAILRACE_EXPECTED=EXPECTED, TAILRACE_METRICS_PORT=port)
            await self._start(generator, "generators", port)
        for port in of_all[4:]:
            gateway = await self.system.new_gateway(TAILRACE_EXPECTED=EXPECTED, TAILRACE_METRICS_PORT=port)
            await self._start(gateway, "gateway", port)
        return f"http://127.0.0.1:{of_all[0]}/targets"

    async def _start(self, process: Process, part: str, port: int) -> None:
        await process.start()
        self._parts[f"127.0.0.1:{port}"] = part
        self.forget()

    def forget(self, part: str = "") -> None:
        """Takes the last target of a part away, as discovery does when the process is gone."""
        if part:
            del self._parts[[address for address, of in self._parts.items() if of == part][-1]]
        self._file.write_bytes(metrics_targets.encode(self._parts))

    async def messages(self) -> tuple[list[str], list[str]]:
        """Returns what `status` and `doctor` say about missing processes."""
        environ = {"TAILRACE_NATS_URL": as_user(self.system.nats_url, ADMIN), "TAILRACE_EXPECTED": EXPECTED}
        folder = self.system.folder / "none"
        shown = status.render(await status.fetch(folder, environ))
        found = await doctor.examine(Options(data_dir=folder), environ)
        return (
            [line.strip() for line in shown.splitlines() if "too few" in line],
            [one.detail for one in found if one.name == "Processes"],
        )


async def test_too_few_processes_are_named_and_enough_of_them_are_not(tmp_path: Path) -> None:
    async with System(tmp_path, sync="default") as system:
        lab = Discovered(system, tmp_path)
        async with Prometheus(tmp_path, {}, await lab.start()) as prometheus:

            async def has_counted(number: int) -> bool:
                return sum((await prometheus.query("count(tailrace_generator_slots)")).values()) == number

            async def fires() -> bool:
                return TICKET in await prometheus.firing()

            async def is_over() -> bool:
                return not await fires()

            async def are_forgotten() -> bool:
                return not await prometheus.query("up == 0")

            await until(lambda: has_counted(3), FIRES_S_MAX)

            # A planned step from three generators to two: two are expected.
            await system.generators[2].stop(SIGTERM)
            lab.forget("generators")
            await until(lambda: has_counted(2), FIRES_S_MAX)
            assert await lab.messages() == ([], [])
            assert await is_over()

            # Frozen: it still has its connections, and its target.
            freeze(system.generators[1])
            said = "too few answer: generators: 1 of 2"
            assert await lab.messages() == ([f"Processes    {said}"], [said])
            await until(fires, FIRES_S_MAX)
            assert await prometheus.firing() >= {TICKET, "ProcessFrozen page"}
            system.generators[1].signal(SIGCONT)
            await until(is_over, FIRES_S_MAX)

            # Both roles at once, and discovery forgets them: no target is down.
            await system.generators[1].stop(SIGKILL)
            await system.gateways[1].stop(SIGKILL)
            lab.forget("generators")
            lab.forget("gateway")
            await until(fires, FIRES_S_MAX)
            roles = await prometheus.query(f'count by (role) (ALERTS{{alertname="{ALERT}"}})')
            assert set(roles) == {("gateway",), ("generators",)}
            await until(are_forgotten, FIRES_S_MAX)
            assert await fires()
            said = "too few answer: gateway: 1 of 2, generators: 1 of 2"
            assert (await lab.messages())[0] == [f"Processes    {said}"]
