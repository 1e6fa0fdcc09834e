"""Limits over all gateways: races, settlement, streams and headers."""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from signal import SIGKILL

import httpx2
import pytest

from tailrace.deploy.cli.keys import create
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import serving
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.limits.cost_estimate import ZERO
from tailrace.gateway.limits.limiter import Limiter
from tailrace.gateway.limits.quotas import TENANT, owners_of, quota_of
from tailrace.gateway.turns import delete
from tailrace.proto import entries, events
from tailrace.proto.api_key import SCOPES
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant, TurnId, new_id
from tailrace.proto.limits import UNLIMITED, Limits
from tailrace.proto.nats import Connection, Counters, Slots, Tombstones, TurnLog
from tailrace.proto.nats.settlement import Settlement, give_back
from tailrace.proto.subjects import TurnKey
from tests.harness.generator_in_loop import ended, is_acknowledged, shorten_lease, working
from tests.harness.killable_generator import killed_after
from tests.harness.processes import Process
from tests.harness.processes import gateway as gateway_process
from tests.harness.processes import persistence as persistence_process
from tests.harness.system import System
from tests.harness.turn_builder import request
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys

CLIENTS = 50
GATEWAYS = 3
OTHER_KEY = "another-key-of-the-same-tenant"

# What a turn of `SLOW` is held for: 20 characters are 6 tokens, and 94 more may be answered, by Haiku 5.5.
SLOW: dict[str, object] = {"message": "#sim words=9 wait=60", "max_tokens": 94, "model": "claude-haiku-5-5"}
TOKENS = 100
NANO_USD = 6 * 100 + 94 * 500
ENOUGH = 7
# `burst=7` and one a minute: 7 in each seven minutes.
RACES = [
    ("requests=1, burst=7", 429, "rate_limited"),
    (f"tokens={ENOUGH * TOKENS}", 429, "rate_limited"),
    (f"running={ENOUGH}", 429, "too_many_turns"),
    (f"usd_day={(ENOUGH + 0.5) * NANO_USD / 1e9}", 402, "budget_exceeded"),
    (f"usd_month={(ENOUGH + 0.5) * NANO_USD / 1e9}", 402, "budget_exceeded"),
]
IDS = [limits.split("=")[0] for limits, _, _ in RACES]


async def three(nats_url: str, new_gateway: NewGateway, **limits: str) -> list[Gateway]:
    return [await new_gateway(nats_url, **limits) for _ in range(GATEWAYS)]


async def raced(gateways: list[Gateway]) -> list[httpx2.Response]:
    """`CLIENTS` POSTs at once, over all the gateways, at the beginning of a window of each limit."""
    await until(lambda: time.time() % 60 < 30, 40)
    return await at_once(gateways)


async def at_once(
    gateways: list[Gateway], path: str = "/v1/turns", body: Mapping[str, object] = SLOW
) -> list[httpx2.Response]:
    asked = (gateways[number % len(gateways)].client.post(path, json=body) for number in range(CLIENTS))
    return list(await asyncio.gather(*asked))


async def settled(gateways: list[Gateway], answers: list[httpx2.Response]) -> tuple[list[httpx2.Response], int]:
    """`answers`, each of a log that did not answer in time asked for again, until it is one; and how many those were.

    On a machine that stands still for seconds there are some, and what they had taken may stay taken.
    """
    unclear = [number for number, answer in enumerate(answers) if answer.status_code == 503]
    assert {code(answers[number]) for number in unclear} <= {"log_unavailable"}
    for number in unclear:

        async def is_answered(number: int = number) -> bool:
            answers[number] = await gateways[number % len(gateways)].client.post("/v1/turns", json=SLOW)
            return answers[number].status_code != 503

        await until(is_answered, 20)
    return answers, len(unclear)


