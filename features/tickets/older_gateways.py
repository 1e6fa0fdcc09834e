"""Whether gateways of an older version run, which cannot read encrypted tickets."""

import asyncio
from contextlib import suppress

from tailrace.features.common.process_reports import ANSWER_S, ask_gateways, does_know
from tailrace.gateway.auth.signed_tokens import ENCRYPTED_TOKENS
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import Rpc
from tailrace.proto.runtime.race import is_set_within

CHECK_S = 10.0


class OlderGateways:
    """Asks all gateways, this one included, every CHECK_S. During a rolling upgrade, a reader may reach any of them."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self._are_running = True
        self._is_checked = asyncio.Event()

    async def are_running(self) -> bool:
        """Returns the result of the last check. Waits for the first one, at most twice ANSWER_S."""
        await is_set_within(self._is_checked, 2 * ANSWER_S)
        return self._are_running

    async def watch(self) -> None:
        """Checks until it is cancelled."""
        while True:
            with suppress(LogUnavailable):
                if reports := await ask_gateways(self._rpc):
                    self._are_running = not all(does_know(report, ENCRYPTED_TOKENS) for report in reports)
                    self._is_checked.set()
            await asyncio.sleep(CHECK_S)
