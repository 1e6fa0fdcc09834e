"""A turn that brings its own history cannot be queued."""

import pytest

from tailrace.features.queued_turns.gateway import check_queue
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.errors import Refused


def test_a_turn_with_its_own_history_is_not_queued() -> None:
    """The conversation of the session would be in its call a second time."""
    check_queue(NewTurn(message="hi", on_busy="queue"))
    with pytest.raises(Refused, match="send only the new messages") as refused:
        check_queue(NewTurn(full_history=True))
    assert refused.value.param == "on_busy"
