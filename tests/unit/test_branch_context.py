"""The messages of a branch that a follow-up turn is given."""

from typing import Any

import msgspec
import pytest

from tailrace.proto import blobs
from tailrace.proto.conversation import accepted_before, messages, open_container, read_history
from tailrace.proto.entries import Failure, Message, Outcome
from tailrace.proto.ids import TurnId
from tailrace.proto.records import TurnRecord, record_from_fold
from tests.harness.turn_builder import KEY, completed_turn

QUESTION = Message("user", "Why is the sky blue?")
TEXT = {"type": "text", "text": "Light scatters."}
CITED = {**TEXT, "citations": [{"type": "char_location", "cited_text": "scatters"}]}
THINKING = {"type": "thinking", "thinking": "Rayleigh.", "signature": "sig"}
UNSIGNED = {"type": "thinking", "thinking": "Ray", "signature": ""}
TOOL = {"type": "tool_use", "id": "tool_1", "name": "look_up", "input": {"what": "sky"}}
NEVER_MIND = Message("user", "never mind")
TEXT_ONLY = Message("assistant", "Light scatters.")
EMPTY = {"type": "text", "text": " \n"}
RECORD = record_from_fold(KEY, completed_turn().turn)


def turn_record(outcome: Outcome, *content: dict[str, Any], question: Message = QUESTION) -> TurnRecord:
    return msgspec.structs.replace(RECORD, outcome=outcome, input=[question], content=list(content))


@pytest.mark.parametrize("outcome", ["completed", "failed"])
@pytest.mark.rule("R132")
def test_a_message_keeps_its_fields(outcome: Outcome) -> None:
    question = Message("system", [], {"effort": "low"})
    assert messages([turn_record(outcome, TEXT, question=question)])[0] == question


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


def failed_turn(code: str, question: Message = QUESTION) -> TurnRecord:
    return msgspec.structs.replace(turn_record("failed", question=question), error=Failure(code, "it failed"))


@pytest.mark.rule("R112")
@pytest.mark.parametrize(
    "unanswered",
    [
        *(turn_record(outcome, question=NEVER_MIND) for outcome in ("completed", "cancelled", "failed")),
        *(turn_record("completed", block, question=NEVER_MIND) for block in (EMPTY, UNSIGNED)),
        turn_record("cancelled", THINKING, question=NEVER_MIND),
        *(failed_turn(code, NEVER_MIND) for code in ("backend_overloaded", "deadline_exceeded", "code_of_2030")),
    ],
    ids=["completed", "cancelled", "failed", "empty", "unsigned", "thinking", "overloaded", "deadline", "newer code"],
)
def test_the_question_of_a_turn_without_an_answer_stays(unanswered: TurnRecord) -> None:
    """The session shows it. The API accepts consecutive questions, and no empty answer."""
    assert messages([unanswered, turn_record("completed", TEXT)]) == [NEVER_MIND, QUESTION, TEXT_ONLY]


REFUSED = {
    "by the API": failed_turn("backend_refused_request", NEVER_MIND),
    "a picture has expired": failed_turn("blob_expired", NEVER_MIND),
    "by the model": msgspec.structs.replace(turn_record("completed", question=NEVER_MIND), stop_reason="refusal"),
}


@pytest.mark.rule("R112")
@pytest.mark.parametrize("case", REFUSED)
def test_the_question_of_a_refused_turn_is_left_out(case: str) -> None:
    """With it, every later message of the session would be refused."""
    answered, refused = turn_record("completed", TEXT), REFUSED[case]
    history = read_history([answered, refused, turn_record("cancelled", question=NEVER_MIND)])
    assert history.messages == [QUESTION, TEXT_ONLY, NEVER_MIND]
    assert [count for _, count in history.ends] == [2, 2, 3]
    assert history.left_out == {refused.turn: [NEVER_MIND]}


@pytest.mark.rule("R112")
def test_an_answer_that_ends_with_a_refusal_is_left_out_with_its_question() -> None:
    """Anthropic's page "Handle streaming refusals": otherwise the model goes on refusing. A later answer stays."""
    refused = msgspec.structs.replace(REFUSED["by the model"], content=[TEXT])
    history = read_history([refused, turn_record("completed", TEXT)])
    assert history.messages == [QUESTION, TEXT_ONLY]
    # A client that sends the whole conversation sends the half answer, too.
    assert history.left_out == {refused.turn: [NEVER_MIND, TEXT_ONLY]}


PROGRAM = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "code_execution", "input": {}}
BY_PROGRAM = TOOL | {"caller": {"type": "code_execution_20250825", "tool_id": "srvtoolu_1"}}


