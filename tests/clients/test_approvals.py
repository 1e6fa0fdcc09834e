"""Calls of tools that wait for a person: the SDKs' own approvals, and decisions in a chat of `useChat`."""

from pathlib import Path
from typing import Any

import pytest

from tests.clients import node
from tests.harness.generator_in_loop import words
from tests.harness.system import System
from tests.integration.conftest import KEY, Gateway, NewGateway

DENIED = "the user denied this tool call"


async def waiting(gateway: Gateway) -> list[str]:
    """Returns the sessions that require action."""
    found = (await gateway.client.get("/v1/sessions?state=requires_action")).json()["data"]
    return [one["session"] for one in found]


async def turns(gateway: Gateway, session: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await gateway.client.get(f"/v1/sessions/{session}/turns")).json()["turns"]
    return found


@pytest.mark.parametrize(("sdk", "tabs"), [("agents", 1), ("ai-sdk", 2)])
async def test_a_call_is_approved_by_another_process_after_a_restart_of_the_gateway(
    gateway: Gateway, new_gateway: NewGateway, system: System, tmp_path: Path, sdk: str, tabs: int
) -> None:
    """The session requires action meanwhile. The SDK runs the tool and sends the conversation with its result.

    AI SDK runs the tool in each tab that approves. With `Idempotency-Key: auto`, the model is called once.
    """
    script = ("approvals.mjs", sdk, KEY)
    [asked] = await node.run(*script, gateway.url, "trip", str(tmp_path / "state"))
    assert asked == {"waits": ["look"], "ran": []}
    assert await waiting(gateway) == ["trip"]
    other = await new_gateway(system.nats_url)
    [approved] = await node.run(*script, other.url, "trip", str(tmp_path / "state"))
    assert approved == {"text": words(2), "ran": ["the sky"] * tabs}
    assert await waiting(other) == []
    first, second = await turns(other, "trip")
    assert (first["parent"], second["parent"]) == (None, first["turn"])


@pytest.mark.parametrize("version", ["5", "6", "7"])
async def test_a_call_in_a_chat_is_decided_once_in_tabs_that_are_opened_later(
    gateway: Gateway, new_gateway: NewGateway, system: System, version: str
) -> None:
    """Each tab that decides the same shows the answer that goes on in the message, and the chat has no branch."""
    script = ("decide-in-tabs.mjs", version, KEY)
    [asked] = await node.run(*script, gateway.url, "trip")
    assert asked["parts"] == [[words(2), ["input-available", None]]]
    assert await waiting(gateway) == ["trip"]
    other = await new_gateway(system.nats_url)
    *decided, watching, went_on, late = await node.run(*script, other.url, "trip", "blue", "blue")
    answer = [words(2), ["output-available", "blue"], words(2)]
    # Also the tab that has not decided shows the call with its result.
    for tab in [*decided, watching]:
        assert (tab["status"], tab["error"], tab["refused"]) == ("ready", None, None)
        assert tab["parts"] == [answer]
    assert decided[0]["turns"] == decided[1]["turns"]
    assert went_on["parts"] == [answer, [words(3)]]
    # It is read by its id, although the chat has a newer turn, with the steps before it.
    assert (late["parts"], late["turns"]) == ([answer], went_on["turns"][:1])
    first, *found = await turns(other, "trip")
    assert [one["turn"] for one in found] == went_on["turns"]
    assert [one["parent"] for one in found] == [first["turn"], *went_on["turns"][:-1]]


async def test_of_two_different_decisions_in_a_chat_one_is_refused(gateway: Gateway) -> None:
    """The first one counts, and a tab that denied has the same conversation as the log."""
    await node.run("decide-in-tabs.mjs", 7, KEY, gateway.url, "denied")
    only, _, went_on, _ = await node.run("decide-in-tabs.mjs", 7, KEY, gateway.url, "denied", "denied")
    assert (only["refused"], only["parts"][0][1]) == (None, ["output-error", DENIED])
    first, *found = await turns(gateway, "denied")
    assert [one["parent"] for one in found] == [first["turn"], *went_on["turns"][:-1]]
    await node.run("decide-in-tabs.mjs", 7, KEY, gateway.url, "raced")
    *tabs, _, _, _ = await node.run("decide-in-tabs.mjs", 7, KEY, gateway.url, "raced", "blue", "denied")
    assert {tab["refused"] for tab in tabs} == {None, "call_decided"}
    assert len(await turns(gateway, "raced")) == 3
