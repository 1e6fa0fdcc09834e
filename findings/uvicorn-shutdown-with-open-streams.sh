#!/usr/bin/env bash
# uvicorn sends the lifespan's shutdown after the last open response: an application cannot end its streams there.
#
# Guessed:  at SIGTERM the code behind `yield` in the lifespan runs first or at once, so it is the place to end open streams.
# Version:  uvicorn 0.54.0, starlette 1.10.0.
# Seen:     one stream that ends 10 s after its start, SIGTERM after 1 s, seconds from the signal on:
#               the stream is disconnected: 9.0 s, at its own end
#               lifespan shutdown:          9.1 s
#           `request.is_disconnected()` stays false meanwhile, and without `timeout_graceful_shutdown` nothing limits the wait.
# Meets:    servers with SSE or other long responses: each deployment waits until the supervisor kills the process, and the
#           lifespan's clean-up never runs. Set an event of your own when the signal arrives (a subclass of uvicorn.Server).
# Tailrace: Sets a draining event when the signal arrives, which closes the streams; clients resume at another gateway.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'uvicorn==0.54.0' 'starlette==1.10.0' <<'PYTHON'
import asyncio
import contextlib
import os
import signal
import socket
import threading
import time

import uvicorn
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

seen = {}
signalled = 0.0


async def stream(request):
    async def body():
        for _ in range(100):
            yield b": hb\n\n"
            if await request.is_disconnected():
                break
            await asyncio.sleep(0.1)
        seen["the stream is disconnected"] = time.monotonic() - signalled

    return StreamingResponse(body(), media_type="text/event-stream")


@contextlib.asynccontextmanager
async def lifespan(app):
    yield
    seen["lifespan shutdown"] = time.monotonic() - signalled


def read_and_signal(address):
    global signalled
    with socket.create_connection(address) as reader:
        reader.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        reader.recv(100)
        time.sleep(1)
        signalled = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        while reader.recv(10_000):
            pass


listener = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(Starlette(routes=[Route("/", stream)], lifespan=lifespan), log_level="error"))
threading.Thread(target=read_and_signal, args=[listener.getsockname()], daemon=True).start()
signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises the signal again when it has ended
asyncio.run(server.serve([listener]))
for label, seconds in seen.items():
    print(f"{label}:".ljust(27), f"{seconds:.1f} s")
assert seen["lifespan shutdown"] > seen["the stream is disconnected"] > 7, seen
PYTHON