@pytest.mark.parametrize(
    ("content", "stop_reason", "part", "container"),
    [
        ([PROGRAM, BY_PROGRAM], "tool_use", "delta", "container_1"),
        ([PROGRAM, BY_PROGRAM], "tool_use", "message", "container_1"),
        ([PROGRAM, BY_PROGRAM], "tool_use", "usage", None),
        ([PROGRAM, TOOL], "tool_use", "delta", None),
        ([PROGRAM, BY_PROGRAM], "max_tokens", "delta", None),
    ],
)
def test_a_container_in_which_code_waits_for_results_is_named(
    content: list[dict[str, Any]], stop_reason: str, part: str, container: str | None
) -> None:
    envelope = {part: {"container": {"id": "container_1", "expires_at": "2030-01-01T00:00:00Z"}}}
    turn = msgspec.structs.replace(turn_record("completed", *content), stop_reason=stop_reason, envelope=envelope)
    assert open_container(turn) == container


RESULTS = Message("user", [{"type": "tool_result", "tool_use_id": TOOL["id"], "content": "1"}])


def test_each_turn_of_a_branch_has_the_container_in_which_code_waits_then() -> None:
    """Code waits from its first call of a client's tool to the end of the answer; a failed turn answers no call."""
    envelope = {"delta": {"container": {"id": "container_1"}}}
    called = turn_record("completed", PROGRAM, BY_PROGRAM)
    called = msgspec.structs.replace(called, turn=TurnId("1"), stop_reason="tool_use", envelope=envelope)
    failed = msgspec.structs.replace(turn_record("failed"), turn=TurnId("2"), stop_reason=None)
    goes_on = msgspec.structs.replace(turn_record("completed", TOOL, question=RESULTS), stop_reason="tool_use")
    ends = turn_record("completed", TEXT, question=RESULTS)
    branch = [called, failed, *(msgspec.structs.replace(goes_on, turn=TurnId(one)) for one in "34")]
    assert read_history(branch).containers == dict.fromkeys("1234", "container_1")
    assert read_history([*branch, msgspec.structs.replace(ends, turn=TurnId("5"))]).containers.keys() == {*"1234"}
    asked = msgspec.structs.replace(goes_on, turn=TurnId("6"), input=[QUESTION])
    assert read_history([*branch, asked]).containers.keys() == {*"1234"}


@pytest.mark.rule("R112")
def test_a_second_refusal_also_leaves_out_the_unanswered_questions_before() -> None:
    """A question that no model has answered may be the reason of both refusals, such as a picture that is invalid."""
    untested = turn_record("cancelled", question=Message("user", "untested"))
    refused = failed_turn("backend_refused_request", NEVER_MIND)
    answered = turn_record("completed", TEXT)
    before = [QUESTION, TEXT_ONLY]
    assert messages([answered, untested, refused]) == [*before, *untested.input]
    assert messages([answered, untested, refused, untested, refused]) == before
    assert messages([answered, untested, refused, refused, untested]) == [*before, *untested.input]
    assert messages([untested, refused, answered, refused]) == [*untested.input, *before]


CALL = Message("assistant", [TEXT, TOOL])
SECOND = {**TOOL, "id": "tool_2"}
BOTH = Message("assistant", [TOOL, SECOND])


def result(call: str, text: str = "blue") -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call, "content": text}


def results(*calls: str, text: str = "blue") -> Message:
    return Message("user", [result(call, text) for call in calls])


NOTE = {"type": "text", "text": "and hurry"}
# The history, the new messages, and the history that the API accepts before them.
CODE = {"type": "server_tool_use", "id": "code_1", "name": "code_execution", "input": {}}
CODE_CALL = {**TOOL, "caller": {"type": "code_execution_20260120", "tool_id": "code_1"}}

