"""AnswerLength: how far an answer has come, to tell whether an attempt stored something new (PROTOCOL R73). Pure."""

from collections.abc import Callable

import msgspec

from tailrace.proto.entries import Block
from tailrace.proto.server_tools import ContentBlock, is_call, is_real_result, is_result

FindCall = Callable[[str], Block | None]
"""Returns the server tool's call with this id; None if the call is in the request."""


class _Uncounted(msgspec.Struct):
    """Uncounted text of an open block: the block may repeat an earlier one."""

    text: str
    earlier: list[str]
    """The earlier texts that begin with `text`."""


class AnswerLength:
    """The code points of the answer's text, thinking and partial JSON, plus one for each closed block.

    A repeated block does not count: a model that begins anew in each attempt, and calls its tools again, does not move
    forward. So text counts when it differs from the beginnings of all earlier blocks. A call of a server tool counts
    when it is closed; two calls of the same tool with the same input count once, also if their results differ. The
    error that closes half a call does not count.
    """

    def __init__(self) -> None:
        self.total = 0
        self._texts: list[str] = []
        self._calls = set[tuple[str, str, str]]()
        self._uncounted: dict[int, _Uncounted] = {}

    def start(self, index: int, block: ContentBlock) -> None:
        """Adds a block, before its text."""
        if is_call(block):
            self._uncounted[index] = _Uncounted("", [])
        elif self._texts:
            self._uncounted[index] = _Uncounted("", list(self._texts))

    def add_text(self, index: int, text: str) -> None:
        """Adds text to an open block."""
        uncounted = self._uncounted.get(index)
        if uncounted is None:
            self.total += len(text)
            return
        uncounted.text += text
        if uncounted.earlier:
            uncounted.earlier = [earlier for earlier in uncounted.earlier if earlier.startswith(uncounted.text)]
            if not uncounted.earlier:
                self.total += len(uncounted.text)
                del self._uncounted[index]

    def close(self, index: int, block: Block, find_call: FindCall) -> None:
        """Adds the end of a block."""
        uncounted = self._uncounted.pop(index, None)
        if is_call(block.start):
            self._add_once("call", block, 1 + len(block.text))
        elif is_result(block.start):
            if is_real_result(block.start):
                self._add_once("result", find_call(block.start["tool_use_id"]) or block, 1)
        elif not block.text or block.text not in self._texts:
            self.total += 1 + (len(uncounted.text) if uncounted is not None else 0)
            if block.text:
                self._texts.append(block.text)

    def _add_once(self, what: str, call: Block, length: int) -> None:
        """Adds a call, or its result. A result whose call is not in the answer stands for its call."""
        tool_input = call.text or msgspec.json.encode(call.start.get("input") or call.start.get("tool_use_id"))
        key = (what, str(call.start.get("name")), str(tool_input))
        if key not in self._calls:
            self._calls.add(key)
            self.total += length
