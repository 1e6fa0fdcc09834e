"""Outage: the time in which a turn waits because it cannot connect to the model, for example while DNS fails.

The calls are repeated within the attempt, so its lease is kept, and a cancellation, the turn's deadline and a restart
of the generator end the wait. Nothing was sent to the model, so no call is paid for.
"""

import asyncio
from collections.abc import Callable

from tailrace.proto.errors import BackendError

# The longest wait between two calls: the answer should begin soon after the model is back.
EVERY_S = 2.0
# The hosts of public APIs. Any other host is the operator's own, and users do not see its name.
PUBLIC_HOSTS = ("api.anthropic.com",)

NoteWait = Callable[[str], None]
"""Is called with the obstacle when a turn begins to wait, and when the obstacle changes."""


class Outage:
    """An outage of the model for one turn, over all attempts of one run of the turn."""

    def __init__(self) -> None:
        self._since: float | None = None
        """The time of the first call that failed, by the loop's clock; None while the model can be connected to."""
        self._noted = ""

    def end(self) -> bool:
        """Notes that a call has connected to the model. Returns whether there was an outage before."""
        was_out = self._since is not None
        self._since, self._noted = None, ""
        return was_out

    def next_delay_s(
        self, error: BackendError, delay_s: float | None, chance: float, limit_s: float, note_wait: NoteWait
    ) -> float | None:
        """Returns the seconds until the next call, after a call that failed with `error`; None: no call.

        The answer is `delay_s` if the call was connected, or if the outage has lasted longer than `limit_s`. `chance`,
        0 to 1, spreads the calls of turns that wait together. Calls `note_wait` if the turn waits because of an
        obstacle that readers do not know yet.
        """
        if not error.obstacle:
            return delay_s
        now = asyncio.get_running_loop().time()
        if self._since is None:
            self._since = now
        left_s = self._since + limit_s - now
        if left_s <= 0:
            return delay_s
        if error.obstacle != self._noted:
            self._noted = error.obstacle
            note_wait(error.obstacle)
        every_s = min(EVERY_S / 2 * (1 + chance), left_s)
        return every_s if delay_s is None else min(every_s, delay_s)

    def next_attempt(self) -> None:
        """Makes the next wait visible again, because readers have seen other events since."""
        self._noted = ""

    def explain(self, error: BackendError) -> BackendError:
        """Returns `error` with its obstacle, if any, how long the obstacle lasted, and what to do.

        A public host is named.
        """
        if not error.obstacle:
            return error
        since = asyncio.get_running_loop().time() if self._since is None else self._since
        lasted_s = round(asyncio.get_running_loop().time() - since)
        host = next((host for host in PUBLIC_HOSTS if f" {host}:" in error.reason), "")
        named = f"{error.message} {host}" if host else error.message
        check = "check DNS, network and proxy of the generators" if host else "the generator's log names the host"
        lasted = f" for {lasted_s} s" if lasted_s else ""
        message = f"{named}: {error.obstacle}{lasted}. Retry later; operator: {check}"
        return BackendError(error.code, message, reason=error.reason, obstacle=error.obstacle)
