"""How the command line shows an answer on a terminal, and a conversation as Markdown."""

from typing import Any

import pytest

from tailrace.deploy.cli.conversations import excerpt
from tailrace.deploy.cli.export import markdown
from tailrace.deploy.cli.markdown_display import MarkdownDisplay, split_blocks

# Colours, title, clipboard, and a C1 control character that begins a sequence.
HOSTILE = "a\x1b[31mred\x1b]0;title\x07\x1b]52;c;aGk=\x07\x9b2Jb"
CODE = "```py\nx = 1\n\ny = 2\n```"


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("One", ""),
        ("One\n\n", "One\n\n"),
        ("One\n\nTwo\n", "One\n\n"),
        (f"One\n\n{CODE}", "One\n\n"),
        (f"{CODE}\n\nTwo", f"{CODE}\n\n"),
        ("````\n```\n\nx", ""),
        ("~~~\n\n```\n\n", ""),
        ("One\n ", ""),
    ],
)
def test_a_block_is_finished_by_a_blank_line_outside_of_code(text: str, finished: str) -> None:
    assert split_blocks(text) == (finished, text[len(finished) :])


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> MarkdownDisplay:
    """A display whose output `capsys` has, with as few columns as a rule needs."""
    monkeypatch.setenv("COLUMNS", "50")
    return MarkdownDisplay()


def test_the_terminal_shows_each_word_once_and_obeys_no_control_character(
    display: MarkdownDisplay, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in a link, whose address is shown."""
    for text in ("# Title\n", "\nOne ", f"{HOSTILE}\n\n- two\n", "\n[bank](https://evil.example)"):
        display.add(text)
    display.state("reconnecting")
    display.close()
    shown = capsys.readouterr().out
    harmless = "a[31mred]0;title]52;c;aGk=2Jb"
    assert shown.split() == ["Title", "One", harmless, "•", "two", "bank", "(https://evil.example)"]
    assert not set(shown) & set(HOSTILE) - set(harmless)
    assert excerpt(f"One\n{HOSTILE}") == f"One {harmless}"


def test_one_blank_line_is_between_the_blocks_of_an_answer(
    display: MarkdownDisplay, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("# One\n\nTwo\n\n- a\n- b\n\n", f"## Three\n\n> c\n\n{CODE}\n\n---\n\nend"):
        display.add(text)
    display.close()
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    code = ["x = 1", "", "y = 2"]
    assert lines == ["One", "", "Two", "", "• a", "• b", "", "Three", "", "▌ c", "", *code, "", "-" * 50, "", "end"]


def test_the_newest_branch_of_a_conversation_is_exported() -> None:
    """A long text is read from its blob, and named by its hash if the blob has expired."""

    def turn(name: str, parent: str | None, question: object, answer: object, outcome: str = "completed") -> Any:
        question_input = [{"role": "user", "content": question}]
        shape = {"input": question_input, "content": answer, "model": "opus", "outcome": outcome}
        return {"turn": name, "parent": parent, **shape}

    def long(sha256: str) -> dict[str, Any]:
        return {"type": "text", "text": {"tailrace:blob": sha256, "bytes": 70_000}}

    picture: list[dict[str, Any]] = [{"type": "image", "source": {}}, {"type": "text", "text": "What is it?"}]
    turns = [
        turn("1", None, "Hi.", [{"type": "thinking", "thinking": "…"}, {"type": "text", "text": "Hello."}]),
        turn("2", "1", "An earlier branch", []),
        turn(
            "3",
            "1",
            [*picture, long("a"), long("b")],
            [{"type": "tool_use", "name": "look", "input": {"at": 1}}],
            "cancelled",
        ),
    ]
    assert markdown({"title": None, "turns": turns}, {"a": "A long text."}.get).split("\n\n") == [
        *("# Conversation", "## You", "Hi.", "## opus", "Hello.", "## You", "*[image]*", "What is it?"),
        *("A long text.", "*[text of 70000 bytes: GET /v1/blobs/b]*"),
        *("## opus (cancelled)", '```json\n{"tool":"look","input":{"at":1}}\n```'),
        "*1 turns of other branches are not shown.*",
    ]


def test_a_sent_message_is_shown_between_the_two_answers(
    display: MarkdownDisplay, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one with markup. A message that was refused is shown as such, and one of another client is not known."""
    display.add("One [two]")
    for message in ("[b]Shorter", "Longer"):
        display.send(message)
    display.refuse("Longer", "the server is away")
    display.steered("turn-2")
    display.add("Three")
    display.steered("turn-3")
    display.close()
    shown = " ".join(capsys.readouterr().out.split())
    assert shown == "not sent: Longer (the server is away) One [two] > [b]Shorter Three"
    assert display.steered_to == {"turn-2", "turn-3"}
