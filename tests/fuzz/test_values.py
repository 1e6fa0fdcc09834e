"""Generated values in paths, queries, headers and bodies: no 5xx, and every refusal has an error.

Schemathesis generates what the OpenAPI document describes (tests/clients/test_schemathesis.py). These tests generate
the rest: bytes that are not UTF-8, nearly valid values, undocumented headers, JSON with changed bytes. Wrong values in
bodies are in test_bodies.py.
"""

import os
import random
from collections.abc import AsyncIterator
from urllib.parse import quote

import msgspec
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tailrace.proto.ids import Tenant
from tests.fuzz.bytes import TURN
from tests.fuzz.client import Case, ask, ask_all
from tests.harness import processes
from tests.harness.processes import Process
from tests.harness.route_table import ROWS, path_parameters
from tests.harness.system import System
from tests.integration.conftest import api_keys

CASES = int(os.environ.get("FUZZ_VALUES", "20"))
SEED = int(os.environ.get("FUZZ_SEED", "7"))
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
POSTS = [(path, row.body) for (method, path), row in ROWS.items() if method == "POST" and row.body is not None]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def attacked_gateway(system: System, generator: Process, persistence: Process) -> AsyncIterator[str]:
    """A gateway process: Hypothesis blocks its thread. Streams are short."""
    del generator, persistence
    keys = api_keys(Tenant("fuzzed-values"))
    given_ = {"TAILRACE_API_KEYS": keys, "TAILRACE_MAX_TOKENS": 2, "TAILRACE_STREAM_LIFE_S": 0.5}
    async with processes.gateway(system.folder, system.nats_url, **given_) as process:
        yield process.url.removeprefix("http://")


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
