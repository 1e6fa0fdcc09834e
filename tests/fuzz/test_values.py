"""Generated values in paths, queries, headers and bodies: no 5xx, and every refusal has an error.

Schemathesis generates what the OpenAPI document describes (tests/clients/test_schemathesis.py). These tests generate
the rest: bytes that are not UTF-8, nearly valid values, undocumented headers, JSON with changed bytes.
"""

import copy
import http.client
import json
import os
import random
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tailrace.proto.ids import Tenant
from tests.fuzz.bytes import TURN
from tests.golden.requests import DEFAULTS, read_cases
from tests.harness import processes
from tests.harness.json_values import places
from tests.harness.processes import Process
from tests.harness.refusals import problem_of
from tests.harness.route_table import ROWS, path_parameters
from tests.harness.system import System
from tests.integration.conftest import KEY, api_keys

CASES = int(os.environ.get("FUZZ_VALUES", "20"))
SEED = int(os.environ.get("FUZZ_SEED", "7"))
AT_ONCE = 8
few = settings(
    max_examples=CASES, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
NAMES = [
    *("last-event-id", "idempotency-key", "accept", "origin", "sec-fetch-site", "x-session-id", "x-project-id"),
    *("x-request-id", "traceparent", "tracestate", "range", "if-none-match", "cookie", "anthropic-version"),
    *("anthropic-beta", "x-forwarded-for", "x-forwarded-proto", "forwarded", "te"),
]
# With most values of these a body is not read at all.
GATES = ["content-type", "content-encoding"]
# Nearly right, or a size or a sign too much.
NEARLY = ["", "0", "-1", "+1", " 1", "1_0", "٣", "1e3", "NaN", *map(str, (2**63 - 1, 2**63, 2**64)), "1.1", "null", "*"]
TEXTS = st.one_of(st.sampled_from([*NEARLY, TURN, TURN.upper(), "a.b", "..", "$JS", "\r\n"]), st.text(max_size=80))
# RFC 9110, 5.5: what may stand in a header at all; the byte fuzzer sends the rest.
VALUES = st.one_of(
    st.sampled_from(NEARLY).map(lambda text: text.encode()),
    st.binary(max_size=120).map(lambda value: bytes(one for one in value if one >= 32 and one != 127)),
)
WORDS = [b'"', b"\\u0000", b"\\ud800", b"[", b"{", b"9" * 400, b"e999", b"\xff", b"null"]
LINE = "#sim words=1 rate=0"
# Stand for JSON that Python does not write.
RAW = {"<deep>": "[" * 200 + "]" * 200, "<half>": '"\\ud800"', "<huge>": "1e400", "<digits>": "9" * 400}
WRONG: list[Any] = [
    *(None, True, -1, 0, 1.5, 1e308, 2**63, "", " ", "a\0b", "x" * 30_000, [], {}, [None], [[]], {"": None}),
    *RAW,
]
GOLDEN = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "ui": "/api/chat", "messages": "/v1/messages"}
ENDED_S_MAX = 20.0
POSTS = [(path, row.body) for (method, path), row in ROWS.items() if method == "POST" and row.body is not None]

BODIES = [(path, DEFAULTS[api] | case.body) for api, path in GOLDEN.items() for case in read_cases(api)]
BODIES += [(path, body) for path, body in POSTS if body]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def attacked_gateway(system: System, generator: Process, persistence: Process) -> AsyncIterator[str]:
    """A gateway process: Hypothesis blocks its thread. Streams are short."""
    del generator, persistence
    keys = api_keys(Tenant("fuzzed-values"))
    given_ = {"TAILRACE_API_KEYS": keys, "TAILRACE_MAX_TOKENS": 2, "TAILRACE_STREAM_LIFE_S": 0.5}
    async with processes.gateway(system.folder, system.nats_url, **given_) as process:
        yield process.url.removeprefix("http://")


class Case(NamedTuple):
    method: str
    path: str
    headers: dict[str, bytes]
    body: bytes | None = None


def ask(where: str, case: Case) -> http.client.HTTPMessage:
    """Returns the headers of the response. Fails for a 5xx, for no response, and for a refusal without an error."""
    connection = http.client.HTTPConnection(where, timeout=20)
    try:
        headers = {"authorization": f"Bearer {KEY}".encode(), "content-type": b"application/json", **case.headers}
        connection.request(case.method, case.path, case.body, headers)
        answer = connection.getresponse()
        assert answer.status < 500, (case, answer.read())
        if answer.status >= 400:
            problem_of(answer.read())
        return answer.headers
    finally:
        connection.close()


