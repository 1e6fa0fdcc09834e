"""A gateway that kills itself with SIGKILL when it continues a decided turn.

The argument says when: `before_claim`, `before_append` or `after_append` of the next turn's request.
"""

import asyncio
import os
import sys
from signal import SIGKILL

from tailrace.features.client_calls.continuations import Continuations
from tailrace.features.gateway import Settings
from tailrace.gateway import __main__ as program
from tailrace.gateway.serve import probe
from tailrace.proto import service
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Entry, Request
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import TurnLog


def main(when: str) -> int:
    """Runs the gateway. Returns its exit status if it was not killed."""
    append = TurnLog.append

    async def find_none(_: Continuations) -> None:
        await asyncio.Event().wait()

    async def start(_: Continuations, __: Tenant, ___: str) -> TurnId:
        os.kill(os.getpid(), SIGKILL)
        raise AssertionError

    async def append_and_die(log: TurnLog, key: TurnKey, chain: Chain, entry: Entry) -> Chain:
        is_next = isinstance(entry, Request) and entry.parent is not None
        if is_next and when == "before_append":
            os.kill(os.getpid(), SIGKILL)
        appended = await append(log, key, chain, entry)
        if is_next:
            os.kill(os.getpid(), SIGKILL)
        return appended

    # It dies in the request that decides.
    Continuations.run = find_none  # type: ignore[method-assign,assignment]
    if when == "before_claim":
        Continuations.start = start  # type: ignore[method-assign,assignment]
    else:
        TurnLog.append = append_and_die  # type: ignore[method-assign,assignment]
    return service.main("gateway", "Dies.", Settings, program.preflight, program.serve, probe)


if __name__ == "__main__":
    sys.exit(main(sys.argv.pop(1)))
