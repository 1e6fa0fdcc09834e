#!/usr/bin/env bash
# Starlette's BaseHTTPMiddleware completes a streamed response whose application has failed.
#
# Guessed:  an error in the middle of a streamed response breaks it, with and without a middleware that does nothing: the client
#           sees that the end is missing.
# Version:  starlette 1.10.0, uvicorn 0.54.0, h11 0.16.0.
# Seen:     an application sends the start of a chunked response and one event, then raises an error, or returns:
#               alone              error cut    return cut
#               BaseHTTPMiddleware error whole  return whole
#           The middleware sends the last chunk when the messages of the application end, and raises the error after that.
# Meets:    streams and proxies below such a middleware, which FastAPI's `@app.middleware("http")` is: half an answer looks
#           complete to the page.
# Tailrace: `tailrace.proxy` (docs/PYTHON.md) makes the middleware fail before its last chunk.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'starlette==1.10.0' 'uvicorn==0.54.0' 'h11==0.16.0' <<'PYTHON'
import asyncio
import logging

import uvicorn
from starlette.middleware.base import BaseHTTPMiddleware

logging.disable()


async def unfinished(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b"data: one\n\n", "more_body": True})
    if scope["path"] == "/error":
        raise RuntimeError


async def unchanged(request, call_next):
    return await call_next(request)


async def end_of(app, path):
    """Returns whether the response has its last chunk."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, http="h11", log_level="critical", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    server.should_exit = True
    await serving
    assert b"data: one" in answer, answer
    return "whole" if answer.endswith(b"0\r\n\r\n") else "cut"


async def main():
    apps = {"alone": unfinished, "BaseHTTPMiddleware": BaseHTTPMiddleware(unfinished, dispatch=unchanged)}
    seen = {name: [await end_of(app, path) for path in ("/error", "/return")] for name, app in apps.items()}
    for name, (error, returned) in seen.items():
        print(f"{name:18} error {error:5}  return {returned}")
    assert seen == {"alone": ["cut", "cut"], "BaseHTTPMiddleware": ["whole", "whole"]}, seen


asyncio.run(main())
PYTHON
