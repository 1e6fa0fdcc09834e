"""Stops an asyncio server of a test without leaking connections that it is accepting."""

import asyncio

# asyncio's accept is a callback, then a task, then the protocol's callback, then the reading: a turn of the loop each.
TURNS = 4


async def stop(server: asyncio.Server) -> None:
    """Closes `server`; returns when connections that it was accepting have reached its callback.

    `Server.close()` alone leaves them: Python 3.11 fails in their transport's `__init__`, later versions call back
    after the close. Either way a socket stays open, and a later test fails.
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener)
    for _ in range(TURNS):
        await asyncio.sleep(0)
    server.close()
