"""Limits over several gateways: races, slots, settlement, streams and rate-limit headers."""

import asyncio
import hashlib
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGKILL
from typing import Any

import httpx2
import pytest

from tailrace.deploy.cli.keys import create
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.limits.limiter import Limiter
from tailrace.features.limits.quotas import owners_of, quota_of
from tailrace.gateway.auth.admission import Admissions
from tailrace.gateway.auth.limits import UNLIMITED, Limits
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.http.scope import SCOPES
from tailrace.proto import entries, events
from tailrace.proto.entries import Reservation
from tailrace.proto.errors import LogFull, LogUnavailable, Refused
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, Counters, Slots, TurnLog
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.ownership import WHOLE, Scope, ScopedKey
from tailrace.proto.subjects import CLAIMS_STREAM, LIMITS, SLOTS
from tests.harness.generator_in_loop import wait_for_end
from tests.harness.lossy_link import LossyLink
from tests.harness.nats_cluster import Cluster
from tests.harness.own_system import OwnSystem
from tests.harness.processes import Process
from tests.harness.processes import gateway as gateway_process
from tests.harness.processes import persistence as persistence_process
from tests.harness.readers import read
from tests.harness.stopped_clock import stop_clock
from tests.harness.system import System
from tests.harness.turn_builder import request
from tests.harness.until import until, until_equal
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys

CLIENTS = 24
GATEWAYS = 3
OTHER_KEY, THIRD_KEY = "another-key-of-the-same-tenant", "a-key-of-another-tenant"

# Reserves 100 tokens: 20 characters are 6, and 94 may be answered. The model is Haiku 5.5.
SLOW: dict[str, Any] = {"message": "#sim words=9 wait=60", "max_tokens": 94, "model": "claude-haiku-5-5"}
QUICK = {"message": "#sim words=3 rate=0", "model": "claude-sonnet-5-5"}
TOKENS = 100
NANO_USD = 6 * 100 + 94 * 500
ENOUGH = 7
BUDGET_USD = (ENOUGH + 0.5) * NANO_USD / 1e9
# Allows seven turns each.
RACES = [
    ("key", "requests=1, burst=7", 429, "rate_limited"),
    ("tenant", f"tokens={ENOUGH * TOKENS}", 429, "rate_limited"),
    ("tenant", f"running={ENOUGH}", 429, "too_many_turns"),
    ("key", f"usd_day={BUDGET_USD}", 402, "budget_exceeded"),
]


