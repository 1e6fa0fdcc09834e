"""Logs and metrics of the processes: a turn's id in every line, no secrets, no forged lines, and bounded labels."""

import asyncio
import os
import random
import re
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import msgspec
import prometheus_client
import pytest

from tailrace.deploy.cli import turn
from tailrace.deploy.local.nats_server import ROOT_USER, NatsServer
from tailrace.proto.errors import CODES
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import Deliveries, TurnLog
from tailrace.proto.nats.users import ADMIN
from tailrace.proto.subjects import PERSISTENCE
from tests.harness import processes
from tests.harness.processes import CHECKOUT, Process, as_user
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys

# The answer's canary is the tag of its words.
CANARIES = {
    "prompt": "canary-in-the-prompt",
    "system": "canary-in-the-system-prompt",
    "answer": "canary-in-the-answer",
    "metadata": "canary-in-the-metadata",
    "claude's key": "sk-canary-of-claude",
    "idempotency key": "canary-idempotency-key",
    "tailrace's key": KEY,
}
# The first call is refused, and the answer breaks off once: errors are logged in detail.
FAULTS = "words=20 rate=0 fault=429x1 fault=cut@9x2 retry_after=0"
BODY = {
    "message": f"{CANARIES['prompt']}\n#sim tag={CANARIES['answer']} {FAULTS}",
    "system": CANARIES["system"],
    "metadata": {CANARIES["metadata"]: CANARIES["metadata"]},
}


class Run(NamedTuple):
    """A completed and a cancelled turn, and the processes, which log at the level `debug`."""

    completed: str
    cancelled: str
    processes: dict[str, Process]
    secrets: dict[str, str]

    def lines(self, name: str, turn: str) -> list[tuple[str, dict[str, Any]]]:
        """Returns event and fields of a process's lines about a turn."""
        common = {"turn", "tenant", "session", "role", "level", "timestamp", "event"}
        lines = [fact for fact in self.processes[name].log_lines if fact.get("turn") == turn]
        return [(fact["event"], {k: v for k, v in fact.items() if k not in common}) for fact in lines]

    def leaks(self, texts: dict[str, bytes]) -> list[tuple[str, str]]:
        """Returns the secrets that are in the texts."""
        assert all(texts.values())
        return [
            (name, where) for name, secret in self.secrets.items() for where in texts if secret.encode() in texts[where]
        ]


@pytest.fixture
async def run(own_server: NatsServer, tmp_path: Path, tenant: Tenant) -> AsyncIterator[Run]:
    debug, url = {"TAILRACE_LOG_LEVEL": "debug"}, own_server.url
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
        client.headers["x-api-key"] = KEY
        headers = {"idempotency-key": CANARIES["idempotency key"]}
        completed = (await client.post("/v1/turns", json=BODY, headers=headers)).json()["turn"]
        assert CANARIES["answer"] in (await client.get(f"/v1/turns/{completed}/events")).text
        cancelled = (await client.post("/v1/turns", json={"message": "#sim words=5 wait=60"})).json()["turn"]
        await until(lambda: [fact for fact in started["generators"].find_lines("attempt") if fact["turn"] == cancelled])
        await client.post(f"/v1/turns/{cancelled}/cancel")
        await until(lambda: len(started["persistence"].find_lines("turn recorded")) >= 2)
        # Lines of the level `info` are written a little later.
        await until(lambda: all(started["gateway"].find_lines(one) for one in ("stream ended", "turn cancelled")))
        await until(lambda: started["generators"].find_lines("turn ended"))
        secrets = CANARIES | {"password of NATS": own_server.spec.passwords[ROOT_USER]}
        yield Run(completed, cancelled, started, secrets)


async def test_processes_log_a_turn_by_its_id(run: Run) -> None:
    """That no secret is in the logs, arguments and refusals is proved on a whole system: test_up.py."""
    model = "claude-sonnet-5-5"
    accepted = ("turn accepted", {"model": model})
    first_line, opened, (stream_ended, stream) = run.lines("gateway", run.completed)
    assert (first_line, opened) == (accepted, ("stream opened", {"model": model, "dialect": "tailrace"}))
    assert (stream_ended, set(stream)) == ("stream ended", {"model", "dialect", "cursor", "duration_s"})
    first_line, (ended_by, end) = run.lines("gateway", run.cancelled)
    assert (first_line, ended_by, end["outcome"]) == (accepted, "turn cancelled", "cancelled")
    assert run.lines("persistence", run.completed) == [("turn recorded", {"outcome": "completed"})]
    assert run.lines("persistence", run.cancelled) == [("turn recorded", {"outcome": "cancelled"})]
    first, repeated, broken, second, ended = run.lines("generators", run.completed)
    assert first == ("attempt", {"attempt": 1, "mode": "fresh", "backend": "claude"})
    assert repeated[0] == "call failed and is repeated"
    assert (repeated[1]["attempt"], repeated[1]["code"]) == (1, "backend_rate_limited")
    assert broken == ("attempt broke off", {"attempt": 1, "backend": "claude", "code": "backend_broken"})
    assert second == ("attempt", {"attempt": 2, "mode": "continue", "backend": "claude"})
    assert ended[0] == "turn ended"
    assert ended[1].keys() == {
        *("model", "attempt", "outcome", "input_tokens", "output_tokens", "cost_usd", "duration_s", "first_token_s")
    }
    assert 0 <= ended[1]["first_token_s"] <= ended[1]["duration_s"]


