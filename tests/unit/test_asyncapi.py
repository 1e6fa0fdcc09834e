"""The streams' document: every dialect is in it, with messages that it really sends."""

import json
from typing import Any

import pytest

from tailrace.gateway.clients.registry import DIALECTS
from tailrace.proto.fold import fold
from tailrace.proto.version import VERSION
from tests.saying import SAYS
from tools import asyncapi

DOCUMENT: dict[str, Any] = asyncapi.build_document(VERSION)


def test_every_dialect_and_the_log_are_channels() -> None:
    """And each of them can be read."""
    assert set(DOCUMENT["channels"]) == {*DIALECTS, "log"}
    read = {operation["channel"]["$ref"].rpartition("/")[2] for operation in DOCUMENT["operations"].values()}
    assert read == set(DOCUMENT["channels"])


def test_the_example_is_a_whole_turn() -> None:
    """Every entry of it is valid, and it ends."""
    turn = fold(asyncapi.example_turn())
    assert (turn.skipped, turn.outcome, turn.text) == (0, "completed", "Hello, world.")


@pytest.mark.parametrize("name", DIALECTS)
def test_what_a_channel_shows_is_what_its_dialect_says(name: str) -> None:
    """Each kind of message once, in the words of the example: a client written from it shows the answer."""
    messages = DOCUMENT["channels"][name]["messages"]
    said = list(asyncapi.render_example(DIALECTS[name]))
    assert list(messages) == list(dict(said))
    assert "Hel" in json.dumps([message["examples"] for message in messages.values()])
    assert set(SAYS) == set(DIALECTS)
