"""Prefixes of thinking blocks: what counts as an edit, and which thinking a request sends back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailrace.proto.entries import Message, Prefix, StoredThinking
from tailrace.proto.models import models
from tailrace.proto.thinking_prefix import (
    as_stored,
    bind,
    checks_thinking,
    choose_kept,
    count_unchanged,
    count_unchanged_tokens,
    find_changes,
    find_changes_since,
    find_open_answer,
    find_prefixes,
    find_stored_thinking,
    is_extended,
    thinking_id,
    thinking_ids,
    without_thinking,
)
from tailrace.proto.usage import Usage

pytestmark = pytest.mark.rule("R140")

Blocks = list[dict[str, Any]]
MARK = {"type": "ephemeral"}
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
LATE = {"name": "late", "input_schema": {"type": "object"}, "defer_loading": True}


class Prompt(NamedTuple):
    """The arguments of `find_prefixes`."""

    system: str | Blocks | None
    tools: Blocks | None
    messages: list[Message]


def think(name: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": "", "signature": name}


def say(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


def answer(name: str, *blocks: dict[str, Any]) -> Message:
    return Message("assistant", [think(name), *(blocks or [say(f"answer {name}")])])


def recorded(prompt: Prompt) -> dict[str, StoredThinking]:
    """Returns the thinking as it is stored, if all answers of the prompt came with this prompt's beginnings."""
    return {one.id: as_stored(one) for one in find_prefixes(*prompt).thinking}


def unknown(name: str) -> dict[str, StoredThinking]:
    """Returns thinking that an older version has stored."""
    return {thinking_id(think(name)): StoredThinking(thinking_id(think(name)))}


def kept(prompt: Prompt, known: dict[str, StoredThinking]) -> list[str]:
    """Returns the signatures of the thinking that the next question after `prompt` sends back."""
    if prompt.messages[-1].role == "assistant":
        prompt = prompt._replace(messages=[*prompt.messages, Message("user", "Go on.")])
    found = choose_kept(prompt.messages, find_prefixes(*prompt).thinking, known)
    return [
        block["signature"]
        for message in without_thinking(prompt.messages, found)
        for block in (message.content if isinstance(message.content, list) else [])
        if block["type"] == "thinking"
    ]


TURNED = Message("system", "Hurry.", clear_at="next_user_message")
PICTURE = {"type": "image", "source": {"type": "url", "url": "https://page.example/1"}}
FIRST = Message("user", [say("one"), PICTURE])
BEFORE = Prompt([say("Be brief.")], [TOOL], [FIRST, answer("a"), Message("user", "two"), TURNED, answer("b")])


# Of the thinking of BEFORE and of the next answer: its id, its prefix, and the thinking before it.
DIGESTS = [
    ("ca978112ca1bbdca", "8ee6f0195c9db6ac", ""),
    ("3e23e8160039594a", "b4f98b625c9cbe3d", "ca978112ca1bbdca"),
    ("2e7d2c03a9507ae2", "2ada2ceb1b3017b1", "3e23e8160039594a"),
]
# Of the prompt for that answer: system, tools, messages, thinking, and the number of blocks before it.
PROMPT_DIGESTS = ("d52241f53eaa1aab", "9336319fa61929d4", "4dd7466b11a47503", "3e23e8160039594a", 0)


def with_messages(*messages: Message) -> Prompt:
    return BEFORE._replace(messages=list(messages))


def with_message(number: int, message: Message) -> Prompt:
    return with_messages(*BEFORE.messages[:number], message, *BEFORE.messages[number + 1 :])


