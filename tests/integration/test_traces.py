"""Traces: one from the client's request to the row in SQLite, also over a killed generator and a second gateway."""

import os
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

import pytest

from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.runtime import tracing
from tailrace.proto.subjects import TurnKey
from tests.harness.otlp_receiver import OtlpReceiver, ReceivedSpan, otlp_receiver
from tests.harness.readers import read
from tests.harness.system import System
from tests.harness.until import until

SECRET = "the quick brown fox"


class TracedSystem(System):
    """A system whose processes send traces to `endpoint`."""

    endpoint: str

    def environ(self, name: str) -> dict[str, str]:  # noqa: ARG002
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as running:
        yield running


@pytest.mark.timeout(120)
async def test_a_turn_is_one_trace_from_the_request_to_the_row(tmp_path: Path, receiver: OtlpReceiver) -> None:
    """The first generator is killed, and the reader resumes at another gateway."""
    trace, client_span = os.urandom(16).hex(), os.urandom(8).hex()
    async with TracedSystem(tmp_path) as system:
        system.endpoint = receiver.url
        await system.start(generators=2, gateways=2)
        one, other = system.clients
        posted = await one.post(
            "/v1/turns",
            json={"message": f"{SECRET}\n#sim words=60 rate=20"},
            headers={"traceparent": f"00-{trace}-{client_span}-01", "baggage": "user=fox"},
        )
        key = TurnKey(Tenant("local"), TurnId(posted.json()["turn"]))
        cursor = (await read(one, key.turn, most=10)).frames[-1].seq
        _, process = await system.generator_of(key)
        await process.stop(SIGKILL)
        await read(other, key.turn, cursor)
        await system.settled()
        turn = await system.log.turn(key)

        names = ("POST /v1/turns", "stream", "resume stream", "attempt continue", "chat", "record turn")

        def has_all() -> bool:
            return all(any(span.name.startswith(name) for span in receiver.of(trace)) for name in names)

        await until(has_all)
        spans = receiver.of(trace)

        def named(name: str) -> ReceivedSpan:
            return next(span for span in spans if span.name.startswith(name))

        root, attempt, chat = named("POST /v1/turns"), named("attempt continue"), named("chat")
        assert root.parent == client_span
        assert root.attributes["http.response.status_code"] == 202
        assert {span.parent for span in spans} <= {client_span, root.id, attempt.id}
        assert (attempt.parent, chat.parent) == (root.id, attempt.id)
        assert named("stream").parent == named("resume stream").parent == named("record turn").parent == root.id
        # The killed generator sent nothing: the link leads to the span whose id its entry holds.
        assert len(attempt.links) == 1
        assert attempt.links[0] not in {span.id for span in spans}
        assert turn.usage.output_tokens > 0
        assert chat.attributes["gen_ai.usage.output_tokens"] > 0
        assert chat.attributes["gen_ai.response.finish_reasons"].values[0].string_value == "end_turn"
        assert 0 < chat.attributes["gen_ai.response.time_to_first_chunk"] < chat.seconds
        assert {span.service for span in spans} == {"tailrace-gateway", "tailrace-generators", "tailrace-persistence"}
        assert b"fox" not in receiver.raw
        accept = {"accept": "application/openmetrics-text"}
        assert f'# {{trace_id="{trace}"}}' in (await one.get("/metrics", headers=accept)).text
        accepted = next(fact for gateway in system.gateways for fact in gateway.said("turn accepted"))
        assert (accepted["trace_id"], accepted["span_id"]) == (trace, root.id)


@pytest.mark.rule("S11")
@pytest.mark.timeout(120)
async def test_hostile_trace_headers_begin_a_new_trace_and_a_broken_collector_costs_no_turn(tmp_path: Path) -> None:
    with otlp_receiver(status=500) as receiver:
        async with TracedSystem(tmp_path) as system:
            system.endpoint = receiver.url
            await system.start()
            (client,) = system.clients
            for hostile in (f"00-{'0' * 32}-{'1' * 16}-01", f"00-{'A' * 32}-{'1' * 16}-01", "x" * 5000, "00-1-1-1"):
                headers = {"traceparent": hostile, "tracestate": "a=" + "b" * 5000, "baggage": "c=d"}
                posted = await client.post("/v1/turns", json={"message": "#sim words=2"}, headers=headers)
                turn = await system.ended(TurnKey(Tenant("local"), TurnId(posted.json()["turn"])))
                assert turn.request is not None
                stored = turn.request.traceparent
                assert stored is not None
                assert tracing.span_context(stored) is not None
                assert stored.split("-")[1] not in hostile
            await until(lambda: receiver.spans)
