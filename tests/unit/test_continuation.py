"""A continued answer equals the uninterrupted one, wherever it broke off.

The model is the simulated Claude's pure answer function, behind the checks that the real API makes of a request.
"""

from collections.abc import Iterator

import msgspec
import pytest

from tailrace.deploy.simulated_claude import event as simulated
from tailrace.deploy.simulated_claude.reply import parse_message, reply
from tailrace.deploy.simulated_claude.request import decode
from tailrace.generators.backends import Call
from tailrace.generators.backends.event_order import EventOrder
from tailrace.generators.backends.model_event import ModelEvent, from_event, read_event
from tailrace.generators.continuation import (
    TAIL_CHARS,
    bind_thinking,
    build_call,
    build_continuation_call,
    build_mapper,
)
from tailrace.generators.plan import find_obstacle
from tailrace.proto import events
from tailrace.proto.entries import Event, Message, Request
from tailrace.proto.events import BlockDelta, BlockStart, BlockStop, MessageDelta, MessageStart, TextDelta
from tailrace.proto.usage import CallUsage
from tests.harness.turn_builder import Handwritten, answer_block, attempted_turn, block_events, request

PREFILLED, LATER = "claude-sonnet-4-5", "claude-sonnet-5-5"
REPEATED = " because short waves are scattered"
# The API refuses a prefilled text together with a thinking budget.
WITH_BUDGET: dict[str, object] = {"thinking": {"type": "enabled", "budget_tokens": 1024}}


def answer_to(call: Call) -> list[events.Event]:
    """Returns the model's answer; raises Refusal for a call that the API would refuse."""
    body = {name: field for name, field in msgspec.to_builtins(call).items() if field is not None}
    body |= body.pop("options", {})
    parsed = parse_message(decode(msgspec.json.encode(body)))
    frames = [frame.data for frame in simulated.frames(reply(parsed, 1))]
    decoded = [events.decode(frame.partition(b"data: ")[2].strip()) for frame in frames]
    return [event for event in decoded if not isinstance(event, events.UnknownEvent)]


def stored_prefixes(whole: list[events.Event]) -> Iterator[list[events.Event]]:
    """Returns each beginning of an answer that may be stored: up to each event, and to each character of a delta."""
    for number, event in enumerate(whole):
        yield whole[: number + 1]
        if isinstance(event, BlockDelta) and isinstance(event.delta, TextDelta):
            for length in range(1, len(event.delta.text)):
                yield [*whole[:number], BlockDelta(event.index, TextDelta(event.delta.text[:length]))]


def log_with(turn_request: Request, prefix: list[events.Event]) -> Handwritten:
    return attempted_turn(*prefix, **msgspec.structs.asdict(turn_request))


def continue_log(log: Handwritten, turn_request: Request, answer: list[events.Event] | None = None) -> None:
    """A second attempt continues the log with what the model says then, or with `answer`.

    Raises BackendError if the events of both do not fit one answer.
    """
    continuation = build_mapper(turn_request, log.turn)
    answer = answer_to(build_continuation_call(turn_request, log.turn)) if answer is None else answer
    log.store_attempt("continue")
    for event in answer:
        for one in continuation.map(from_event(event)):
            prev, attempt = log.chain.last, log.chain.attempt
            hidden, left_out = one.is_hidden, one.left_out
            log.store(Event(prev=prev, attempt=attempt, event=one.raw, is_hidden=hidden, left_out=left_out))
    order = EventOrder()
    for stored in log.stored:
        if isinstance(stored.entry, Event) and (shown := read_event(bytes(stored.entry.event))) is not None:
            order.accept(msgspec.structs.replace(shown, is_hidden=stored.entry.is_hidden))


