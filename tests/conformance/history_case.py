"""Odd histories and what the model gets of them: tests/conformance/README.md explains their format."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

import msgspec

from tests.conformance.rule_case import FOLDER

Item = dict[str, Any]
ANSWERED = ("thinking", "answer", "shown", "call", "search", "found", "break", "failed")
"""The items of the assistant."""
REFUSED_FILES = ("docx", "wav", "mp4", "tiff")


class Own(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rule of one protocol, if it differs from the others. Without an outcome: the rule of the others holds."""

    why: str
    """The reason, and its source."""
    sent: list[Item] | None = None
    refused: str = ""
    """A regular expression for Tailrace's refusal."""
    api_refuses: str = ""
    """The same for the refusal of Claude's API, which the client gets."""


class HistoryCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A history that clients send, and what the model gets of it in every protocol that can express it."""

    about: str
    source: str
    items: list[Item]
    sent: list[Item] | None = None
    refused: str = ""
    api_refuses: str = ""
    own: dict[str, Own] = {}
    """By the names of ways, or their beginnings before `-`, with commas between them. The first that fits counts."""
    model: str = "claude-sonnet-5-5"

    def expected(self, way: str) -> "Own | HistoryCase":
        """Returns what is right for a way."""
        for names, own in self.own.items():
            if any(way == name or way.startswith(f"{name}-") for name in names.split(", ")):
                return own if own.sent is not None or own.refused or own.api_refuses else self
        return self


class Exchange(NamedTuple):
    """A client's messages, and the answer to them; the last one has no answer."""

    asked: list[Item]
    answered: list[Item]


def kind_of(item: Item) -> str:
    """Returns the kind of an item, its first field."""
    return next(iter(item))


def is_answered(item: Item) -> bool:
    return kind_of(item) in ANSWERED


def exchanges(items: Sequence[Item]) -> list[Exchange]:
    """Returns the questions of a history with their answers."""
    found: list[Exchange] = []
    for of_assistant, run in groupby(items, is_answered):
        part = list(run)
        if of_assistant and found:
            found[-1] = Exchange(found[-1].asked, part)
        else:
            found.append(Exchange([], part) if of_assistant else Exchange(part, []))
    return found


def groups(items: Sequence[Item]) -> Iterator[tuple[bool, list[Item]]]:
    """Yields the messages of a history, True for one of the assistant: its items up to a `break`.

    An answer that has failed is none.
    """
    for of_assistant, run in groupby(items, is_answered):
        if not of_assistant:
            for item in run:
                yield False, [item]
            continue
        for is_break, part in groupby(run, lambda item: kind_of(item) in ("break", "failed")):
            if not is_break:
                yield True, list(part)


def is_question(items: Sequence[Item], *, blank: bool = False) -> bool:
    """Returns whether a turn can be asked with these items. `blank`: also one that has nothing but a blank text."""
    if any(kind_of(item) in ("result", "denied") for item in items):
        return True
    said = [item["user"] for item in items if "user" in item]
    return any(blank or not isinstance(text, str) or text.strip() for text in said)


def has_refused_file(items: Sequence[Item]) -> bool:
    """Returns whether a message of the user, or a result, has a file that Claude does not take."""
    parts = [part for item in items for part in [item.get("user", item.get("content"))] if isinstance(part, list)]
    return any(isinstance(one, dict) and one["file"] in REFUSED_FILES for part in parts for one in part)


@cache
def read_histories() -> dict[str, HistoryCase]:
    """Returns the cases by name."""
    found: dict[str, HistoryCase] = {}
    for path in sorted((FOLDER / "histories").glob("*.json")):
        found |= msgspec.json.decode(path.read_bytes(), type=dict[str, HistoryCase])
    return found
