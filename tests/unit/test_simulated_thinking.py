"""The simulated Claude's check of thinking, and that the product's rule never sends what it refuses."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailrace.deploy.simulated_claude.model import MODELS
from tailrace.deploy.simulated_claude.refusal import Refusal
from tailrace.deploy.simulated_claude.thinking import (
    CONTROLS,
    Behavior,
    Signer,
    Transformation,
    check_thinking,
    mark_call,
)
from tailrace.proto.entries import Message, StoredThinking
from tailrace.proto.models import models
from tailrace.proto.thinking_prefix import as_stored, checks_thinking, choose_kept, find_prefixes, without_thinking
from tests.unit.test_thinking_prefix import BEFORE, EDITS, Prompt, answer, call, result, say

pytestmark = pytest.mark.rule("R140")

Json = dict[str, Any]
MODEL, OLD = "claude-sonnet-5-5", "claude-opus-4-8"
GO_ON = Message("user", "Go on.")


def body(prompt: Prompt, model: str = MODEL, **more: Any) -> Json:
    """Returns the body of a request as the API parses it."""
    given_fields = {"system": prompt.system, "tools": prompt.tools, "messages": prompt.messages}
    sent = {name: value for name, value in given_fields.items() if value is not None}
    decoded: Json = msgspec.json.decode(msgspec.json.encode({"model": model, "max_tokens": 9, **sent, **more}))
    return decoded


def signed(prompt: Prompt, model: str = MODEL) -> Prompt:
    """Returns `prompt` with the signatures that its thinking would have got, answer by answer."""
    messages: list[Message] = []
    for message in prompt.messages:
        if message.role == "assistant" and isinstance(message.content, list):
            blocks: list[Json] = []
            for block in message.content:
                if block["type"] == "thinking":
                    signature = Signer(body(prompt._replace(messages=messages), model)).sign(blocks, block["thinking"])
                    blocks.append(block | {"signature": signature})
                else:
                    blocks.append(block)
            messages.append(Message("assistant", blocks))
        else:
            messages.append(message)
    return prompt._replace(messages=messages)


def check(prompt: Prompt, behavior: Behavior = "error", betas: str = "", **more: Any) -> list[Transformation] | None:
    return check_thinking(body(prompt, **more), behavior, betas)


def refusal(prompt: Prompt, behavior: Behavior = "error", betas: str = "", **more: Any) -> str | None:
    """Returns the message of the refusal of a request, or None."""
    try:
        check(prompt, behavior, betas, **more)
    except Refusal as refused:
        return refused.message
    return None


SIGNED = signed(BEFORE)
BOUND: Json = {"thinking": {"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": "drop_block"}}}
REPORTED: Json = {"thinking": {"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": "error"}}}
# A cleared thinking block at the start, and what the vendor's table calls valid.
VALID = {name for name, (_, kept) in EDITS.items() if kept in ("ab", "b")}


def with_signatures(prompt: Prompt) -> Prompt:
    """Returns `prompt`, an edit of BEFORE, with the signatures of SIGNED."""
    names = {
        block["signature"]: of_signed["signature"]
        for message, other in zip(BEFORE.messages, SIGNED.messages, strict=True)
        for block, of_signed in zip(message.content, other.content, strict=True)
        if isinstance(block, dict) and isinstance(of_signed, dict) and "signature" in block
    }
    messages = [
        msgspec.structs.replace(
            message,
            content=[
                block | ({"signature": names[block["signature"]]} if "signature" in block else {})
                for block in message.content
                if isinstance(block, dict)
            ],
        )
        if isinstance(message.content, list)
        else message
        for message in prompt.messages
    ]
    return prompt._replace(messages=[*messages, GO_ON])


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_refused_as_in_the_vendors_table(name: str) -> None:
    after = with_signatures(EDITS[name][0])
    message = refusal(after)
    assert (message is None) is (name in VALID), message
    if message is not None:
        assert "The block is bound to a different conversation." in message


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (SIGNED._replace(system="Other."), "The `system` prompt differs"),
        (SIGNED._replace(tools=[]), "The `tools` list differs"),
        (SIGNED._replace(messages=[Message("user", "Other."), *SIGNED.messages[1:]]), "A message before it differs"),
    ],
)
def test_a_refusal_names_the_block_the_setting_and_the_part(changed: Prompt, part: str) -> None:
    begin = "messages.1.content.0: Invalid `signature` in `thinking` block. The block is bound to a different"
    asked = changed._replace(messages=[*changed.messages, GO_ON])
    message = refusal(asked)
    assert message is not None
    assert message.startswith(begin)
    assert f"`{CONTROLS}` value in the `anthropic-beta` header. {part}" in message
    assert CONTROLS not in (refusal(asked, betas=CONTROLS) or CONTROLS)


def test_thinking_is_removed_from_the_front_and_not_from_the_middle() -> None:
    whole = signed(Prompt("s", None, [GO_ON, answer("a"), GO_ON, answer("b"), GO_ON, answer("c"), GO_ON]))
    without = [
        whole._replace(messages=without_thinking(whole.messages, set(kept)))
        for kept in ([(5, 0)], [(3, 0), (5, 0)], [(1, 0), (3, 0)], [], [(1, 0), (5, 0)])
    ]
    assert [refusal(one) is None for one in without] == [True, True, True, True, False]
    assert "messages.5.content.0" in (refusal(without[-1]) or "")


def test_accounts_differ_in_what_happens_to_thinking_after_a_change() -> None:
    changed = SIGNED._replace(system="Other.", messages=[*SIGNED.messages, GO_ON])
    both = [Transformation(f"messages.{n}.content.0", "prefix_binding_mismatch") for n in (1, 4)]
    assert refusal(changed, "error")
    assert check(changed, "drop") is None
    assert check(changed, "drop", CONTROLS) == both
    assert check(changed, "none", CONTROLS) == []
    for behavior in ("error", "drop", "none"):
        assert check(changed, behavior, CONTROLS, **BOUND) == both
        assert refusal(changed, behavior, CONTROLS, **REPORTED)
        assert "block_binding: Extra inputs are not permitted" in (refusal(changed, behavior, **BOUND) or "")
        assert check(SIGNED, behavior, CONTROLS, **BOUND) == []


def test_a_signature_of_another_program_or_for_another_text_is_invalid() -> None:
    """Without a word about the conversation, whatever the account; a test's own signature is accepted."""
    for block in (
        {"type": "thinking", "thinking": "x", "signature": "gAAAA"},
        {"type": "thinking", "thinking": "x", "signature": "simAAAA"},
        {"type": "thinking", "thinking": "x", "signature": "sim\u20ac"},
        SIGNED.messages[1].content[0] | {"thinking": "Another thought."},  # type: ignore[operator]
    ):
        prompt = Prompt(None, None, [GO_ON, Message("assistant", [block, say("1")]), GO_ON])
        for model in (MODEL, OLD):
            assert refusal(prompt, "none", model=model) == (
                "messages.1.content.0: Invalid `signature` in `thinking` block."
            )
        assert check_thinking(body(prompt), "error", "", frozenset([block["signature"]])) is None
    hidden = Prompt(None, None, [GO_ON, Message("assistant", [{"type": "redacted_thinking", "data": "x"}]), GO_ON])
    assert refusal(hidden) == "messages.1.content.0: Invalid `data` in `redacted_thinking` block."


