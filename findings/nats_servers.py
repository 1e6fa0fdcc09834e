"""nats-servers on loopback for the findings: one, or a cluster of three."""

import asyncio
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nats

PROGRAM = Path(sys.executable).parent / "nats-server"

# A signal to the script ends its servers, too.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


class Server:
    """A nats-server in its own folder, with its address in `url`."""

    def __init__(self, folder: Path, ports: Sequence[int], number: int, options: str) -> None:
        self.folder = folder
        self.url = f"nats://127.0.0.1:{ports[number]}"
        folder.mkdir()
        routes = ", ".join(f"nats-route://127.0.0.1:{port}" for port in ports[3:])
        cluster = (
            f'cluster {{ name: c, listen: "127.0.0.1:{ports[3 + number]}", routes: [{routes}] }}' if routes else ""
        )
        (folder / "conf").write_text(f"""
            server_name: n{number}, listen: "127.0.0.1:{ports[number]}"
            {cluster}
            {options.replace("STORE", str(folder / "store"))}
        """)
        self.start()

    def start(self) -> None:
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen([PROGRAM, "-c", self.folder / "conf"], stderr=log)

    def send(self, signal_number: int) -> None:
        self._process.send_signal(signal_number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def servers(
    count: int = 1, options: str = 'jetstream { store_dir: "STORE" }', first: str | None = None
) -> Iterator[list[Server]]:
    """Starts one server or a cluster of three, and kills them at the end. STORE in `options` is a folder.

    `first` are the options of the first server, if they are others.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ports = _free_ports(1 if count == 1 else 2 * count)
        each = [first or options, *[options] * (count - 1)]
        started = [Server(Path(folder) / f"n{number}", ports, number, each[number]) for number in range(count)]
        try:
            yield started
        finally:
            for one in started:
                one.send(signal.SIGCONT)
                one.kill()


async def connect(server: Server, **options: Any) -> nats.NATS:
    """Connects, and waits until the server listens. nats-py's log of errors in the background is not printed."""
    return await nats.connect(server.url, **{"error_cb": _ignore, "reconnect_time_wait": 0.2, **options})


async def _ignore(error: Exception) -> None:
    del error


async def create_stream(js: Any, **config: Any) -> Any:
    """Creates a stream. Repeats the request until a cluster has elected its leaders."""
    for _ in range(60):
        try:
            stream = await js.add_stream(**config)
        except (nats.errors.Error, TimeoutError):
            await asyncio.sleep(0.5)
        else:
            # Until each server knows the leader: before, a publish has no responder.
            await asyncio.sleep(1)
            return stream
    raise SystemExit("the cluster does not start")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
