"""`useChat` of AI SDK 5, 6 and 7 with the transport of web/ai-sdk.js, besides what the client matrix tests."""

from typing import Any

import msgspec
import pytest

from tests.clients import node
from tests.clients.conftest import read_stored_text
from tests.clients.matrix import show_chats
from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.generator_in_loop import words
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway

LONG = "#sim words=100 rate=60"
# The POST is cut before its status, then the answer, then the answer that a reloaded page reads, twice. The second page
# begins with the answer so far: its cuts come later than its first bytes.
CUTS = [Cut(0), Cut(1800, "fin"), Cut(2500), Cut(2000, "fin")]


async def turns(gateway: Gateway, chat: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await gateway.client.get(f"/v1/sessions/{chat}/turns")).json()["turns"]
    return found


@pytest.mark.proves("ui", "restart of the answer", "useChat 5 to 7 (TailraceChatTransport)")
@pytest.mark.proves("ui", "stop() ends the turn, if the app chooses so", "useChat 5 to 7 (TailraceChatTransport)")
@pytest.mark.parametrize("version", ["5", "6", "7"])
async def test_chats_that_are_cut_and_reloaded_restarted_refused_and_stopped(gateway: Gateway, version: str) -> None:
    """The first requests of a reloaded page are answered by a proxy, with 502 and 500."""
    sent = {"idempotency_key": f"key-{version}"}
    cut = {"id": "cut", "text": LONG, "reloads": 2, "chars": 150, "busy": 2, "sent": sent, "history": gateway.url}
    # The simulated Claude counts the failures of a question.
    restarting = f"anew for {version}\n#sim words=30 rate=50 fault=cut@10x1"
    stopping = {"text": "#sim words=600 rate=60", "stops": True, "chars": 80}
    changing = {"stops": True, "chars": 80, "next": "#sim words=3 rate=0"}
    async with Cutting(gateway.port, CUTS) as proxy:
        reloaded, anew, refused, stopped, changed, lost = await show_chats(
            version,
            (proxy.url, cut),
            (gateway.url, {"id": "anew", "text": restarting, "body": {"on_interrupt": "restart"}}),
            (gateway.url, {"id": "refused", "text": "#sim fault=529"}),
            (gateway.url, {"id": "stopped", **stopping, "body": {"on_disconnect": "grace:0"}}),
            (gateway.url, {"id": "changed", "text": "#sim words=600 rate=60", **changing}),
            (gateway.url, {"id": "lost", "text": LONG, "lost": 2}),
        )
        assert proxy.left == []
    await check_reloaded(gateway, reloaded, sent)
    # AI SDK 5 and 6 do not know the chunk `reset-step`: the chat receives an error and reads the answer again.
    assert (anew["status"], anew["errors"]) == ("ready", [] if version == "7" else ["AnswerRestarted"])
    assert anew["text"] == words(30) == await read_stored_text(gateway, anew["turn"])
    assert len(await turns(gateway, "anew")) == 1
    # The transport repeats only what a lost connection or a busy gateway may have prevented.
    assert (refused["status"], len(refused["errors"])) == ("error", 1)
    assert "backend_overloaded" in refused["error"] or "529" in refused["error"]
    await check_stopped(gateway, stopped)
    # The next message ends the answer. The model gets the text that the page had then.
    assert (changed["status"], changed["text"]) == ("ready", words(3))
    before, after = await turns(gateway, "changed")
    assert before["outcome"] == "cancelled"
    if after["parent"] is None:
        _, shown, last = after["input"]
        assert before["text"].startswith(shown["content"])
    else:
        # The page has received the last word before the cancellation: it has the turn as it is stored.
        assert after["parent"] == before["turn"]
        (last,) = after["input"]
    assert last["content"] == changing["next"]
    assert (lost["status"], lost["errors"], lost["text"]) == ("ready", [], words(100))
    assert [turn["turn"] for turn in await turns(gateway, "lost")] == [lost["turn"]]


async def check_reloaded(gateway: Gateway, seen: dict[str, Any], sent: dict[str, str]) -> None:
    """The question was asked once, with the key of the app, and the answer is shown once."""
    assert (seen["status"], seen["errors"], seen["count"]) == ("ready", [], 2)
    assert seen["text"] == words(100) == await read_stored_text(gateway, seen["turn"])
    (turn,) = await turns(gateway, "cut")
    assert (turn["turn"], turn["attempts"]) == (seen["turn"], 1)
    headers = {"idempotency-key": sent["idempotency_key"]}
    other = await gateway.client.post("/v1/turns", json={"message": "x"}, headers=headers)
    assert other.json()["error"]["code"] == "idempotency_key_reused"


async def check_stopped(gateway: Gateway, seen: dict[str, Any]) -> None:
    """`stop()` only closes the connection, as a closed tab does. The app has chosen that this ends the turn."""
    assert (seen["status"], seen["errors"]) == ("ready", [])

    async def is_cancelled() -> bool:
        record = (await gateway.client.get(f"/v1/turns/{seen['turn']}")).json()
        assert record["outcome"] in ("running", "cancelled")
        return bool(record["outcome"] == "cancelled")

    await until(is_cancelled)


async def test_the_key_of_a_question_is_not_that_of_the_results_of_its_tools() -> None:
    """`sendAutomaticallyWhen` sends them with the `body` of the question."""
    ((own, other),) = [printed["keys"] for printed in await node.run("automatic-request.mjs")]
    assert own == "own"
    assert other not in ("own", None)


@pytest.mark.parametrize(("is_cut", "requests"), [(False, 1), (True, 2)])
async def test_a_cancelled_stream_is_not_reconnected(gateway: Gateway, is_cut: bool, requests: int) -> None:
    """The answer goes on for two seconds. A connection that was opened in the meantime is closed."""
    given = {"id": f"cancelled-{is_cut}", "text": LONG, "isCut": is_cut}
    (seen,) = await node.run("cancel-chat.mjs", KEY, gateway.url, msgspec.json.encode(given).decode())
    assert seen == {"outcome": "completed", "requests": requests, "closed": 1}


@pytest.mark.parametrize("version", ["5", "6", "7"])
@pytest.mark.parametrize(
    ("given", "outcome"), [({"stops": True}, "cancelled"), ({"stops": False, "body": {"max_tokens": 4}}, "completed")]
)
async def test_a_page_that_sends_results_of_tools_by_itself_asks_nothing_after_a_cut_call(
    gateway: Gateway, version: str, given: dict[str, Any], outcome: str
) -> None:
    """A stop or a limit has cut the input of the call. An error of the call would be a result."""
    text = '#sim words=1 rate=3 tool=look json={"one":"a b c d e f","two":"g h i j k l"}'
    case = msgspec.json.encode({"id": "cut", "text": text, **given}).decode()
    (seen,) = await node.run("stop-tool.mjs", version, KEY, gateway.url, case)
    assert seen == {"status": "ready", "state": "input-streaming", "requests": ["POST /api/chat"]}
    assert [turn["outcome"] for turn in await turns(gateway, "cut")] == [outcome]


async def test_a_silent_connection_is_replaced(gateway: Gateway) -> None:
    """The browser has lost its network without an error, as after a change from Wi-Fi to a phone network."""
    given = {"id": "silent", "text": LONG}
    (seen,) = await node.run("silent-chat.mjs", KEY, gateway.url, msgspec.json.encode(given).decode())
    assert seen == {"text": words(100), "requests": 2}
