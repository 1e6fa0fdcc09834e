"""The inputs of a new batch, without a server."""

from contextlib import AsyncExitStack
from typing import Any

import pytest

from tailrace.features.batches.new_batch import InputChecker
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.models.offer import Offer
from tailrace.gateway.settings import Settings
from tailrace.gateway.turns.draft import Draft
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.gateway.turns.request_body import MessageParam, NewTurn
from tailrace.proto.errors import Refused


async def test_an_input_with_a_file_is_refused_by_a_server_without_files() -> None:
    block: dict[str, Any] = {"type": "document", "source": {"type": "file", "file_id": "file-1"}}
    inputs = InputChecker(Draft(LOCAL, b""), Offer(), OptionalSteps(), AsyncExitStack(), Settings(), "messages", str)
    await inputs.add("one", NewTurn(message="hi"))
    with pytest.raises(Refused, match="`file_id` is not supported by this server"):
        await inputs.add("two", NewTurn(messages=[MessageParam(role="user", content=[block])]))
    assert inputs.names == {"one"}


async def test_an_input_with_the_email_address_of_a_user_gets_a_pseudonym() -> None:
    """As a turn does: the user of the turn stays."""
    draft = Draft(LOCAL, b"")
    inputs = InputChecker(
        draft, Offer(), OptionalSteps(), AsyncExitStack(), Settings(), "message_batches", "x{}".format
    )
    await inputs.add("one", NewTurn(message="hi", options={"metadata": {"user_id": "a@b.example"}}, user="a@b.example"))
    (request,) = inputs.requests
    assert (request.user, request.options) == ("a@b.example", {"metadata": {"user_id": "xa@b.example"}})
