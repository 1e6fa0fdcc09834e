"""What the processes say about turns: enough to follow one by its id, and never what was asked, answered or a key."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from tailrace.deploy.local.nats_server import ROOT_USER, NatsServer
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Deliveries, TurnLog
from tailrace.proto.subjects import PERSISTENCE, TurnKey
from tests.harness import processes
from tests.harness.processes import Process
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import KEY, api_keys

# None may be printed by anybody. The answer's is the tag of its words.
CANARIES = {
    "prompt": "canary-in-the-prompt",
    "system": "canary-in-the-system-prompt",
    "answer": "canary-in-the-answer",
    "metadata": "canary-in-the-metadata",
    "claude's key": "sk-canary-of-claude",
    "idempotency key": "canary-idempotency-key",
    "tailrace's key": KEY,
}
# The first call is refused, and the answer is cut once: the lines of a rainy day are the talkative ones.
HARD_WAY = "words=20 rate=0 fault=429x1 fault=cut@9x2 retry_after=0"
BODY = {
    "message": f"{CANARIES['prompt']}\n#sim tag={CANARIES['answer']} {HARD_WAY}",
    "system": CANARIES["system"],
    "metadata": {CANARIES["metadata"]: CANARIES["metadata"]},
}


class Told(NamedTuple):
    """Two turns, and who said something about them."""

    completed: str
    cancelled: str
    processes: dict[str, Process]
    folder: Path
    nats_token: str

    def lines(self, name: str, turn: str) -> list[tuple[str, dict[str, Any]]]:
        """What a process said of a turn, without what every line has."""
        every = {"turn", "role", "level", "timestamp", "event"}
        said = [fact for fact in self.processes[name].facts if fact.get("turn") == turn]
        return [(fact["event"], {k: v for k, v in fact.items() if k not in every}) for fact in said]


@pytest.fixture
async def told(own_server: NatsServer, tmp_path: Path, tenant: Tenant) -> AsyncIterator[Told]:
    """All processes at their most talkative, after a turn that had a hard way and one that was cancelled."""
    debug = {"TAILRACE_LOG_LEVEL": "debug"}
    url = own_server.url
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        claude = await enter(processes.simulated_claude(tmp_path))
        key = {"ANTHROPIC_API_KEY": CANARIES["claude's key"]}
        started = {
            "claude": claude,
            "generators": await enter(processes.generator(tmp_path, url, claude.url, **debug | key)),
            "persistence": await enter(processes.persistence(tmp_path, url, **debug)),
            "gateway": await enter(processes.gateway(tmp_path, url, TAILRACE_API_KEYS=api_keys(tenant), **debug)),
        }
        client = await enter(httpx2.AsyncClient(base_url=started["gateway"].url, timeout=20, trust_env=False))
        client.headers = httpx2.Headers({"x-api-key": KEY, "idempotency-key": CANARIES["idempotency key"]})
        completed = (await client.post("/v1/turns", json=BODY)).json()["turn"]
        whole = await client.get(f"/v1/turns/{completed}/events")
        assert CANARIES["answer"] in whole.text
        del client.headers["idempotency-key"]
        cancelled = (await client.post("/v1/turns", json={"message": "#sim words=5 wait=60"})).json()["turn"]
        await until(lambda: [fact for fact in started["generators"].said("attempt") if fact["turn"] == cancelled])
        await client.post(f"/v1/turns/{cancelled}/cancel")
        await until(lambda: len(started["persistence"].said("turn recorded")) >= 2)
        yield Told(completed, cancelled, started, tmp_path, own_server.spec.passwords[ROOT_USER])


async def test_a_turns_id_follows_it_through_all_processes(told: Told) -> None:
    """The runbook's first advice is to grep for it; and `attempt` tells the calls of one generator from another's."""
    accepted = [("turn accepted", {"model": "claude-sonnet-5-5"})]
    assert told.lines("gateway", told.completed) == accepted
    assert told.lines("gateway", told.cancelled) == [*accepted, ("turn cancelled", {})]
    assert told.lines("persistence", told.completed) == [("turn recorded", {"outcome": "completed"})]
    assert told.lines("persistence", told.cancelled) == [("turn recorded", {"outcome": "cancelled"})]
    first, again, broken, second, ended = told.lines("generators", told.completed)
    assert first == ("attempt", {"attempt": 1, "mode": "fresh", "backend": "claude", "is_hedge": False})
    assert again[0] == "call failed and is repeated"
    assert (again[1]["attempt"], again[1]["code"]) == (1, "backend_rate_limited")
    assert broken == ("attempt broke off", {"attempt": 1, "backend": "claude", "code": "backend_broken"})
    assert second == ("attempt", {"attempt": 2, "mode": "continue", "backend": "claude", "is_hedge": False})
    assert ended[0] == "turn ended"


@pytest.mark.rule("S3")
async def test_nobody_prints_a_prompt_an_answer_or_a_key(told: Told) -> None:
    """Logs go where neither the client nor the operator looks: what is not in them cannot leak from there."""
    printed = {path.name: path.read_bytes() for path in told.folder.glob("*.txt")} | {
        "nats.log": (told.folder / "nats.log").read_bytes()
    }
    assert len(printed) == 5
    secrets = CANARIES | {"nats' token": told.nats_token}
    assert [
        (what, name) for what, secret in secrets.items() for name in printed if secret.encode() in printed[name]
    ] == []


def arguments(process: Process) -> bytes:
    return Path(f"/proc/{process.pid}/cmdline").read_bytes()


@pytest.mark.rule("S3")
async def test_no_stranger_is_shown_a_prompt_an_answer_or_a_key(told: Told) -> None:
    """FAULTS S3: in what asks for no key, in refusals, and in what every user of the machine can read of a process."""
    shown = {f"arguments of {name}": arguments(process) for name, process in told.processes.items()}
    async with httpx2.AsyncClient(base_url=told.processes["gateway"].url, timeout=20, trust_env=False) as stranger:
        for path in ("/", "/metrics", "/health", "/readyz", "/docs", f"/v1/turns/{told.completed}", "/v1/usage"):
            shown[path] = (await stranger.get(path)).content
        shown["a refusal"] = (await stranger.post("/v1/turns", json=BODY, headers={"x-api-key": KEY + "x"})).content
    secrets = CANARIES | {"nats' token": told.nats_token, "a turn's id": told.completed}
    assert all(shown.values())
    assert [
        (what, where) for what, secret in secrets.items() for where in shown if secret.encode() in shown[where]
    ] == []


async def test_a_turn_is_said_to_be_recorded_once(
    own_server: NatsServer, own_log: TurnLog, key: TurnKey, tmp_path: Path
) -> None:
    """With its end; also when its request comes in a batch of its own, and the fold of that has the end already."""
    writer = Writer(own_log, key)
    await writer.open("a")
    await writer.end()
    async with processes.persistence(tmp_path, own_server.url, TAILRACE_BATCH_MAX=1) as persistence:
        deliveries = await Deliveries.open(own_log._connection, PERSISTENCE)
        await until(deliveries.is_drained)
        await persistence.stop()
        assert len(persistence.said("turn recorded")) == 1