def statuses(answers: list[httpx2.Response]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


def code(answer: httpx2.Response) -> str:
    said: str = answer.json()["error"]["code"]
    return said


def limiter_of(connection: Connection, limits: Limits, now: float) -> Limiter:
    """As a gateway has it, with a clock that stands still."""
    return Limiter(Counters(connection), Slots(connection), TurnLog(connection), limits, UNLIMITED, lambda: now)


async def spent(connection: Connection, tenant: Tenant, limits: Limits) -> int:
    """What the day's counter of the fixtures' key holds, in nano-dollars."""
    name = f"env_{hashlib.sha256(KEY.encode()).hexdigest()[:12]}"
    limited = quota_of(owners_of(Principal(tenant, name), limits, UNLIMITED)[0], "usd_day", time.time())
    assert limited is not None
    return await Counters(connection).add(limited.subject, 0)


@pytest.mark.rule("R37")
@pytest.mark.timeout(90)
@pytest.mark.parametrize("owner", ["key", "tenant"])
@pytest.mark.parametrize(("limits", "status", "why"), RACES, ids=IDS)
async def test_a_race_on_three_gateways_admits_exactly_the_limit(
    nats_url: str, new_gateway: NewGateway, limits: str, status: int, why: str, owner: str
) -> None:
    """Fifty clients at once, and as many again: what was let in is counted in all of them, and nothing else."""
    gateways = await three(nats_url, new_gateway, **{f"limits_{owner}": limits})
    answers, unclear = await settled(gateways, await raced(gateways))
    let_in = statuses(answers)[202]
    print(f"{owner} {limits}: allowed {ENOUGH}, let through {let_in} of {CLIENTS}, {unclear} unclear")
    assert ENOUGH - unclear <= let_in <= ENOUGH
    assert statuses(answers) == {202: let_in, status: CLIENTS - let_in}
    refused = [answer for answer in answers if answer.status_code == status]
    assert {code(answer) for answer in refused} == {why}
    assert all(owner in answer.json()["error"]["message"] for answer in refused)
    assert {answer.headers.get("retry-after") is not None for answer in refused} == {status == 429}
    again, _ = await settled(gateways, await at_once(gateways))
    assert statuses(again)[202] <= ENOUGH - let_in
    assert set(statuses(again)) <= {202, status}


BATCH = {"requests": [{"custom_id": "one", "params": SLOW}], "parallel": 1}


@pytest.mark.parametrize(("path", "body"), [("/v1/turns", SLOW), ("/v1/batches", BATCH)], ids=["turn", "batch"])
async def test_a_request_without_a_free_slot_does_not_use_the_budget(
    nats_url: str, new_gateway: NewGateway, path: str, body: Mapping[str, object]
) -> None:
    """A 402 is repeated by nobody: fifty at once, with money for those few that may run, are told to come again."""
    limits = f"running={ENOUGH}, usd_day={(ENOUGH + 0.5) * NANO_USD / 1e9}"
    gateways = await three(nats_url, new_gateway, limits_key=limits)
    assert statuses(await at_once(gateways, path, body)) == {202: ENOUGH, 429: CLIENTS - ENOUGH}


async def test_a_batch_frees_the_slot_of_its_key_if_its_tenant_has_none(connection: Connection, tenant: Tenant) -> None:
    """It would be held as long as the batch runs, and nothing would run in it."""
    slots = Slots(connection)
    limiter = Limiter(Counters(connection), slots, TurnLog(connection), Limits(running=3), Limits(running=2))
    _, holds, running = await limiter.admission(Principal(tenant)).reserve_batch(TurnId(new_id()), [ZERO] * 3, 3)
    held = [await slots.held(tenant, owner.name, "running") for owner in limiter.owners(Principal(tenant))]
    assert (running, len(holds), [len(each) for each in held]) == (2, 4, [2, 2])


@pytest.mark.rule("R37")
@pytest.mark.timeout(90)
async def test_a_request_that_one_limit_refuses_is_not_counted_by_others(
    nats_url: str, new_gateway: NewGateway
) -> None:
    """Forty-three turns had a request and tokens, and found no place to run: only those of the seven are used."""
    limits = f"requests=2, burst=100, tokens={100 * TOKENS}, usd_day=1, running={ENOUGH}"
    gateways = await three(nats_url, new_gateway, limits_key=limits, limits_tenant="requests=4, burst=200")
    assert statuses(await raced(gateways)) == {202: ENOUGH, 429: CLIENTS - ENOUGH}
    refused = await gateways[0].client.post("/v1/turns", json=SLOW)
    assert code(refused) == "too_many_turns"
    # The one that is told this has taken one of each, and has given it back by then.
    assert f'"requests";r={100 - ENOUGH};' in refused.headers["ratelimit"]
    assert f'"tokens";r={(100 - ENOUGH) * TOKENS};' in refused.headers["ratelimit"]


@pytest.mark.timeout(90)
async def test_a_request_above_the_whole_limit_is_not_retryable(nats_url: str, new_gateway: NewGateway) -> None:
    """A 429 would be repeated for ever; and nothing of it is counted."""
    (gateway,) = (await three(nats_url, new_gateway, limits_key=f"tokens={TOKENS}"))[:1]
    refused = await gateway.client.post("/v1/turns", json=SLOW | {"max_tokens": TOKENS})
    assert (refused.status_code, code(refused), "retry-after" in refused.headers) == (400, "request_invalid", False)
    assert "max_tokens" in refused.text
    assert (await gateway.client.post("/v1/turns", json=SLOW)).status_code == 202


async def test_a_refusal_for_tokens_shows_the_remaining_requests(nats_url: str, new_gateway: NewGateway) -> None:
    """The refused one is given back before its headers are written: of ten, one was used."""
    gateway = await new_gateway(nats_url, limits_key=f"requests=10, tokens={TOKENS}", limits_tenant="requests=20")
    await until(lambda: time.time() % 60 < 50, 30)
    let_in, refused = [await gateway.client.post("/v1/turns", json=SLOW) for _ in range(2)]
    assert (let_in.status_code, refused.status_code, code(refused)) == (202, 429, "rate_limited")
    for answer in (let_in, refused):
        assert '"requests";r=9;' in answer.headers["ratelimit"]
        assert '"tokens";r=0;' in answer.headers["ratelimit"]


async def test_limits_of_one_tenant_do_not_affect_another(
    nats_url: str, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """FAULTS I13: while fifty clients of one tenant are refused, all fifty of another are let in."""
    other = f"tenant-{new_id()}:{hashlib.sha256(OTHER_KEY.encode()).hexdigest()}"
    limits = "requests=1, burst=50, running=50"
    gateway = await new_gateway(
        nats_url, limits_key=limits, limits_tenant="running=50", api_keys=f"{api_keys(tenant)}, {other}"
    )
    assert statuses(await raced([gateway])) == {202: 50}
    async with gateway.new_client() as stranger:
        stranger.headers["authorization"] = f"Bearer {OTHER_KEY}"
        asking = asyncio.gather(*(stranger.post("/v1/turns", json=SLOW) for _ in range(CLIENTS)))
        refused = await raced([gateway])
        let_in = await asking
    assert statuses(refused) == {429: CLIENTS}
    assert statuses(let_in) == {202: CLIENTS}


async def test_keys_have_separate_counters_and_their_tenant_has_one(
    nats_url: str, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """Two keys of one tenant with two each, and three for both."""
    second = f"{tenant}:{hashlib.sha256(OTHER_KEY.encode()).hexdigest()}"
    gateway = await new_gateway(
        nats_url, limits_key="running=2", limits_tenant="running=3", api_keys=f"{api_keys(tenant)}, {second}"
    )
    assert [(await gateway.client.post("/v1/turns", json=SLOW)).status_code for _ in range(3)] == [202, 202, 429]
    async with gateway.new_client() as other:
        other.headers["authorization"] = f"Bearer {OTHER_KEY}"
        answers = [await other.post("/v1/turns", json=SLOW) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 429]
    assert "This tenant" in answers[1].json()["error"]["message"]


async def test_an_ended_turn_holds_no_slot(nats_url: str, new_gateway: NewGateway) -> None:
    """No generator is here to settle it: the log has its end, and that is enough."""
    gateway = await new_gateway(nats_url, limits_key="running=1")
    for _ in range(3):
        accepted = await gateway.client.post("/v1/turns", json=SLOW)
        assert accepted.status_code == 202
        assert code(await gateway.client.post("/v1/turns", json=SLOW)) == "too_many_turns"
        await gateway.client.post(accepted.json()["links"]["cancel"])


async def test_a_slot_of_a_turn_that_was_never_stored_is_freed(connection: Connection, tenant: Tenant) -> None:
    """Its gateway was killed between the two; until then nobody can know that, and nobody else has it."""
    caller, limits = Principal(tenant), Limits(running=1)
    (owner, _) = owners_of(caller, limits, UNLIMITED)
    assert await Slots(connection).acquire(tenant, owner.name, "running", 1, new_id()) is not None
    now, later = (limiter_of(connection, limits, time.time() + after_s) for after_s in (0, 90))
    with pytest.raises(Refused, match="running turns"):
        await now.admission(caller).reserve_turn(TurnId(new_id()), request())
    asked = await later.admission(caller).reserve_turn(TurnId(new_id()), request())
    assert [hold.unit for hold in asked.holds or ()] == ["slot"]


async def test_an_idempotent_repeat_is_not_counted(nats_url: str, new_gateway: NewGateway) -> None:
    """Fifty POSTs with one Idempotency-Key are one request."""
    gateway = await new_gateway(nats_url, limits_key="requests=1, burst=2, running=2")
    headers = {"idempotency-key": "once"}
    answers = await asyncio.gather(
        *(gateway.client.post("/v1/turns", json=SLOW, headers=headers) for _ in range(CLIENTS))
    )
    accepted = {answer.json().get("turn") for answer in answers if answer.status_code == 202}
    assert len(accepted) == 1
    # Those that raced the first may have been refused; by now all of them find it.
    again = await gateway.client.post("/v1/turns", json=SLOW, headers=headers)
    assert again.json()["turn"] in accepted
    assert (await gateway.client.post("/v1/turns", json=SLOW)).status_code == 202


async def test_an_invalid_request_is_not_counted(nats_url: str, new_gateway: NewGateway) -> None:
    """A body that nobody can answer, as often as anybody likes."""
    gateway = await new_gateway(nats_url, limits_key="requests=1, burst=1, running=1")
    for _ in range(5):
        assert (await gateway.client.post("/v1/turns", json={**SLOW, "model": "nobody"})).status_code == 400
    assert (await gateway.client.post("/v1/turns", json=SLOW)).status_code == 202


@pytest.mark.rule("R37")
async def test_real_usage_replaces_the_estimate(
    system: System, generator: Process, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """An answer that may be long is held for; once it has ended, and was short, the rest is free again."""
    limits = "tokens=5000, usd_day=0.05"
    gateway = await new_gateway(system.nats_url, limits_key=limits)
    body = {"message": "#sim words=3 rate=0", "model": "claude-sonnet-5-5", "max_tokens": 3000}
    connection = await Connection.open(system.nats_url, "test")
    for turns in range(1, 5):
        accepted = (await gateway.client.post("/v1/turns", json=body)).json()
        assert "turn" in accepted, accepted
        await gateway.client.get(accepted["links"]["events"])
        cost = (await TurnLog(connection).turn(TurnKey(tenant, accepted["turn"]))).end.cost_nano_usd  # type: ignore[union-attr]

        async def is_settled(expected: int = turns * cost) -> bool:
            return await spent(connection, tenant, Limits(usd_day=0.05)) == expected

        assert cost
        await until(is_settled)
    await connection.close()


@pytest.mark.rule("S19")
@pytest.mark.rule("R37")
async def test_a_redelivered_turn_is_settled_once(
    system: System, generator: Process, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """FAULTS S19: a generator that died before it acknowledged has another one settle the same turn."""
    gateway = await new_gateway(system.nats_url, limits_key="usd_day=1, running=5")
    body = {"message": "#sim words=3 rate=0", "model": "claude-sonnet-5-5"}
    accepted = (await gateway.client.post("/v1/turns", json=body)).json()
    await gateway.client.get(accepted["links"]["events"])
    connection = await Connection.open(system.nats_url, "test")
    key = TurnKey(tenant, accepted["turn"])
    turn = await TurnLog(connection).turn(key)
    assert turn.end is not None
    settlement = Settlement(Counters(connection), Slots(connection))
    await asyncio.gather(*(settlement.settle(key, turn) for _ in range(5)))
    assert await spent(connection, tenant, Limits(usd_day=1)) == turn.end.cost_nano_usd
    await connection.close()


@pytest.mark.rule("S19")
async def test_a_takeover_is_settled_once_with_the_usage_of_both_calls(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """FAULTS S19: its generator is killed in mid-answer, and another goes on: one request, one place, both prompts."""
    gateway = await new_gateway(own_server.url, limits_key="usd_day=1, requests=9, burst=9")
    await shorten_lease(own_connection, 0.2)
    async with serving() as claude:
        body = {"message": "#sim words=20 rate=200", "model": "claude-sonnet-5-5"}
        key = TurnKey(tenant, (await gateway.client.post("/v1/turns", json=body)).json()["turn"])
        assert await killed_after(8, own_server.url, claude)
        async with working(own_server.url, claude):
            turn = await ended(own_log, key)
            await until(lambda: is_acknowledged(own_connection))
    assert turn.end is not None
    assert (turn.outcome, turn.attempt) == ("completed", 2)
    told = [events.decode(one.entry.event) for one in await own_log.replay(key) if isinstance(one.entry, entries.Event)]
    prompts = [one.message.usage.input_tokens or 0 for one in told if isinstance(one, events.MessageStart)]
    assert (len(prompts), turn.end.usage.input_tokens) == (2, sum(prompts))
    assert await spent(own_connection, tenant, Limits(usd_day=1)) == turn.end.cost_nano_usd
    left = (await gateway.client.post("/v1/turns", json=body)).headers["ratelimit"]
    assert left.startswith('"requests";r=7;')


@pytest.mark.rule("R65")
async def test_a_batch_input_is_settled_or_returned_and_never_both(
    system: System, generator: Process, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """Who is late to see that it was asked gives back what is settled already, and nothing comes of it."""
    gateway = await new_gateway(system.nats_url, limits_key="usd_day=1")
    body = {"message": "#sim words=3 rate=0", "model": "claude-sonnet-5-5"}
    accepted = (await gateway.client.post("/v1/turns", json=body)).json()
    await gateway.client.get(accepted["links"]["events"])
    connection = await Connection.open(system.nats_url, "test")
    log, counters = TurnLog(connection), Counters(connection)
    key = TurnKey(tenant, accepted["turn"])
    turn = await log.turn(key)
    assert turn.request is not None
    assert turn.end is not None
    await Settlement(counters, Slots(connection)).settle(key, turn)
    await give_back(Tombstones(connection), counters, key, entries.encode(turn.request))
    assert await spent(connection, tenant, Limits(usd_day=1)) == turn.end.cost_nano_usd > 0
    await connection.close()


@pytest.mark.rule("S19")
@pytest.mark.timeout(60)
async def test_cancelled_turns_use_the_budget(
    system: System, generator: Process, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """FAULTS S19: what was said before a turn was cancelled was paid for, and soon there is no money left."""
    gateway = await new_gateway(system.nats_url, limits_key="usd_day=0.1")
    costs: list[float] = []
    for number in range(200):
        # What it was asked is paid for as soon as it begins to answer: 14,000 tokens of input.
        body = {
            "message": f"#sim words=500 rate=100\n{'river ' * 8000}{number}",
            "model": "claude-opus-5-5",
            "max_tokens": 500,
        }
        answer = await gateway.client.post("/v1/turns", json=body)
        if answer.status_code != 202:
            break
        links = answer.json()["links"]
        async with gateway.client.stream("GET", links["events"]) as stream:
            async for line in stream.aiter_lines():
                if '"delta"' in line:
                    break
        cancelled = (await gateway.client.post(links["cancel"])).json()
        assert cancelled["outcome"] == "cancelled"
        costs.append(cancelled["cost_usd"])
    assert (answer.status_code, code(answer)) == (402, "budget_exceeded")
    assert costs
    assert 0 < sum(costs) <= 0.1
    # What each was held for is settled, though it was not its generator that ended it.
    connection = await Connection.open(system.nats_url, "test")

    async def is_settled() -> bool:
        return await spent(connection, tenant, Limits(usd_day=0.1)) == round(sum(costs) * 1e9)

    await until(is_settled)
    await connection.close()


async def test_stored_bytes_are_limited_by_bytes_day(nats_url: str, new_gateway: NewGateway) -> None:
    """Three long texts of 100 kB fit into 350 kB a day, and a fourth does not; what is short does."""
    gateway = await new_gateway(nats_url, limits_tenant="bytes_day=350000")
    long = [{"message": f"{number}" + "x" * 100_000} for number in range(4)]
    answers = [await gateway.client.post("/v1/turns", json=body) for body in long]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
    assert "bytes of images" in answers[3].json()["error"]["message"]
    assert (await gateway.client.post("/v1/turns", json=SLOW)).status_code == 202


HEADERS = [
    (
        "/v1/messages",
        {
            "model": "claude-haiku-5-5",
            "max_tokens": 94,
            "messages": [{"role": "user", "content": "#sim words=1 rate=0"}],
        },
        "anthropic-ratelimit-{what}-limit",
        "anthropic-ratelimit-{what}-remaining",
        "anthropic-ratelimit-{what}-reset",
    ),
    (
        "/v1/chat/completions",
        {
            "model": "claude-haiku-5-5",
            "max_tokens": 94,
            "messages": [{"role": "user", "content": "#sim words=1 rate=0"}],
        },
        "x-ratelimit-limit-{what}",
        "x-ratelimit-remaining-{what}",
        "x-ratelimit-reset-{what}",
    ),
    (
        "/v1/responses",
        {"model": "claude-haiku-5-5", "max_output_tokens": 94, "input": "#sim words=1 rate=0"},
        "x-ratelimit-limit-{what}",
        "x-ratelimit-remaining-{what}",
        "x-ratelimit-reset-{what}",
    ),
]


@pytest.mark.parametrize(("path", "body", "limit", "remaining", "reset"), HEADERS, ids=[row[0] for row in HEADERS])
async def test_each_protocol_has_its_own_rate_limit_headers(
    gateway: Gateway,
    new_gateway: NewGateway,
    system: System,
    path: str,
    body: dict[str, object],
    limit: str,
    remaining: str,
    reset: str,
) -> None:
    """What is left of requests and of tokens, with the answer and with the refusal, and when it renews."""
    limited = await new_gateway(system.nats_url, limits_key="requests=1, burst=1, tokens=1000")
    answered = await limited.client.post(path, json=body)
    refused = await limited.client.post(path, json=body)
    assert (answered.status_code, refused.status_code) == (200, 429)
    for answer in (answered, refused):
        assert answer.headers[limit.format(what="requests")] == "1"
        assert answer.headers[remaining.format(what="requests")] == "0"
        assert answer.headers[reset.format(what="requests")]
    assert answered.headers[limit.format(what="tokens")] == "1000"
    assert answered.headers[remaining.format(what="tokens")] == str(1000 - 94 - 6)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert not [name for name in (await gateway.client.post(path, json=body)).headers if "ratelimit" in name]


async def test_native_routes_have_the_ietf_headers(nats_url: str, new_gateway: NewGateway) -> None:
    """`RateLimit-Policy` and `RateLimit`, of the limit of which the least is left."""
    gateway = await new_gateway(nats_url, limits_key="requests=60", limits_tenant="requests=1, burst=2")
    told = (await gateway.client.post("/v1/turns", json=SLOW)).headers
    assert told["ratelimit-policy"] == '"requests";q=2;w=120'
    assert told["ratelimit"].startswith('"requests";r=1;t=')


async def test_without_nats_turns_are_refused_and_streams_stay_readable(
    own_server: NatsServer, new_gateway: NewGateway
) -> None:
    """A turn could not be stored anyway; what is read was paid for, and is let in uncounted."""
    gateway = await new_gateway(own_server.url, limits_key="requests=9, streams=1", heartbeat_s=0.05, linger_s=30)
    accepted = (await gateway.client.post("/v1/turns", json=SLOW)).json()
    async with gateway.client.stream("GET", accepted["links"]["events"]):
        await own_server.stop(SIGKILL)
        assert (await gateway.client.post("/v1/turns", json=SLOW)).status_code == 503
        async with gateway.client.stream("GET", accepted["links"]["events"]) as second:
            assert second.status_code == 200
            assert await anext(second.aiter_raw())


async def opened(stack: AsyncExitStack, gateway: Gateway, path: str, cursor: int = 0) -> httpx2.Response:
    headers = {"last-event-id": str(cursor)} if cursor else {}
    return await stack.enter_async_context(gateway.client.stream("GET", path, headers=headers))


@pytest.mark.rule("R37")
@pytest.mark.timeout(60)
async def test_streams_are_limited_over_all_gateways_and_their_slots_are_freed(
    nats_url: str, new_gateway: NewGateway
) -> None:
    """Of thirty readers three are let in; one leaves, and another is."""
    gateways = await three(nats_url, new_gateway, limits_key="streams=3")
    accepted = (await gateways[0].client.post("/v1/turns", json=SLOW)).json()
    path = accepted["links"]["events"]
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(AsyncExitStack()) for _ in range(30)]
        answers = await asyncio.gather(
            *(opened(reader, gateways[number % GATEWAYS], path) for number, reader in enumerate(readers))
        )
        print(f"streams=3: allowed 3, let through {statuses(answers)[200]} of 30")
        assert statuses(answers) == {200: 3, 429: 27}
        assert {answer.headers.get("retry-after") for answer in answers} == {None, "2"}
        first = next(number for number, answer in enumerate(answers) if answer.status_code == 200)
        await readers[first].aclose()

        async def is_let_in() -> bool:
            reader = await stack.enter_async_context(AsyncExitStack())
            return (await opened(reader, gateways[0], path)).status_code == 200

        await until(is_let_in)


async def test_a_refused_stream_creates_no_turn(nats_url: str, new_gateway: NewGateway) -> None:
    """A POST that wants its answer streamed is refused before there is a turn that nobody would read."""
    gateway = await new_gateway(nats_url, limits_key="streams=1, requests=1, burst=9")
    accepted = (await gateway.client.post("/v1/turns", json=SLOW)).json()
    streamed = {"accept": "text/event-stream"}
    async with gateway.client.stream("GET", accepted["links"]["events"]):
        refused = await gateway.client.post("/v1/turns", json=SLOW, headers=streamed)
        assert (refused.status_code, code(refused)) == (429, "too_many_streams")
        told = (await gateway.client.post("/v1/turns", json=SLOW)).headers["ratelimit"]
        assert '"requests";r=7;' in told


@pytest.mark.parametrize("limit", [{"limits_key": "streams=1"}, {"streams_tenant_max": 1}], ids=["key", "gateway"])
async def test_a_download_of_results_counts_as_a_stream(
    nats_url: str, new_gateway: NewGateway, limit: dict[str, str]
) -> None:
    """It reads 32 answers at a time: while as many streams are open as may be, it is refused."""
    gateway = await new_gateway(nats_url, **limit)
    params = {name: SLOW[name] for name in ("message", "max_tokens", "model")}
    asked = await gateway.client.post("/v1/batches", json={"requests": [{"custom_id": "a", "params": params}]})
    results = asked.json()["links"]["results"]
    turn = (await gateway.client.post("/v1/turns", json=SLOW)).json()
    async with gateway.client.stream("GET", turn["links"]["events"]) as stream:
        assert stream.status_code == 200
        refused = await gateway.client.get(results)
        assert (refused.status_code, code(refused)) == (429, "too_many_streams")
        assert int(refused.headers["retry-after"]) > 0

    async def is_let_in() -> bool:
        return (await gateway.client.get(results)).status_code == 200

    await until(is_let_in)


@pytest.mark.timeout(60)
async def test_a_turn_that_fails_before_its_first_event_frees_its_stream_slot(
    system: System, generator: Process, new_gateway: NewGateway
) -> None:
    """Its stream is never read, so that nothing would end the place that is renewed for it."""
    gateway = await new_gateway(system.nats_url, limits_key="streams=1")
    refused = {"role": "user", "content": "#sim fault=none-such"}
    body = {"model": "claude-haiku-5-5", "max_tokens": 9, "stream": True, "messages": [refused]}
    for _ in range(2):
        answer = await gateway.client.post("/v1/messages", json=body)
        assert (answer.status_code, code(answer)) == (400, "backend_refused_request")


@pytest.mark.timeout(60)
async def test_a_resuming_reader_is_held_until_a_slot_is_free(nats_url: str, new_gateway: NewGateway) -> None:
    """To an EventSource a 429 is final: who was cut off waits, with heartbeats, for the place that it had."""
    gateway = await new_gateway(nats_url, limits_key="streams=1", heartbeat_s=0.1)
    accepted = (await gateway.client.post("/v1/turns", json=SLOW)).json()
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        reader = await opened(first, gateway, accepted["links"]["events"])
        lines = reader.aiter_lines()
        cursor = 0
        while not cursor:
            line = await anext(lines)
            cursor = int(line.removeprefix("id:")) if line.startswith("id:") else 0
        held = await opened(second, gateway, accepted["links"]["events"], cursor)
        pieces = held.aiter_raw()
        assert (held.status_code, (await anext(pieces)).startswith(b":")) == (200, True)
        await first.aclose()
        await gateway.client.post(accepted["links"]["cancel"])
        rest = b"".join([piece async for piece in pieces])
        assert b'"done"' in rest or b"cancelled" in rest


@pytest.mark.timeout(60)
async def test_stream_slots_of_a_killed_gateway_expire(
    own_server: NatsServer, own_connection: Connection, new_gateway: NewGateway, tenant: Tenant, tmp_path: Path
) -> None:
    """Nobody renews their places: within seconds others have them."""
    settings = {"TAILRACE_API_KEYS": api_keys(tenant), "TAILRACE_LIMITS_KEY": "streams=1"}
    other = await new_gateway(own_server.url, limits_key="streams=1")
    path = (await other.client.post("/v1/turns", json=SLOW)).json()["links"]["events"]
    async with gateway_process(tmp_path, own_server.url, **settings) as doomed, other.new_client() as client:
        async with client.stream("GET", f"{doomed.url}{path}") as read:
            assert read.status_code == 200
            # Longer than a place lives that nobody renews.
            slots = Slots(own_connection)
            (owner, _) = owners_of(
                Principal(tenant, f"env_{hashlib.sha256(KEY.encode()).hexdigest()[:12]}"), UNLIMITED, UNLIMITED
            )
            assert owner.name != TENANT
            (first,) = await slots.held(tenant, owner.name, "streams")

            async def is_renewed() -> bool:
                held = await slots.held(tenant, owner.name, "streams")
                return bool(held) and held[0].seq > first.seq

            await until(is_renewed)
            assert (await other.client.get(path)).status_code == 429
            await doomed.stop(SIGKILL)

        async def is_let_in() -> bool:
            async with other.client.stream("GET", path) as stream:
                return stream.status_code == 200

        await until(is_let_in, 15)


async def test_limits_in_a_key_record_replace_the_common_ones(own_server: NatsServer, new_gateway: NewGateway) -> None:
    """As `tailrace keys create --limits` has written them; where it has none, the common ones hold."""
    made, _ = await create(own_server.url, Tenant("acme"), "", SCOPES, {"running": 2})
    gateway = await new_gateway(own_server.url, limits_key="running=1, requests=1, burst=3")
    async with gateway.new_client() as client:
        client.headers["authorization"] = f"Bearer {made.secret}"
        answers = [await client.post("/v1/turns", json=SLOW) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        await client.post(answers[0].json()["links"]["cancel"])
        answers = [await client.post("/v1/turns", json=SLOW) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 429]
    assert code(answers[1]) == "rate_limited"


@pytest.mark.rule("R35")
async def test_a_deleted_turn_is_settled_without_a_generator(
    own_server: NatsServer, own_connection: Connection, new_gateway: NewGateway, tenant: Tenant, tmp_path: Path
) -> None:
    """Its request is purged, so nobody is ever given it who would."""
    gateway = await new_gateway(own_server.url, limits_key="usd_day=5, running=1")
    turn = (await gateway.client.post("/v1/turns", json=SLOW)).json()["turn"]
    request = (await TurnLog(own_connection).turn(TurnKey(tenant, turn))).request
    assert request is not None
    (subject,) = (hold.subject for hold in request.holds or () if hold.unit == "nusd")
    counters = Counters(own_connection)
    assert await counters.add(subject, 0) > 0
    async with persistence_process(tmp_path, own_server.url):
        gone = await gateway.client.delete(f"/v1/turns/{turn}")
    assert gone.status_code == 200, gone.text
    assert await counters.add(subject, 0) == 0
    assert (await gateway.client.post("/v1/turns", json=SLOW)).status_code == 202


@pytest.mark.rule("R35")
async def test_deleting_an_old_turn_returns_nothing(
    own_server: NatsServer,
    own_connection: Connection,
    new_gateway: NewGateway,
    tenant: Tenant,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that was started anew has forgotten what was settled: of each counter it knows the last name alone."""
    monkeypatch.setattr(delete, "SETTLED_WITHIN", timedelta(0))
    gateway = await new_gateway(own_server.url, limits_key="usd_day=5")
    first, second = [(await gateway.client.post("/v1/turns", json=SLOW)).json()["turn"] for _ in range(2)]
    counters, log = Counters(own_connection), TurnLog(own_connection)
    settlement = Settlement(counters, Slots(own_connection))
    for turn in (first, second):
        await gateway.client.post(f"/v1/turns/{turn}/cancel")
        await settlement.settle(TurnKey(tenant, turn), await log.turn(TurnKey(tenant, turn)))
    request = (await log.turn(TurnKey(tenant, first))).request
    assert request is not None
    (hold,) = list(request.holds or ())
    assert await counters.add(hold.subject, 0) == 0
    await own_server.stop()
    await own_server.start()
    async with persistence_process(tmp_path, own_server.url):

        async def is_gone() -> bool:
            return (await gateway.client.delete(f"/v1/turns/{first}")).status_code == 200

        await until(is_gone)
    assert await counters.add(hold.subject, 0) == 0
