"""The cheapest relay: reads the model's stream and writes SSE, with plain sockets and no HTTP library.

`python -m benchmarks.compare.servers.floor` prints its URL. A lost connection loses the answer.
"""

import asyncio
import json
import os
import re

import uvloop

MODEL_PORT = int(os.environ["ANTHROPIC_BASE_URL"].rpartition(":")[2])
TEXT = re.compile(rb'"text_delta","text":("(?:[^"\\]|\\.)*")')
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


class FromModel(asyncio.Protocol):
    def __init__(self, request: bytes, client: asyncio.Transport) -> None:
        self._request, self._client = request, client

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if texts := TEXT.findall(data):
            self._client.write(b"".join(b'data: {"type":"delta","text":%b}\n\n' % text for text in texts))
        if b"message_stop" in data:
            self._client.write(b'data: {"type":"done"}\n\n')
            self._client.close()
            self._transport.close()


class Client(asyncio.Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport, self._received = transport, b""
        self._task: asyncio.Task[object] | None = None

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if found and length and len(body) == int(length[1]):
            message = json.loads(body)["message"]
            content = json.dumps({"stream": True, "messages": [{"role": "user", "content": message}]}).encode()
            request = (
                b"POST /v1/messages HTTP/1.1\r\nHost: model\r\nContent-Length: %d\r\n\r\n" % len(content) + content
            )
            self._transport.write(HEAD)
            self._task = asyncio.create_task(
                asyncio.get_running_loop().create_connection(
                    lambda: FromModel(request, self._transport), "127.0.0.1", MODEL_PORT
                )
            )


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Client, "127.0.0.1", 0, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
