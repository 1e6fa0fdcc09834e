"""The AsyncAPI document contains every dialect, with messages that the dialect renders."""

import json
from typing import Any

import pytest

from tailrace.features.gateway import DIALECTS
from tailrace.proto.fold import fold
from tailrace.proto.version import VERSION
from tools import asyncapi

DOCUMENT: dict[str, Any] = asyncapi.build_document(VERSION)


def test_every_dialect_the_log_and_the_websocket_are_channels() -> None:
    assert set(DOCUMENT["channels"]) == {*DIALECTS, "log", asyncapi.SOCKET}
    read = {operation["channel"]["$ref"].rpartition("/")[2] for operation in DOCUMENT["operations"].values()}
    assert read == set(DOCUMENT["channels"])


def test_dialect_is_in_the_binding_of_the_request() -> None:
    """The address of a channel has no query: AsyncAPI 3.0, Channel Object."""
    assert [one["address"] for one in DOCUMENT["channels"].values() if "?" in one["address"]] == []
    for name in DIALECTS:
        bindings = DOCUMENT["operations"][f"read_{name}".replace("-", "_")]["bindings"]
        assert bindings["http"]["query"]["properties"]["dialect"]["const"] == name


def test_example_is_a_complete_turn() -> None:
    turn = fold(asyncapi.example_turn())
    assert (turn.skipped, turn.outcome, turn.text) == (0, "completed", "Hello, world.")


@pytest.mark.parametrize("name", DIALECTS)
def test_channel_lists_the_messages_of_its_dialect(name: str) -> None:
    """Each kind of message appears once, with an example from the rendered turn."""
    messages = DOCUMENT["channels"][name]["messages"]
    rendered = list(asyncapi.render_example(DIALECTS[name]))
    assert list(messages) == list(dict(rendered))
    assert "Hel" in json.dumps([message["examples"] for message in messages.values()])


def test_channels_have_the_event_that_names_the_next_turn() -> None:
    """A message has steered the turn. The other dialects have no such event."""
    naming = {name for name in DIALECTS if asyncapi.NEXT in json.dumps(DOCUMENT["channels"][name]["messages"])}
    assert naming == {"openai-responses", "tailrace", "ui"}
    assert DOCUMENT["channels"]["tailrace"]["messages"]["steered"]["examples"][0]["payload"]["turn"] == asyncapi.NEXT