HISTORIES: dict[str, tuple[list[Message], list[Message], list[Message]]] = {
    "no result": ([QUESTION, CALL], [NEVER_MIND], [QUESTION, TEXT_ONLY]),
    "no result, and nothing but the call": ([QUESTION, BOTH], [NEVER_MIND], [QUESTION]),
    "no result, long ago": (
        [QUESTION, CALL, NEVER_MIND, TEXT_ONLY],
        [NEVER_MIND],
        [QUESTION, TEXT_ONLY, NEVER_MIND, TEXT_ONLY],
    ),
    "a result in the new message": ([QUESTION, CALL], [results("tool_1")], [QUESTION, CALL]),
    "one of two results": ([QUESTION, BOTH], [results("tool_1")], [QUESTION, Message("assistant", [TOOL])]),
    "a result with text": (
        [QUESTION, CALL, Message("user", [result("tool_1"), NOTE])],
        [NEVER_MIND],
        [QUESTION, CALL, Message("user", [result("tool_1"), NOTE])],
    ),
    "a result that is sent again": ([QUESTION, CALL, results("tool_1")], [results("tool_1")], [QUESTION, CALL]),
    "a result after another message": ([QUESTION, CALL, NEVER_MIND], [results("tool_1")], [QUESTION, NEVER_MIND, CALL]),
    "a result after another message, in the history": (
        [QUESTION, CALL, NEVER_MIND, results("tool_1"), TEXT_ONLY],
        [NEVER_MIND],
        [QUESTION, CALL, results("tool_1"), NEVER_MIND, TEXT_ONLY],
    ),
    "two results in two messages": (
        [QUESTION, BOTH, results("tool_1"), results("tool_2"), TEXT_ONLY],
        [NEVER_MIND],
        [QUESTION, BOTH, results("tool_1", "tool_2"), TEXT_ONLY],
    ),
    "two results of a call": (
        [QUESTION, CALL, results("tool_1"), results("tool_1", text="red"), TEXT_ONLY],
        [NEVER_MIND],
        [QUESTION, CALL, results("tool_1", text="red"), TEXT_ONLY],
    ),
    "a result without its call": (
        [QUESTION, TEXT_ONLY, results("tool_9"), Message("user", [result("tool_9"), NOTE]), TEXT_ONLY],
        [NEVER_MIND],
        [QUESTION, TEXT_ONLY, Message("user", [NOTE]), TEXT_ONLY],
    ),
    "thinking before the call": (
        [QUESTION, Message("assistant", [THINKING, TEXT, THINKING, TOOL])],
        [NEVER_MIND],
        [QUESTION, Message("assistant", [THINKING, TEXT])],
    ),
    "a server tool that made the call": (
        [QUESTION, Message("assistant", [TEXT, {"type": "server_tool_use", "id": "code_1"}, TOOL])],
        [NEVER_MIND],
        [QUESTION, TEXT_ONLY],
    ),
    "a server tool whose code goes on": (
        [QUESTION, Message("assistant", [TEXT, CODE, CODE_CALL])],
        [results("tool_1")],
        [QUESTION, Message("assistant", [TEXT, CODE, CODE_CALL])],
    ),
    "a server tool whose code had its result later": (
        [
            QUESTION,
            Message("assistant", [CODE, CODE_CALL]),
            results("tool_1"),
            Message("assistant", [CODE_CALL | {"id": "tool_2"}]),
            results("tool_2"),
            Message("assistant", [{"type": "code_execution_tool_result", "tool_use_id": "code_1"}, TEXT]),
        ],
        [NEVER_MIND],
        [
            QUESTION,
            Message("assistant", [CODE, CODE_CALL]),
            results("tool_1"),
            Message("assistant", [CODE_CALL | {"id": "tool_2"}]),
            results("tool_2"),
            Message("assistant", [{"type": "code_execution_tool_result", "tool_use_id": "code_1"}, TEXT]),
        ],
    ),
    # The turn with the client's results was cancelled, or failed.
    "a server tool whose code never ended": (
        [QUESTION, Message("assistant", [TEXT, CODE, CODE_CALL]), results("tool_1"), TEXT_ONLY],
        [NEVER_MIND],
        [QUESTION, TEXT_ONLY, TEXT_ONLY],
    ),
    "a server tool beside the client's, without its result": (
        [QUESTION, Message("assistant", [TEXT, CODE, TOOL]), results("tool_1")],
        [NEVER_MIND],
        [QUESTION, Message("assistant", [TEXT, TOOL]), results("tool_1")],
    ),
    "a call that the client's message came before": (
        [QUESTION, Message("assistant", [TEXT, CODE, CODE_CALL]), NEVER_MIND],
        [results("tool_1")],
        [QUESTION, NEVER_MIND, Message("assistant", [TEXT, CODE, CODE_CALL])],
    ),
    # The client sent a paused answer back, and that turn failed.
    "a paused answer": ([QUESTION, Message("assistant", [TEXT, CODE])], [NEVER_MIND], [QUESTION, TEXT_ONLY]),
    "a paused answer without text": ([QUESTION, Message("assistant", [CODE])], [NEVER_MIND], [QUESTION]),
}


@pytest.mark.rule("R111")
@pytest.mark.parametrize("case", HISTORIES)
def test_each_tool_call_of_the_history_has_its_result_directly_after_it(case: str) -> None:
    """The API refuses any other request, and with it every later message of the session."""
    history, new, accepted = HISTORIES[case]
    assert accepted_before(new, history) == accepted


