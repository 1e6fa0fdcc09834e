"""The Prometheus endpoint of a process, with health checks for orchestrators, in a thread of its own.

Metrics can thus be read while the event loop works, and the health checks see an event loop that hangs.
"""

import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import msgspec
from prometheus_client import make_wsgi_app

from tailrace.proto.runtime import metrics_targets
from tailrace.proto.runtime.ip_address import is_ip_address, is_loopback
from tailrace.proto.runtime.listen_error import listen_error

# Each connection has a thread, so a client that sends nothing is disconnected.
SILENCE_S_MAX = 10.0
TARGETS_PATH = "/targets"

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing about a client that has disconnected or is silent: neither is an error of this process."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Ipv6Server(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    def setup(self) -> None:
        """Sets the time limit of each read and write."""
        self.request.settimeout(SILENCE_S_MAX)
        super().setup()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name in the standard library
        """Logs nothing: a scrape every few seconds is not an event."""


Checks = Mapping[str, Callable[[], str]]
"""Paths, and what they report: 503 with the reason, or 200 if it is empty."""


def serve(host: str, port: int, checks: Checks, targets: str = "") -> None:
    """Serves on `host` the metrics of this process, `checks` and, if named, the file `targets`, until the process ends.

    Raises AddressInUse, or SettingsInvalid if the address is not one of this machine.
    """
    app = add_checks(make_wsgi_app(), checks)
    app = check_host(add_targets(app, Path(targets)) if targets else app, host)
    try:
        server = make_server(host, port, app, _Ipv6Server if ":" in host else _Server, _QuietHandler)
    except OSError as error:
        raise listen_error("TAILRACE_METRICS_PORT", host, port, error) from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


def add_checks(app: App, checks: Checks) -> App:
    """Returns `app` with the paths of `checks`."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        check = checks.get(environ["PATH_INFO"])
        if check is None:
            return app(environ, start_response)
        reason = check()
        start_response("503 Service Unavailable" if reason else "200 OK", [("Content-Type", "text/plain")])
        return [f"{reason or 'ok'}\n".encode()]

    return answer


def add_targets(app: App, path: Path) -> App:
    """Returns `app` with TARGETS_PATH, at which Prometheus discovers the processes that the file `path` lists."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != TARGETS_PATH:
            return app(environ, start_response)
        try:
            parts = metrics_targets.read(path)
        except (OSError, msgspec.DecodeError) as error:
            # Prometheus then keeps the targets that it has.
            start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
            return [f"{path} cannot be read: {error}\n".encode()]
        if host := re.sub(r":\d+$", "", str(environ.get("HTTP_HOST", ""))):
            parts = metrics_targets.at_host(parts, host)
        start_response("200 OK", [("Content-Type", "application/json")])
        return [metrics_targets.encode(parts)]

    return answer


def check_host(app: App, host: str) -> App:
    """Returns `app` behind a check of the Host header, against DNS rebinding, if it listens on loopback only.

    A page in a browser on this machine could otherwise point its own host name at 127.0.0.1 and read the metrics. On
    another address, a scraper may use any name of this machine.
    """
    if not is_loopback(host):
        return app

    def check(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        name = str(environ.get("HTTP_HOST", "")).rsplit(":", 1)[0]
        if name == "localhost" or is_ip_address(name.strip("[]")):
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [b"The Host header must be an IP address or localhost.\n"]

    return check
