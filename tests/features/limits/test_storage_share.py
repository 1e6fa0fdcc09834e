"""The share of the log and of the blob store that one tenant may fill."""

import pytest

from tailrace.features.limits import storage_share
from tailrace.features.limits.storage_share import BLOBS, LOG, StorageShare, Store
from tailrace.proto.errors import LogUnavailable, Refused
from tailrace.proto.ids import Tenant, new_id
from tailrace.proto.nats import Connection, Counters, StreamSize
from tests.harness.processes import Process
from tests.harness.requests import post_until_ended
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import NewGateway

MIB = 1024**2
DAY_S = 86_400.0
STREAMED = {"accept": "text/event-stream"}


async def test_a_tenant_above_its_share_is_refused_at_every_gateway(
    monkeypatch: pytest.MonkeyPatch, nats_url: str, new_gateway: NewGateway
) -> None:
    """A repeated POST still returns its turn, and other tenants are accepted."""
    monkeypatch.setattr(storage_share, "ENFORCED_FROM", 0.0)
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
    assert "the 0% of it that one tenant may fill in a day" in refused.json()["error"]["message"]
    repeated = await first.client.post("/v1/turns", json=body, headers=headers)
    assert repeated.json()["turn"] == accepted.json()["turn"]


async def test_blobs_have_a_share_of_their_own(
    monkeypatch: pytest.MonkeyPatch, nats_url: str, new_gateway: NewGateway
) -> None:
    """The pictures of one tenant must not refuse those of another for a week."""
    monkeypatch.setattr(storage_share, "ENFORCED_FROM", 0.0)
    gateway = await new_gateway(nats_url, tenant_log_share=0.004)
    answers = [await gateway.client.post("/v1/turns", json={"message": "x" * 300_000}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 429, 429]
    assert "The blob store is nearly full" in answers[1].json()["error"]["message"]
    assert (await gateway.client.post("/v1/turns", json={"message": "x"})).status_code == 202


@pytest.mark.parametrize("limit", [{"tenant_log_share": 0.0002}, {"limits_tenant": "bytes_day=107000"}], ids=str)
async def test_the_conversation_before_a_turn_counts_each_time_that_it_is_stored(
    monkeypatch: pytest.MonkeyPatch,
    system: System,
    generator: Process,
    persistence: Process,
    new_gateway: NewGateway,
    limit: dict[str, object],
) -> None:
    """Each entry has it, and all of its texts are too short for blobs."""
    monkeypatch.setattr(storage_share, "ENFORCED_FROM", 0.0)
    gateway = await new_gateway(system.nats_url, **limit)
    history = [{"role": "user", "content": "x" * 50_000}, {"role": "assistant", "content": "Because."}]
    question = {"message": "#sim words=1 rate=0"}
    first = await post_until_ended(
        gateway, message=None, messages=[*history, {"role": "user", "content": question["message"]}]
    )
    statuses = []
    for _ in range(3):
        answer = await gateway.client.post("/v1/turns", json=question | {"session": first["session"]}, headers=STREAMED)
        statuses.append(answer.status_code)
    assert (statuses[0], statuses[2]) == (200, 429)


@pytest.mark.parametrize("store", [LOG, BLOBS])
async def test_shares_are_counted_by_tenant_and_period_for_all_gateways(connection: Connection, store: Store) -> None:
    clock = [1_000_000_000.0]
    one, other = [
        StorageShare(store, Counters(connection), lambda: StreamSize(8 * MIB, 10 * MIB), 0.5, lambda: clock[0])
        for _ in range(2)
    ]
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
    clock[0] += store.kept_s
    await other.flush()
    other.check(loud, 5 * MIB)


async def test_bytes_whose_acknowledgement_is_lost_are_counted_once(connection: Connection) -> None:
    """Until the next flush, at least by the gateway that has added them."""

    class UnacknowledgedCounters(Counters):
        async def add(self, subject: str, amount: int) -> int:
            await super().add(subject, amount)
            raise LogUnavailable("the acknowledgement is lost")

    one, other = [
        StorageShare(LOG, counters, lambda: StreamSize(8 * MIB, 10 * MIB), 0.5)
        for counters in (UnacknowledgedCounters(connection), Counters(connection))
    ]
    tenant = Tenant(new_id())
    one.add(tenant, MIB)
    for _ in range(2):
        await one.flush()
    with pytest.raises(Refused):
        one.check(tenant, 5 * MIB)
    one.check(tenant, 4 * MIB)
    other.add(tenant, 1)
    await other.flush()
    other.check(tenant, 4 * MIB - 1)
    with pytest.raises(Refused):
        other.check(tenant, 4 * MIB)


@pytest.mark.parametrize("size", [StreamSize(10**12, 0), StreamSize(6 * MIB, 10 * MIB)], ids=["no limit", "not full"])
async def test_a_store_that_is_not_nearly_full_has_no_shares(connection: Connection, size: StreamSize) -> None:
    """A tenant alone may use it."""
    share = StorageShare(LOG, Counters(connection), lambda: size, 0.01)
    share.add(Tenant("loud"), MIB // 2)
    share.check(Tenant("loud"), 10**12)
    share.add(Tenant("loud"), MIB)
    if size.limit:
        with pytest.raises(Refused):
            share.check(Tenant("loud"), 1)
