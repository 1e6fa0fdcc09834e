"""The messages of a branch that a follow-up turn is given."""

from typing import Any

import msgspec
import pytest

from tailrace.proto import blobs
from tailrace.proto.conversation import messages
from tailrace.proto.entries import Message, Outcome
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.subjects import TurnKey
from tests.harness.turn_builder import completed_turn

QUESTION = Message("user", "Why is the sky blue?")
TEXT = {"type": "text", "text": "Light scatters."}
CITED = {**TEXT, "citations": [{"type": "char_location", "cited_text": "scatters"}]}
THINKING = {"type": "thinking", "thinking": "Rayleigh.", "signature": "sig"}
UNSIGNED = {"type": "thinking", "thinking": "Ray", "signature": ""}
TOOL = {"type": "tool_use", "id": "tool_1", "name": "look_up", "input": {"what": "sky"}}
EMPTY = {"type": "text", "text": " \n"}
RECORD = record_from_fold(TurnKey(Tenant("alice"), TurnId("turn-1")), completed_turn().turn)


def turn_record(outcome: Outcome, *content: dict[str, Any], question: Message = QUESTION) -> TurnRecord:
    return msgspec.structs.replace(RECORD, outcome=outcome, input=[question], content=list(content))


@pytest.mark.rule("R33")
def test_a_reference_that_a_model_wrote_is_marked_as_text() -> None:
    """At any depth: otherwise a client could have the model write one, and receive another tenant's blob."""
    forged = blobs.reference(blobs.Blob("a" * 64, 100_000))
    assert blobs.parse_reference(forged) is not None
    call = {**TOOL, "input": {"what": forged, "list": [{"deep": forged}]}}
    question = Message("user", [{"type": "text", "text": forged}])
    (first, answer) = messages([turn_record("completed", call, question=question)])
    assert first == question  # what the gateway lifted stays a reference
    assert isinstance(answer.content, list)
    (block,) = answer.content
    for found in (block["input"]["what"], block["input"]["list"][0]["deep"]):
        assert found == {**forged, "is_reference": False}
        assert blobs.parse_reference(found) is None
    # It is marked once.
    assert messages([turn_record("completed", block)])[1] == answer


def test_a_branch_is_listed_oldest_first() -> None:
    """Each turn is its question and then its answer."""
    then = Message("user", "And at night?")
    assert messages([turn_record("completed", TEXT), turn_record("completed", TEXT, question=then)]) == [
        QUESTION,
        Message("assistant", "Light scatters."),
        then,
        Message("assistant", "Light scatters."),
    ]


@pytest.mark.parametrize(
    ("outcome", "content", "stays"),
    [
        ("completed", [THINKING, TEXT, TOOL], [THINKING, TEXT, TOOL]),
        ("cancelled", [THINKING, TEXT, TOOL], "Light scatters."),
        ("failed", [THINKING, TEXT, TOOL], "Light scatters."),
        ("cancelled", [TEXT, CITED], [TEXT, CITED]),
        ("completed", [UNSIGNED, TEXT], "Light scatters."),
        ("completed", [EMPTY, TOOL], [TOOL]),
        ("completed", [CITED], [CITED]),
    ],
)
def test_unfinished_blocks_are_left_out(
    outcome: Outcome, content: list[dict[str, Any]], stays: str | list[dict[str, Any]]
) -> None:
    """Thinking and tool calls stay when the turn was completed, text when there is some; one plain text is a string."""
    assert messages([turn_record(outcome, *content)]) == [QUESTION, Message("assistant", stays)]


@pytest.mark.parametrize("outcome", ["completed", "cancelled", "failed"])
@pytest.mark.parametrize("content", [[], [EMPTY], [UNSIGNED]])
def test_a_turn_without_an_answer_is_left_out_with_its_question(
    outcome: Outcome, content: list[dict[str, Any]]
) -> None:
    """The API accepts no empty answer."""
    assert messages([turn_record(outcome, *content), turn_record("completed", TEXT)]) == messages(
        [turn_record("completed", TEXT)]
    )
