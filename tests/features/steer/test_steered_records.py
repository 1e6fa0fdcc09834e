"""A successor is a turn as any other: limits and money, history, export, erasure, and takeover by another generator."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tailrace.client import Client
from tailrace.deploy.cli.export import export_lines
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.limits.quotas import owners_of, quota_of
from tailrace.gateway.auth.limits import UNLIMITED, Limits
from tailrace.gateway.auth.principal import Principal
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import Counters
from tailrace.proto.ownership import WHOLE, Scope, ScopedKey
from tests.features.limits.test_limits import KEY_NAME
from tests.harness.generator_in_loop import read_last_request, words
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.until import until, until_equal
from tests.integration.conftest import KEY, Gateway, NewGateway

MARK = "zebramark"
LONG = {"message": "#sim words=2000 rate=40 tag=a", "max_tokens": 9000, "model": "claude-haiku-5-5", "user": MARK}
SHORT = "#sim words=5 rate=0 tag=b"


@pytest.fixture
async def served(own_server: NatsServer, tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with Persistence(own_server.url, tmp_path / "tailrace.db"):
        yield own_server


async def begin(gateway: Gateway, own: OwnSystem, tenant: Tenant, *, is_answered: bool = True) -> TurnKey:
    accepted = (await gateway.client.post("/v1/turns", json=LONG)).json()
    key = TurnKey(tenant, TurnId(accepted["turn"]))
    if is_answered:
        await until(lambda: has_text(own, key))
    return key


async def has_text(own: OwnSystem, key: TurnKey) -> bool:
    return bool((await own.log.read_turn(ScopedKey.whole(key))).text)


async def steer(gateway: Gateway, key: TurnKey, message: str = SHORT) -> TurnKey:
    response = await gateway.client.post(f"/v1/turns/{key.turn}/steer", json={"message": message})
    assert response.status_code == 202, response.text
    return key._replace(turn=TurnId(response.json()["turn"]))


async def get(gateway: Gateway, path: str) -> Any:
    answer = await gateway.client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.rule("R37")
@pytest.mark.parametrize(("limits", "status"), [("running=1", 429), ("usd_day=0.001", 402)])
async def test_a_limit_that_refuses_a_steer_leaves_the_answer_running(
    served: NatsServer, own: OwnSystem, new_gateway: NewGateway, tenant: Tenant, limits: str, status: int
) -> None:
    gateway = await new_gateway(served.url, limits_key=limits)
    async with own.running_generator():
        key = await begin(gateway, own, tenant)
        refused = await gateway.client.post(f"/v1/turns/{key.turn}/steer", json={"message": SHORT})
        assert refused.status_code == status, refused.text
        assert (await get(gateway, f"/v1/turns/{key.turn}"))["outcome"] == "running"


@pytest.mark.rule("R37")
async def test_the_money_of_both_turns_is_settled(
    served: NatsServer, own: OwnSystem, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """Each has a reservation of its own, of which the rest is given back at its end."""
    gateway = await new_gateway(served.url, limits_key="usd_day=1")
    async with own.running_generator():
        first = await begin(gateway, own, tenant)
        second = await steer(gateway, first)
        for key in (first, second):
            await own.wait_until_settled(key)
    turns = [await get(gateway, f"/v1/turns/{key.turn}") for key in (first, second)]
    assert [turn["outcome"] for turn in turns] == ["cancelled", "completed"]
    owner, _ = owners_of(Principal(Scope(tenant, WHOLE), KEY_NAME), Limits(usd_day=1), UNLIMITED)
    quota = quota_of(owner, "usd_day", time.time())
    assert quota is not None
    spent = await Counters(own.connection).add(quota.subject, 0)
    assert spent == round(sum(turn["cost_usd"] for turn in turns) * 1e9)
    assert all(turn["cost_usd"] for turn in turns)


@pytest.mark.rule("R91")
async def test_history_export_and_erasure_have_both_turns(
    served: NatsServer, own: OwnSystem, new_gateway: NewGateway, tenant: Tenant, tmp_path: Path
) -> None:
    """The successor belongs to the user of the steered turn."""
    gateway = await new_gateway(served.url)
    async with own.running_generator():
        first = await begin(gateway, own, tenant)
        second = await steer(gateway, first, f"{SHORT}\n{MARK}")
        await own.wait_until_settled(second)
    session = (await get(gateway, f"/v1/turns/{second.turn}"))["session"]
    turns = (await get(gateway, f"/v1/sessions/{session}/turns"))["turns"]
    assert [(turn["turn"], turn["outcome"]) for turn in turns] == [
        (first.turn, "cancelled"),
        (second.turn, "completed"),
    ]
    timeline = await get(gateway, f"/v1/turns/{first.turn}/timeline")
    assert "Cancelled (steer)" in json.dumps(timeline)

    def export() -> list[dict[str, Any]]:
        with Client(gateway.url, KEY) as client:
            return [json.loads(line) for line in export_lines(client, MARK)]

    exported = [line for line in await asyncio.to_thread(export) if line["type"] == "turn"]
    assert {line["turn"] for line in exported} == {first.turn, second.turn}
    erased = (await gateway.client.delete(f"/v1/users?user={MARK}")).json()
    assert erased["turns"] == 2
    for key in (first, second):
        assert (await gateway.client.get(f"/v1/turns/{key.turn}")).status_code == 404
    await until_equal(lambda: files_with(MARK, tmp_path), [])


def files_with(text: str, folder: Path) -> list[str]:
    found = []
    for path in folder.rglob("*"):
        # nats-server renames its temporary files meanwhile.
        with suppress(FileNotFoundError):
            if path.is_file() and path.suffix != ".log" and text.encode() in path.read_bytes():
                found.append(path.name)
    return found


@pytest.mark.rule("R137")
@pytest.mark.parametrize("is_stopped_first", [True, False])
async def test_a_steer_while_no_generator_has_the_turn_is_answered_by_the_next_one(
    served: NatsServer, own: OwnSystem, new_gateway: NewGateway, tenant: Tenant, *, is_stopped_first: bool
) -> None:
    """The generator has stopped before the steer, or right after it; the partial answer is in the conversation."""
    gateway = await new_gateway(served.url)
    async with own.running_generator(grace_s=0.0):
        first = await begin(gateway, own, tenant)
        second = None if is_stopped_first else await steer(gateway, first)
    second = second or await steer(gateway, first)
    text = (await own.log.read_turn(ScopedKey.whole(first))).text
    assert text
    assert words(2000, "a").startswith(text)
    async with own.running_generator():
        turn = await own.wait_for_end(second)
    assert (turn.outcome, turn.text) == ("completed", words(5, "b"))
    assert [len(await own.attempts(key)) for key in (first, second)] == [1, 1 if is_stopped_first else turn.attempt]
    asked = (await read_last_request(own.claude))["body"]["messages"]
    assert [message["content"] for message in asked] == [LONG["message"], text, SHORT]