@pytest.mark.rule("R20")
@pytest.mark.parametrize(
    ("model", "options"),
    [(PREFILLED, None), (PREFILLED, WITH_BUDGET), (LATER, None)],
    ids=["prefill", "thinking budget", "later"],
)
@pytest.mark.parametrize("line", ["words=4 rate=0", "words=3 thinking=2", "words=3 tool=look", "words=1", "thinking=2"])
def test_a_continued_answer_equals_the_uninterrupted_one(
    model: str, options: dict[str, object] | None, line: str
) -> None:
    """At every event and inside every word; of a long text, at 30 positions. The usage is that of both calls."""
    turn_request = request(model=model, options=options, messages=[Message("user", f"#sim {line}")])
    whole = answer_to(build_call(turn_request))
    uninterrupted = log_with(turn_request, whole).turn
    broken = [
        prefix for prefix in stored_prefixes(whole[:-1]) if find_obstacle(log_with(turn_request, prefix).turn) is None
    ]
    assert len(broken) > 3
    for prefix in broken[:: 1 + len(broken) // 30]:
        log = log_with(turn_request, prefix)
        used = log.turn.usage
        continue_log(log, turn_request)
        assert (log.turn.blocks, log.turn.stop) == (uninterrupted.blocks, uninterrupted.stop), prefix[-1]
        assert log.turn.usage == used + log.turn.usage_call
        assert log.turn.usage_call.input_tokens > 0


@pytest.mark.rule("R132")
def test_a_call_does_not_begin_with_an_answer() -> None:
    """The greeting of a page stays: a message of the user precedes it, and the log has none."""
    greeting, question = Message("assistant", "Hello."), Message("user", "#sim words=3")
    turn_request = request(messages=[Message("system", "Be kind."), greeting, question])
    call = build_call(turn_request)
    assert [message.role for message in call.messages] == ["user", "system", "assistant", "user"]
    assert answer_to(call)
    bound = bind_thinking(call, log_with(turn_request, []).turn, "fresh")
    assert not bound.prefix.is_extended
    assert build_call(request(messages=[question])).messages == [question]


@pytest.mark.rule("R20")
def test_readers_see_one_message_start() -> None:
    """The second call's `message_start` counts for the usage and is hidden."""
    turn_request = request(messages=[Message("user", "#sim words=3")])
    log = log_with(turn_request, answer_to(build_call(turn_request))[:3])
    first = log.turn
    continue_log(log, turn_request)
    openings = [
        stored.entry.is_hidden
        for stored in log.stored
        if isinstance(stored.entry, Event) and isinstance(events.decode(stored.entry.event), MessageStart)
    ]
    assert openings == [False, True]
    assert sum(isinstance(stored.entry, Event) and stored.entry.is_hidden for stored in log.stored) == 1
    assert log.turn.message == first.message
    assert sum(log.turn.calls_before, start=CallUsage()) == first.usage


def test_a_continuation_may_break_off_too() -> None:
    """Broken off twice, at any two positions, it is the same text in one block."""
    turn_request = request(messages=[Message("user", "#sim words=2")])
    whole = answer_to(build_call(turn_request))
    for prefix in stored_prefixes(whole[:-2]):
        once = log_with(turn_request, prefix)
        for again in stored_prefixes(answer_to(build_continuation_call(turn_request, once.turn))[:-2]):
            log = log_with(turn_request, prefix)
            continue_log(log, turn_request, again)
            continue_log(log, turn_request)
            assert [(b.text, b.is_closed) for b in log.turn.blocks] == [("w000000 w000001", True)]


def text_block(index: int, *pieces: str) -> list[events.Event]:
    return answer_block(index, "text", *pieces)


def opening() -> events.Event:
    return MessageStart(events.MessageHead("msg_2", LATER, CallUsage(input_tokens=1)))


STOP = MessageDelta(events.StopReason("end_turn"))


TOOL = BlockStart(0, {"type": "tool_use", "id": "t", "name": "look", "input": {}})
SERVER_TOOL = BlockStart(0, {"type": "server_tool_use", "id": "t", "name": "look", "input": {}})


THOUGHT = answer_block(0, "thinking", "hm")
# The stored blocks, the blocks of the continuation, and type and text of each block of the answer.
PLACED: dict[str, tuple[list[events.Event], list[events.Event], list[tuple[str, str]]]] = {
    "the open block is completed first": (
        [*text_block(0, "one"), *text_block(1, "tw")[:-1]],
        [*text_block(0, "o"), *text_block(1, "three")],
        [("text", "one"), ("text", "two"), ("text", "three")],
    ),
    "a closed block is not reopened": (text_block(0, "one"), text_block(0, "two"), [("text", "one"), ("text", "two")]),
    "a tool call closes the text": (
        text_block(0, "one")[:-1],
        [TOOL, BlockStop(0)],
        [("text", "one"), ("tool_use", "")],
    ),
    "a call of a server tool closes the text": (
        text_block(0, "one")[:-1],
        [SERVER_TOOL, BlockStop(0)],
        [("text", "one"), ("server_tool_use", "")],
    ),
    # Readers have seen the thinking that led to the stored text.
    "thinking at the start of a continuation is left out": (
        [*THOUGHT, *text_block(1, "one ")[:-1]],
        [*THOUGHT, *answer_block(1, "redacted_thinking"), *text_block(2, "two")],
        [("thinking", "hm"), ("text", "one two")],
    ),
    "thinking after another block is stored": (
        text_block(0, "one ")[:-1],
        [*text_block(0, "two"), *answer_block(1, "thinking", "hm"), *text_block(2, "three")],
        [("text", "one two"), ("thinking", "hm"), ("text", "three")],
    ),
    "only the block's stop was lost": (text_block(0, "one")[:-1], [], [("text", "one")]),
}


@pytest.mark.rule("R20")
@pytest.mark.parametrize("model", [PREFILLED, LATER])
@pytest.mark.parametrize("case", PLACED)
def test_blocks_of_a_continuation_are_numbered_on_and_all_closed(case: str, model: str) -> None:
    stored, further, expected = PLACED[case]
    turn_request = request(model=model)
    log = log_with(turn_request, [opening(), *stored])
    continue_log(log, turn_request, [opening(), *further, STOP])
    assert [(block.type, block.text) for block in log.turn.blocks] == expected
    assert all(block.is_closed for block in log.turn.blocks)
    assert log.turn.stop.stop_reason == "end_turn"


@pytest.mark.rule("R20")
@pytest.mark.parametrize(
    ("stored", "begun", "text"),
    [("one", " two", "one two three"), ("one" + REPEATED, REPEATED.strip(), "one" + REPEATED + " three")],
)
def test_text_at_the_start_of_the_continued_block_is_stored(stored: str, begun: str, text: str) -> None:
    """As a delta, since the start of that block is stored already; but not if it repeats the stored text."""
    log = log_with(request(), [opening(), *text_block(0, stored)[:-1]])
    start = BlockStart(0, {"type": "text", "text": begun})
    continue_log(log, request(), [opening(), start, *text_block(0, " three")[1:], STOP])
    assert log.turn.text == text


def unknown_delta(index: int) -> ModelEvent:
    fields = {"type": "content_block_delta", "index": index, "delta": {"type": "newer_delta", "n": 1.50}}
    event = read_event(msgspec.json.encode(fields))
    assert event is not None
    return event


@pytest.mark.rule("R20")
def test_an_unknown_event_of_a_continuation_names_the_stored_block() -> None:
    """It is left out with its block, and unchanged if it names none."""
    log = log_with(request(), [opening(), *text_block(0, "one "), *text_block(1, "two ")[:-1]])
    continuation = build_mapper(request(), log.turn)
    newer = read_event(b'{"type":"newer"}')
    assert newer is not None
    for index, kind in enumerate(("thinking", "newer_block")):
        continuation.map(from_event(BlockStart(index, {"type": kind})))
    assert continuation.map(unknown_delta(0)) == []
    assert continuation.map(unknown_delta(1)) == [unknown_delta(2)]
    assert continuation.map(newer) == [newer]


@pytest.mark.parametrize(
    ("stored", "answer", "text"),
    [
        ("one\n\n", ["\n\n", "two"], "one\n\ntwo"),
        ("one\n\n", ["\n", "\ntwo"], "one\n\ntwo"),
        ("one\n\n", ["two"], "one\n\ntwo"),
        ("one \n", [" two"], "one \ntwo"),
        ("one ", ["  two"], "one  two"),
        ("one", [" two"], "one two"),
        ("one ", ["two", " three"], "one two three"),
    ],
)
def test_white_space_at_the_end_of_a_prefill_is_stored_once(stored: str, answer: list[str], text: str) -> None:
    """The API refuses a prefill that ends in white space, so the model may repeat it."""
    turn_request = request(model=PREFILLED)
    log = log_with(turn_request, [opening(), *text_block(0, stored)[:-1]])
    assert build_continuation_call(turn_request, log.turn).messages[-1] == Message("assistant", stored.rstrip())
    continue_log(log, turn_request, [opening(), *text_block(0, *answer), STOP])
    assert log.turn.text == text


@pytest.mark.parametrize("model", [PREFILLED, LATER])
def test_white_space_alone_is_not_prefilled_and_stored_once(model: str) -> None:
    """The API refuses a message of white space: the call starts again."""
    turn_request = request(model=model)
    log = log_with(turn_request, [opening(), *text_block(0, "\n\n")[:-1]])
    assert build_continuation_call(turn_request, log.turn) == build_call(turn_request)
    continue_log(log, turn_request, [opening(), *text_block(0, "\n\n", "one"), STOP])
    assert log.turn.text == "\n\none"


@pytest.mark.parametrize(
    "beginning",
    ["w000000 w0", [{"type": "text", "text": "w000000"}, {"type": "text", "text": " w0", "cache_control": {}}]],
)
def test_a_broken_answer_to_a_prefill_of_the_client_is_continued(beginning: str | list[dict[str, str]]) -> None:
    """The API receives one message of the assistant: the client's beginning, and what is stored."""
    turn_request = request(model=PREFILLED, messages=[Message("user", "#sim words=4"), Message("assistant", beginning)])
    for prefix in stored_prefixes(answer_to(build_call(turn_request))):
        log = log_with(turn_request, prefix)
        if log.turn.stop.stop_reason is None:
            assert [one.role for one in build_continuation_call(turn_request, log.turn).messages] == [
                "user",
                "assistant",
            ]
            continue_log(log, turn_request)
        assert log.turn.text == "00001 w000002 w000003"


def test_a_model_without_prefill_gets_a_continue_prompt() -> None:
    """Models after 4.5 get their text, and a user message that quotes its end."""
    log = log_with(request(), [opening(), *text_block(0, 'He said: "w', "ait")[:-1]])
    *before, partial, go = build_continuation_call(request(), log.turn).messages
    assert before == request().messages
    assert partial == Message("assistant", [{"type": "text", "text": 'He said: "wait'}])
    assert go.role == "user"
    assert r'ended with: "He said: \"wait"' in str(go.content)


@pytest.mark.rule("R20")
def test_with_a_thinking_budget_the_whole_text_is_sent_before_a_user_message() -> None:
    """Also to a model that accepts a prefill. White space at its end was sent, so the answer does not repeat it."""
    turn_request = request(model=PREFILLED, options=WITH_BUDGET)
    log = log_with(turn_request, [opening(), *text_block(0, "one\n\n")[:-1]])
    *_, partial, go = build_continuation_call(turn_request, log.turn).messages
    assert partial.content == [{"type": "text", "text": "one\n\n"}]
    assert go.role == "user"
    continue_log(log, turn_request, [opening(), *text_block(0, "\ntwo"), STOP])
    assert log.turn.text == "one\n\n\ntwo"


LONG = "The sky is blue because short waves are scattered."


@pytest.mark.rule("R70")
@pytest.mark.parametrize("stored", ["abc", LONG])
@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.parametrize("events_sent", [2, 3, 4])
def test_a_call_that_breaks_off_where_the_call_before_did_adds_nothing(
    stored: str, events_sent: int, *, is_closed: bool
) -> None:
    """Also after the stop of the repeated block: the attempt does not count as progress."""
    block = text_block(0, stored)
    log = log_with(request(), [opening(), *(block if is_closed else block[:-1])])
    before = log.turn.blocks
    continue_log(log, request(), [opening(), *block][:events_sent])
    assert log.turn.blocks == before


@pytest.mark.rule("R70")
@pytest.mark.parametrize(
    ("stored", "sent", "expected"),
    [
        # All of a long text is a repetition.
        ([*text_block(0, LONG)], [*text_block(0, LONG), STOP], [LONG]),
        ([*text_block(0, LONG)], [*text_block(0, LONG), *text_block(1, "So."), STOP], [LONG, "So."]),
        ([*text_block(0, LONG)], [*text_block(0, LONG, " So."), STOP], [LONG, " So."]),
        ([*text_block(0, LONG)[:-1]], [*text_block(0, LONG), *text_block(1, "So."), STOP], [LONG, "So."]),
        ([*text_block(0, LONG)], [BlockStart(0, {"type": "text", "text": LONG}), BlockStop(0), STOP], [LONG]),
        # A short one, or a part, is an answer of its own.
        ([*text_block(0, "abc")], [*text_block(0, "abc"), STOP], ["abc", "abc"]),
        ([*text_block(0, "abc")], [*text_block(0, "ab"), *text_block(1, "x"), STOP], ["abc", "ab", "x"]),
        ([*text_block(0, "abc")[:-1]], [*text_block(0, "abc"), STOP], ["abcabc"]),
        ([*text_block(0, "abc")], [*text_block(0), STOP], ["abc", ""]),
        ([*text_block(0, "abc")], [*text_block(0, "abX"), STOP], ["abc", "abX"]),
    ],
)
def test_a_call_that_begins_the_last_block_anew(
    stored: list[events.Event], sent: list[events.Event], expected: list[str]
) -> None:
    log = log_with(request(), [opening(), *stored])
    continue_log(log, request(), [opening(), *sent])
    assert [block.text for block in log.turn.blocks] == expected
    assert all(block.is_closed for block in log.turn.blocks)
    assert log.turn.stop.stop_reason is not None


def test_only_the_end_of_a_long_text_is_quoted() -> None:
    long = " ".join(f"w{number:06d}" for number in range(500))
    *_, partial, go = build_continuation_call(
        request(), log_with(request(), [opening(), *text_block(0, long)]).turn
    ).messages
    assert partial.content == [{"type": "text", "text": long}]
    assert f'ended with: "{long[-TAIL_CHARS:]}"' in str(go.content)
    assert len(str(go.content)) < 2 * TAIL_CHARS + 100


def test_blocks_that_the_api_refuses_are_not_sent() -> None:
    """Thinking without a signature, as LiteLLM returns it, empty texts and summaries, and thinking at the end."""
    tool = {"type": "server_tool_use", "id": "t", "name": "Read", "executed_by": "claude_code"}
    executed = block_events(2, tool, events.InputJsonDelta('{"a":1}'))
    unsigned = block_events(0, {"type": "thinking"}, events.ThinkingDelta("hm"))
    empty = [*text_block(3, "\n"), *text_block(4)]
    summary = block_events(5, {"type": "compaction", "content": ""})
    stored = [*unsigned, *text_block(1, "one"), *executed, *empty, *summary, *answer_block(6, "thinking", "hm")]
    log = log_with(request(), [opening(), *stored])
    assert find_obstacle(log.turn) is None
    assert build_continuation_call(request(), log.turn).messages[-2].content == [{"type": "text", "text": "one"}]
    followed = log_with(request(), [opening(), *THOUGHT, *text_block(1, "one")])
    assert build_continuation_call(request(), followed.turn).messages[-2].content == [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        {"type": "text", "text": "one"},
    ]


@pytest.mark.parametrize("model", [PREFILLED, LATER])
def test_other_fields_of_the_request_stay_the_same(model: str) -> None:
    """Model, limit, system prompt and tools."""
    turn_request = request(model=model, max_tokens=7, system="Be brief.", tools=[{"name": "look"}])
    call = build_continuation_call(turn_request, log_with(turn_request, [opening(), *text_block(0, "one")]).turn)
    assert msgspec.structs.replace(call, messages=list(turn_request.messages)) == build_call(turn_request)


@pytest.mark.rule("R70")
def test_long_thinking_of_a_continuation_is_counted_while_it_arrives() -> None:
    """By hidden entries, so that little of its cost is lost when its generator dies or a client cancels the turn."""
    log = log_with(request(), [opening(), *text_block(0, "one")[:-1]])
    thoughts = [BlockDelta(0, events.ThinkingDelta("x" * 100)) for _ in range(100)]
    continue_log(log, request(), [opening(), BlockStart(0, {"type": "thinking"}), *thoughts])
    reports = [one.entry for one in log.stored if isinstance(one.entry, Event) and one.entry.left_out]
    assert [(one.is_hidden, one.left_out) for one in reports] == [(True, 4100), (True, 4100)]
    assert log.turn.calls[-1].output_tokens == -(-8200 * 2 // 7)


REPEATING = "words=12 repeat=5"


@pytest.mark.rule("R70")
@pytest.mark.parametrize("model", [PREFILLED, LATER])
def test_repeated_text_is_left_out(model: str) -> None:
    """At every event and inside every word, if there is enough of it to be certain."""
    turn_request = request(model=model, messages=[Message("user", f"#sim {REPEATING}")])
    whole = answer_to(build_call(turn_request))
    uninterrupted = log_with(turn_request, whole).turn
    sewn = [
        prefix for prefix in stored_prefixes(whole[:-1]) if len(log_with(turn_request, prefix).turn.text.split()) > 5
    ]
    assert len(sewn) > 40
    left_out = 0
    for prefix in sewn:
        if log_with(turn_request, prefix).turn.blocks[-1].is_closed:
            continue
        log = log_with(turn_request, prefix)
        continue_log(log, turn_request)
        assert log.turn.blocks == uninterrupted.blocks, prefix[-1]
        left_out += sum(stored.entry.left_out > 0 for stored in log.stored if isinstance(stored.entry, Event))
    assert left_out >= 10


@pytest.mark.rule("R23")
def test_left_out_text_counts_for_the_usage() -> None:
    stored = "The sky is blue because short waves are scattered"
    thoughts = answer_block(0, "thinking", "h" * 70)
    log = log_with(request(), [opening(), *text_block(0, stored)[:-1]])
    continue_log(
        log, request(), [opening(), *thoughts, *text_block(1, "because short waves are scattered", " more")[:-1]]
    )
    assert log.turn.text == stored + " more"
    assert log.turn.calls[-1].output_tokens == -(-(70 + 33 + 5) * 2 // 7)
    assert log.turn.is_usage_estimated


@pytest.mark.rule("R70")
def test_held_text_comes_before_the_next_event() -> None:
    stored = "The sky is blue because short waves are scattered"
    cited = BlockDelta(0, events.CitationsDelta({"type": "char_location"}))
    for following in (cited, BlockStop(0)):
        log = log_with(request(), [opening(), *text_block(0, stored)[:-1]])
        start, piece, _ = text_block(0, "because short")
        continue_log(log, request(), [opening(), start, piece, following])
        assert log.turn.text == stored + "because short"
        assert isinstance(events.decode(log.stored[-1].entry.event), type(following))  # type: ignore[union-attr]
