"""The messages that Claude gets of a conversation: one row for each rule of protocols/common/history_items.py."""

import json
from typing import Any, NamedTuple

import pytest

from tailrace.proto.errors import Refused
from tailrace.protocols.common.file_block import build_file, refused_part
from tailrace.protocols.common.history_items import (
    Item,
    build_call,
    build_messages,
    build_text,
    build_thinking,
    each_answer_once,
)
from tailrace.protocols.common.tool_definition import FAILED, build_result

Block = dict[str, Any]
WORD = "application/msword"


def user(*content: str | Block) -> Item:
    return Item("user", blocks(*content))


def answer(*content: str | Block) -> Item:
    return Item("assistant", blocks(*content))


def system(text: str) -> Item:
    return Item("system", build_text(text))


def result(call: str, content: Any = "ok", **more: Any) -> Item:
    return Item("result", [build_result(call, content, **more)])


def blocks(*content: str | Block) -> list[Block]:
    return [block for one in content for block in (build_text(one) if isinstance(one, str) else [one])]


def call(name: str = "c", given: object = "") -> Block:
    return build_call(name, "f", given)


def done(name: str = "c", content: Any = "ok") -> Block:
    return {"type": "tool_result", "tool_use_id": name, "content": content}


def search(name: str = "srvtoolu_1") -> Block:
    return {"type": "server_tool_use", "id": name, "name": "web_search", "input": {}}


def found(name: str = "srvtoolu_1") -> Block:
    return {"type": "web_search_tool_result", "tool_use_id": name, "content": []}


THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "sig"}
REFUSED_FILE = build_file(WORD, f"data:{WORD};base64,UEsDBA==", "a.docx")[0]
IMAGE = {"type": "image", "source": {"type": "url", "url": "https://a.example/a.png"}}
DOCUMENT = {"type": "document", "title": "a.pdf", "source": {"type": "url", "url": "https://a.example/a.pdf"}}


def named(file: str) -> Block:
    return {"type": "text", "text": f"[{file} cannot be shown here]"}


NAMED_FILE = named("a.docx")


class Row(NamedTuple):
    rule: str
    items: list[Item]
    messages: list[tuple[str, Any]]
    page: list[tuple[str, Any]] | None = None
    """For a page, where that differs."""


