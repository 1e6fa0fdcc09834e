"""Asks processes until each does its work, and a gateway says that all behind it answers; what "all" is, that knows."""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from tailrace.deploy.local.errors import UpRefused

READY_S_MAX = 30.0
ASK_EVERY_S = 0.1
# A gateway that is still starting leaves the question in the socket's queue: ask again rather than wait for that.
ANSWER_S_MAX = 2.0


class HealthCheck(NamedTuple):
    """What a process is asked on loopback, and what is in the answer of one that is ready."""

    port: int
    path: str
    ready: str = ""


class Answer(NamedTuple):
    """`status` 0: nobody answered."""

    status: int
    body: str


async def ask(host: str, port: int, path: str = "/readyz") -> Answer:
    """One GET. By hand, because an HTTP client would be a dependency for these lines."""
    question = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(ANSWER_S_MAX):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(question.encode())
                return parse(await reader.read())
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return Answer(0, "")


async def ready(host: str, port: int, parts: Mapping[str, HealthCheck]) -> None:
    """Returns when each of `parts` is ready, and the gateway's answer is 200: any gateway's, who shares its socket.

    Raises UpRefused after `READY_S_MAX`, with the names of the parts that are not, or the gateway's last answer.
    """
    missing, last = dict(parts), Answer(0, "")
    try:
        async with asyncio.timeout(READY_S_MAX):
            while True:
                missing = {name: question for name, question in missing.items() if not await is_ready(question)}
                last = Answer(0, "") if missing else await ask(host, port)
                if last.status == 200:
                    return
                await asyncio.sleep(ASK_EVERY_S)
    except TimeoutError as error:
        if missing:
            says = f"nothing of {', '.join(missing)}; see the lines above"
        elif last.status:
            says = f"the gateway says {last.body or last.status}"
        else:
            says = "no gateway answers; see its lines above"
        raise UpRefused(f"not ready after {READY_S_MAX:g} s: {says}") from error


async def is_ready(question: HealthCheck) -> bool:
    answer = await ask("127.0.0.1", question.port, question.path)
    return answer.status == 200 and question.ready in answer.body


def parse(answer: bytes) -> Answer:
    head, _, body = answer.decode(errors="replace").partition("\r\n\r\n")
    words = head.split(" ", 2)
    is_http = len(words) == 3 and words[0].startswith("HTTP/1.") and words[1].isdigit()
    return Answer(int(words[1]), body.strip()) if is_http else Answer(0, "")