# The rows of the table "What counts as an edit", in its order. Which thinking a request with the change sends back.
EDITS: dict[str, tuple[Prompt, str]] = {
    "append a message": (with_messages(*BEFORE.messages, Message("user", "three")), "ab"),
    "add a deferred tool that nothing has referenced": (BEFORE._replace(tools=[TOOL, LATE]), "ab"),
    "remove the first thinking": (with_message(1, Message("assistant", "answer a")), "b"),
    "mark the cache in the prompt": (BEFORE._replace(system=[say("Be brief.", cache_control=MARK)]), "ab"),
    "mark the cache in a tool": (BEFORE._replace(tools=[TOOL | {"cache_control": MARK}]), "ab"),
    "mark the cache in a message": (with_message(2, Message("user", [say("two", cache_control=MARK)])), "ab"),
    "leave a turn-scoped message in place": (with_messages(*BEFORE.messages, Message("user", "three")), "ab"),
    "edit the first message": (with_message(0, Message("user", [say("ONE"), PICTURE])), ""),
    "edit a message between the answers": (with_message(2, Message("user", "TWO")), "a"),
    "edit an answer": (with_message(1, answer("a", say("Another answer."))), "a"),
    "reorder messages": (with_messages(BEFORE.messages[2], BEFORE.messages[1], FIRST, TURNED, answer("b")), ""),
    "delete a message": (with_messages(FIRST, answer("a"), TURNED, answer("b")), "a"),
    "add a text block": (with_message(0, Message("user", [say("one"), PICTURE, say("It is noon.")])), ""),
    "change the prompt": (BEFORE._replace(system="It is noon."), ""),
    "remove the prompt": (BEFORE._replace(system=None), ""),
    "add a tool": (BEFORE._replace(tools=[TOOL, TOOL | {"name": "more"}]), ""),
    "remove a tool": (BEFORE._replace(tools=None), ""),
    "rename a tool": (BEFORE._replace(tools=[TOOL | {"name": "see"}]), ""),
    "edit a tool": (BEFORE._replace(tools=[TOOL | {"description": "Sees."}]), ""),
    "reword a turn-scoped message": (with_message(3, Message("system", "Go.", clear_at="next_user_message")), "a"),
    "delete a turn-scoped message": (with_messages(*BEFORE.messages[:3], answer("b")), "a"),
    "keep a turn-scoped message for ever": (with_message(3, Message("system", "Hurry.")), "a"),
    "other bytes at a new URL": (
        with_message(0, Message("user", [say("one"), PICTURE | {"source": {"type": "url", "url": "x"}}])),
        "",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_costs_the_thinking_after_it(name: str) -> None:
    after, left = EDITS[name]
    assert "".join(kept(after, recorded(BEFORE))) == left


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hi.", [say("Hi.")]),
        ([say("Hi.", cache_control=MARK)], [say("Hi.", citations=None)]),
        ([{"text": "Hi.", "type": "text"}], [say("Hi.")]),
        (
            [{"type": "tool_result", "tool_use_id": "t", "content": [say("1", cache_control=MARK)]}],
            [{"type": "tool_result", "tool_use_id": "t", "content": [say("1")]}],
        ),
        (
            [{"type": "document", "source": {"type": "content", "content": [say("1", cache_control=MARK)]}}],
            [{"type": "document", "source": {"type": "content", "content": [say("1")]}}],
        ),
    ],
)
def test_two_forms_of_a_message_have_one_prefix(one: str | Blocks, other: str | Blocks) -> None:
    """A string is short for a text block; nulls, marks of the cache and the order of a block's fields do not count."""
    first, second = (find_prefixes("s", None, [Message("user", content), answer("a")]) for content in (one, other))
    assert first == second
    assert find_prefixes(one, [], [FIRST]) == find_prefixes(other, None, [FIRST])