MALFORMED = [
    {"id": None},
    {"id": ["tool_1"]},
    {"id": ""},
    {"name": None},
    {"name": ""},
    {"input": [1]},
    {"input": None},
]


@pytest.mark.rule("R111")
@pytest.mark.parametrize("change", MALFORMED, ids=str)
def test_a_malformed_tool_call_is_left_out(change: dict[str, Any]) -> None:
    """Of a client's messages in a cancelled turn, or of a model of another provider."""
    malformed = {**SECOND, **change}
    answered = results("tool_1", str(malformed["id"]))
    assert accepted_before([QUESTION], [QUESTION, Message("assistant", [TOOL, malformed]), answered]) == [
        QUESTION,
        Message("assistant", [TOOL]),
        results("tool_1"),
    ]


SERVER_CALL = {"type": "server_tool_use", "id": "search_1", "name": "web_search", "input": {}}
SERVER_RESULT = {"type": "web_search_tool_result", "tool_use_id": "search_1", "content": []}
PAUSED = Message("assistant", [TEXT, SERVER_CALL])
REST = Message("assistant", [SERVER_RESULT, NOTE])
WHOLE = Message("assistant", [TEXT, SERVER_CALL, SERVER_RESULT, NOTE])


@pytest.mark.rule("R111")
@pytest.mark.parametrize(
    ("history", "new", "accepted"),
    [
        ([QUESTION, PAUSED, REST], [NEVER_MIND], [QUESTION, WHOLE]),
        # The client has sent the answer back in a turn of its own, after the stored one.
        ([QUESTION, TEXT_ONLY, PAUSED, REST], [NEVER_MIND], [QUESTION, WHOLE]),
        ([QUESTION, TEXT_ONLY], [PAUSED], [QUESTION]),
        ([QUESTION, PAUSED, REST, results("tool_9")], [NEVER_MIND], [QUESTION, WHOLE]),
        # A second pause that was not sent back, and messages that no pause explains.
        (
            [QUESTION, PAUSED, Message("assistant", [SERVER_RESULT, SERVER_CALL | {"id": "search_2"}]), NEVER_MIND],
            [Message("assistant", "a")],
            [QUESTION, Message("assistant", [TEXT, SERVER_CALL, SERVER_RESULT]), NEVER_MIND],
        ),
        ([QUESTION, TEXT_ONLY, TEXT_ONLY], [Message("assistant", "a")], [QUESTION, TEXT_ONLY, TEXT_ONLY]),
        ([QUESTION, TEXT_ONLY, REST], [NEVER_MIND], [QUESTION, TEXT_ONLY, REST]),
    ],
)
def test_a_paused_answer_that_was_sent_back_is_one_message_with_its_rest(
    history: list[Message], new: list[Message], accepted: list[Message]
) -> None:
    assert accepted_before(new, history) == accepted


def test_a_summary_without_text_is_left_out() -> None:
    """The API refuses it. A summary of null stays: the API ignores it."""
    kept = {"type": "compaction", "content": None}
    turn = turn_record("completed", {"type": "compaction", "content": ""}, TEXT, kept)
    assert messages([turn]) == [QUESTION, Message("assistant", [TEXT, kept])]


@pytest.mark.parametrize(
    ("stop_reason", "content", "stays"),
    [
        ("max_tokens", [TEXT, SERVER_CALL], "Light scatters."),
        ("end_turn", [SERVER_CALL, SERVER_RESULT, TEXT], [SERVER_CALL, SERVER_RESULT, TEXT]),
        ("pause_turn", [TEXT, SERVER_CALL], "Light scatters."),
        ("pause_turn", [SERVER_CALL, SERVER_RESULT, SERVER_CALL | {"id": "search_2"}], [SERVER_CALL, SERVER_RESULT]),
        ("tool_use", [SERVER_CALL, TOOL], [SERVER_CALL, TOOL]),
        ("max_tokens", [TEXT, THINKING], "Light scatters."),
    ],
)
def test_a_server_tools_call_that_was_cut_is_left_out(
    stop_reason: str, content: list[dict[str, Any]], stays: str | list[dict[str, Any]]
) -> None:
    """The API refuses a call without its result before a message of the user. After a call of the client's tool, the
    result may come later.
    """
    turn = msgspec.structs.replace(turn_record("completed", *content), stop_reason=stop_reason)
    assert messages([turn]) == [QUESTION, Message("assistant", stays)]
