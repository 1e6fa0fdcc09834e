"""`tailrace turns`, `sessions` and `export`: lists of turns and sessions, and a conversation as a file."""

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

import msgspec

from tailrace.client import Client
from tailrace.client.core import segment
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.local.banner import table
from tailrace.deploy.local.console import printable
from tailrace.proto.errors import SettingsInvalid

EXCERPT_CHARS = 48
Record = Mapping[str, Any]


def turns(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    with connect(given, environ) as client:
        found = list(islice(client.turns(given.session), given.limit))
    if given.json:
        print(msgspec.json.encode(found).decode())
        return 0
    headings = ("TURN", "OUTCOME", "MODEL", "ASKED", "OUTPUT", "QUESTION")
    print_table(headings, map(turn_row, found), "no turn is running" if given.session is None else "no turns")
    return 0


def turn_row(turn: Record) -> Sequence[str]:
    tokens = str(turn["usage"].get("output_tokens", 0))
    question = excerpt(text_of(turn["input"][-1]["content"])) if turn["input"] else ""
    return turn["turn"], turn["outcome"], turn["model"], local_time(turn["asked_at"]), tokens, question


def sessions(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    with connect(given, environ) as client:
        found = list(islice(client.sessions(), given.limit))
    if given.json:
        print(msgspec.json.encode(found).decode())
        return 0
    headings = ("SESSION", "TURNS", "TOKENS", "COST $", "LAST USED", "TITLE")
    print_table(headings, map(session_row, found), "no sessions")
    return 0


def session_row(session: Record) -> Sequence[str]:
    counts = str(session["turns"]), str(session["total_tokens"]), f"{session['cost_usd']:.4f}"
    return session["session"], *counts, local_time(session["updated_at"]), excerpt(session["title"] or "")


def export(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    with connect(given, environ) as client:
        found = conversation(client, given.id)
    text = msgspec.json.format(msgspec.json.encode(found), indent=2).decode() if given.json else markdown(found)
    if given.output is None:
        print(printable(text) if sys.stdout.isatty() else text)
        return 0
    try:
        with open(given.output, "x", encoding="utf-8", opener=open_private) as file:
            file.write(f"{text}\n")
    except FileExistsError as error:
        raise SettingsInvalid(f"{given.output} exists already: name another file") from error
    except OSError as error:
        raise SettingsInvalid(f"{given.output} cannot be written: {error.strerror}") from error
    return 0


def open_private(path: str, flags: int) -> int:
    """Opens a file that only its owner may read, if it is new."""
    return os.open(path, flags, 0o600)


def conversation(client: Client, session: str) -> dict[str, Any]:
    """Returns a session with all of its turns, oldest first. Raises client.TailraceError."""
    found: dict[str, Any] = client.request("GET", f"/v1/sessions/{segment(session)}")
    return found | {"turns": list(client.turns(session))}


def markdown(session: Record) -> str:
    """Returns the newest branch of a conversation as Markdown."""
    newest = branch(session["turns"])
    parts = [f"# {session['title'] or 'Conversation'}"]
    for turn in newest:
        for message in turn["input"]:
            parts += [f"## {'You' if message['role'] == 'user' else 'Assistant'}", text_of(message["content"])]
        how = "" if turn["outcome"] == "completed" else f" ({turn['outcome']})"
        parts += [f"## {turn['model']}{how}", text_of(turn["content"])]
    if others := len(session["turns"]) - len(newest):
        parts.append(f"*{others} turns of other branches are not shown.*")
    return "\n\n".join(parts)


def branch(turns: Sequence[Record]) -> list[Record]:
    """Returns the branch of the newest turn: its ancestors and itself, oldest first."""
    by_id = {turn["turn"]: turn for turn in turns}
    found: list[Record] = []
    turn = turns[-1] if turns else None
    while turn is not None:
        found.append(turn)
        turn = by_id.get(turn["parent"])
    return found[::-1]


def text_of(content: str | Iterable[Record]) -> str:
    """Returns a message as Markdown: its text, its tool calls with their input, and the types of other blocks."""
    if isinstance(content, str):
        return content
    return "\n\n".join(filter(None, map(block_text, content)))


def block_text(block: Record) -> str:
    match block:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "tool_use", "name": str(name), "input": call}:
            return f"```json\n{msgspec.json.encode({'tool': name, 'input': call}).decode()}\n```"
        case {"type": "tool_result", "content": str() | list() as content}:
            return text_of(content)
        case {"type": "thinking" | "redacted_thinking"}:
            return ""
        case _:
            return f"*[{block.get('type', 'block')}]*"


def excerpt(text: str) -> str:
    line = " ".join(printable(text.replace("\n", " ")).split())
    return line if len(line) <= EXCERPT_CHARS else f"{line[: EXCERPT_CHARS - 1]}…"


def local_time(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S}"


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    shown = list(rows)
    print(table([headings, *shown]) if shown else empty)