def ask_all(where: str, cases: list[Case]) -> None:
    """Sends several requests at once, because a stream lasts for its full time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(lambda one: ask(where, one), cases):
            pass


@seed(SEED)
@few
@given(turn=TEXTS, after=TEXTS, dialect=TEXTS)
def test_no_id_and_no_cursor_breaks_anything(attacked_gateway: str, turn: str, after: str, dialect: str) -> None:
    """In the path, the query, and `Last-Event-ID`."""
    query = f"?after={quote(after)}&dialect={quote(dialect)}&limit={quote(after)}"
    names = dict.fromkeys(path_parameters("", "", ""), quote(turn, safe=""))
    paths = [path.format(**names) + query for (method, path), row in ROWS.items() if method == "GET" and row.names]
    ask_all(attacked_gateway, [Case("GET", path, {}) for path in paths])
    ask(
        attacked_gateway,
        Case("GET", f"/v1/turns/{TURN}/events", {"last-event-id": after.encode("ascii", "ignore").strip()}),
    )


@seed(SEED)
@settings(few, max_examples=CASES // 2)
@given(headers=st.fixed_dictionaries(dict.fromkeys(NAMES, VALUES), optional=dict.fromkeys(GATES, VALUES)))
def test_no_header_breaks_anything(attacked_gateway: str, headers: dict[str, bytes]) -> None:
    """Any bytes that HTTP allows, on every route."""
    names = path_parameters(TURN, "x", "x")
    cases = []
    for (method, path), row in ROWS.items():
        body = None if row.body is None else msgspec.json.encode(row.body)
        cases.append(Case(method, path.format(**names) + row.query, headers, body))
    ask_all(attacked_gateway, cases)


@seed(SEED)
@few
@given(chance=st.randoms(use_true_random=False), which=st.sampled_from(POSTS))
def test_no_body_breaks_anything(
    attacked_gateway: str, chance: random.Random, which: tuple[str, dict[str, object]]
) -> None:
    """Valid JSON with a few bytes changed, removed or repeated."""
    path, body = which
    made = bytearray(msgspec.json.encode(body))
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(made))
        match chance.randrange(4):
            case 0:
                made[at] = chance.randrange(256)
            case 1:
                del made[at]
            case 2:
                made[at:at] = chance.choice(WORDS)
            case _:
                made[at:at] = made[at : at + 30]
    ask(attacked_gateway, Case("POST", path.format(**path_parameters(TURN, "x", "x")), {}, bytes(made)))


def mutate(chance: random.Random, body: Any) -> bytes:
    """Returns `body` with one value replaced, repeated or left out, or one key renamed or doubled."""
    body = copy.deepcopy(body)
    inner, key = chance.choice(list(places(body)))
    match chance.randrange(8):
        case 0:
            del inner[key]
        case 1 if isinstance(inner, dict):
            inner[f"{key}x"] = inner.pop(key)
        case 2 if isinstance(inner, dict):
            inner["<twice>"] = inner[key]
        case 3:
            inner[key] = [inner[key]] * chance.choice((1, 2, 50))
        case _:
            inner[key] = chance.choice(WRONG)
    text = json.dumps(body).replace('"<twice>"', json.dumps(key))
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.replace('"hi"', f'"{LINE}"').encode()


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


def ask_and_follow_up(where: str, case: Case) -> None:
    """Fails as `ask` does, and if an accepted turn does not end, or breaks the next turn of its session."""
    turn = ask(where, case).get("tailrace-turn")
    if turn is None or "batches" in case.path:
        return
    first = read_ended(where, turn)
    assert first["outcome"] in ("completed", "failed"), case
    body = json.dumps({"message": LINE, "session": first["session"], "on_busy": "branch"}).encode()
    follow_up = ask(where, Case("POST", "/v1/turns", {}, body)).get("tailrace-turn")
    # A turn with `store: false` has no session.
    assert follow_up is None or read_ended(where, follow_up)["outcome"] == "completed", case


@seed(SEED)
@few
@given(chance=st.randoms(use_true_random=False))
def test_no_value_in_a_body_breaks_anything(attacked_gateway: str, chance: random.Random) -> None:
    """Of every client protocol, with one field that is missing, renamed, doubled or of another type or size."""
    chosen = [chance.choice(BODIES) for _ in range(AT_ONCE)]
    cases = [
        Case("POST", path.format(**path_parameters(TURN, "x", "x")), {}, mutate(chance, body)) for path, body in chosen
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(lambda case: ask_and_follow_up(attacked_gateway, case), cases):
            pass