@pytest.mark.rule("R76")
async def test_the_turn_command_shows_steps_and_readers_and_no_text(run: Run, own_server: NatsServer) -> None:
    """One turn was read with a stream, the other one was cancelled without a reader."""
    nats_url = as_user(own_server.url, ADMIN)
    completed, cancelled = [await turn.fetch(nats_url, TurnId(one), None) for one in (run.completed, run.cancelled)]
    assert [(one.attempt, one.mode) for one in completed.attempts] == [(1, "fresh"), (2, "continue")]
    assert (completed.recorded, completed.gateways) == (True, 1)
    assert completed.delivered == "yes: 1 of 1 streams were sent all entries up to the end"
    assert cancelled.end is not None
    assert (cancelled.end.outcome, cancelled.readers) == ("cancelled", [])
    assert cancelled.delivered.startswith("no stream was opened")
    for found in (completed, cancelled):
        assert run.leaks({"text": turn.render(found).encode(), "json": msgspec.json.encode(found)}) == []


async def test_a_turn_is_logged_as_recorded_once(
    own_server: NatsServer, own_log: TurnLog, key: TurnKey, tmp_path: Path
) -> None:
    """Also when the request is delivered alone, and the log has the end by then."""
    writer = Writer(own_log, key)
    await writer.open("a")
    await writer.end()
    environ = {"TAILRACE_BATCH_MAX": 1, "TAILRACE_LOG_LEVEL": "debug"}
    async with processes.persistence(tmp_path, own_server.url, **environ) as persistence:
        deliveries = await Deliveries.open(own_log.connection, PERSISTENCE)
        await until(deliveries.is_drained)
        await persistence.stop()
        assert len(persistence.find_lines("turn recorded")) == 1


async def test_turns_are_answered_while_no_log_line_can_be_written(
    own_server: NatsServer, tmp_path: Path, tenant: Tenant
) -> None:
    """As on a full disk. Persistence is left out, because it writes other files."""
    url, keys = own_server.url, {"TAILRACE_API_KEYS": api_keys(tenant)}
    async with (
        processes.simulated_claude(tmp_path) as claude,
        processes.generator(tmp_path, url, claude.url, TAILRACE_LOG_LEVEL="debug") as generator,
        processes.gateway(tmp_path, url, **keys) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, timeout=20, trust_env=False, headers={"x-api-key": KEY}) as client,
    ):
        for process in (generator, gateway):
            # A write beyond this size raises an OSError.
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, 1))
        posted = await client.post("/v1/turns", json={"message": "#sim words=5"})
        assert posted.status_code == HTTPStatus.ACCEPTED
        answer = await client.get(f"/v1/turns/{posted.json()['turn']}/events")
        assert '"outcome":"completed"' in answer.text
        assert generator.find_lines("turn ended") == gateway.find_lines("turn accepted") == []


# `make fuzz` sends 10,000.
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "300"))
CONCURRENT = 30


def series() -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Returns name and labels of each metric of this process."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for metric in prometheus_client.REGISTRY.collect()
        for sample in metric.samples
        if sample.name.startswith("tailrace_")
    }


async def send_random(gateway: Gateway, draw: random.Random) -> None:
    """Sends a request with a random path, turn, tenant, model or method."""
    name = f"{draw.getrandbits(64):x}"
    headers = {"x-tenant": name, "last-event-id": name, "user-agent": name}
    method, path, body = draw.choice(
        [
            ("GET", f"/{name}", None),
            ("GET", f"/v1/turns/{name}", None),
            ("GET", f"/v1/turns/{name}/events?dialect={name}", None),
            ("POST", "/v1/turns", {"message": "x", "model": name, "tenant": name}),
            ("POST", "/v1/chat/completions", {"model": name, "messages": name}),
            (f"M{name}", "/v1/turns", None),
        ]
    )
    if draw.random() < 0.3:
        headers["authorization"] = f"Bearer {name}"
    await gateway.client.request(method, path, json=body, headers=headers)


@pytest.mark.rule("S11")
@pytest.mark.timeout(120)
async def test_no_name_from_a_request_becomes_a_label(nats_url: str, new_gateway: NewGateway) -> None:
    gateway = await new_gateway(nats_url)

    async def send(numbers: range) -> None:
        await asyncio.gather(*(send_random(gateway, random.Random(number)) for number in numbers))

    await send(range(CONCURRENT))
    before = series()
    for first in range(CONCURRENT, REQUESTS, CONCURRENT):
        await send(range(first, first + CONCURRENT))
    assert series() - before == set()
    codes = {dict(labels).get("code") for name, labels in before if name == "tailrace_gateway_refused_total"}
    assert codes <= CODES.keys()
    assert len(codes) >= 3


FORGED = "forged-line"
INJECTED = f'x\r\n{{"event": "{FORGED}"}}\n2026-11-20 [error] {FORGED}\x1b[2J\x1b[31m\u2028\u0085{FORGED}\x00'
CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")


@pytest.mark.rule("S12")
@pytest.mark.parametrize("form", ["json", "console"])
def test_a_logged_text_with_line_breaks_is_one_line(form: str) -> None:
    """Also in the log of a library; control sequences of terminals are escaped."""
    script = f"""
import logging, structlog
from tailrace.proto.runtime.logging_setup import configure
configure('gateway', {form!r}, 'debug')
text = {INJECTED!r}
structlog.get_logger().info('turn accepted', model=text)
structlog.get_logger().info(text)
logging.getLogger('uvicorn').warning('%s is not a header', text)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, check=True)
    lines = done.stderr.decode().removesuffix("\n").split("\n")
    assert [FORGED in line for line in lines] == [True] * 3
    assert CONTROL.findall("".join(lines)) == []
