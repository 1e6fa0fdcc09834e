"""A stopped clock for the limits of gateways, so that no window of a counter ends during a test."""

import time
from typing import Any

import pytest

from tailrace.features.limits.limiter import Limiter


def stop_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops the clock of each Limiter that this process makes from now on, unless it is given another one."""
    now = time.time()
    begin = Limiter.__init__

    def begin_stopped(limiter: Limiter, *services: Any, **named: Any) -> None:
        # The sixth one is `now`.
        begin(limiter, *services, **named if len(services) > 5 else {"now": lambda: now, **named})

    monkeypatch.setattr(Limiter, "__init__", begin_stopped)
