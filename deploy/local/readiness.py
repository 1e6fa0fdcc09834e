"""Health checks of processes over HTTP, and the wait until the whole system is ready."""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
import msgspec

from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.ports import in_url

READY_S_MAX = 30.0
METRICS_PATH = "/metrics"
# A process does not answer while it imports its modules. That takes longer than READY_S_MAX only on a busy machine.
IMPORT_S_MAX = 120.0
# The start of a generator takes 1.3 s of CPU time, and `up` may start 64.
START_S_MAX = 2.0
# The wait when all processes are ready: a gateway reads their state every second.
SERVING_S_MAX = 5.0
POLL_S = 0.1
# A gateway that is still starting leaves the request in the socket's queue; a new request is faster than waiting.
RESPONSE_S_MAX = 2.0
# The time of the last beat of a process's event loop, in its metrics.
BEAT = re.compile(r"^tailrace_event_loop_seconds ([0-9.e+]+)$", re.MULTILINE)
# The metric of a process that waits (proto/waiting.py).
WAITING = "\ntailrace_waiting 1.0"


class HealthCheck(NamedTuple):
    """A GET to a process on this machine; it is ready if the status is 200 and the body contains `ready`."""

    port: int
    path: str
    ready: str = ""
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        return f"http://{in_url(self.host)}:{self.port}{self.path}"


class Response(NamedTuple):
    """`status` is 0 if there was no response."""

    status: int
    body: str


async def http_get(host: str, port: int, path: str = "/readyz") -> Response:
    """Sends one GET over a new connection."""
    try:
        # The URL is plain HTTP. verify=False spares the reading of the system's certificates.
        async with (
            asyncio.timeout(RESPONSE_S_MAX),
            httpx2.AsyncClient(verify=False, trust_env=False, timeout=None) as client,
        ):
            response = await client.get(f"http://{in_url(host)}:{port}{path}")
    except (TimeoutError, httpx2.HTTPError):
        return Response(0, "")
    return Response(response.status_code, response.text.strip())


async def wait_ready(checks: Mapping[str, HealthCheck], report: Callable[[str], None]) -> None:
    """Returns when each of `checks` has passed.

    The time limit is `READY_S_MAX`, or `START_S_MAX` for each process, whichever is longer. A process may need more
    time if its event loop runs, for example while persistence migrates a large database, or if it has not answered yet
    and `IMPORT_S_MAX` is not over. If all late processes may need more time, calls `report` with a line and waits for
    the time limit again. Otherwise raises UpRefused with their names.
    """
    missing, timeout_s = dict(checks), max(READY_S_MAX, START_S_MAX * len(checks))
    for rounds in count(1):
        waited_s = rounds * timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                while missing := {name: check for name, check in missing.items() if not await passes(check)}:  # noqa: ASYNC110  # other processes end it
                    await asyncio.sleep(POLL_S)
                return
        except TimeoutError as error:
            late = f"{', '.join(missing)} not ready after {waited_s:g} s"
            responses = [await ask(check) for check in missing.values()]
            may_be_silent = waited_s < IMPORT_S_MAX
            if not all(is_starting(one) or (may_be_silent and not one.status) for one in responses):
                what = "if the lines above name no error, the machine may be too busy: start it again"
                raise UpRefused(f"{late}: {what}") from error
            report(f"{late}: still starting")


async def wait_serving(host: str, port: int) -> dict[str, str]:
    """Waits until a gateway answers `/readyz` with 200. After `SERVING_S_MAX`, returns the parts that are not ready.

    All gateways share one socket, so any gateway may answer. Raises UpRefused if no gateway does within `READY_S_MAX`.
    """
    try:
        async with asyncio.timeout(READY_S_MAX):
            while not (await http_get(host, port)).status:  # noqa: ASYNC110  # other processes end it
                await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        late = f"not ready after {READY_S_MAX:g} s: the gateway does not answer; see its lines above"
        raise UpRefused(late) from error
    with suppress(TimeoutError):
        async with asyncio.timeout(SERVING_S_MAX):
            await wait_ok(host, port)
            return {}
    return _unready_parts(await http_get(host, port))


async def wait_ok(host: str, port: int) -> None:
    """Returns when a gateway answers `/readyz` with 200."""
    while (await http_get(host, port)).status != 200:  # noqa: ASYNC110  # other processes end it
        await asyncio.sleep(POLL_S)


def is_starting(response: Response) -> bool:
    """Returns whether the metrics of a process show that its event loop has run in the last `READY_S_MAX`.

    A process that waits for another part does not start by itself.
    """
    beat = BEAT.search(response.body)
    return beat is not None and WAITING not in response.body and time.monotonic() - float(beat[1]) < READY_S_MAX


async def generator_detail(host: str, port: int) -> str:
    """Returns what a generator reports to operators in `/readyz`: empty, or for example that its key is refused."""
    try:
        return msgspec.json.decode((await http_get(host, port)).body, type=_Ready).generators.detail
    except msgspec.DecodeError:
        return ""


async def find_unready(url: str) -> dict[str, str]:
    """Returns the parts that `/readyz` of the gateway at `url` reports as not ready, with their details.

    Empty if all are ready. If the gateway does not answer, the only part is `gateway`.
    """
    address = urlsplit(url)
    return _unready_parts(await http_get(address.hostname or "", address.port or 0))


def _unready_parts(response: Response) -> dict[str, str]:
    """Returns the parts that are not ready in an answer to `/readyz`, with their details. Empty if all are ready."""
    if response.status == 200:
        return {}
    with suppress(msgspec.DecodeError):
        parts = msgspec.json.decode(response.body, type=dict[str, _Part | bool])
        found = {name: part.detail for name, part in parts.items() if isinstance(part, _Part) and not part.ok}
        if found:
            return found
    return {"gateway": f"/readyz answers {response.status}" if response.status else "does not answer"}


class _Part(msgspec.Struct):
    detail: str = ""
    ok: bool = True


class _Ready(msgspec.Struct):
    generators: _Part


async def ask(check: HealthCheck) -> Response:
    return await http_get(check.host, check.port, check.path)


async def passes(check: HealthCheck) -> bool:
    """Returns whether the process says that it is ready."""
    response = await ask(check)
    return response.status == 200 and check.ready in response.body
