"""The part of `tailrace up` behind the demo on the page `/`: lists the processes, and kills a gateway or a generator.

Gateways ask over a Unix socket in a directory of this user, with a token that is only in the address that `up` prints.
Other users of the machine can open the page, but have neither socket nor token.
"""

import asyncio
import hmac
import secrets
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryDirectory

import msgspec

from tailrace.deploy.local.supervisor import Supervisor
from tailrace.features.page.demo import DemoProcess, Processes, Question
from tailrace.proto.decoding import DECODE_ERRORS

ROLES = ("gateway", "generators")
QUESTION_S_MAX = 5.0


class Demo:
    """The token, the socket, and the answers. `path` is the path of the socket."""

    def __init__(self, supervisor: Supervisor, path: Path) -> None:
        self.token = secrets.token_urlsafe(24)
        self.path = path
        self._supervisor = supervisor

    def answer(self, question: Question) -> Processes:
        """Kills what `question` names, and returns the processes. Ignores a process that has ended since."""
        if not hmac.compare_digest(question.token.encode(), self.token.encode()):
            return Processes(code="credential_invalid", message="Open the address that `tailrace up` printed last.")
        children = self._supervisor.children
        if question.process is not None:
            child = children.get(question.process)
            if child is None or child.spec.role not in ROLES:
                return Processes(code="request_invalid", message=f"{question.process!r} is no gateway or generator")
            if child.pid is not None and child.pid == question.pid:
                self._supervisor.restart(question.process, SIGKILL)
        listed = [DemoProcess(name, child.spec.role, child.pid) for name, child in children.items()]
        return Processes(listed)

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Answers one question."""
        try:
            async with asyncio.timeout(QUESTION_S_MAX):
                question = msgspec.json.decode(await reader.readline(), type=Question)
                writer.write(msgspec.json.encode(self.answer(question)) + b"\n")
                await writer.drain()
        except (OSError, ValueError, TimeoutError, *DECODE_ERRORS):
            pass  # the gateway was killed, or the line is not a question
        finally:
            writer.close()


@asynccontextmanager
async def serve_demo(supervisor: Supervisor) -> AsyncIterator[Demo]:
    """Answers the gateways until the context is left."""
    # Not in the data directory: the path of a socket has 107 bytes at most.
    with TemporaryDirectory(prefix="tailrace-") as folder:
        demo = Demo(supervisor, Path(folder) / "demo")
        server = await asyncio.start_unix_server(demo.serve, demo.path)
        try:
            yield demo
        finally:
            server.close()
