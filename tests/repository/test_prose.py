"""The prose check finds banned phrases in pages, docstrings, comments and messages, and not in code."""

from collections.abc import Iterable

from tools.check_prose import BANNED, PATTERNS, pieces

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


def test_script_is_checked_as_a_whole() -> None:
    """Scripts in JavaScript are not parsed."""
    assert lines(pieces("page.mjs", SCRIPT)) == {1, 2}


def test_every_banned_phrase_has_advice() -> None:
    """A failure says what to write instead."""
    assert all(BANNED.values())