@pytest.mark.parametrize(
    ("writer", "reader", "is_read"),
    [
        (MODEL, MODEL, True),
        (MODEL, OLD, False),
        (OLD, MODEL, True),
        ("claude-fable-5-1", "claude-opus-5-5", False),
        ("claude-opus-5-5", "claude-fable-5-1", True),
        ("claude-fable-5-1", "claude-fable-5-2", True),
    ],
)
def test_a_model_does_not_get_the_thinking_that_it_cannot_read(writer: str, reader: str, *, is_read: bool) -> None:
    """It is dropped without an error, even after a change."""
    prompt = signed(Prompt("s", None, [GO_ON, answer("a"), GO_ON]), writer)
    dropped = [] if is_read else [Transformation("messages.1.content.0", "model_binding_mismatch")]
    assert check(prompt, "error", CONTROLS, model=reader) == dropped
    changed = prompt._replace(system="t")
    is_refused = is_read and checks_thinking(writer) and checks_thinking(reader)
    assert (refusal(changed, model=reader) is not None) is is_refused


def loop(model: str) -> Prompt:
    """Returns a tool loop of two calls, whose ids name the thinking before them."""
    first, second = call(mark_call("toolu_sim1", "one")), call(mark_call("toolu_sim2", "two"))
    thoughts = [{"type": "thinking", "thinking": text, "signature": ""} for text in ("one", "two")]
    messages = [GO_ON, Message("assistant", [thoughts[0], first]), result(first["id"])]
    return signed(
        Prompt(None, None, [*messages, Message("assistant", [thoughts[1], second]), result(second["id"])]), model
    )


