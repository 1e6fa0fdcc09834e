"""The reconnect windows of several readers of one turn."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tailrace.features.departures import gateway
from tailrace.features.departures.gateway import DisconnectPolicy
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.runtime.flag import Flag
from tests.harness.turn_builder import request

KEY = TurnKey(Tenant("t"), TurnId("x"))


@pytest.mark.parametrize("windows_s", [(0.4, 0.0), (0.0, 0.4)])
async def test_a_reader_that_leaves_does_not_close_the_window_of_another(
    windows_s: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway has closed one stream for its age; its client still has some seconds to return."""
    loop = asyncio.get_running_loop()
    cancelled: list[float] = []
    began = loop.time()

    async def cancel(_: object, __: ScopedKey, cause: str) -> None:
        assert cause == "on_disconnect"
        cancelled.append(loop.time() - began)

    async def has_readers_anywhere(_: TurnKey) -> bool:
        return False

    monkeypatch.setattr(gateway, "cancel", cancel)
    async with asyncio.TaskGroup() as group:
        presence: Any = SimpleNamespace(
            draining=Flag(),
            fan_out=SimpleNamespace(request_of=lambda _: request(on_disconnect="cancel"), has_readers=lambda _: False),
            has_readers_anywhere=has_readers_anywhere,
            group=group,
            log=None,
        )
        policy = DisconnectPolicy(presence)
        for window_s in windows_s:
            policy.handle_disconnect(KEY, window_s)
    assert len(cancelled) == 1
    # The clock of the timers has a resolution of its own.
    assert cancelled[0] >= max(windows_s) - 0.01