async def post_turns(gateways: list[Gateway]) -> list[httpx2.Response]:
    """Posts `CLIENTS` turns concurrently, spread over the gateways."""
    posts = (gateways[number % len(gateways)].client.post("/v1/turns", json=SLOW) for number in range(CLIENTS))
    return list(await asyncio.gather(*posts))


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the gateways of this process, no window of a counter ends during a test."""
    stop_clock(monkeypatch)


def statuses(answers: list[httpx2.Response]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


def code(answer: httpx2.Response) -> str:
    return str(answer.json()["error"]["code"])


def with_key(gateway: Gateway, key: str) -> httpx2.AsyncClient:
    client = gateway.new_client()
    client.headers["authorization"] = f"Bearer {key}"
    return client


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


# The name of the key that the fixtures set by environment.
KEY_NAME = f"env_{digest(KEY)[:12]}"


async def spent_nano_usd(connection: Connection, tenant: Tenant) -> int:
    """Returns the day's counter of the fixtures' key."""
    owner, _ = owners_of(Principal(Scope(tenant, WHOLE), KEY_NAME), Limits(usd_day=1), UNLIMITED)
    quota = quota_of(owner, "usd_day", time.time())
    assert quota is not None
    return await Counters(connection).add(quota.subject, 0)


async def money_reservation(log: TurnLog, key: TurnKey) -> Reservation:
    stored = (await log.read_turn(ScopedKey.whole(key))).request
    assert stored is not None
    return next(hold for hold in stored.holds or () if hold.unit == "nusd")


@pytest.mark.rule("R37")
@pytest.mark.timeout(90)
@pytest.mark.parametrize(("owner", "limits", "status", "reason"), RACES, ids=[f"{row[0]}:{row[1]}" for row in RACES])
async def test_concurrent_posts_to_three_gateways_admit_exactly_the_limit(
    nats_url: str, new_gateway: NewGateway, owner: str, limits: str, status: int, reason: str
) -> None:
    gateways = [await new_gateway(nats_url, **{f"limits_{owner}": limits}) for _ in range(GATEWAYS)]
    answers = await post_turns(gateways)
    # On a slow machine the log may time out. Such a request may stay counted, so that fewer are admitted.
    unclear = statuses(answers)[503]
    admitted = statuses(answers)[202]
    assert ENOUGH - unclear <= admitted <= ENOUGH
    refused = [answer for answer in answers if answer.status_code == status]
    assert len(refused) == CLIENTS - admitted - unclear
    assert {code(answer) for answer in refused} == {reason}
    assert all(owner in answer.json()["error"]["message"] for answer in refused)
    assert {"retry-after" in answer.headers for answer in refused} == {status == 429}
    again = statuses(await post_turns(gateways))
    assert again[202] <= ENOUGH - admitted
    assert set(again) <= {202, status, 503}


@pytest.mark.rule("R37")
@pytest.mark.timeout(90)
async def test_a_request_that_one_limit_refuses_is_not_counted_by_others(
    nats_url: str, new_gateway: NewGateway
) -> None:
    """A turn without a slot uses no budget: 402 is final for clients, and 429 is not."""
    limits = f"requests=2, burst=100, tokens={100 * TOKENS}, usd_day={BUDGET_USD}, running={ENOUGH}"
    settings = {"limits_key": limits, "limits_tenant": "requests=4, burst=200"}
    gateways = [await new_gateway(nats_url, **settings) for _ in range(GATEWAYS)]
    assert statuses(await post_turns(gateways)) == {202: ENOUGH, 429: CLIENTS - ENOUGH}
    refused = await gateways[0].client.post("/v1/turns", json=SLOW)
    assert code(refused) == "too_many_turns"
    assert f'"requests";r={100 - ENOUGH};' in refused.headers["ratelimit"]
    assert f'"tokens";r={(100 - ENOUGH) * TOKENS};' in refused.headers["ratelimit"]


async def test_a_batch_frees_the_slot_of_its_key_if_its_tenant_has_none(connection: Connection, tenant: Tenant) -> None:
    slots = Slots(connection)
    limiter = Limiter(Counters(connection), slots, TurnLog(connection), Limits(running=3), Limits(running=2))
    admission = limiter.admission(Principal(Scope(tenant, WHOLE)))
    assert admission is not None
    _, _, holds, running = await admission.reserve_batch(TurnId(new_id()), [request()] * 3, 3)
    held = [
        await slots.list_held(tenant, owner.name, "running")
        for owner in limiter.owners(Principal(Scope(tenant, WHOLE)))
    ]
    assert (running, len(holds), [len(each) for each in held]) == (2, 4, [2, 2])


async def test_only_requests_that_create_a_turn_are_counted(nats_url: str, new_gateway: NewGateway) -> None:
    """Invalid requests, requests above the whole limit and idempotent repeats do not count."""
    gateway = await new_gateway(nats_url, limits_key=f"requests=1, burst=2, tokens={2 * TOKENS}, running=2")
    for _ in range(3):
        assert (await gateway.client.post("/v1/turns", json=SLOW | {"model": "unknown"})).status_code == 404
    large = await gateway.client.post("/v1/turns", json=SLOW | {"max_tokens": 2 * TOKENS})
    # Not a 429: a retry can never succeed.
    assert (large.status_code, code(large), "retry-after" in large.headers) == (400, "request_invalid", False)
    assert "max_tokens" in large.text
    headers = {"idempotency-key": "once"}
    posts = (gateway.client.post("/v1/turns", json=SLOW, headers=headers) for _ in range(CLIENTS))
    accepted = {answer.json()["turn"] for answer in await asyncio.gather(*posts) if answer.status_code == 202}
    assert len(accepted) == 1
    # Requests that raced the first one may have been refused; a later repeat finds its turn.
    assert (await gateway.client.post("/v1/turns", json=SLOW, headers=headers)).json()["turn"] in accepted
    assert [(await gateway.client.post("/v1/turns", json=SLOW)).status_code for _ in range(2)] == [202, 429]


@pytest.mark.parametrize(("limit", "status"), [(f"tokens={2 * TOKENS}", 400), (f"usd_day={BUDGET_USD}", 402)])
async def test_requests_above_a_whole_limit_do_not_refuse_smaller_ones_meanwhile(
    nats_url: str, new_gateway: NewGateway, limit: str, status: int
) -> None:
    """They are never counted. A 402 is final for clients."""
    gateway = await new_gateway(nats_url, limits_key=limit)
    large = SLOW | {"max_tokens": 1000 * TOKENS}
    bodies = [large] * 10 + [SLOW] + [large] * 10
    posts = (gateway.client.post("/v1/turns", json=body) for body in bodies)
    answers = [answer.status_code for answer in await asyncio.gather(*posts)]
    assert answers == [status] * 10 + [202] + [status] * 10


async def test_a_turn_that_fits_in_the_rest_of_a_budget_is_admitted_while_larger_ones_are_refused(
    nats_url: str, new_gateway: NewGateway
) -> None:
    """A refused one is counted for a moment. A 402 is final for clients."""

    def turn(units: int) -> dict[str, Any]:
        return SLOW | {"max_tokens": units * TOKENS - 6}

    gateway = await new_gateway(nats_url, limits_key=f"usd_day={BUDGET_USD}, usd_month={BUDGET_USD}")
    assert (await gateway.client.post("/v1/turns", json=turn(5))).status_code == 202
    bodies = [turn(4)] * 5 + [turn(1)] + [turn(4)] * 5
    posts = (gateway.client.post("/v1/turns", json=body) for body in bodies)
    answers = [answer.status_code for answer in await asyncio.gather(*posts)]
    assert answers == [402] * 5 + [202] + [402] * 5


async def test_keys_and_tenants_have_separate_counters(nats_url: str, new_gateway: NewGateway, tenant: Tenant) -> None:
    keys = f"{api_keys(tenant)}, {tenant}:{digest(OTHER_KEY)}, tenant-{new_id()}:{digest(THIRD_KEY)}"
    gateway = await new_gateway(nats_url, limits_key="running=2", limits_tenant="running=3", api_keys=keys)
    assert [(await gateway.client.post("/v1/turns", json=SLOW)).status_code for _ in range(3)] == [202, 202, 429]
    async with with_key(gateway, OTHER_KEY) as same_tenant, with_key(gateway, THIRD_KEY) as other_tenant:
        answers = [await same_tenant.post("/v1/turns", json=SLOW) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 429]
        assert "This tenant" in answers[1].json()["error"]["message"]
        # Another tenant is admitted while this one is refused (FAULTS I13).
        refused, admitted = await asyncio.gather(post_turns([gateway]), other_tenant.post("/v1/turns", json=SLOW))
    assert statuses(refused) == {429: CLIENTS}
    assert admitted.status_code == 202


async def test_limits_in_a_key_record_replace_the_common_ones(
    own_server: NatsServer, new_gateway: NewGateway, tenant: Tenant
) -> None:
    made, _ = await create(own_server.url, tenant, "", SCOPES, {"running": 2})
    gateway = await new_gateway(own_server.url, limits_key="running=1, requests=1, burst=3")
    async with with_key(gateway, made.secret) as client:
        answers = [await client.post("/v1/turns", json=SLOW) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        await client.post(answers[0].json()["links"]["cancel"])
        answers = [await client.post("/v1/turns", json=SLOW) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 429]
    assert code(answers[1]) == "rate_limited"


@pytest.mark.rule("R26")
async def test_a_repeated_post_holds_its_slot_under_the_turn_id_that_a_killed_gateway_has_claimed(
    own_server: NatsServer, own_connection: Connection, new_gateway: NewGateway, tenant: Tenant, tmp_path: Path
) -> None:
    """The gateway is killed between its claim of the key and its append. Under another id the slot would be freed."""
    settings = {"TAILRACE_API_KEYS": api_keys(tenant), "TAILRACE_LIMITS_KEY": "running=2"}
    other = await new_gateway(own_server.url, limits_key="running=2")
    owner, _ = owners_of(Principal(Scope(tenant, WHOLE), KEY_NAME), Limits(running=2), UNLIMITED)

    async def post(url: str) -> httpx2.Response:
        return await other.client.post(f"{url}/v1/turns", json=SLOW, headers={"idempotency-key": "key"})

    async def is_claimed() -> bool:
        # The other key is that of the write probe.
        return (await own_connection.jetstream.stream_info(CLAIMS_STREAM)).state.messages == 2

    async with (
        LossyLink(own_server.url, share=1, what=b'{"stream":"KV_CLAIMS"') as link,
        gateway_process(tmp_path, link.url, **settings) as killed,
    ):
        posted = asyncio.create_task(post(killed.url))
        await until(is_claimed)
        await killed.stop(SIGKILL)
    with pytest.raises(httpx2.HTTPError):
        await posted
    turn = (await post(other.url)).json()["turn"]
    held = await Slots(own_connection).list_held(tenant, owner.name, "running")
    assert [slot.holder for slot in held] == [turn, turn]


async def test_stored_bytes_are_limited_by_bytes_day(nats_url: str, new_gateway: NewGateway) -> None:
    gateway = await new_gateway(nats_url, limits_tenant="bytes_day=350000")
    answers = [
        await gateway.client.post("/v1/turns", json={"message": f"{number}" + "x" * 100_000}) for number in range(4)
    ]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
    assert "bytes of storage a day" in answers[3].json()["error"]["message"]
    assert (await gateway.client.post("/v1/turns", json=SLOW)).status_code == 202


@pytest.mark.usefixtures("persistence")
async def test_sessions_projects_and_logins_are_limited_as_well(system: System, new_gateway: NewGateway) -> None:
    """They are stored, too. A request that fails is not counted."""
    gateway = await new_gateway(system.nats_url, limits_key="requests=4", limits_tenant="bytes_day=20000")
    session = {"system_prompt": "x" * 9_000}
    posts: list[tuple[str, dict[str, str], int]] = [
        ("/v1/sessions", {"id": "first", **session}, 200),
        ("/v1/sessions", {"id": "first"}, 409),
        ("/v1/projects", {"name": "a", "description": "x" * 9_000}, 200),
        ("/v1/sessions", session, 429),
        ("/v1/sessions", {}, 200),
        ("/v1/login", {}, 200),
        ("/v1/login", {}, 429),
        ("/v1/projects", {"name": "b"}, 429),
    ]
    assert [(await gateway.client.post(path, json=body)).status_code for path, body, _ in posts] == [
        status for _, _, status in posts
    ]


async def test_a_request_that_stores_no_bytes_is_not_refused_by_bytes_day(
    connection: Connection, tenant: Tenant
) -> None:
    """The limit may have been lowered below what the tenant has stored. A login stores no bytes."""
    principal, parts = Principal(Scope(tenant, WHOLE)), (Counters(connection), Slots(connection), TurnLog(connection))
    async with Admissions(Limiter(*parts, UNLIMITED, Limits(bytes_day=9_000))).count(principal, 9_000):
        pass
    lowered = Admissions(Limiter(*parts, UNLIMITED, Limits(bytes_day=1_000)))
    async with lowered.count(principal):
        pass
    with pytest.raises(Refused, match="bytes of storage a day"):
        async with lowered.count(principal, 1):
            pass


@pytest.mark.parametrize(
    ("failure", "is_counted"),
    [
        (Refused("persistence_unavailable", "no reply in time"), True),
        (LogUnavailable("no reply in time"), True),
        (Refused("session_exists", "choose another name"), False),
        (LogFull("full"), False),
    ],
    ids=str,
)
async def test_a_request_that_may_be_stored_although_it_failed_stays_counted(
    connection: Connection, tenant: Tenant, failure: Exception, is_counted: bool
) -> None:
    """A process that is slower than the gateway's timeout still stores what it was sent."""
    limiter = Limiter(Counters(connection), Slots(connection), TurnLog(connection), UNLIMITED, Limits(bytes_day=9_000))
    with pytest.raises(type(failure)):
        async with Admissions(limiter).count(Principal(Scope(tenant, WHOLE)), 9_000):
            raise failure
    quota = quota_of(limiter.owners(Principal(Scope(tenant, WHOLE)))[1], "bytes_day", time.time())
    assert quota is not None
    assert await limiter.counters.add(quota.subject, 0) == (9_000 if is_counted else 0)