@pytest.mark.parametrize(
    ("model", "kept", "message"),
    [
        (MODEL, [1, 3], None),
        (OLD, [1, 3], None),
        (MODEL, [], None),
        (OLD, [], "Expected `thinking` or `redacted_thinking`, but found `tool_use`"),
        (MODEL, [1], "cannot be modified"),
        (OLD, [1], "cannot be modified"),
        (MODEL, [3], "cannot be modified"),
        (OLD, [3], "cannot be modified"),
    ],
)
def test_the_thinking_of_an_open_tool_loop_comes_back(model: str, kept: list[int], message: str | None) -> None:
    """All of it; or none, for a model that checks prefixes. Once the loop is over, it may be left out."""
    whole = loop(model)
    given_messages = without_thinking(whole.messages, {(number, 0) for number in kept})
    found = refusal(whole._replace(messages=given_messages), model=model)
    assert (message is None and found is None) or (message is not None and message in (found or ""))
    over = [*given_messages, Message("assistant", "Done."), GO_ON]
    assert refusal(whole._replace(messages=over), model=model) is None
    off: Json = {"thinking": {"type": "disabled"}}
    assert refusal(whole._replace(messages=given_messages), model=model, **off) is None


def test_after_a_compaction_only_newer_thinking_is_read() -> None:
    summary = {"type": "compaction", "content": "They spoke."}
    later = Message("assistant", [summary, {"type": "thinking", "thinking": "", "signature": ""}, say("1")])
    whole = signed(Prompt("s", None, [GO_ON, answer("a"), GO_ON, later, GO_ON]))
    assert refusal(whole) is None
    assert refusal(whole._replace(messages=whole.messages[2:])) is None
    assert refusal(whole._replace(messages=[Message("user", "x"), *whole.messages[1:]])) is None
    assert refusal(whole._replace(system="t"))
    hurry = Message("system", "Hurry.")
    more = signed(whole._replace(messages=[*whole.messages, hurry, answer("c"), GO_ON]))
    assert refusal(more._replace(messages=more.messages[2:])) is None


def test_a_deferred_tool_counts_once_a_block_has_named_it() -> None:
    late = {"name": "late", "defer_loading": True}
    whole = signed(
        Prompt(None, [late], [GO_ON, answer("a", call("t") | {"name": "late"}), result("t"), answer("b"), GO_ON])
    )
    assert refusal(whole) is None
    assert (refusal(whole._replace(tools=[late | {"description": "x"}])) or "").startswith("messages.3.content.0")


def test_a_system_message_is_kept_apart_and_counts_without_content() -> None:
    effort = Message("system", [], output_config={"effort": "low"})
    apart = [Message("system", "1"), Message("system", "2")]
    whole = signed(Prompt(None, None, [GO_ON, effort, *apart, answer("a"), GO_ON]))
    assert refusal(whole) is None
    assert refusal(whole._replace(messages=[GO_ON, *whole.messages[2:]]))
    joined = Message("system", [say("1"), say("2")])
    assert refusal(whole._replace(messages=[GO_ON, effort, joined, *whole.messages[4:]]))


