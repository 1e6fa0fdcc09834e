"""The share of the log that one tenant may fill in a day."""

import pytest

from tailrace.gateway.http.log_fullness import LogFullness
from tailrace.gateway.limits.log_share import LogShare
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant, new_id
from tailrace.proto.nats import Connection, Counters
from tests.harness.until import until
from tests.integration.conftest import NewGateway

MIB = 1024**2
DAY_S = 86_400.0


async def test_a_tenant_above_its_share_is_refused_at_every_gateway(nats_url: str, new_gateway: NewGateway) -> None:
    """A repeated POST still returns its turn, and other tenants are accepted."""
    first, second = [await new_gateway(nats_url, tenant_log_share=0.0001) for _ in range(2)]
    body = {"message": "x" * 60_000}
    headers = {"idempotency-key": new_id()}
    accepted = await first.client.post("/v1/turns", json=body, headers=headers)
    assert accepted.status_code == 202

    async def refusal() -> str:
        answer = await second.client.post("/v1/turns", json=body)
        return answer.json()["error"]["code"] if answer.status_code == 429 else ""

    assert await until(refusal, 20) == "rate_limited"
    refused = await first.client.post("/v1/turns", json=body)
    assert (refused.status_code, int(refused.headers["retry-after"]) <= DAY_S) == (429, True)
    assert "may fill 0% of the log on one day" in refused.json()["error"]["message"]
    repeated = await first.client.post("/v1/turns", json=body, headers=headers)
    assert repeated.json()["turn"] == accepted.json()["turn"]


async def test_shares_are_counted_by_tenant_and_day_and_shared_between_gateways(connection: Connection) -> None:
    clock = [1_000_000_000.0]
    fullness = LogFullness(connection, 0.9)
    fullness.bytes_max = 10 * MIB
    one, other = [LogShare(Counters(connection), fullness, 0.5, lambda: clock[0]) for _ in range(2)]
    loud, quiet = Tenant(new_id()), Tenant(new_id())
    one.check(loud, 5 * MIB)
    one.add(loud, 4 * MIB)
    with pytest.raises(Refused) as refused:
        one.check(loud, 2 * MIB)
    assert refused.value.code == "rate_limited"
    other.check(loud, 2 * MIB)
    other.add(loud, 1)
    await one.flush()
    await other.flush()
    with pytest.raises(Refused):
        other.check(loud, 1 * MIB)
    other.check(quiet, 5 * MIB)
    clock[0] += DAY_S
    await other.flush()
    other.check(loud, 5 * MIB)


async def test_a_log_without_a_byte_limit_has_no_shares(connection: Connection) -> None:
    share = LogShare(Counters(connection), LogFullness(connection, 0.9), 0.1)
    share.add(Tenant("loud"), 10**12)
    share.check(Tenant("loud"), 10**12)
