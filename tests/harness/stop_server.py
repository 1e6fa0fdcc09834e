"""Stops an asyncio server of a test without leaking connections that it is accepting."""

import asyncio

# asyncio's accept is a callback, then a task, then the protocol's callback, then the reading: a turn of the loop each.
TURNS = 4


async def stop(server: asyncio.Server) -> None:
    """Closes `server`; whoever it had half accepted has been handed to its callback when this returns.

    `Server.close()` by itself leaves them: Python 3.11 fails in their transport's `__init__`, later ones call back
    after the close, and either way a socket is left open for some other test to stumble over.
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener)
    for _ in range(TURNS):
        await asyncio.sleep(0)
    server.close()
