"""Traces: one from the client's request to the row in SQLite, also over a killed generator and a second gateway."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from signal import SIGKILL

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from structlog.testing import capture_logs

from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.runtime import tracing
from tailrace.proto.runtime.trace_export import CountedExporter
from tests.harness.cloud_endpoints import running_cloud
from tests.harness.otlp_receiver import OtlpReceiver, ReceivedSpan, otlp_receiver
from tests.harness.processes import CHECKOUT
from tests.harness.readers import read
from tests.harness.system import Settings, System
from tests.harness.until import until

MONITORING = CHECKOUT / "deploy/monitoring"
SECRET = "the quick brown fox"


class TracedSystem(System):
    """A system whose processes send traces to `endpoint`, with further variables for all of them."""

    endpoint: str
    variables: Mapping[str, str] = {}

    def environ(self, name: str) -> dict[str, str]:  # noqa: ARG002
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100", **self.variables}


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
        await system.wait_until_settled()
        turn = await system.log.read_turn(ScopedKey.whole(key))

        names = ("POST /v1/turns", "stream", "resume stream", "attempt continue", "chat", "record turn")

        def has_all() -> bool:
            return all(any(span.name.startswith(name) for span in receiver.of(trace)) for name in names)

        await until(has_all)
        spans = receiver.of(trace)

        def span_names(name: str) -> ReceivedSpan:
            return next(span for span in spans if span.name.startswith(name))

        root, attempt, chat = span_names("POST /v1/turns"), span_names("attempt continue"), span_names("chat")
        assert root.parent == client_span
        assert root.attributes["http.response.status_code"] == 202
        assert {span.parent for span in spans} <= {client_span, root.id, attempt.id}
        assert (attempt.parent, chat.parent) == (root.id, attempt.id)
        assert (
            span_names("stream").parent
            == span_names("resume stream").parent
            == span_names("record turn").parent
            == root.id
        )
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
        accepted = next(fact for gateway in system.gateways for fact in gateway.find_lines("turn accepted"))
        assert (accepted["trace_id"], accepted["span_id"]) == (trace, root.id)
        # The dashboard "One turn" and its data sources use these fields of log lines and attributes of spans.
        dashboard = (MONITORING / "dashboards/tailrace-turn.json").read_text()
        assert re.findall(r"\| json \| (\w+) = ", dashboard) == ["turn"]
        assert accepted["turn"] == key.turn
        assert re.findall(r"span\.([\w.]+) = ", dashboard) == ["tailrace.turn"]
        assert {span.attributes["tailrace.turn"] for span in spans if "tailrace.turn" in span.attributes} == {key.turn}
        (link,) = re.findall("matcherRegex: '(.*)'", (MONITORING / "provisioning/datasources/tailrace.yml").read_text())
        assert trace in re.findall(link, system.gateways[0].printed.read_text())


@pytest.mark.timeout(120)
async def test_only_requests_of_clients_are_traces(tmp_path: Path, receiver: OtlpReceiver) -> None:
    """Polls of a monitor are none, and neither are the queries of the SDK by which generators list the models."""
    async with TracedSystem(tmp_path) as system:
        system.endpoint = receiver.url
        await system.start()
        (client,) = system.clients
        for path in ("/healthz", "/health", "/readyz", "/metrics", "/v1/models"):
            assert (await client.get(path)).status_code == 200
        await client.post("/v1/turns", json={"message": "#sim words=3 rate=0"})
        await system.wait_until_settled()
        # Each process sends its spans in order.
        await until(lambda: {"record turn", "POST /v1/turns"} <= {span.name for span in receiver.spans})
        await until(lambda: any(span.name.startswith("attempt") for span in receiver.spans))
        roots = {span.name for span in receiver.spans if not span.parent}
        assert roots == {"GET /v1/models", "POST /v1/turns"}


@pytest.mark.timeout(120)
async def test_a_failover_and_the_inputs_of_a_batch_are_linked_spans(tmp_path: Path, receiver: OtlpReceiver) -> None:
    """Attempts of a turn are in its trace, linked to the attempt before. An input has a trace linked to its batch."""
    settings: Settings = {"generator": {"TAILRACE_BACKENDS": "claude, bedrock"}}
    async with running_cloud(tmp_path, is_kind=True) as second, TracedSystem(tmp_path, settings=settings) as system:
        system.endpoint, system.variables = receiver.url, second.environ
        await system.start()
        (client,) = system.clients

        async def post(path: str, body: dict[str, object], *, is_sampled: bool = True) -> str:
            """Returns the trace of the request."""
            trace = os.urandom(16).hex()
            headers = {"traceparent": f"00-{trace}-{os.urandom(8).hex()}-0{is_sampled:d}"}
            assert (await client.post(path, json=body, headers=headers)).status_code == 202
            return trace

        failed_over = await post("/v1/turns", {"message": "#sim words=40 rate=0 fault=cut@17"})
        inputs = [{"custom_id": tag, "params": {"message": f"#sim words=2 tag={tag}"}} for tag in ("ax", "bx")]
        batch = await post("/v1/turn-batches", {"requests": inputs})
        unsampled = await post("/v1/turn-batches", {"requests": inputs[:1]}, is_sampled=False)
        await system.wait_until_settled()

        def attempts(trace: str) -> list[ReceivedSpan]:
            found = [span for span in receiver.of(trace) if span.name.startswith("attempt")]
            return sorted(found, key=lambda span: span.attributes["tailrace.attempt"])

        def of_inputs() -> list[ReceivedSpan]:
            return [span for span in receiver.spans if span.name == "batch input"]

        await until(lambda: len(attempts(failed_over)) == 2)

        def has_row(span: ReceivedSpan) -> bool:
            return any(one.name == "record turn" and one.parent == span.id for one in receiver.of(span.trace))

        await until(lambda: len(of_inputs()) == 2 and all(has_row(one) and attempts(one.trace) for one in of_inputs()))
        first, then = attempts(failed_over)
        assert (first.links, then.links) == ((), (first.id,))
        calls = [span for span in receiver.of(failed_over) if span.name.startswith("chat")]
        assert {span.attributes["gen_ai.provider.name"] for span in calls} == {"anthropic", "aws.bedrock"}
        (root,) = [span for span in receiver.of(batch) if span.name == "POST /v1/turn-batches"]
        for span in of_inputs():
            (attempt,) = attempts(span.trace)
            assert (span.links, span.parent, attempt.parent) == ((root.id,), "", span.id)
        assert len({batch, *(span.trace for span in of_inputs())}) == 3
        assert receiver.of(unsampled) == []


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
                turn = await system.wait_for_end(TurnKey(Tenant("local"), TurnId(posted.json()["turn"])))
                assert turn.request is not None
                stored = turn.request.traceparent
                assert stored is not None
                assert tracing.span_context(stored) is not None
                assert stored.split("-")[1] not in hostile
            await until(lambda: receiver.spans)


def test_an_outage_of_the_collector_is_logged_once_and_so_is_its_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with otlp_receiver(status=400) as receiver, capture_logs() as ours:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(CountedExporter()))
        for status, lines in ((400, 1), (400, 1), (200, 1), (200, 1), (400, 2), (200, 2)):
            receiver.status = status
            provider.get_tracer("test").start_span("turn").end()
            assert [record.levelname for record in caplog.records] == ["ERROR"] * lines
        provider.shutdown()
    assert [line["event"] for line in ours] == ["traces are exported again"] * 2
