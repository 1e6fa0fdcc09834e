"""Processes whose wall clock is a day ahead of nats-server's. What cannot be undone, they do by the log's clock."""

import time
from pathlib import Path

import httpx2
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.nats import Connection, Counters, TurnLog
from tailrace.proto.nats.users import GATEWAY
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import PERSISTENCE
from tests.chaos.clock import Clock
from tests.harness.batch_client import post_batch, read_results
from tests.harness.own_system import OwnSystem
from tests.harness.processes import Process, as_user, generator_environ, persistence
from tests.harness.turn_writer import write_turn
from tests.harness.until import until
from tests.harness.webhook_receiver import Receiver, answer_with
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys

AHEAD_S = 25 * 3600
UNSTORED_S = 3.0


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    clock = Clock.create(tmp_path, "wrong")
    if clock is None:
        pytest.skip("there is no C compiler")
    clock.jump(AHEAD_S)
    return clock


@pytest.mark.rule("F19")
async def test_persistence_with_a_wrong_clock_ends_nothing_early(
    own_server: NatsServer, own_log: TurnLog, new_gateway: NewGateway, clock: Clock, tmp_path: Path
) -> None:
    """It gives up no webhook, erases no turn with `store: false` before its time, and deletes no file."""
    settings = {
        "TAILRACE_NATS_URL": as_user(own_server.url, PERSISTENCE),
        "TAILRACE_DATABASE": tmp_path / "tailrace.db",
        "TAILRACE_UNSTORED_S": UNSTORED_S,
        "TAILRACE_WEBHOOK_KEY": "a-key-that-only-this-test-has-0123",
        "TAILRACE_WEBHOOK_PRIVATE_HOSTS": "127.0.0.1",
        "TAILRACE_WEBHOOK_WAIT_S": 0.05,
    }
    gateway = await new_gateway(own_server.url)

    async def is_erased(key: TurnKey) -> bool:
        return not await own_log.has_turn(ScopedKey.whole(key))

    async with Receiver() as receiver, Process("persistence", tmp_path, **settings | clock.environ):
        form = {"purpose": "user_data", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        upload = await gateway.client.post("/v1/files", data=form, files={"file": ("a.txt", b"text")})
        assert upload.status_code == 200, upload.text
        receiver.answers = [answer_with(500)]
        key = await write_turn(own_log, "Light", webhook=receiver.url)
        begun = time.monotonic()
        unstored = await write_turn(own_log, "Light", store=False)
        await until(lambda: receiver.turns == [key.turn] * 2)
        await until(lambda: is_erased(unstored), 30)
        assert time.monotonic() - begun >= UNSTORED_S
        # It has looked for expired files at least once.
        content = await gateway.client.get(f"/v1/files/{upload.json()['id']}/content")
        assert (content.status_code, content.content) == (200, b"text")


@pytest.mark.rule("F19")
async def test_a_generator_with_a_wrong_clock_runs_a_batch(
    own: OwnSystem, own_gateway: Gateway, tenant: Tenant, clock: Clock, tmp_path: Path
) -> None:
    settings = generator_environ(own.server.url, own.claude)
    async with Process("generators", tmp_path, **settings | clock.environ):
        batch = await post_batch(own_gateway, [{"custom_id": "a", "params": {"message": "#sim words=2"}}])
        turn = await own.wait_for_end(TurnKey(tenant, batch["batch"]))
    assert turn.outcome == "completed"
    assert [line["text"] for line in await read_results(own_gateway, batch)] == ["w000000 w000001"]


@pytest.mark.rule("F19")
async def test_a_gateway_with_a_wrong_clock_dates_files_and_settles_a_deleted_turn(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, tenant: Tenant, clock: Clock, tmp_path: Path
) -> None:
    """By the log's clock, the turn has just ended. No generator can settle it."""
    settings = {
        "TAILRACE_NATS_URL": as_user(own_server.url, GATEWAY),
        "TAILRACE_PORT": 0,
        "TAILRACE_API_KEYS": api_keys(tenant),
        "TAILRACE_LIMITS_KEY": "usd_day=5",
    }
    counters = Counters(own_connection)
    async with (
        persistence(tmp_path, own_server.url),
        Process("gateway", tmp_path, **settings | clock.environ) as gateway,
    ):
        headers = {"authorization": f"Bearer {KEY}"}
        async with httpx2.AsyncClient(base_url=gateway.url, headers=headers, timeout=20, trust_env=False) as client:
            upload = await client.post("/v1/files", data={"purpose": "user_data"}, files={"file": ("a.txt", b"text")})
            assert abs(upload.json()["created_at"] - time.time()) < 3600
            turn = (await client.post("/v1/turns", json={"message": "hello"})).json()["turn"]
            request = (await own_log.read_turn(ScopedKey.whole(TurnKey(tenant, turn)))).request
            assert request is not None
            (subject,) = (hold.subject for hold in request.holds or () if hold.unit == "nusd")
            assert await counters.add(subject, 0) > 0
            assert (await client.delete(f"/v1/turns/{turn}")).status_code == 200
    assert await counters.add(subject, 0) == 0
