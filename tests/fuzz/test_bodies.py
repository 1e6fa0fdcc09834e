"""Bodies with one wrong value: no 5xx, no traceback, every refusal has an error, and every accepted turn ends.

Here each value becomes 5, and every fourth one is also changed in another way; `make fuzz` makes all changes.
"""

import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx2
import pytest
import pytest_asyncio
from websockets.sync.client import connect

from tailrace.deploy.cli.keys import create
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection
from tailrace.proto.subjects import KEYS
from tests.fuzz import bodies
from tests.fuzz.bodies import CHANGES, TEXT, Body, Place, WrongBody, change, places_of, valid_bodies
from tests.fuzz.client import AT_ONCE, Case, ask, read_ended
from tests.harness import processes
from tests.harness.processes import Process
from tests.harness.system import System
from tests.integration.conftest import KEY, api_keys

ADMINS = 8
ALL = bool(os.environ.get("FUZZ_ALL"))
# The requests of one file, of which each becomes a turn.
LINES_MAX = 500
ENDED_S_MAX = 60.0
ENDED = {"completed", "cancelled", "failed"}
TEMPLATE = "{% block message %}#sim words={{ n }} rate=0{% endblock %}"
# Of one test.
PLACES_MAX = 60
# Shorter than the time after which pytest ends itself.
TIMEOUT_S = 600
PLACES = places_of(valid_bodies())
PARTS = [
    pytest.param(places[first : first + PLACES_MAX], id=f"{path} {first}")
    for path in dict.fromkeys(place.body.path for place in PLACES)
    for places in ([place for place in PLACES if place.body.path == path],)
    for first in range(0, len(places), PLACES_MAX)
]
CALL = {"message": f"{TEXT} tool=look", "tools": bodies.TOOLS, "max_tokens": 100}


class Attacked(NamedTuple):
    """A gateway, and all processes that get what it accepts."""

    url: str
    admins: Iterator[str]
    """Keys with the scope `admin`, again and again: each may send 120 requests a minute."""
    parts: list[Process]

    @property
    def where(self) -> str:
        return self.url.removeprefix("http://")

    def tracebacks(self) -> list[str]:
        """Returns the log lines with the traceback of an error that is handled nowhere. Another test may have some."""
        printed = [line for part in self.parts for line in part.printed.read_text().splitlines()]
        return [line for line in printed if "Traceback" in line]

    def post(self, path: str, body: object, key: str = KEY, **given: Any) -> dict[str, Any]:
        """Returns the answer to a valid request."""
        headers = {"authorization": f"Bearer {key}"}
        answer = httpx2.post(f"{self.url}{path}", json=body, headers=headers, timeout=20, trust_env=False, **given)
        assert answer.is_success, answer.text
        return dict(answer.json())

    def upload(self, purpose: str, content: bytes) -> str:
        """Returns the id of a new file."""
        headers, file = {"authorization": f"Bearer {KEY}"}, {"file": ("a.txt", content)}
        answer = httpx2.post(
            f"{self.url}/v1/files", data={"purpose": purpose}, files=file, headers=headers, timeout=20, trust_env=False
        )
        return str(answer.json()["id"])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def attacked(
    system: System, generator: Process, persistence: Process, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Attacked]:
    """A gateway process with a prompt template. Answers are short."""
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "words.j2").write_text(TEMPLATE)
    keys = api_keys(Tenant("fuzzed-bodies"))
    given = {"TAILRACE_API_KEYS": keys, "TAILRACE_MAX_TOKENS": 2, "TAILRACE_PROMPTS": folder}
    admins = [(await create(system.nats_url, Tenant("operators"), "fuzz", ["admin"]))[0].secret for _ in range(ADMINS)]
    async with processes.gateway(system.folder, system.nats_url, **given) as process:
        yield Attacked(process.url, itertools.cycle(admins), [process, generator, persistence])
    connection = await Connection.open(system.nats_url, "test")
    await connection.jetstream.purge_stream(f"KV_{KEYS}")
    await connection.close()


