"""Flag: is set once, and then calls what was registered."""

import asyncio
from collections.abc import Callable
from typing import Literal


class Flag:
    """Like an asyncio.Event that is never cleared, but watching it needs no task, and forgetting it no search.

    A gateway has a watcher for each open stream: a task and an Event for each took 3 kB.
    """

    __slots__ = ("_calls", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._calls: dict[Callable[[], None], None] = {}

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Sets the flag and makes the registered calls, once."""
        self._is_set = True
        calls, self._calls = self._calls, {}
        for call in calls:
            call()

    def on_set(self, call: Callable[[], None]) -> None:
        """Calls `call` when the flag is set; at once if it is set already."""
        if self._is_set:
            call()
        else:
            self._calls[call] = None

    def forget(self, call: Callable[[], None]) -> None:
        """Undoes `on_set`. Does nothing if the call was made."""
        self._calls.pop(call, None)

    async def wait(self) -> Literal[True]:
        """Returns when the flag is set."""
        waiting = asyncio.get_running_loop().create_future()

        def end() -> None:
            if not waiting.done():
                waiting.set_result(None)

        self.on_set(end)
        try:
            await waiting
        finally:
            self.forget(end)
        return True