def test_thinking_takes_no_mark_of_the_cache() -> None:
    content: Any = SIGNED.messages[1].content
    marked = [content[0] | {"cache_control": {"type": "ephemeral"}}, *content[1:]]
    prompt = SIGNED._replace(messages=[SIGNED.messages[0], Message("assistant", marked), GO_ON])
    assert refusal(prompt) == "messages.1.content.0.thinking.cache_control: Extra inputs are not permitted"


def test_both_tables_of_models_say_the_same() -> None:
    bound = {model.id.removesuffix(f"-{model.created_at.replace('-', '')}"): model.binds_thinking for model in MODELS}
    assert bound.items() <= {name: model.checks_thinking for name, model in models().items()}.items()


TURNS = st.lists(
    st.tuples(
        st.sampled_from(["s", "t"]),
        st.sampled_from([None, [{"name": "look"}], [{"name": "look"}, {"name": "see", "defer_loading": True}]]),
        st.integers(0, 3),
        st.sampled_from(["", "", "", "edit", "delete", "net", "compaction", "loop"]),
        st.sampled_from([MODEL, MODEL, "claude-fable-5-1", OLD]),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=10,
)


@given(TURNS)
@settings(max_examples=300, deadline=None)
def test_what_the_products_rule_sends_is_not_refused(turns: list[tuple[Any, ...]]) -> None:
    """Random sessions: other prompts, tools and models; edits, tool loops, compactions, a retry without thinking."""
    history: list[Message] = []
    known: dict[str, StoredThinking] = {}
    for number, (system, tools, thoughts, event, model, place) in enumerate(turns):
        history = changed(history, event, place)
        open_call = event == "loop" and bool(history) and history[-1].role == "user"
        prompt = Prompt(system, tools, history if open_call else [*history, Message("user", f"question {number}")])
        sent = as_sent(prompt, known, model, is_net=event == "net")
        assert refusal(sent, model=model) is None
        blocks = written(sent, model, number, thoughts, event)
        found = find_prefixes(*sent._replace(messages=[*sent.messages, Message("assistant", blocks)]))
        known |= {one.id: as_stored(one) for one in found.thinking if one.message == len(sent.messages)}
        history = [*prompt.messages, Message("assistant", blocks)]
        if event == "loop":
            history.append(result(blocks[-1]["id"]))


def changed(history: list[Message], event: str, place: int) -> list[Message]:
    """Returns `history` after an edit or a deletion, if `event` is one and no tool loop is open."""
    if not history or history[-1].role == "user":
        return history
    at = place % len(history)
    if event == "edit" and history[at].role == "user" and isinstance(history[at].content, str):
        return [*history[:at], Message("user", "edited"), *history[at + 1 :]]
    if event == "delete" and all(isinstance(one.content, str) for one in history if one.role == "user"):
        return [*history[: at // 2 * 2], *history[at // 2 * 2 + 2 :]]
    return history


def as_sent(prompt: Prompt, known: dict[str, StoredThinking], model: str, *, is_net: bool) -> Prompt:
    if not checks_thinking(model):
        return prompt
    kept = set() if is_net else choose_kept(prompt.messages, find_prefixes(*prompt).thinking, known)
    return prompt._replace(messages=without_thinking(prompt.messages, kept))


def written(sent: Prompt, model: str, number: int, thoughts: int, event: str) -> list[Json]:
    """Returns the answer of the simulated Claude's rules, with signatures."""
    blocks: list[Json] = [{"type": "compaction", "content": f"summary {number}"}] if event == "compaction" else []
    sign: Callable[[Sequence[Json], str], str] = Signer(body(sent, model)).sign
    for thought in range(thoughts):
        text = f"{number}.{thought}"
        blocks.append({"type": "thinking", "thinking": text, "signature": sign(list(blocks), text)})
        blocks.append(say(text))
    if event == "loop":
        last = f"{number}.{thoughts - 1}" if thoughts else ""
        return [*blocks, call(mark_call(f"toolu_sim{number}", last))]
    return blocks or [say("no thoughts")]
