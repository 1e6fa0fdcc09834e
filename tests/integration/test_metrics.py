"""Metrics of what users feel, in the metrics of real processes: waits, tokens, resuming, takeover, stop, recording."""

import re
from pathlib import Path
from signal import SIGKILL
from typing import get_args

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tailrace.deploy.local import ports
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.monitoring.rules import SERVICE_LEVELS
from tailrace.features.gateway import FEATURES
from tailrace.gateway.app import dialects_of
from tailrace.gateway.metrics import StreamEnd
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tests.harness import processes
from tests.harness.readers import read
from tests.harness.system import System

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
        # The first turn was ended by a generator that might have been killed since, before a scrape.
        assert (await scrape(of_persistence))["tailrace_persistence_turns_ended_total"] == 2


async def test_each_series_of_a_service_level_exists_from_the_start_of_a_gateway(
    own_server: NatsServer, tmp_path: Path
) -> None:
    """For Prometheus, a series that appears with its first event has not grown: the event would be missing."""
    [port] = ports.find_free(1)
    async with (
        processes.gateway(tmp_path, own_server.url, TAILRACE_METRICS_PORT=port),
        httpx2.AsyncClient(trust_env=False) as client,
    ):
        text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(sample.name, *sample.labels.values()) for sample in samples}
    expected: set[tuple[str, ...]] = {
        ("tailrace_gateway_first_token_seconds_count", name) for name in dialects_of(FEATURES)
    }
    expected |= {("tailrace_gateway_stream_ends_total", end) for end in get_args(StreamEnd)}
    expected.add(("tailrace_gateway_resume_seconds_count",))
    assert expected - found == set()
    # No other metric is in a service level.
    named = {name for level in SERVICE_LEVELS for name in re.findall(r"tailrace_\w+", level.bad + level.every)}
    assert {name.replace("_bucket", "_count") for name in named} == {name for name, *_ in expected}