async def test_contents_that_are_only_counted_are_limited_by_bytes_day(nats_url: str, new_gateway: NewGateway) -> None:
    """They are stored until a generator has counted them. A refused request gives its bytes back."""
    gateway = await new_gateway(nats_url, limits_tenant="bytes_day=535000")
    answers = [
        await gateway.client.post(
            "/v1/messages/count_tokens",
            json={"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "x" * size}]},
        )
        for size in (270_000, 270_001, 263_000)
    ]
    # No generator runs, but the first content was stored.
    assert [answer.status_code for answer in answers] == [503, 429, 503]
    assert "bytes of storage a day" in answers[1].json()["error"]["message"]


@pytest.mark.rule("R37")
@pytest.mark.rule("R65")
@pytest.mark.rule("S19")
async def test_each_turn_is_settled_once_with_its_real_usage(
    system: System, generator: Process, new_gateway: NewGateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """The estimates of the four turns exceed both limits; their real usage does not."""
    gateway = await new_gateway(system.nats_url, limits_key="tokens=5000, usd_day=0.05")
    connection = await Connection.open(system.nats_url, "test")
    cost = 0
    for _ in range(4):
        accepted = (await gateway.client.post("/v1/turns", json=QUICK | {"max_tokens": 3000})).json()
        key = TurnKey(tenant, accepted["turn"])
        turn = await wait_for_end(system_log, key)
        assert turn.end is not None
        cost += turn.end.cost_nano_usd
        await until_equal(lambda: spent_nano_usd(connection, tenant), cost)
    # Generators that did not acknowledge settle it again.
    settlement = Settlement(Counters(connection), Slots(connection))
    await asyncio.gather(*(settlement.settle(key, turn) for _ in range(5)))
    assert await spent_nano_usd(connection, tenant) == cost > 0
    await connection.close()


@pytest.mark.rule("S19")
async def test_a_takeover_is_settled_once_with_the_usage_of_both_calls(
    own: OwnSystem, new_gateway: NewGateway, tenant: Tenant
) -> None:
    gateway = await new_gateway(own.server.url, limits_key="usd_day=1, requests=9, burst=9")
    await own.shorten_lease(0.2)
    body = QUICK | {"message": "#sim words=40 rate=0"}
    key = TurnKey(tenant, (await gateway.client.post("/v1/turns", json=body)).json()["turn"])
    assert await own.run_and_kill_after(8)
    async with own.running_generator():
        turn = await own.wait_until_settled(key)
    assert turn.end is not None
    assert (turn.outcome, turn.attempt) == ("completed", 2)
    stored = [
        events.decode(one.entry.event)
        for one in await own.log.read_entries(ScopedKey.whole(key))
        if isinstance(one.entry, entries.Event)
    ]
    prompts = [one.message.usage.input_tokens or 0 for one in stored if isinstance(one, events.MessageStart)]
    assert (len(prompts), turn.end.usage.input_tokens) == (2, sum(prompts))
    assert await spent_nano_usd(own.connection, tenant) == turn.end.cost_nano_usd
    left = (await gateway.client.post("/v1/turns", json=body)).headers["ratelimit"]
    assert left.startswith('"requests";r=7;')


@pytest.mark.rule("S19")
async def test_cancelled_turns_use_the_budget(
    system: System, generator: Process, new_gateway: NewGateway, tenant: Tenant
) -> None:
    gateway = await new_gateway(system.nats_url, limits_key="usd_day=0.1")
    connection = await Connection.open(system.nats_url, "test")
    # A prompt of 14,000 tokens is paid for as soon as the answer begins.
    body = {"message": f"#sim words=500 rate=100\n{'river ' * 8000}", "model": "claude-opus-5-5", "max_tokens": 500}
    links = (await gateway.client.post("/v1/turns", json=body)).json()["links"]
    await read(gateway.client, links["self"].rpartition("/")[2], most=3)
    cancelled = (await gateway.client.post(links["cancel"])).json()
    assert (cancelled["outcome"], cancelled["cost_usd"] > 0) == ("cancelled", True)
    await until_equal(lambda: spent_nano_usd(connection, tenant), round(cancelled["cost_usd"] * 1e9))
    await connection.close()


@pytest.mark.rule("R35")
async def test_a_turn_that_a_deletion_cancels_is_settled_without_a_generator_and_another_one_is_not(
    own_server: NatsServer,
    own_connection: Connection,
    own_log: TurnLog,
    new_gateway: NewGateway,
    tenant: Tenant,
    tmp_path: Path,
) -> None:
    """Its generator settles it, or has settled it long ago: a restarted server only remembers the last settlements."""
    gateway = await new_gateway(own_server.url, limits_key="usd_day=5, running=1")
    counters = Counters(own_connection)

    async def post() -> TurnKey:
        return TurnKey(tenant, (await gateway.client.post("/v1/turns", json=SLOW)).json()["turn"])

    async def delete_turn(key: TurnKey) -> bool:
        return (await gateway.client.delete(f"/v1/turns/{key.turn}")).status_code == 200

    running = await post()
    subject = (await money_reservation(own_log, running)).subject
    assert await counters.add(subject, 0) > 0
    async with persistence_process(tmp_path, own_server.url):
        assert await delete_turn(running)
        assert await counters.add(subject, 0) == 0
        ended = await post()
        await gateway.client.post(f"/v1/turns/{ended.turn}/cancel")
        reserved = await counters.add(subject, 0)
        assert await delete_turn(ended)
    assert await counters.add(subject, 0) == reserved > 0


@pytest.mark.usefixtures("generator")
async def test_answers_and_refusals_have_rate_limit_headers(new_gateway: NewGateway, system: System) -> None:
    """test_rate_headers.py has those of each protocol."""
    limited = await new_gateway(system.nats_url, limits_key="requests=1, burst=1, tokens=1000")
    messages = [{"role": "user", "content": "#sim words=1 rate=0"}]
    body = {"model": "claude-haiku-5-5", "max_tokens": 94, "messages": messages}
    answered, refused = [await limited.client.post("/v1/messages", json=body) for _ in range(2)]
    assert (answered.status_code, refused.status_code) == (200, 429)
    for answer in (answered, refused):
        assert answer.headers["anthropic-ratelimit-requests-limit"] == "1"
        assert answer.headers["anthropic-ratelimit-requests-remaining"] == "0"
        assert answer.headers["anthropic-ratelimit-requests-reset"]
    assert answered.headers["anthropic-ratelimit-tokens-limit"] == "1000"
    assert answered.headers["anthropic-ratelimit-tokens-remaining"] == str(1000 - 94 - 6)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["type"] == "rate_limit_error"


async def test_without_nats_turns_are_refused_and_streams_stay_readable(
    own_server: NatsServer, new_gateway: NewGateway
) -> None:
    """A stream is admitted uncounted: its turn was paid for."""
    gateway = await new_gateway(own_server.url, limits_key="requests=9, streams=1", heartbeat_s=0.05, linger_s=30)
    events_url = (await gateway.client.post("/v1/turns", json=SLOW)).json()["links"]["events"]
    async with gateway.client.stream("GET", events_url):
        await own_server.stop(SIGKILL)
        assert (await gateway.client.post("/v1/turns", json=SLOW)).status_code == 503
        async with gateway.client.stream("GET", events_url) as second:
            assert second.status_code == 200
            assert await anext(second.aiter_raw())


async def events_of_slow_turn(gateway: Gateway) -> str:
    return str((await gateway.client.post("/v1/turns", json=SLOW)).json()["links"]["events"])


async def open_stream(stack: AsyncExitStack, gateway: Gateway, path: str, cursor: int = 0) -> httpx2.Response:
    headers = {"last-event-id": str(cursor)} if cursor else {}
    return await stack.enter_async_context(gateway.client.stream("GET", path, headers=headers))


async def until_admitted(client: httpx2.AsyncClient, url: str) -> None:
    async def is_admitted() -> bool:
        async with client.stream("GET", url) as answer:
            return answer.status_code == 200

    await until(is_admitted, 15)


@pytest.mark.rule("R37")
async def test_streams_are_limited_over_all_gateways_and_their_slots_are_freed(
    nats_url: str, new_gateway: NewGateway
) -> None:
    gateways = [await new_gateway(nats_url, limits_key="streams=3, requests=1, burst=9") for _ in range(GATEWAYS)]
    path = await events_of_slow_turn(gateways[0])
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(AsyncExitStack()) for _ in range(30)]
        answers = await asyncio.gather(
            *(open_stream(reader, gateways[number % GATEWAYS], path) for number, reader in enumerate(readers))
        )
        assert statuses(answers) == {200: 3, 429: 27}
        assert {answer.headers.get("retry-after") for answer in answers} == {None, "2"}
        refused = await gateways[0].client.post("/v1/turns", json=SLOW, headers={"accept": "text/event-stream"})
        assert (refused.status_code, code(refused)) == (429, "too_many_streams")
        # It has created no turn: this is the second one.
        assert '"requests";r=7;' in (await gateways[0].client.post("/v1/turns", json=SLOW)).headers["ratelimit"]
        await readers[[answer.status_code for answer in answers].index(200)].aclose()
        await until_admitted(gateways[0].client, path)


@pytest.mark.parametrize("limit", [{"limits_key": "streams=1"}, {"streams_tenant_max": 1}], ids=["key", "gateway"])
async def test_a_download_of_results_counts_as_a_stream(
    nats_url: str, new_gateway: NewGateway, limit: dict[str, str]
) -> None:
    gateway = await new_gateway(nats_url, **limit)
    batch = await gateway.client.post("/v1/turn-batches", json={"requests": [{"custom_id": "a", "params": SLOW}]})
    results = batch.json()["links"]["results"]
    async with gateway.client.stream("GET", await events_of_slow_turn(gateway)) as stream:
        assert stream.status_code == 200
        refused = await gateway.client.get(results)
        assert (refused.status_code, code(refused)) == (429, "too_many_streams")
        assert int(refused.headers["retry-after"]) > 0
    await until_admitted(gateway.client, results)


async def test_a_turn_that_fails_before_its_first_event_frees_its_stream_slot(
    system: System, generator: Process, new_gateway: NewGateway
) -> None:
    gateway = await new_gateway(system.nats_url, limits_key="streams=1")
    messages = [{"role": "user", "content": "#sim fault=none-such"}]
    body = {"model": "claude-haiku-5-5", "max_tokens": 9, "stream": True, "messages": messages}
    for _ in range(2):
        answer = await gateway.client.post("/v1/messages", json=body)
        assert (answer.status_code, code(answer)) == (400, "backend_refused_request")


async def test_a_resuming_reader_is_held_until_a_slot_is_free(nats_url: str, new_gateway: NewGateway) -> None:
    """To an EventSource a 429 is final: a resuming reader gets heartbeats until it has a slot."""
    gateway = await new_gateway(nats_url, limits_key="streams=1", heartbeat_s=0.1)
    accepted = (await gateway.client.post("/v1/turns", json=SLOW)).json()
    path = accepted["links"]["events"]
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        lines = (await open_stream(first, gateway, path)).aiter_lines()
        cursor = 0
        while not cursor:
            line = await anext(lines)
            cursor = int(line.removeprefix("id:")) if line.startswith("id:") else 0
        held = await open_stream(second, gateway, path, cursor)
        received = held.aiter_raw()
        assert (held.status_code, (await anext(received)).startswith(b":")) == (200, True)
        await first.aclose()
        await gateway.client.post(accepted["links"]["cancel"])
        rest = b"".join([piece async for piece in received])
        assert b'"done"' in rest or b"cancelled" in rest


async def test_stream_slots_of_a_killed_gateway_expire(
    own_server: NatsServer, own_connection: Connection, new_gateway: NewGateway, tenant: Tenant, tmp_path: Path
) -> None:
    settings = {"TAILRACE_API_KEYS": api_keys(tenant), "TAILRACE_LIMITS_KEY": "streams=1"}
    other = await new_gateway(own_server.url, limits_key="streams=1")
    path = await events_of_slow_turn(other)
    owner, _ = owners_of(Principal(Scope(tenant, WHOLE), KEY_NAME), UNLIMITED, UNLIMITED)
    async with gateway_process(tmp_path, own_server.url, **settings) as killed, other.new_client() as client:
        async with client.stream("GET", f"{killed.url}{path}") as stream:
            assert stream.status_code == 200
            slots = Slots(own_connection)
            (first,) = await slots.list_held(tenant, owner.name, "streams")

            async def is_renewed() -> bool:
                held = await slots.list_held(tenant, owner.name, "streams")
                return bool(held) and held[0].seq > first.seq

            await until(is_renewed)
            assert (await other.client.get(path)).status_code == 429
            await killed.stop(SIGKILL)
        await until_admitted(other.client, path)


ALLOWED = 20
# The seconds after which a client that is refused with 503 posts again. A shorter wait would only use more CPU.
AGAIN_S = 0.05
# The limit, the stream of its counters, and whether the leader of that stream is killed or steps down.
CLUSTER_RACES = [(f"requests=1, burst={ALLOWED}", LIMITS, False), (f"running={ALLOWED}", SLOTS, True)]


@pytest.mark.rule("R37")
@pytest.mark.timeout(150)
async def test_limits_hold_while_the_counters_change_their_leader(tmp_path: Path, new_gateway: NewGateway) -> None:
    """A counter that did not answer may have counted: fewer turns are admitted, and never more."""

    async def post_turns(client: httpx2.AsyncClient, is_changed: asyncio.Event, deadline: float) -> list[int]:
        """Posts at least six turns, each until it is admitted or refused, and until the fault; returns all statuses."""
        seen: list[int] = []
        while len(seen) - seen.count(503) < 6 or not is_changed.is_set():
            seen.append((await client.post("/v1/turns", json=SLOW)).status_code)
            assert time.monotonic() < deadline, Counter(seen)
            await asyncio.sleep(AGAIN_S if seen[-1] == 503 else 0)
        return seen

    async with Cluster(tmp_path) as cluster:
        for limits, stream, is_killed in CLUSTER_RACES:
            gateways = [await new_gateway(cluster.url, limits_key=limits) for _ in range(GATEWAYS)]
            leader, deadline, is_changed = await cluster.leader(stream), time.monotonic() + 50, asyncio.Event()
            clients = [gateways[number % GATEWAYS].client for number in range(CLIENTS)]
            posting = [asyncio.create_task(post_turns(client, is_changed, deadline)) for client in clients]
            await (leader.stop(SIGKILL) if is_killed else cluster.step_down(stream))
            is_changed.set()
            counted = Counter(status for seen in await asyncio.gather(*posting) for status in seen)
            assert 0 < counted[202] <= ALLOWED, limits
            assert set(counted) <= {202, 429, 503}, limits
