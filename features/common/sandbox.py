"""Runs a helper script in a subprocess with a CPU limit, a timeout and an empty environment.

For untrusted input: JSON Schemas and templates of some hundred bytes can take years, and a thread cannot be stopped.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGXCPU
from weakref import WeakValueDictionary

from tailrace.proto.errors import SandboxBusy, SandboxFailed

# CPU seconds of a subprocess. Passed as an argument, because the script sets its own limit.
CPU_S_MAX = 3
# On a machine with few cores, more subprocesses would take CPU from the streams.
PROCESSES_MAX = 3
# One tenant's slow inputs must not occupy all subprocesses.
PROCESSES_TENANT_MAX = 2


class Sandbox:
    """Runs a script in at most PROCESSES_MAX subprocesses (PROCESSES_TENANT_MAX a tenant), 50 to 150 ms each."""

    def __init__(self, program: Path, *, wait_s: float) -> None:
        """`program` is run as a file with its CPU limit in seconds as argument; it imports nothing of Tailrace.

        `wait_s`: how long a run waits for a free subprocess.
        """
        self._command = (sys.executable, "-I", str(program))
        self._wait_s = wait_s
        self._all = asyncio.Semaphore(PROCESSES_MAX)
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def run(self, data: bytes, timeout_s: float, tenant: str) -> bytes:
        """Returns the script's output for the input `data`. Raises SandboxFailed if it is too slow or crashes.

        Raises SandboxBusy if no subprocess was free within `wait_s`.
        """
        async with self._acquire_slot(tenant):
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    str(CPU_S_MAX),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                    env={},
                    # The SIGTERM with which `up` stops the group of this process must not make an input invalid.
                    start_new_session=True,
                )
            except OSError as error:
                raise SandboxFailed(f"the subprocess could not be started: {error}") from error
            try:
                async with asyncio.timeout(timeout_s):
                    output = await _communicate(process, data)
            except TimeoutError as error:
                raise SandboxFailed(f"it takes more than {timeout_s:.0f} s") from error
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if process.returncode == -SIGXCPU:
            raise SandboxFailed(f"it takes more than {CPU_S_MAX} s of CPU time")
        if process.returncode:
            raise SandboxFailed(f"the subprocess failed with status {process.returncode}")
        if output is None:
            raise SandboxFailed("the subprocess ended before it read its input")
        return output

    @asynccontextmanager
    async def _acquire_slot(self, tenant: str) -> AsyncIterator[None]:
        share = self._shares.setdefault(tenant, asyncio.Semaphore(PROCESSES_TENANT_MAX))
        async with AsyncExitStack() as held:
            try:
                # Without a timeout, a few tenants with slow inputs could make all others wait for ever.
                async with asyncio.timeout(self._wait_s):
                    await held.enter_async_context(share)
                    await held.enter_async_context(self._all)
            except TimeoutError as error:
                raise SandboxBusy(f"no subprocess was free within {self._wait_s:g} s") from error
            yield


async def _communicate(process: asyncio.subprocess.Process, data: bytes) -> bytes | None:
    """Returns the output for the input `data`; None for a process that has ended before it read its input."""
    try:
        return (await process.communicate(data))[0]
    except RuntimeError:
        # uvloop raises RuntimeError where asyncio raises BrokenPipeError, which `communicate` ignores.
        await process.wait()
        return None
