"""An address whose machine can vanish: its connections stay open, and no packet arrives any more. Needs root."""

import asyncio
import ctypes
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

CLONE_NEWNET = 0x40000000
PORT = 8000


class Machine(NamedTuple):
    """`set_link("down")` loses all packets, and `set_link("up")` ends that."""

    address: str
    set_link: Callable[[str], None]


@asynccontextmanager
async def vanishing_machine(number: int, port: int) -> AsyncIterator[Machine]:
    """Runs a machine in a network namespace of its own, whose address leads to `port` of this one.

    `number`: another one for each machine at once, below 100.
    """
    name, link = f"tailrace-{os.getpid()}-{number}", f"tr{os.getpid()}-{number}"
    subnet = f"10.{100 + os.getpid() % 100}.{number}"
    connections = set[asyncio.Task[None]]()

    def set_link(state: str) -> None:
        _ip("-n", name, "link", "set", "eth0", state)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            from_gateway, to_gateway = await asyncio.open_connection("127.0.0.1", port)
            try:
                await asyncio.gather(_copy(reader, to_gateway), _copy(from_gateway, writer))
            finally:
                to_gateway.close()
        writer.close()

    def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(relay(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    _ip("netns", "add", name)
    try:
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("addr", "add", f"{subnet}.1/24", "dev", link)
        _ip("link", "set", link, "up")
        _ip("-n", name, "addr", "add", f"{subnet}.2/24", "dev", "eth0")
        set_link("up")
        listening = await asyncio.to_thread(_listen_in, Path("/run/netns") / name, f"{subnet}.2")
        async with await asyncio.start_server(on_connection, sock=listening):
            yield Machine(f"{subnet}.2:{PORT}", set_link)
            for task in connections:
                task.cancel()
    finally:
        _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies one direction to its end, and closes the writer then."""
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def _listen_in(namespace: Path, host: str) -> socket.socket:
    """Returns a socket that listens in a network namespace, to which the calling thread belongs meanwhile."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    other = os.open(namespace, os.O_RDONLY)
    try:
        _enter(other)
        return socket.create_server((host, PORT), backlog=2048)
    finally:
        _enter(own)
        os.close(own)
        os.close(other)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
