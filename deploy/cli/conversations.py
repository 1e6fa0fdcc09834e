"""Texts, times and tables of turns and sessions, for `tailrace turns`, `sessions`, `export` and `top`."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from tailrace.deploy.local.terminal_text import one_line, table

EXCERPT_CHARS = 48
Record = Mapping[str, Any]


def text_of(content: str | Iterable[Record]) -> str:
    """Returns a message as Markdown: its text, its tool calls with their input, and the types of other blocks."""
    if isinstance(content, str):
        return content
    return "\n\n".join(filter(None, map(block_text, content)))


def block_text(block: Record) -> str:
    match block:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "text", "text": {"tailrace:blob": str(sha256), "bytes": int(size)}}:
            return f"*[text of {size} bytes: GET /v1/blobs/{sha256}]*"
        case {"type": "tool_use", "name": str(name), "input": call}:
            return f"```json\n{msgspec.json.encode({'tool': name, 'input': call}).decode()}\n```"
        case {"type": "tool_result", "content": str() | list() as content}:
            return text_of(content)
        case {"type": "thinking" | "redacted_thinking"}:
            return ""
        case _:
            return f"*[{block.get('type', 'block')}]*"


def excerpt(text: str) -> str:
    """Returns the beginning of `text` in one line of at most EXCERPT_CHARS characters."""
    line = " ".join(one_line(text).split())
    return line if len(line) <= EXCERPT_CHARS else f"{line[: EXCERPT_CHARS - 1]}…"


def local_time(text: str) -> str:
    """Returns an ISO 8601 time as `2026-01-31 12:00:00`, in the time zone of this machine."""
    return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S}"


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    shown = list(rows)
    print(table([headings, *shown]) if shown else empty)
