"""The prose check finds banned phrases in prose, banned words in names, and lines of pages that are too long."""

from collections.abc import Iterable

import pytest

from tools.check_prose import BANNED, BANNED_NAMES, PATTERNS, banned_names, long_lines, pieces

PAGE = """Nobody reads this.

    nobody in code

```
whoever in code
```
`told` is a code span, and a stranger is not.
"""
MODULE = '''"""Serves whoever asks."""

NAME = "nobody"
MESSAGE = "somebody has it"  # what is told
'''


SCRIPT = """// Whoever reads this.
const text = "nobody";
"""


def lines(checked: Iterable[tuple[int, str]]) -> set[int]:
    """Returns the lines on which a banned phrase is found."""
    return {
        line + text.count("\n", 0, found.start())
        for line, text in checked
        for pattern in PATTERNS
        for found in pattern.finditer(text)
    }


def test_page_is_checked_without_its_code() -> None:
    """Code blocks and code spans may contain any word."""
    assert lines(pieces("page.md", PAGE)) == {1, 8}


def test_module_is_checked_in_docstrings_comments_and_messages() -> None:
    """A string without a blank is a value and not prose."""
    assert lines(pieces("module.py", MODULE)) == {1, 4}


@pytest.mark.parametrize("name", ["page.mjs", "ask.sh", ".ci/run"])
def test_script_is_checked_as_a_whole(name: str) -> None:
    """Scripts in JavaScript and shell are not parsed."""
    assert lines(pieces(name, SCRIPT)) == {1, 2}


def test_the_name_of_a_test_is_checked_as_a_sentence() -> None:
    """It may have words that a shorter name may not have."""
    text = "def test_a_log_is_asked(): ...\nasync def test_nobody_reads(): ...\n"
    assert lines(pieces("module.py", text)) == {2}
    assert [*banned_names(text)] == []


@pytest.mark.parametrize(
    "code",
    [
        "def told(): ...",
        "async def is_asked(): ...",
        "class ToldStory: ...",
        "class HTTPDoor: ...",
        "SAID = 1",
        "crowd: int = 1",
        "for _rota2 in (): ...",
        "self.mended = 1",
        "def read(*, asked): ...",
        "lambda seam: 1",
        "import os as house",
        "(doomed := 1)",
        "[nobody for nobody in ()]",
        "try: ...\nexcept OSError as leash: ...",
        "match 1:\n    case asked: ...",
    ],
)
def test_a_banned_word_is_found_in_each_kind_of_name(code: str) -> None:
    """Whole words, split at underscores and capital letters."""
    ((line, name, advice),) = banned_names(code)
    assert (line, name in code, advice in BANNED_NAMES.values()) == (code.count("\n") + 1, True, True)


@pytest.mark.parametrize(
    "code", ["told", "asked()", "one.said", "asked_at = asked_by = 1", "amend = crowded = indoor = 1", "read(asked=1)"]
)
def test_uses_of_names_stored_names_and_parts_of_words_are_allowed(code: str) -> None:
    """A library may have defined the name."""
    assert [*banned_names(code)] == []


def test_every_banned_phrase_and_word_has_advice() -> None:
    """A failure says what to write instead."""
    assert all([*BANNED.values(), *BANNED_NAMES.values()])


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        pytest.param("words " * 16 + "word", False, id="100-columns"),
        pytest.param("words " * 16 + "words", True, id="101-columns"),
        pytest.param("- " + "words " * 17, True, id="list-item"),
        pytest.param("see `" + "code " * 20 + "`", True, id="word-before-code"),
        pytest.param("`" + "code " * 20 + "`", False, id="one-code-span"),
        pytest.param("1. [name](https://" + "x" * 100 + ")", False, id="one-link"),
        pytest.param("![" + "words " * 20 + "](picture.svg)", False, id="one-picture"),
        pytest.param("| " + "words " * 20 + "|", False, id="table"),
        pytest.param("    " + "words " * 20, False, id="indented-code"),
        pytest.param("```\n" + "words " * 20 + "\n```", False, id="code-block"),
    ],
)
def test_line_over_100_columns_is_found_if_it_can_be_broken(line: str, is_found: bool) -> None:
    """Tables, code, and single links, pictures and code spans may be longer."""
    assert [number for number, _ in long_lines(f"# Page\n\n{line}\n")] == ([3] if is_found else [])
