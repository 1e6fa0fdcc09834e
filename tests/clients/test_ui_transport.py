"""`useChat` of AI SDK 5, 6 and 7 with the transport of web/ai-sdk.js, besides what the client matrix tests."""

from typing import Any

import msgspec
import pytest

from tests.clients import node
from tests.clients.conftest import read_stored_text
from tests.clients.matrix import chat_with
from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.generator_in_loop import words
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway

LONG = "#sim words=100 rate=60"
LONGER = "#sim words=600 rate=60"

each_version = pytest.mark.parametrize("version", ["5", "6", "7"])


async def turns(gateway: Gateway, chat: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await gateway.client.get(f"/v1/sessions/{chat}/turns")).json()["turns"]
    return found


@each_version
async def test_a_lost_question_is_asked_once_and_a_reloaded_page_shows_the_answer_once(
    gateway: Gateway, version: str
) -> None:
    """The POST is cut before its status, then the answer, then the answer that a reloaded page reads, twice.

    The app chooses the key of its question. The first request of the reloaded page is answered by a proxy, with 502.
    """
    chat = f"reloaded-{version}"
    # The second page begins with the answer so far: its cuts come later than its first bytes.
    cuts = [Cut(0), Cut(1800, "fin"), Cut(2500), Cut(2000, "fin")]
    key = f"key-{version}"
    async with Cutting(gateway.port, cuts) as proxy:
        given = {"id": chat, "text": LONG, "reloads": 2, "chars": 150, "busy": 1, "sent": {"idempotency_key": key}}
        seen = await chat_with(version, proxy.url, given, history_port=gateway.port)
        assert proxy.left == []
    assert (seen["status"], seen["errors"], seen["count"]) == ("ready", [], 2)
    assert seen["text"] == words(100) == await read_stored_text(gateway, seen["turn"])
    (turn,) = await turns(gateway, chat)
    assert (turn["turn"], turn["attempts"]) == (seen["turn"], 1)
    other = await gateway.client.post("/v1/turns", json={"message": "x"}, headers={"idempotency-key": key})
    assert other.json()["error"]["code"] == "idempotency_key_reused"


async def test_the_key_of_a_question_is_not_that_of_the_results_of_its_tools() -> None:
    """`sendAutomaticallyWhen` sends them with the `body` of the question."""
    ((own, other),) = [printed["keys"] for printed in await node.run("automatic-request.mjs")]
    assert own == "own"
    assert other not in ("own", None)


@pytest.mark.proves("ui", "restart of the answer", "useChat 5 to 7 (TailraceChatTransport)")
@each_version
async def test_a_restarted_answer_is_shown_once(gateway: Gateway, version: str) -> None:
    """AI SDK 5 and 6 do not know the chunk `reset-step`: the chat receives an error and reads the answer again."""
    text = f"anew for {version}\n#sim words=30 rate=50 fault=cut@10x1"
    given = {"id": f"anew-{version}", "text": text, "body": {"on_interrupt": "restart"}}
    seen = await chat_with(version, gateway.url, given)
    assert (seen["status"], seen["errors"]) == ("ready", [] if version == "7" else ["AnswerRestarted"])
    assert seen["text"] == words(30) == await read_stored_text(gateway, seen["turn"])
    assert len(await turns(gateway, f"anew-{version}")) == 1


@each_version
async def test_a_refused_question_is_an_error_at_once(gateway: Gateway, version: str) -> None:
    """The transport repeats only what a lost connection or a busy gateway may have prevented."""
    seen = await chat_with(version, gateway.url, {"id": f"refused-{version}", "text": "#sim fault=529"})
    assert (seen["status"], len(seen["errors"])) == ("error", 1)
    assert "backend_overloaded" in seen["error"] or "529" in seen["error"]


@pytest.mark.proves("ui", "stop() ends the turn, if the app chooses so", "useChat 5 to 7 (TailraceChatTransport)")
@each_version
async def test_stop_ends_the_turn_if_the_app_chooses_so(gateway: Gateway, version: str) -> None:
    """`stop()` only closes the connection, as a closed tab does."""
    body = {"on_disconnect": "grace:0"}
    given = {"id": f"stopped-{version}", "text": LONGER, "stops": True, "chars": 80, "body": body}
    seen = await chat_with(version, gateway.url, given)
    assert (seen["status"], seen["errors"]) == ("ready", [])

    async def is_cancelled() -> bool:
        record = (await gateway.client.get(f"/v1/turns/{seen['turn']}")).json()
        assert record["outcome"] in ("running", "cancelled")
        return bool(record["outcome"] == "cancelled")

    await until(is_cancelled)


@pytest.mark.parametrize(("is_cut", "requests"), [(False, 1), (True, 2)])
async def test_a_cancelled_stream_is_not_reconnected(gateway: Gateway, is_cut: bool, requests: int) -> None:
    """The answer goes on for two seconds. A connection that was opened in the meantime is closed."""
    given = {"id": f"cancelled-{is_cut}", "text": LONG, "isCut": is_cut}
    (seen,) = await node.run("cancel-chat.mjs", KEY, gateway.url, msgspec.json.encode(given).decode())
    assert seen == {"outcome": "completed", "requests": requests, "closed": 1}
