"""A program of ours that works on what strangers have written: a process with a time, no environment, and then none.

There are schemas and templates of some hundred bytes that take years, and a thread cannot be stopped.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGXCPU
from weakref import WeakValueDictionary

from tailrace.proto.errors import SandboxBusy, SandboxFailed

# Of computing, each; as a program's argument, for it is the program that sets its limit.
CPU_S_MAX = 3
# Two cores may have other things to do.
PROCESSES_MAX = 3
# So that a tenant whose are slow keeps no other one waiting.
PROCESSES_TENANT_MAX = 2


class Sandbox:
    """At most AT_ONCE_MAX of them at once, OF_ONE_MAX of them for one tenant; whoever else wants one waits, a while.

    Each takes 50 to 150 ms of CPU.
    """

    def __init__(self, program: Path, *, wait_s: float) -> None:
        """`program` is run as a file, and imports nothing of Tailrace. `wait_s`: how long one waits to be begun.

        Its argument is how many seconds it may compute.
        """
        self._command = (sys.executable, "-I", str(program))
        self._wait_s = wait_s
        self._room = asyncio.Semaphore(PROCESSES_MAX)
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def run(self, told: bytes, within_s: float, whose: str) -> bytes:
        """What it says to `told`, for the tenant `whose`; raises SandboxFailed when it takes longer, or breaks.

        Raises SandboxBusy when it could not be begun.
        """
        async with self._place(whose):
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    str(CPU_S_MAX),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                    env={},
                )
            except OSError as error:
                raise SandboxFailed(f"no process could be started: {error}") from error
            try:
                async with asyncio.timeout(within_s):
                    said, _ = await process.communicate(told)
            except TimeoutError as error:
                raise SandboxFailed(f"it takes more than {within_s:.0f} s") from error
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if process.returncode == -SIGXCPU:
            raise SandboxFailed("it takes more computing than it may")
        if process.returncode:
            raise SandboxFailed(f"what works on it broke with status {process.returncode}")
        return said

    @asynccontextmanager
    async def _place(self, whose: str) -> AsyncIterator[None]:
        share = self._shares.setdefault(whose, asyncio.Semaphore(PROCESSES_TENANT_MAX))
        async with AsyncExitStack() as held:
            try:
                # A few tenants whose are all slow could keep everybody else waiting for as long as they like.
                async with asyncio.timeout(self._wait_s):
                    await held.enter_async_context(share)
                    await held.enter_async_context(self._room)
            except TimeoutError as error:
                raise SandboxBusy(f"others' were in the way for {self._wait_s:g} s") from error
            yield
