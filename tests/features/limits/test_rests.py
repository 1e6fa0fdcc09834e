"""What is left of limits: `GET /v1/limits`, and the list of keys in a terminal."""

import pytest

from tailrace.deploy.cli import keys
from tailrace.deploy.cli.keys import create, open_connection, read_left
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Counters
from tests.harness.own_system import OwnSystem
from tests.harness.stopped_clock import stop_clock
from tests.integration.conftest import NewGateway

LIMITS = {"requests": 10.0, "tokens": 100_000.0, "running": 3.0, "usd_day": 2.0, "bytes_day": 10**9}
# It runs until the test ends, and holds a slot and a reservation.
SLOW = {"message": "#sim words=9 wait=60", "max_tokens": 94, "model": "claude-haiku-5-5"}
# 20 characters are 6 tokens, and 94 may be answered: test_limits.py.
RESERVED_USD = (6 * 100 + 94 * 500) / 1e9


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_clock(monkeypatch)


async def test_a_key_reads_its_own_limits_and_those_of_its_tenant(own: OwnSystem, new_gateway: NewGateway) -> None:
    """With the reservation and the slot of a running turn. Another key reads its own, and the tenant's."""
    made, _ = await create(own.server.url, Tenant("acme"), "shop", ["read", "write"], LIMITS)
    other, _ = await create(own.server.url, Tenant("acme"), "", ["read"], {"usd_month": 5.0})
    writer, _ = await create(own.server.url, Tenant("acme"), "", ["write"])
    gateway = await new_gateway(own.server.url, api_keys="", limits_tenant="requests=60")

    async def read(key: str) -> dict[tuple[str, str], tuple[float, float]]:
        answer = await gateway.client.get("/v1/limits", headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
        return {(one["of"], one["name"]): (one["limit"], one["left"]) for one in answer.json()["data"]}

    posted = await gateway.client.post("/v1/turns", json=SLOW, headers={"authorization": f"Bearer {made.secret}"})
    assert posted.status_code == 202, posted.text
    found = await read(made.secret)
    stored, left = found.pop(("key", "bytes_day"))
    assert stored == 10**9
    assert stored - 10_000 < left < stored
    assert found == {
        ("key", "requests"): (10, 9),
        ("key", "tokens"): (100_000, 99_900),
        ("key", "running"): (3, 2),
        ("key", "usd_day"): (2, 2 - RESERVED_USD),
        ("tenant", "requests"): (60, 59),
    }
    assert await read(other.secret) == {("key", "usd_month"): (5, 5), ("tenant", "requests"): (60, 59)}
    refused = await gateway.client.get("/v1/limits", headers={"authorization": f"Bearer {writer.secret}"})
    assert refused.status_code == 403

    async with open_connection(own.server.url) as connection:
        assert await read_left(Counters(connection), made.record) == {
            "usd_day": 2 - RESERVED_USD,
            "bytes_day": left,
        }
    shown = keys.render([made.record, writer.record], {made.record.id: {"usd_day": 1.99995}, writer.record.id: {}})
    assert "requests=10,tokens=100000,running=3,usd_day=2,bytes_day=1000000000" in shown
    assert " usd_day=1.9999" in shown or " usd_day=2 " in shown


async def test_without_limits_the_list_is_empty(own_server: NatsServer, new_gateway: NewGateway) -> None:
    gateway = await new_gateway(own_server.url)
    assert (await gateway.client.get("/v1/limits")).json() == {"data": []}