class Resources:
    """The names in the path and the body of a request. Each request gets a new turn, call and key."""

    def __init__(self, attacked: Attacked) -> None:
        self._attacked = attacked
        self._line = json.dumps(
            {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": bodies.CHAT}
        )
        self._file = attacked.upload("user_data", b"text")
        self._input_file = attacked.upload("batch", self._line.encode())
        self._session = str(attacked.post("/v1/sessions", {"title": "Rivers"})["session"])

    def path(self, path: str) -> str:
        """Returns `path` with names in place of its parameters."""
        names = {"session": self._session, "agent": "default", "thread": self._session, "tenant": "acme"}
        if "{call}" in path:
            turn = read_ended(self._attacked.where, self._attacked.post("/v1/turns", CALL)["turn"])
            names |= {"session": turn["session"], "call": turn["content"][-1]["id"]}
        elif "{turn}" in path:
            names["turn"] = self._attacked.post("/v1/turns", {"message": TEXT})["turn"]
        elif "{key_id}" in path:
            names["key_id"] = self._attacked.post("/v1/admin/keys", {"tenant": "acme"}, next(self._attacked.admins))[
                "id"
            ]
        return path.format(**names)

    def case(self, given: WrongBody) -> Case:
        """Returns the request, with the ids of files in place of their names."""
        is_admin = given.path.startswith("/v1/admin/")
        headers = {"authorization": f"Bearer {next(self._attacked.admins)}".encode()} if is_admin else {}
        body = given.body.replace(bodies.FILE.encode(), self._file.encode())
        body = body.replace(bodies.INPUT_FILE.encode(), self._input_file.encode())
        return Case(given.method, self.path(given.path), headers, body)


@pytest.fixture(scope="module")
def resources(attacked: Attacked) -> Resources:
    return Resources(attacked)


def changed(places: Sequence[Place]) -> list[WrongBody]:
    """Returns all changes of all places; without FUZZ_ALL one of each place, and another one of every fourth place."""
    if ALL:
        return [change(place, name) for place in places for name in CHANGES]
    first, *others = CHANGES
    found = [change(place, first) for place in places]
    return found + [change(place, others[number % len(others)]) for number, place in enumerate(places[::4])]


def run_all(attacked: Attacked, cases: list[WrongBody], run: Callable[[WrongBody], None]) -> None:
    """Runs several cases at once. Fails with the names of those that failed, and for tracebacks in a log."""
    before = len(attacked.tracebacks())

    def try_one(case: WrongBody) -> str:
        try:
            run(case)
        except (AssertionError, OSError, ValueError) as error:
            return f"{case.method} {case.path} {case.name}: {error!r:.600}"
        return ""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        wrong = [one for one in pool.map(try_one, cases) if one]
    print(f"{len(cases)} cases, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)
    assert attacked.tracebacks()[before:] == []


def ask_and_follow_up(attacked: Attacked, resources: Resources, wrong: WrongBody) -> None:
    """Fails as `ask` does, and if an accepted turn does not end, or breaks the next turn of its session."""
    answer = ask(attacked.where, resources.case(wrong))
    assert answer.problem is None or answer.problem.code != "rate_limited"
    turn = answer.headers.get("tailrace-turn")
    if turn is None or "batches" in wrong.path or wrong.path.endswith("/connect"):
        return
    first = read_ended(attacked.where, turn)
    # Another question to the session of a golden request may cancel the turn.
    assert first["outcome"] in ENDED, first
    body = json.dumps({"message": TEXT, "session": first["session"], "on_busy": "branch"}).encode()
    follow_up = ask(attacked.where, Case("POST", "/v1/turns", {}, body)).headers.get("tailrace-turn")
    # A turn with `store: false` has no session.
    assert follow_up is None or read_ended(attacked.where, follow_up)["outcome"] in ENDED - {"failed"}, first


@pytest.mark.parametrize("valid", bodies.DEEP, ids=lambda valid: f"{valid.method} {valid.path}")
def test_the_bodies_that_are_changed_are_accepted(attacked: Attacked, resources: Resources, valid: Body) -> None:
    """A value of a body that is refused for another reason may never be read."""
    body = json.dumps(valid.body).encode()
    assert ask(attacked.where, resources.case(WrongBody(valid.method, valid.path, "", body))).problem is None


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("places", PARTS)
def test_no_value_in_a_body_breaks_anything(attacked: Attacked, resources: Resources, places: list[Place]) -> None:
    """Of every route with a body, with one value that is missing, renamed, doubled or of another type or size."""
    run_all(attacked, changed(places), lambda case: ask_and_follow_up(attacked, resources, case))


@pytest.mark.timeout(TIMEOUT_S)
def test_no_line_of_a_batch_file_breaks_anything(attacked: Attacked) -> None:
    """With one wrong value in the line, and in the request in it: such a batch is created, and ends."""
    line = {"custom_id": "one", "method": "POST", "url": bodies.ENDPOINTS[0], "body": bodies.CHAT}
    files = [one.body for one in changed(places_of([Body("POST", "line", line)]))]
    for endpoint in bodies.ENDPOINTS:
        wrong = [one.body for one in changed([place for place in PLACES if place.body.path == endpoint])]
        made = [
            b'{"custom_id":"%d","method":"POST","url":"%b","body":%b}' % (number, endpoint.encode(), body)
            for number, body in enumerate(wrong)
        ]
        files += [b"\n".join(made[first : first + LINES_MAX]) for first in range(0, len(made), LINES_MAX)]

    def run(case: WrongBody) -> None:
        batch = {"input_file_id": attacked.upload("batch", case.body), "completion_window": "24h"}
        made = attacked.post("/v1/batches", batch | {"endpoint": case.path})
        deadline = time.monotonic() + ENDED_S_MAX
        while (read := get(attacked, f"/v1/batches/{made['id']}"))["status"] not in ("completed", "failed"):
            assert time.monotonic() < deadline, read
            time.sleep(0.2)

    run_all(
        attacked,
        [WrongBody("POST", bodies.ENDPOINTS[bodies.ENDPOINTS[1].encode() in one], "", one) for one in files],
        run,
    )


def get(attacked: Attacked, path: str) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {KEY}"}
    return dict(httpx2.get(f"{attacked.url}{path}", headers=headers, timeout=20, trust_env=False).json())


RESPONSE_ID = "resp_01930000-0000-7000-8000-000000000000"
FRAMES: list[dict[str, Any]] = [
    {"type": "response.create", "stream_id": "a", "generate": True, "idempotency_key": "k", **bodies.RESPONSE},
    {"type": "response.create", "generate": False, **bodies.RESPONSE},
    {"type": "response.create", "previous_response_id": RESPONSE_ID, **bodies.RESPONSE},
    {"type": "response.resume", "response_id": RESPONSE_ID, "starting_after": 1},
    {"type": "response.cancel", "response_id": RESPONSE_ID},
    {"type": "response.steer", "previous_response_id": RESPONSE_ID, "input": bodies.RESPONSE["input"]},
    {"type": "response.processed"},
]


@pytest.mark.timeout(TIMEOUT_S)
def test_no_message_of_a_web_socket_breaks_anything(attacked: Attacked) -> None:
    """With one wrong value; then another lane of the connection still answers."""
    frames = [Body("WS", f"{number}", frame) for number, frame in enumerate(FRAMES)]
    good = json.dumps({"type": "response.create", "stream_id": "good", **bodies.RESPONSE})

    def run(case: WrongBody) -> None:
        headers = {"authorization": f"Bearer {KEY}"}
        url = f"ws://{attacked.where}/v1/responses"
        with connect(url, additional_headers=headers, max_size=None, open_timeout=20, proxy=None) as connection:
            connection.send(case.body.decode())
            connection.send(good)
            while True:
                event = json.loads(connection.recv(timeout=20))
                if event["type"] == "error":
                    assert event["status"] < 500, event
                    assert event["error"]["code"]
                    assert event["error"]["message"]
                if event.get("stream_id") == "good" and event["type"] == "response.completed":
                    return

    run_all(attacked, changed(places_of(frames)), run)
