"""Faults of a three-server cluster, each with the longest pause that running turns may have."""

from collections.abc import Awaitable, Callable
from signal import SIGKILL

from tests.harness.cluster_system import ClusterSystem
from tests.harness.freeze import freeze


async def kill_leader(system: ClusterSystem) -> None:
    await (await system.cluster.leader()).stop(SIGKILL)


async def freeze_leader(system: ClusterSystem) -> None:
    freeze(await system.cluster.leader())


async def step_down(system: ClusterSystem) -> None:
    await system.cluster.step_down()


async def kill_the_gateways(system: ClusterSystem) -> None:
    await (await system.used_by("gateway")).stop(SIGKILL)


async def freeze_the_gateways(system: ClusterSystem) -> None:
    freeze(await system.used_by("gateway"))


async def kill_the_generators(system: ClusterSystem) -> None:
    await (await system.used_by("generators")).stop(SIGKILL)


async def freeze_the_generators(system: ClusterSystem) -> None:
    freeze(await system.used_by("generators"))


async def kill_all(system: ClusterSystem) -> None:
    await system.cluster.kill_all()
    await system.cluster.start_all()


Fault = Callable[[ClusterSystem], Awaitable[None]]
# Longest pause in seconds (docs/FAULTS.md F7 to F10). A frozen leader is detected first, then replaced as if killed.
FAULTS: dict[Fault, float] = {
    kill_leader: 12.0,
    freeze_leader: 16.0,
    step_down: 3.0,
    kill_the_gateways: 3.0,
    freeze_the_gateways: 6.0,
    kill_the_generators: 3.0,
    freeze_the_generators: 6.0,
    kill_all: 15.0,
}
