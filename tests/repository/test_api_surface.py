"""Each type of Claude's API has a verdict, and a type of a new SDK without one is found."""

from typing import Any, Literal

import pytest
from anthropic.types import beta
from typing_extensions import TypedDict

from tools import api_surface
from tools.api_surface import TABLE, compare, main, paths, reachable, read_table, sdk_names, tags


class Nested(TypedDict, total=False):
    type: Literal["new_part"]
    count: int


class NewBlock(TypedDict, total=False):
    type: Literal["new_block"]
    parts: list[Nested | str]
    usage: Nested


def test_each_type_has_a_verdict() -> None:
    assert compare(read_table(), sdk_names()) == []


def test_a_new_type_and_a_removed_one_are_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new SDK makes `make check` red until each of its types has a verdict."""
    with_new: Any = beta.BetaContentBlock | NewBlock
    without_text = frozenset(tags((with_new,))) - {"text"}
    monkeypatch.setattr(api_surface, "sdk_names", lambda: {**sdk_names(), "answer_blocks": without_text})
    monkeypatch.setattr("sys.argv", ["api_surface"])
    assert main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["answer_blocks.new_block: no verdict", "answer_blocks.text: the SDK has no such type"]


def test_types_are_found_at_any_depth() -> None:
    assert tags(reachable((NewBlock,))) == {"new_block", "new_part"}
    assert paths((NewBlock,)) == {"type", "parts.type", "parts.count", "usage.type", "usage.count"}


def test_a_group_without_types_is_found() -> None:
    assert compare(read_table(TABLE), {**sdk_names(), "deltas": frozenset()})[0] == (
        "deltas.citations_delta: the SDK has no such type"
    )
