"""A local server with the usage and cost report of Anthropic's Admin API."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEY = "sk-ant-admin01-secret"


class Api:
    """A local server with the answers of Anthropic's Admin API: for each path a list of pages."""

    def __init__(self, pages: dict[str, list[list[dict[str, Any]]]]) -> None:
        self.pages = pages
        self.requests: list[tuple[str, dict[str, list[str]]]] = []
        self.failure: tuple[int, bytes] | None = None
        self.url = ""

    def answer(self, path: str, query: dict[str, list[str]], key: str | None) -> tuple[int, bytes]:
        self.requests.append((path, query))
        if key != KEY:
            return 401, b'{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}'
        if self.failure is not None:
            return self.failure
        number = int(query.get("page", ["0"])[0])
        has_more = number + 1 < len(self.pages[path])
        body = {
            "data": self.pages[path][number],
            "has_more": has_more,
            "next_page": str(number + 1) if has_more else None,
        }
        return 200, json.dumps(body).encode()


@contextmanager
def serve(api: Api) -> Iterator[Api]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            assert self.headers["anthropic-version"] == "2023-06-01"
            status, body = api.answer(url.path, parse_qs(url.query), self.headers["x-api-key"])
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