Q, A = ("user", "q"), ("assistant", "a")
CALLED = ("assistant", [call()])
DONE = ("user", [done()])
ROWS = [
    Row(
        "consecutive items of the assistant are one answer",
        [user("q"), answer("a"), answer(call()), result("c")],
        [Q, ("assistant", [*blocks("a"), call()]), DONE],
    ),
    Row("questions stay apart", [user("q"), user("q")], [Q, Q]),
    Row(
        "a late result is put behind its call",
        [user("q"), answer(call()), user("and?"), answer("a"), result("c"), user("q")],
        [Q, CALLED, DONE, ("user", "and?"), A, Q],
    ),
    Row(
        "results are one message in the order of the calls, and a text between them comes later",
        [user("q"), answer(call("c"), call("d")), result("d"), user("and?"), result("c")],
        [Q, ("assistant", [call("c"), call("d")]), ("user", [done("c"), done("d")]), ("user", "and?")],
    ),
    Row(
        "a result belongs to the nearest call before it",
        [user("q"), answer(call()), result("c", "snow"), answer("a"), user("q"), answer(call()), result("c", "sun")],
        [Q, CALLED, ("user", [done(content="snow")]), A, Q, CALLED, ("user", [done(content="sun")])],
    ),
    Row(
        "a late result belongs to the nearest call that has none",
        [user("q"), answer(call()), user("q"), answer(call()), result("c", "sun"), result("c", "snow")],
        [Q, CALLED, ("user", [done(content="snow")]), Q, CALLED, ("user", [done(content="sun")])],
    ),
    Row(
        "the first result of a call counts",
        [user("q"), answer(call()), result("c"), answer("a"), result("c", "later"), user("q")],
        [Q, CALLED, DONE, A, Q],
    ),
    Row(
        "a call that an answer repeats is one call",
        [user("q"), answer(call()), answer(call()), result("c"), user("q")],
        [Q, CALLED, DONE, Q],
    ),
    Row(
        "so is one of which only one copy has a mark of the cache",
        [user("q"), answer(call()), answer({**call(), "cache_control": {}}), result("c"), user("q")],
        [Q, ("assistant", [{**call(), "cache_control": {}}]), DONE, Q],
    ),
    Row(
        "another call with its id is of another answer, and their results come in the order of the calls",
        [user("q"), answer(call(), call(given='{"a": 1}')), result("c", "a"), result("c", "b")],
        [
            Q,
            CALLED,
            ("user", [done(content="a")]),
            ("assistant", [call(given='{"a": 1}')]),
            ("user", [done(content="b")]),
        ],
    ),
    Row(
        "a call behind a result is of the next answer",
        [user("q"), answer(call("c")), result("c"), answer(call("d")), result("d")],
        [Q, CALLED, DONE, ("assistant", [call("d")]), ("user", [done("d")])],
    ),
    Row(
        "a text behind a call stays in the answer",
        [user("q"), answer(call(), "a"), result("c")],
        [Q, ("assistant", [call(), *blocks("a")]), DONE],
    ),
    Row(
        "a call without a result goes to the API, and waits in a page",
        [user("q"), answer("a", call()), user("q")],
        [Q, ("assistant", [*blocks("a"), call()]), Q],
        [Q, A, Q],
    ),
    Row(
        "a page's calls of server tools and their results are in its session",
        [user("q"), answer(call("srvtoolu_1"), "a"), result("srvtoolu_1"), user("q")],
        [Q, ("assistant", [call("srvtoolu_1"), *blocks("a")]), ("user", [done("srvtoolu_1")]), Q],
        [Q, A, Q],
    ),
    Row(
        "a server tool's open call stands without a result while only results follow",
        [user("q"), answer(search(), call()), result("c")],
        [Q, ("assistant", [search(), call()]), DONE],
    ),
    Row(
        "its result is at the top of the next answer",
        [user("q"), answer(search(), call()), result("c"), answer(found(), "a"), user("q")],
        [Q, ("assistant", [search(), call()]), DONE, ("assistant", [found(), *blocks("a")]), Q],
    ),
    Row(
        "behind a question it can get no result any more",
        [user("q"), answer(search(), call()), result("c"), user("never mind")],
        [Q, CALLED, DONE, ("user", "never mind")],
    ),
    Row(
        "an answer does not end with thinking",
        [user("q"), answer("a", THOUGHT), user("q"), answer(THOUGHT), user("q")],
        [Q, A, Q, Q],
    ),
    Row("a blank message in the middle is left out", [user("q"), user(" "), answer("\n"), user("q")], [Q, Q]),
    Row("also before an answer", [user("q"), user(" "), answer("a")], [Q, A]),
    Row("and before a result", [user("q"), answer(call()), user(" "), result("c")], [Q, CALLED, DONE]),
    Row("the input of a call is an object", [answer(call(given="[1]")), result("c")], [CALLED, DONE]),
    Row("an input that was cut is empty", [answer(call(given='{"q": "Pa')), result("c")], [CALLED, DONE]),
    Row(
        "a failed call has a reason",
        [answer(call()), result("c", "", is_error=True)],
        [CALLED, ("user", [{**done(content=FAILED), "is_error": True}])],
    ),
    Row(
        "a refused file in an older message is named",
        [user(REFUSED_FILE, "q"), answer("a"), user("q")],
        [("user", [NAMED_FILE, *blocks("q")]), A, Q],
    ),
    Row(
        "a file before an answer that has failed is named, too",
        [user(REFUSED_FILE, "q"), Item("assistant", []), user("q")],
        [("user", [NAMED_FILE, *blocks("q")]), Q],
    ),
    Row(
        "so is a refused part of a result",
        [answer(call()), result("c", [REFUSED_FILE]), answer("a"), user("q")],
        [CALLED, ("user", [done(content=[NAMED_FILE])]), A, Q],
    ),
    Row(
        "so is one of the answer itself",
        [user("q"), answer(REFUSED_FILE, "a")],
        [Q, ("assistant", [NAMED_FILE, *blocks("a")])],
    ),
    Row(
        "an answer has no file",
        [user("q"), answer(IMAGE, {**DOCUMENT, "cache_control": {}})],
        [Q, ("assistant", [*blocks("[image cannot be shown here]"), {**named("a.pdf"), "cache_control": {}}])],
    ),
    Row(
        "nor has a system message",
        [user("q"), answer("a"), user("q"), Item("system", [IMAGE]), answer("a")],
        [Q, A, Q, A],
        [Q, A, Q, ("system", "[image cannot be shown here]"), A],
    ),
    Row(
        "a named file keeps its mark of the cache",
        [user({**REFUSED_FILE, "cache_control": {}}), answer("a")],
        [("user", [{**NAMED_FILE, "cache_control": {}}]), A],
    ),
    Row(
        "a mark of the cache stays with its block",
        [user({**blocks("q")[0], "cache_control": {}})],
        [("user", [{**blocks("q")[0], "cache_control": {}}])],
    ),
    Row(
        "a system message in the middle of a page stays there, and of another client it is part of the prompt",
        [user("q"), answer(call()), system("s"), result("c"), user("q"), answer("a")],
        [Q, CALLED, DONE, Q, A],
        [Q, CALLED, DONE, ("system", "s"), Q, A],
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=[row.rule for row in ROWS])
def test_items_become_messages(row: Row) -> None:
    for is_page in (False, True):
        made = build_messages(row.items, is_page=is_page).messages
        wanted = row.messages if row.page is None or not is_page else row.page
        assert [(one.role, one.content) for one in made] == wanted, f"{is_page=}"


def test_results_of_a_stored_answer_come_first() -> None:
    """The API takes them only directly behind the answer, which is not among the items. A page sends all answers."""
    items = [user("and?"), result("c"), result("d"), result("c", "later")]
    assert [one.content for one in build_messages(items).messages] == [[done("c"), done("d")], "and?"]
    with pytest.raises(Refused, match=r"`messages\[0\]` has the result of 'c', and no message before it has this call"):
        build_messages(items, is_page=True)


def test_system_messages_at_the_beginning_are_the_prompt() -> None:
    """Of a page those at the beginning, of another client all."""
    items = [system("s"), user("q"), system("t")]
    assert build_messages(items).system == blocks("s", "t")
    assert build_messages(items, is_page=True).system == blocks("s")


@pytest.mark.parametrize(
    ("items", "of_page"),
    [
        ([user("q"), answer("a"), user(REFUSED_FILE)], True),
        ([user("q"), answer("a"), user(REFUSED_FILE), user("q")], False),
        ([user(REFUSED_FILE), answer(THOUGHT, call()), result("c", [REFUSED_FILE])], True),
        ([user("q"), user(" ")], True),
        ([user("q"), Item("system", [IMAGE])], True),
    ],
)
def test_what_claude_does_not_take_is_refused_in_a_new_message(items: list[Item], *, of_page: bool) -> None:
    """Of a page, the last message is new; of another client all messages behind the last answer."""
    with pytest.raises(Refused, match=r"`input\[0\]` has"):
        build_messages(items, "input[{}]")
    if of_page:
        with pytest.raises(Refused):
            build_messages(items, is_page=True)
    else:
        build_messages(items, is_page=True)


@pytest.mark.parametrize("is_page", [False, True])
@pytest.mark.parametrize(
    "items",
    [
        [user("q"), answer(call()), result("c"), answer("a"), result("c", "later")],
        [user("q"), answer(call()), user("q"), answer("a"), result("c")],
    ],
    ids=["second", "late"],
)
def test_a_result_alone_is_refused_if_no_answer_can_follow_it(items: list[Item], *, is_page: bool) -> None:
    """Behind its call, the answer that is there follows it."""
    with pytest.raises(Refused, match=r"`messages\[0\]` has the result of a call before the last answer"):
        build_messages(items, is_page=is_page)
    build_messages([*items, user("q")], is_page=is_page)


def test_the_input_of_a_call_is_not_nested_too_deeply() -> None:
    """The API's answers have no such input, and a request with one would be refused for ever."""
    given: Block = {}
    for _ in range(100):
        given = {"a": given}
    assert call(given=given) == call(given=json.dumps(given)) == call(given={})


class Sent(NamedTuple):
    id: str | None
    role: str | None
    text: str


def test_an_answer_that_is_sent_twice_counts_once() -> None:
    """With its id and its content. A question may be asked again, and other content is another answer."""
    ids = [("u", "user"), ("a", "assistant")] * 2
    sent = [*[Sent(*one, "x") for one in ids], Sent("a", "assistant", "y")]
    sent += [Sent(*one, "x") for one in [(None, None), ("", "assistant")] * 2]
    assert [number for number, _ in each_answer_once(sent, 1)] == [1, 2, 3, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("secret", "block"),
    [
        ("thinking:sig", THOUGHT),
        ("redacted_thinking:x", {"type": "redacted_thinking", "data": "x"}),
        ("thinking:", None),
        ("redacted_thinking:", None),
        ("gAAAAABo4dQm0vWZ3kq", None),
        # As Claude's, Gemini's signatures begin with E.
        ("EvAGCu0GAWdlbWluaQ==", None),
        ("gemini:EvAGCu0GAWdlbWluaQ==", None),
        ("", None),
    ],
)
def test_thinking_needs_the_proof_that_it_is_claudes(secret: str, block: Block | None) -> None:
    """The API refuses the signature of another vendor in every later request."""
    assert build_thinking("hm", secret) == ([] if block is None else [block])


@pytest.mark.parametrize(
    ("media_type", "url"),
    [
        (WORD, f"data:{WORD};base64,UEsDBA=="),
        ("image/heic", "data:image/heic;base64,AAAA"),
        ("image/png", "http://a.example/b.png"),
        ("image/png", "data:image/png;base64,%"),
        ("image/png", "data:image/png"),
        ("audio/mpeg", "https://a.example/b.mp3"),
        ("", "AAAA"),
    ],
)
def test_a_file_that_claude_does_not_take_becomes_a_refused_part(media_type: str, url: str) -> None:
    (part,) = build_file(media_type, url, "a")
    assert part == refused_part(part["reason"], "a")
