#!/usr/bin/env bash
# Starlette does not match a route whose path parameter has an encoded slash (%2F): the answer is 404.
#
# Guessed:  `/files/a%2Fb` matches `/files/{name}`, and the name is `a/b`, since the client has encoded the slash.
# Version:  uvicorn 0.54.0, starlette 1.10.0.
# Seen:     the routes /files/{name} and /paths/{name:path}:
#               /files/a%20b: 200 a b
#               /files/a%2Fb: 404 Not Found
#               /paths/a%2Fb: 200 a/b
#           ASGI's `path` is decoded before the route is looked for.
# Meets:    clients that encode any name into a URL, as they should (encodeURIComponent): names with a slash cannot be read, or
#           reach another route. Refuse a slash when the name is created, or use `:path`.
# Tailrace: Names that are part of a path, such as those of models and prompts, cannot have a slash.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'uvicorn==0.54.0' 'starlette==1.10.0' <<'PYTHON'
import asyncio
import socket
import threading
import urllib.error
import urllib.request

import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route


async def name(request):
    return PlainTextResponse(request.path_params["name"])


def get(url):
    try:
        with urllib.request.urlopen(url) as response:
            return f"{response.status} {response.read().decode()}"
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"


app = Starlette(routes=[Route("/files/{name}", name), Route("/paths/{name:path}", name)])
listener = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True).start()
seen = {path: get(f"http://127.0.0.1:{listener.getsockname()[1]}{path}") for path in ("/files/a%20b", "/files/a%2Fb", "/paths/a%2Fb")}
for path, value in seen.items():
    print(f"{path}: {value}")
assert list(seen.values()) == ["200 a b", "404 Not Found", "200 a/b"], seen
PYTHON
