"""Metrics of what users feel, in the metrics of real processes: waits, tokens, resuming, takeover, stop, recording."""

import asyncio
from pathlib import Path
from signal import SIGKILL

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tailrace.deploy.local import ports
from tailrace.features.unread_tokens import gateway as unread_tokens
from tailrace.features.unread_tokens.gateway import UNREAD_TOKENS
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tests.harness.readers import read
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import Gateway

# The samples that each process must have after the story below: at least one observation each.
GATEWAY = (
    "tailrace_gateway_request_seconds_count",
    "tailrace_gateway_first_token_seconds_count",
    "tailrace_gateway_delta_gap_seconds_count",
    "tailrace_gateway_delta_delay_seconds_count",
    "tailrace_gateway_resume_seconds_count",
    "tailrace_gateway_replayed_entries_sum",
    "tailrace_gateway_stream_ends_total",
    "jetstream_stream_total_messages",
    "jetstream_stream_limit_bytes",
)
GENERATOR = (
    "gen_ai_client_operation_duration_seconds_count",
    "gen_ai_client_operation_time_to_first_chunk_seconds_count",
    "gen_ai_client_operation_time_per_output_chunk_seconds_count",
    "tailrace_generator_turn_seconds_count",
    "tailrace_generator_slots",
    "tailrace_generator_queue_wait_seconds_count",
    "tailrace_generator_append_seconds_count",
    "tailrace_generator_delta_stored_seconds_count",
    "tailrace_generator_takeover_seconds_count",
    "tailrace_generator_stop_seconds_count",
)
PERSISTENCE = ("tailrace_persistence_lag_seconds_count", "tailrace_persistence_transaction_seconds_count")


async def scrape(port: int) -> dict[str, float]:
    """Returns the sum of all series of each sample."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    sums = dict[str, float]()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


@pytest.mark.timeout(120)
async def test_waiting_times_of_readers_are_measured(tmp_path: Path) -> None:
    """A reader that resumes at another gateway, a generator that is killed, a turn that is cancelled, and its row."""
    of_gateway, of_persistence, *of_generators = ports.find_free(4)
    async with System(tmp_path) as system:
        await system.start_claude()
        parts = [
            await system.new_gateway(TAILRACE_METRICS_PORT=of_gateway),
            await system.new_persistence(TAILRACE_METRICS_PORT=of_persistence),
            *[await system.new_generator(TAILRACE_METRICS_PORT=port) for port in of_generators],
        ]
        for part in parts:
            await part.start()
        (client,) = system.clients

        posted = await client.post("/v1/turns", json={"message": "#sim words=80 rate=20 wait=1"})
        turn = posted.json()["turn"]
        cursor = (await read(client, turn, most=4)).frames[-1].seq
        await read(client, turn, most=10)
        _, process = await system.generator_of(TurnKey(Tenant("local"), TurnId(turn)))
        await process.stop(SIGKILL)
        await read(client, turn, cursor)

        running = (await client.post("/v1/turns", json={"message": "#sim words=1000 rate=20"})).json()["turn"]
        await read(client, running, most=5)
        assert (await client.post(f"/v1/turns/{running}/cancel")).is_success
        await system.wait_until_settled()

        survivor = of_generators[1 - system.generators.index(process)]
        for port, names in ((of_gateway, GATEWAY), (survivor, GENERATOR), (of_persistence, PERSISTENCE)):
            found = await scrape(port)
            assert [name for name in names if not found.get(name)] == []
            assert [name for name in found if name.endswith("_created")] == []


async def test_tokens_are_counted_that_were_generated_without_a_reader(
    gateway: Gateway, second_gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tokens of a turn without readers, some of one whose reader left, none of one read at another gateway."""
    # Not FIRST_LOOK_S: on a busy machine, the reader of the other gateway needs that second.
    monkeypatch.setattr(unread_tokens, "LOOK_EVERY_S", 0.2)

    def read_token_counts() -> dict[str, float]:
        """Returns the tokens by model that the gateways of this process have counted, also those of other tests."""
        samples = next(iter(UNREAD_TOKENS.collect())).samples
        return {sample.labels["model"]: sample.value for sample in samples if sample.name.endswith("_total")}

    before = read_token_counts()

    def count_tokens(model: str) -> float:
        return read_token_counts().get(model, 0.0) - before.get(model, 0.0)

    async def run(model: str, most: int | None) -> tuple[str, float]:
        """Runs a turn of which `most` frames are read. Returns its model, and the tokens that it generated."""
        body = {"message": "#sim words=80 rate=20", "model": model}
        turn = (await gateway.client.post("/v1/turns", json=body)).json()["turn"]
        if most != 0:
            await read(second_gateway.client, turn, most=most)

        async def tokens() -> float:
            record = (await gateway.client.get(f"/v1/turns/{turn}")).json()
            return 0.0 if record["outcome"] == "running" else float(record["usage"]["output_tokens"])

        return model, await until(tokens)

    (read_whole, _), (left, some), (unread, every) = await asyncio.gather(
        run("claude-opus-5-5", None), run("claude-haiku-5-5", 40), run("claude-sonnet-5-5", 0)
    )
    await until(lambda: count_tokens(left) and count_tokens(unread))
    assert count_tokens(unread) == every
    assert 0 < count_tokens(left) < some
    assert count_tokens(read_whole) == 0
