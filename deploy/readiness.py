"""Asks a process how it is, and the gateway until it says that all behind it answers; what "all" is, that knows."""

import asyncio
from typing import NamedTuple

from deploy.refusal import UpRefused

READY_S_MAX = 30.0
ASK_EVERY_S = 0.1
# A gateway that is still starting leaves the question in the socket's queue: ask again rather than wait for that.
ANSWER_S_MAX = 2.0


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


async def ready(host: str, port: int) -> None:
    """Returns when the answer is 200; raises UpRefused with the last answer after `READY_S_MAX`."""
    last = Answer(0, "")
    try:
        async with asyncio.timeout(READY_S_MAX):
            while True:
                last = await ask(host, port)
                if last.status == 200:
                    return
                await asyncio.sleep(ASK_EVERY_S)
    except TimeoutError as error:
        says = (
            f"the gateway says {last.body or last.status}" if last.status else "no gateway answers; see its lines above"
        )
        raise UpRefused(f"not ready after {READY_S_MAX:g} s: {says}") from error


def parse(answer: bytes) -> Answer:
    head, _, body = answer.decode(errors="replace").partition("\r\n\r\n")
    words = head.split(" ", 2)
    is_http = len(words) == 3 and words[0].startswith("HTTP/1.") and words[1].isdigit()
    return Answer(int(words[1]), body.strip()) if is_http else Answer(0, "")
