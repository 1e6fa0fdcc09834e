#!/usr/bin/env bash
# uvicorn with httptools sends chunks to a client of HTTP/1.0; with h11 it does not.
#
# Guessed:  a response without Content-Length goes to a client of HTTP/1.0 as it is, up to the end of the connection: RFC
#           9112, 6.1, forbids Transfer-Encoding in an answer to HTTP/1.0, and uvicorn's two parsers do the same.
# Version:  uvicorn 0.54.0, httptools 0.9.0, h11 0.16.0, starlette 1.10.0.
# Seen:     the bytes behind the headers for an event stream of two events, requested with HTTP/1.0:
#               httptools  'a\r\ndata: one\n\r\na\r\ndata: two\n\r\n0\r\n\r\n'  (transfer-encoding: chunked)
#               h11        'data: one\ndata: two\n'
# Meets:    probes, load generators and scripts that send HTTP/1.0, which take the sizes for content: `uvicorn[standard]`
#           installs httptools, plain `uvicorn` has h11, so the same application answers differently on two machines. nginx
#           before 1.29.7 sends HTTP/1.0 to its backends by default, and understands the chunks.
# Tailrace: Keeps the chunks: behind such an nginx they show whether a stream has ended or was cut.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'uvicorn==0.54.0' 'httptools==0.9.0' 'h11==0.16.0' 'starlette==1.10.0' <<'PYTHON'
import asyncio

import uvicorn
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route


async def events(request):
    async def body():
        for word in ("one", "two"):
            yield f"data: {word}\n"
            await asyncio.sleep(0.1)

    return StreamingResponse(body(), media_type="text/event-stream")


async def answer_to_http_1_0(parser):
    config = uvicorn.Config(Starlette(routes=[Route("/", events)]), port=0, http=parser, log_level="error")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    server.should_exit = True
    await serving
    return answer.decode().split("\r\n\r\n", 1)


async def main():
    seen = {}
    for parser in ("httptools", "h11"):
        head, seen[parser] = await answer_to_http_1_0(parser)
        is_chunked = "transfer-encoding: chunked" in head.lower()
        print(f"{parser:<9}", repr(seen[parser]), "(transfer-encoding: chunked)" if is_chunked else "")
    assert seen["httptools"] == "a\r\ndata: one\n\r\na\r\ndata: two\n\r\n0\r\n\r\n"
    assert seen["h11"] == "data: one\ndata: two\n"


asyncio.run(main())
PYTHON
