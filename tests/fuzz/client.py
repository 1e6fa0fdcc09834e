"""A client that sends one request and checks the answer: no 5xx, and every refusal has an error."""

import http.client
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tailrace.gateway.http.error_responses import Problem
from tests.harness.refusals import problem_of
from tests.integration.conftest import KEY

AT_ONCE = 8
ENDED_S_MAX = 20.0


class Case(NamedTuple):
    method: str
    path: str
    headers: dict[str, bytes]
    body: bytes | None = None


class Answer(NamedTuple):
    headers: http.client.HTTPMessage
    problem: Problem | None
    """The error of a refusal."""


def ask(where: str, case: Case) -> Answer:
    """Returns the answer. Fails for a 5xx, for no response, and for a refusal without an error."""
    connection = http.client.HTTPConnection(where, timeout=20)
    try:
        headers = {"authorization": f"Bearer {KEY}".encode(), "content-type": b"application/json", **case.headers}
        connection.request(case.method, case.path, case.body, headers)
        answer = connection.getresponse()
        assert answer.status < 500, (answer.read(), case)
        return Answer(answer.headers, problem_of(answer.read()) if answer.status >= 400 else None)
    finally:
        connection.close()


def ask_all(where: str, cases: Sequence[Case]) -> None:
    """Sends several requests at once, because a stream lasts for its full time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(lambda one: ask(where, one), cases):
            pass


def read_ended(where: str, turn: str) -> dict[str, Any]:
    """Returns the turn when it has ended."""
    connection = http.client.HTTPConnection(where, timeout=20)
    try:
        deadline = time.monotonic() + ENDED_S_MAX
        while True:
            connection.request("GET", f"/v1/turns/{turn}", headers={"authorization": f"Bearer {KEY}"})
            answer = connection.getresponse()
            read: dict[str, Any] = json.loads(answer.read())
            assert answer.status == 200, read
            if read["outcome"] != "running":
                return read
            assert time.monotonic() < deadline, read
            time.sleep(0.05)
    finally:
        connection.close()