def test_consecutive_messages_of_one_role_are_one_message() -> None:
    joined = find_prefixes(None, None, [Message("user", [say("1"), say("2")]), answer("a")]).thinking[0]
    parts = find_prefixes(None, None, [Message("user", "1"), Message("user", "2"), answer("a")]).thinking[0]
    assert parts.prefix == joined.prefix
    alone = find_prefixes(None, None, [Message("system", "1"), Message("system", "2"), answer("a")]).thinking[0]
    both = find_prefixes(None, None, [Message("system", [say("1"), say("2")]), answer("a")]).thinking[0]
    assert alone.prefix != both.prefix


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"cache_control": 1}, {}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": None}, {}),
    ],
)
def test_every_value_in_the_input_of_a_call_counts(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Anthropic's page "Prompt caching" names the order of the keys in a call's input as a reason of misses."""
    calls = ({"type": "tool_use", "id": "t", "name": "look", "input": given} for given in (one, other))
    first, second = (find_prefixes(None, None, [Message("assistant", [call, think("a")])]) for call in calls)
    assert first.thinking[0].prefix.messages != second.thinking[0].prefix.messages


@pytest.mark.parametrize(("one", "other"), [("1", "2"), (["1"], ["2"]), ([say("1")], [say("2")])])
def test_every_value_in_a_result_counts(one: object, other: object) -> None:
    results = ({"type": "tool_result", "tool_use_id": "t", "content": content} for content in (one, other))
    first, second = (find_prefixes(None, None, [Message("user", [block]), answer("a")]) for block in results)
    assert first.thinking[0].prefix.messages != second.thinking[0].prefix.messages


def test_digests_are_the_same_in_each_version() -> None:
    """Entries have them: with other digests, the thinking of all stored answers would be left out once."""
    messages = [*BEFORE.messages, Message("user", "3", output_config={"effort": "low"}), answer("c")]
    found = find_prefixes(*BEFORE._replace(messages=messages))
    assert [msgspec.structs.astuple(as_stored(one)) for one in found.thinking] == DIGESTS
    prompt = found.messages[-2]
    assert msgspec.structs.astuple(prompt)[:5] == PROMPT_DIGESTS
    (last,) = find_stored_thinking([prompt], [think("c"), say("answer c")])
    assert msgspec.structs.astuple(last) == DIGESTS[2]
    (first,) = find_stored_thinking([find_prefixes(*with_messages(FIRST)).messages[0]], [think("a")])
    assert msgspec.structs.astuple(first) == DIGESTS[0]


@pytest.mark.parametrize(
    "reference",
    [
        {"type": "tool_search_tool_result", "content": {"tool_references": [{"tool_name": "late"}]}},
        {"type": "tool_use", "id": "t", "name": "late", "input": {}},
    ],
)
def test_a_deferred_tool_counts_from_where_a_block_has_referenced_it(reference: dict[str, Any]) -> None:
    messages = [Message("user", "1"), answer("a"), Message("user", "2"), answer("b", reference, say("3")), answer("c")]
    first = recorded(Prompt(None, [TOOL], messages[:2]))
    whole = Prompt(None, [TOOL, LATE], messages)
    assert first.items() <= recorded(whole).items()
    edited = whole._replace(tools=[TOOL, LATE | {"description": "Late."}])
    assert kept(edited, recorded(whole)) == ["a", "b"]


def test_after_a_compaction_the_messages_before_it_do_not_count() -> None:
    summary = {"type": "compaction", "content": "They spoke."}
    last = [Message("user", "2"), Message("assistant", [summary, think("b"), say("3")])]
    whole = Prompt("s", [TOOL], [FIRST, answer("a"), *last])
    assert kept(whole._replace(messages=last), recorded(whole)) == ["b"]
    assert kept(whole._replace(messages=last, system="t"), recorded(whole)) == []
    failed = Prompt("s", None, [FIRST, Message("assistant", [summary | {"content": None}, think("b"), say("3")])])
    assert kept(failed._replace(messages=failed.messages[1:]), recorded(failed)) == []


def test_thinking_of_redacted_blocks_is_thinking() -> None:
    redacted = {"type": "redacted_thinking", "data": "x"}
    prompt = Prompt(None, None, [FIRST, Message("assistant", [redacted, say("1")])])
    found = find_prefixes(*prompt)
    assert [one.id for one in found.thinking] == [thinking_id(redacted)]
    assert thinking_id(redacted) != thinking_id(redacted | {"data": "y"})
    old = {one.id: StoredThinking(one.id) for one in found.thinking}
    assert choose_kept(prompt.messages, found.thinking, old) == set()
    assert without_thinking(prompt.messages, set()) == [FIRST, Message("assistant", [say("1")])]
    assert without_thinking([FIRST, Message("assistant", [redacted])], set()) == [FIRST]


def test_no_thinking_is_sent_back_without_the_one_before_it() -> None:
    """Each block was written after the one before it: without `b`, `a` would be alone in front of a gap."""
    messages = [FIRST, answer("a"), Message("user", "2"), answer("b"), Message("user", "3"), answer("c")]
    whole = Prompt(None, None, messages)
    known = recorded(whole)
    assert kept(whole, known) == ["a", "b", "c"]
    assert kept(whole, known | unknown("b")) == ["c"]
    assert kept(whole, known | unknown("c")) == ["a", "b"]
    assert kept(whole, known | unknown("a")) == ["b", "c"]


def test_thinking_that_was_left_out_comes_back_only_without_what_was_written_meanwhile() -> None:
    """The second of three turns had another prompt, so its request had no thinking; the third had that of the first."""
    messages = [FIRST, answer("a"), Message("user", "2"), answer("b"), Message("user", "3"), answer("c")]
    known = recorded(Prompt("s", None, messages[:2]))
    second = Prompt("other", None, messages[:3])
    assert kept(second, known) == []
    known |= recorded(second._replace(messages=[FIRST, Message("assistant", "answer a"), *messages[2:4]]))
    assert kept(Prompt("s", None, messages[:5]), known) == ["a"]
    assert kept(Prompt("other", None, messages[:5]), known) == ["b"]
    sent = [FIRST, answer("a"), Message("user", "2"), Message("assistant", "answer b"), *messages[4:]]
    known |= recorded(Prompt("s", None, sent))
    assert kept(Prompt("s", None, messages), known) == ["a", "c"]


def test_a_prompt_and_the_answer_to_it_give_the_prefixes_of_the_answer() -> None:
    """A generator stores the prompt; the thinking of the answer is found in the next turn, from the stored blocks."""
    before = BEFORE.messages[:-1]
    blocks = [say("1"), think("b"), say("2"), {"type": "redacted_thinking", "data": "c"}, say("3")]
    prompt = find_prefixes(*with_messages(*before)).messages[-1]
    whole = find_prefixes(*with_messages(*before, Message("assistant", blocks))).thinking[1:]
    assert find_stored_thinking([prompt], blocks) == [as_stored(one) for one in whole]
    # After a pause, the second call had the blocks of the first one in its prompt.
    paused = find_prefixes(*with_messages(*before, Message("assistant", blocks[:3]))).messages[-1]
    calls = [prompt, msgspec.structs.replace(paused, block=3)]
    assert find_stored_thinking(calls, blocks) == [as_stored(one) for one in whole]
    # A prompt to continue comes between the blocks: it is no part of later conversations.
    go_on = find_prefixes(*with_messages(*before, Message("assistant", blocks[:3]), Message("user", "Go on.")))
    calls = [prompt, msgspec.structs.replace(go_on.messages[-1], block=3)]
    first, second = find_stored_thinking(calls, blocks)
    assert (first, second.prefix == as_stored(whole[1]).prefix) == (as_stored(whole[0]), False)
    # An older version has stored no prompt.
    assert [one.prefix for one in find_stored_thinking([], blocks)] == [None, None]


def test_thinking_of_the_client_is_sent_as_it_is() -> None:
    messages = [FIRST, answer("a"), Message("user", "2"), answer("b"), Message("user", "3"), answer("c")]
    known = recorded(Prompt("s", None, messages))
    own = {name: one for name, one in known.items() if name != thinking_id(think("b"))}
    assert kept(Prompt("s", None, messages), own) == ["a", "b", "c"]
    assert kept(Prompt("t", None, messages), own) == ["b"]


@pytest.mark.parametrize(
    ("now", "changed", "unchanged"),
    [
        (BEFORE, (), "all"),
        (with_messages(*BEFORE.messages, Message("user", "three")), (), "all"),
        (BEFORE._replace(system="It is noon."), ("system",), "tools"),
        (BEFORE._replace(tools=[]), ("tools",), "nothing"),
        (with_message(2, Message("user", "TWO")), ("messages",), "head"),
        (BEFORE._replace(system="It is noon.", tools=[]), ("system", "tools"), "nothing"),
    ],
)
def test_a_call_says_which_part_of_the_prompt_has_changed(
    now: Prompt, changed: tuple[str, ...], unchanged: str
) -> None:
    before = bind(*BEFORE._replace(messages=BEFORE.messages[:3]), [], None, is_checked=True).prefix
    assert (before.unchanged, before.changed) == (None, ())
    tools_bytes, system_bytes = len(msgspec.json.encode(TOOL)), len(msgspec.json.encode(say("Be brief.")))
    expected = {"all": before.bytes, "tools": tools_bytes, "head": tools_bytes + system_bytes, "nothing": 0}
    bound = bind(*now, [], before, is_checked=True)
    assert (bound.prefix.changed, bound.prefix.unchanged) == (changed, expected[unchanged])


def test_the_newest_unchanged_thinking_shows_how_much_of_the_messages_has_not_changed() -> None:
    """For example after a refused question, which the next prompt does not have."""
    stored = list(recorded(BEFORE).values())
    refused = with_messages(*BEFORE.messages, Message("user", "refused"))
    before = bind(*refused, stored, None, is_checked=True).prefix
    now = bind(*with_messages(*BEFORE.messages, Message("user", "other")), stored, before, is_checked=True).prefix
    assert (now.changed, now.unchanged) == (("messages",), find_prefixes(*BEFORE).thinking[-1].prefix.bytes)


def test_a_call_without_the_thinking_of_the_call_before_says_so() -> None:
    stored = list(recorded(BEFORE).values())
    before = bind(*BEFORE, stored, None, is_checked=True).prefix
    assert before.thinking == thinking_id(think("b"))
    now = BEFORE._replace(messages=[*BEFORE.messages, Message("user", "3")])
    same = bind(*now, stored, before, is_checked=True)
    assert (same.left_out, same.prefix.changed, same.messages) == (0, (), now.messages)
    stored[1:] = unknown("b").values()
    cut = bind(*now, stored, before, is_checked=True)
    assert (cut.left_out, cut.prefix.changed, cut.prefix.thinking) == (1, ("thinking",), thinking_id(think("a")))
    assert list(thinking_ids(cut.messages)) == [thinking_id(think("a"))]
    assert (cut.prefix.unchanged or 0) < before.bytes
    none = bind(*now, list((unknown("a") | unknown("b")).values()), before, is_checked=True)
    assert (none.left_out, none.prefix.thinking, list(thinking_ids(none.messages))) == (2, "", [])
    unchecked = bind(*now, stored, before, is_checked=False)
    assert (unchecked.left_out, unchecked.messages) == (0, now.messages)


def call(name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": name, "name": "look", "input": {}}


def result(name: str) -> Message:
    return Message("user", [{"type": "tool_result", "tool_use_id": name, "content": "1"}])


LOOP = [FIRST, answer("a"), Message("user", "2"), answer("b", call("t")), result("t"), answer("c", call("u"))]


@pytest.mark.parametrize(
    ("messages", "start"),
    [
        ([*LOOP, result("u")], 3),
        ([*LOOP, result("u"), TURNED], 3),
        (LOOP, 3),
        ([*LOOP, result("u"), Message("user", "3")], 3),
        ([*LOOP, Message("user", [*result("u").content, say("3")])], 3),
        ([*LOOP, Message("user", "3")], 7),
        ([FIRST, answer("a"), answer("b")], 1),
        ([FIRST], 1),
        ([], 0),
    ],
)
def test_an_open_answer_begins_after_the_last_question(messages: list[Message], start: int) -> None:
    assert find_open_answer(messages) == start


def test_a_tool_loop_sends_all_its_thinking_or_only_what_is_older() -> None:
    whole = Prompt(None, None, [*LOOP, result("u")])
    known = recorded(whole)
    assert kept(whole, known) == ["a", "b", "c"]
    assert kept(whole, known | unknown("a")) == ["b", "c"]
    for name in "bc":
        assert kept(whole, known | unknown(name)) == ["a"]
    closed = whole._replace(messages=[*whole.messages, answer("d"), Message("user", "3")])
    known |= recorded(closed)
    assert kept(closed, known | unknown("b")) == ["c", "d"]


def extended(name: str) -> dict[str, StoredThinking]:
    """Returns thinking that was written after what a generator had added to the prompt."""
    return {thinking_id(think(name)): StoredThinking(thinking_id(think(name)), "")}


def test_thinking_of_the_client_goes_with_the_extended_thinking_of_its_answer() -> None:
    """It is left out while the answer is open, and also later: the thinking after it was written without it."""
    whole = Prompt(None, None, [*LOOP, result("u")])
    assert kept(whole, extended("b")) == ["a"]
    closed = whole._replace(messages=[*whole.messages, answer("d"), Message("user", "3")])
    assert kept(closed, extended("b")) == ["a"]
    asked = closed._replace(messages=[*closed.messages, answer("e"), Message("user", "4")])
    assert kept(asked, extended("b")) == ["a", "e"]


def test_a_prompt_is_extended_by_everything_but_a_part_of_the_answer() -> None:
    question = Message("user", "1")
    marked = Message("user", [say("1") | {"cache_control": {"type": "ephemeral"}}])
    assert not is_extended([question], [marked])
    assert not is_extended([question], [question, answer("a")])
    assert is_extended([question], [Message("user", [say("1"), say("As JSON.")])])
    assert is_extended([question], [question, answer("a"), Message("user", "Go on.")])
    assert is_extended([question, question], [question])


def test_an_unchanged_prompt_is_found_in_a_longer_one() -> None:
    before = find_prefixes(*BEFORE._replace(messages=BEFORE.messages[:3])).messages[-1]
    assert count_unchanged(before, find_prefixes(*BEFORE)) == 3
    assert find_changes_since(before, find_prefixes(*BEFORE)) == ()
    changes: list[tuple[Prompt, tuple[str, ...]]] = [
        (BEFORE._replace(system="Be long."), ("system",)),
        (BEFORE._replace(tools=[]), ("tools",)),
        (with_message(2, Message("user", "TWO")), ("messages",)),
        (BEFORE._replace(tools=[], messages=[FIRST]), ("tools", "messages")),
    ]
    for after, parts in changes:
        assert find_changes_since(before, find_prefixes(*after)) == parts
        assert count_unchanged(before, find_prefixes(*after)) == 0
    assert find_changes(None, before) == ("system", "tools", "messages")


@pytest.mark.parametrize(
    ("prompts", "tokens"),
    [
        ([], None),
        ([(None, 100)], None),
        ([(50, 0)], None),
        ([(0, 100)], 0),
        ([(50, 100)], 35),
        ([(100, 100)], 71),
        # The calls of one turn: 150 of 300 bytes. Of the third call nothing is known.
        ([(50, 100), (100, 200), (None, 100)], 35),
    ],
)
def test_unchanged_tokens_are_the_unchanged_share_of_the_bytes(
    prompts: list[tuple[int | None, int]], tokens: int | None
) -> None:
    """Of the tokens of the prompt, read from the cache or not; those of the answer do not count."""
    usage = Usage(input_tokens=1, output_tokens=1000, cache_creation_input_tokens=20, cache_read_input_tokens=50)
    found = [Prefix(system="", tools="", messages="", unchanged=count, bytes=size) for count, size in prompts]
    assert count_unchanged_tokens(found, usage) == tokens


def test_the_models_that_run_the_check_are_the_vendors_list() -> None:
    """`supportedModels` of Anthropic's page "Prefix checks on thinking blocks"; a model of tomorrow counts as one."""
    listed = ["fable-5-2", "mythos-5-2", "fable-5-1", "mythos-5-1", "opus-5-5", "sonnet-5-5", "haiku-5-5"]
    assert all(checks_thinking(f"claude-{name}") for name in listed)
    assert [name for name in models() if checks_thinking(name)] == [n for n in models() if n[7:] in listed]
    assert checks_thinking("claude-of-tomorrow")
    assert not checks_thinking("claude-opus-4-8-latest")


# A second, naive implementation: it compares whole conversations, and remembers what each request has sent.


class Written(NamedTuple):
    """The prompt before a thinking block when the model wrote it."""

    system: object
    tools: object
    before: object
    thinking: str


def naive_prefix(prompt: Prompt, message: int, block: int) -> tuple[object, object, object]:
    turns: list[tuple[str, list[object]]] = []
    for number, one in enumerate(prompt.messages[: message + 1]):
        blocks = [say(one.content)] if isinstance(one.content, str) else one.content
        blocks = [b for i, b in enumerate(blocks) if b["type"] != "thinking" and (number < message or i < block)]
        bare = [{name: value for name, value in b.items() if name != "cache_control"} for b in blocks]
        if turns and turns[-1][0] == one.role:
            turns[-1][1].extend(bare)
        elif bare:
            turns.append((one.role, list(bare)))
    return prompt.system, prompt.tools, turns


def all_thinking(prompt: Prompt) -> list[tuple[int, int, str]]:
    return [
        (number, index, block["signature"])
        for number, message in enumerate(prompt.messages)
        for index, block in enumerate(message.content)
        if isinstance(block, dict) and block["type"] == "thinking"
    ]


def naive_refusals(prompt: Prompt, written: dict[str, Written]) -> list[str]:
    """Returns the thinking of a request that the API would refuse."""
    sent = all_thinking(prompt)
    wrong = []
    for place, (message, block, name) in enumerate(sent):
        was = written[name]
        is_after = place == 0 or was.thinking == sent[place - 1][2]
        if not is_after or (was.system, was.tools, was.before) != naive_prefix(prompt, message, block):
            wrong.append(name)
    return wrong


Change = Callable[[Prompt], Prompt]
SYSTEMS = st.sampled_from(["s", "t"])
TOOLS = st.sampled_from([[], [TOOL]])
TURNS = st.lists(
    st.tuples(SYSTEMS, TOOLS, st.integers(0, 3), st.sampled_from(["", "", "edit", "delete", "net"]), st.integers(0, 9)),
    min_size=1,
    max_size=8,
)


@given(TURNS)
@settings(max_examples=500, deadline=None)
def test_what_is_kept_is_never_refused_and_what_is_left_out_would_be(turns: list[tuple[Any, ...]]) -> None:
    """Random conversations against a naive check, which remembers whole prompts. A turn may edit an earlier message."""
    history: list[Message] = []
    known: dict[str, StoredThinking] = {}
    written: dict[str, Written] = {}
    for turn, (system, tools, thoughts, event, place) in enumerate(turns):
        if event == "edit" and history:
            old = history[place % len(history)]
            new = "edited" if old.role == "user" else [*old.content, say("edited")]
            history[place % len(history)] = Message(old.role, new)
        if event == "delete" and history:
            del history[place % len(history) // 2 * 2 : place % len(history) // 2 * 2 + 2]
        history = [*history, Message("user", f"question {turn}")]
        prompt = Prompt(system, tools, history)
        found = choose_kept(history, find_prefixes(*prompt).thinking, known)
        if event == "net":
            found = set()
        sent = prompt._replace(messages=without_thinking(history, found))
        assert naive_refusals(sent, written) == []
        if event != "net":
            assert_maximal(prompt, found, written)
        blocks = [one for n in range(thoughts) for one in (think(f"{turn}.{n}"), say(f"{turn}.{n}"))]
        given_answer = Message("assistant", blocks or [say("no thoughts")])
        whole = sent._replace(messages=[*sent.messages, given_answer])
        own = {name for _, _, name in all_thinking(sent._replace(messages=[given_answer]))}
        known |= {one.id: as_stored(one) for one in find_prefixes(*whole).thinking if one.message == len(sent.messages)}
        before = ""
        for message, block, name in all_thinking(whole):
            if name in own:
                written[name] = Written(*naive_prefix(whole, message, block), before)
            before = name
        history = [*history, given_answer]


def assert_maximal(prompt: Prompt, found: set[tuple[int, int]], written: dict[str, Written]) -> None:
    """The newest thinking that could be sent alone is sent, and before each the one that it follows, if possible."""
    alone = [
        (message, block, name)
        for message, block, name in all_thinking(prompt)
        if not naive_refusals(prompt._replace(messages=without_thinking(prompt.messages, {(message, block)})), written)
    ]
    sent = [name for message, block, name in all_thinking(prompt) if (message, block) in found]
    assert sent[-1:] == [name for _, _, name in alone][-1:]
    names = [name for _, _, name in alone]
    assert sent == [] or written[sent[0]].thinking not in names[: names.index(sent[0])]
