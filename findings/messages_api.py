"""A server on loopback in place of Anthropic's Messages API, and messages that it may send, for the findings."""

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]
Reply = tuple[int, Mapping[str, str], bytes]

MESSAGES = [{"role": "user", "content": "hi"}]
MESSAGE: Json = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
START: Json = {"type": "message_start", "message": MESSAGE}


def json_reply(status: int, body: Json) -> Reply:
    """Returns a response with a JSON body."""
    return status, {"content-type": "application/json"}, json.dumps(body).encode()


def stream_reply(events: Iterable[Json]) -> Reply:
    """Returns a response that streams `events`."""
    return 200, {"content-type": "text/event-stream"}, b"".join(map(frame, events))


def frame(event: Json) -> bytes:
    """Returns an event in the format of an event stream."""
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


class Handler(BaseHTTPRequestHandler):
    """Answers POSTs, and writes no log."""

    def read(self) -> Json:
        """Returns the body of the request."""
        found: Json = json.loads(self.rfile.read(int(self.headers["content-length"])))
        return found

    def log_message(self, *_: object) -> None:
        """Writes nothing."""


def serve(answer: Callable[[Json, Mapping[str, str]], Reply]) -> str:
    """Starts a server, and returns its URL. `answer` gets the body and the headers (in lower case) of each POST."""

    class Answering(Handler):
        def do_POST(self) -> None:
            body = self.read()
            status, headers, content = answer(body, {name.lower(): value for name, value in self.headers.items()})
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    return serve_with(Answering)


def serve_with(handler: type[BaseHTTPRequestHandler]) -> str:
    """Starts a server with this handler in a thread, and returns its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"
