"""The core alone, with the processes of a user and without any feature: `make test-core`.

POST, stream, cut, kill, resume, record and metrics work, and no process has loaded a module of a feature.
"""

from pathlib import Path
from signal import SIGKILL

import httpx2
import pytest

from tailrace.deploy.local import ports
from tailrace.generators.serve import preflight
from tailrace.generators.settings import Settings
from tailrace.proto.errors import SettingsInvalid
from tests.harness.generator_in_loop import words
from tests.harness.processes import Process
from tests.harness.system import System
from tests.harness.until import until

WORDS = 60
QUESTION = {"message": f"#sim words={WORDS} rate=20"}
ABSENT = (
    "/v1/files",
    "/v1/turn-batches",
    "/v1/batches",
    "/v1/messages",
    "/v1/messages/batches",
    "/v1/sessions/a/events",
    "/v1/prompts",
    "/chat/stream",
    "/v1/models",
    "/v1/sessions/a/cancel",
    "/api/chat/a/messages",
)
WITH_FILE = [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "file-1"}}]}]


class CoreProcess(Process):
    """A process of the core, of which no test has imported anything before."""

    def __init__(self, module: str, folder: Path, **environ: object) -> None:
        [self.metrics_port] = ports.find_free(1)
        environ |= {"TAILRACE_METRICS_PORT": self.metrics_port}
        super().__init__("tests.core.run_process", folder, module, **environ)

    async def metrics(self) -> str:
        async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
            return (await client.get(f"http://127.0.0.1:{self.metrics_port}/metrics")).text


async def refuses_what_features_do(gateway: httpx2.AsyncClient) -> None:
    """A field of an absent feature is named; its routes do not exist."""
    refused = (await gateway.post("/v1/turns", json={"messages": WITH_FILE})).json()["error"]
    assert (refused["code"], refused["message"]) == (
        "request_invalid",
        "`file_id` is not supported by this server: leave it out",
    )
    costly = (await gateway.post("/v1/turns", json=QUESTION | {"max_cost": 1})).json()["error"]
    assert costly["message"] == "`max_cost` is not supported by this server: leave it out"
    for path in ABSENT:
        assert (await gateway.get(path)).json()["error"]["code"] == "route_not_found"
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    handshake = await gateway.get("/v1/responses", headers=upgrade | {"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="})
    assert (handshake.status_code, handshake.json()["error"]["code"]) == (404, "route_not_found")
    refused = (await gateway.post("/v1/turns?dialect=anthropic", json=QUESTION)).json()["error"]
    assert (refused["code"], refused["message"]) == (
        "dialect_unknown",
        "`dialect` must be one of tailrace, text",
    )


@pytest.mark.parametrize(
    "backends", ["claude_code", "claude, litellm:openai/gpt-4o", "claude; claude-opus-5-5 = bedrock"]
)
async def test_the_core_refuses_the_backend_of_a_feature_and_says_what_to_do(backends: str) -> None:
    """Before any call: otherwise a turn would wait for a backend that does not exist."""
    settings = Settings(backends=backends, anthropic_api_key="sk-test")
    with pytest.raises(SettingsInvalid, match=r"not one of claude: name one of these, or .*features/backends\.py"):
        await preflight(settings)


@pytest.mark.timeout(120)
async def test_a_turn_is_streamed_cut_taken_over_resumed_and_recorded_without_features(tmp_path: Path) -> None:
    async with System(tmp_path, launch=CoreProcess) as system:
        await system.start()
        [gateway] = system.clients
        turn = (await gateway.post("/v1/turns", json=QUESTION)).json()["turn"]
        await refuses_what_features_do(gateway)

        events, cursor = list[str](), ""
        async with gateway.stream("GET", f"/v1/turns/{turn}/events") as stream:
            async for line in stream.aiter_lines():
                cursor = line.removeprefix("id: ") if line.startswith("id: ") else cursor
                events += [line] * line.startswith("data: ")
                if len(events) == 10:
                    break
        await system.generators[0].stop(SIGKILL)
        await (await system.new_generator()).start()
        rest = await gateway.get(f"/v1/turns/{turn}/events", headers={"last-event-id": cursor}, timeout=60)
        assert rest.text.count("id: ") > 0
        assert cursor not in rest.text.split()

        async def is_recorded() -> bool:
            answer = await gateway.get(f"/v1/sessions/{session}/turns")
            return [each["outcome"] for each in answer.json()["turns"]] == ["completed"]

        record = (await gateway.get(f"/v1/turns/{turn}")).json()
        session = record["session"]
        assert (record["outcome"], record["attempts"]) == ("completed", 2)
        assert record["content"][0]["text"] == words(WORDS)
        await until(is_recorded)

        for name, metric in {
            "gateway-0": "tailrace_gateway_turns_accepted_total 1.0",
            "generator-1": 'tailrace_generator_ends_total{outcome="completed"} 1.0',
            "persistence": "tailrace_persistence_turns_recorded_total",
        }.items():
            process = system.processes[name]
            assert isinstance(process, CoreProcess)
            assert metric in await process.metrics(), name
            await process.stop()
            assert "\nfeatures: []\n" in process.printed.read_text(), name
