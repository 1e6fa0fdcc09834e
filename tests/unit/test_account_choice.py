"""No client may choose the workspace of a call, or another party that pays."""

from typing import Any

import pytest
from starlette.datastructures import Headers

from tailrace.gateway.turns.account_choice import HEADERS
from tailrace.gateway.turns.request_body import MessageParam, NewTurn, check_turn
from tailrace.proto.errors import Refused
from tailrace.protocols.anthropic.request import MessagesRequest, build_turn

BILLED = {"type": "billing_policy", "bill_to": "user_profile"}
BODY = MessagesRequest(max_tokens=1, messages=[MessageParam("user", "hi")])


@pytest.mark.rule("R133")
@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_chooses_an_account_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="not supported") as refused:
        build_turn(BODY, {}, Headers({name: "x"}))
    assert (refused.value.code, refused.value.param) == ("request_invalid", name)


@pytest.mark.rule("R133")
@pytest.mark.parametrize(
    "options", [{"user_profile_id": "uprof_1"}, {"workspace_id": "wrkspc_1"}, {"billing_policy": BILLED}]
)
def test_a_field_that_chooses_an_account_is_refused(options: dict[str, Any]) -> None:
    """In each protocol, and in each input of a batch: all become a NewTurn."""
    with pytest.raises(Refused, match="not supported"):
        check_turn(NewTurn(message="hi", options=options))


def test_the_default_billing_is_accepted() -> None:
    """It says that the server's account pays."""
    check_turn(NewTurn(message="hi", options={"billing_policy": {"type": "billing_policy", "bill_to": "self"}}))
