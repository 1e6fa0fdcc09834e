"""`tailrace export`: writes a conversation as Markdown or JSON, or all data of a user or a tenant as JSON lines."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from tailrace.client import Client, TailraceError
from tailrace.client.core import path_segment
from tailrace.deploy.cli.arguments import add_connection, add_json, day, session_id
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.conversations import Record, text_of
from tailrace.deploy.cli.display import words_of
from tailrace.deploy.cli.output_file import open_output
from tailrace.deploy.local.terminal_text import make_printable
from tailrace.proto.errors import SettingsInvalid

DESCRIPTION = "Write a conversation as Markdown or JSON, or all data of a user or a tenant as JSON lines."
EXAMPLES = """\
Markdown has the newest branch of the session, JSON all of its turns.

examples:
  tailrace export SESSION --output conversation.md
  tailrace export SESSION --json > conversation.json
  tailrace export --user ann@example.com --output ann.jsonl     the sessions and turns of a user
  tailrace export --user ann@example.com --from 2026-01-01 --to 2026-01-31     the turns of these days
  tailrace export --all --output tenant.jsonl                   everything of the tenant
"""
# The lists of a tenant's data, and whether they can be listed by user.
LISTS = (
    ("project", "/v1/projects", False),
    ("file", "/v1/files", False),
    ("session", "/v1/sessions", True),
    ("turn", "/v1/turns", True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "id", nargs="?", type=session_id, metavar="SESSION", help="id of the session: see `tailrace sessions`"
    )
    what.add_argument("--user", metavar="NAME", help="export the sessions and turns of this user")
    what.add_argument("--all", action="store_true", help="export everything of the key's tenant")
    days = "day of the turns, UTC; sessions, projects and files are left out"
    parser.add_argument("--from", type=day, dest="first", metavar="DAY", help=f"first {days}")
    parser.add_argument("--to", type=day, dest="last", metavar="DAY", help=f"last {days}")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write (default: standard output)")
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Writes one conversation, or without an id all data of the user or the tenant.

    Raises SettingsInvalid if the output exists or cannot be written, GatewayFailed.
    """
    if args.id is not None and (args.first or args.last):
        raise SettingsInvalid("a session is exported whole: --from and --to need --user or --all")
    with connect(args, environ) as client:
        if args.id is None:
            write(args.output, export_lines(client, args.user, args.first, args.last))
            return 0
        found = conversation(client, args.id)
        text = msgspec.json.encode(found).decode() if args.json else markdown(found, blob_reader(client))
    write(args.output, [text])
    return 0


def export_lines(
    client: Client, user: str | None, first: date | None = None, last: date | None = None
) -> Iterator[str]:
    """Yields JSON objects, one a line: the sessions and turns of `user`; for None all data of the tenant.

    With a first or last day (both included, UTC) only turns, because other objects belong to no day. Raises
    client.TailraceError.
    """
    given = {"user": user, "from": first, "to": last}
    parameters = {name: str(value) for name, value in given.items() if value is not None}
    has_days = first is not None or last is not None
    for kind, path, has_user in LISTS:
        if (kind == "turn") if has_days else (has_user or user is None):
            for item in client.items(path, parameters):
                yield msgspec.json.encode({"type": kind, **item}).decode()


def write(output: Path | None, lines: Iterable[str]) -> None:
    """Writes lines to a new file, or to standard output. Raises SettingsInvalid."""
    if output is None:
        for line in lines:
            print(make_printable(line) if sys.stdout.isatty() else line)
        return
    if os.path.lexists(output):
        raise SettingsInvalid(f"{output} exists already: name another file")
    try:
        with open_output(output, overwrites=False) as file:
            file.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        raise SettingsInvalid(f"{output} cannot be written: {error.strerror}") from error


def conversation(client: Client, session: str) -> dict[str, Any]:
    """Returns a session with all of its turns, oldest first. Raises client.TailraceError."""
    found: dict[str, Any] = client.request("GET", f"/v1/sessions/{path_segment(session)}")
    return found | {"turns": list(client.turns(session))}


def blob_reader(client: Client) -> Callable[[str], str | None]:
    """Returns a function that returns the text of a blob, or None if it has expired. It raises client.TailraceError."""

    @cache
    def read(sha256: str) -> str | None:
        try:
            return client.blob(sha256)
        except TailraceError as error:
            if error.code != "blob_not_found":
                raise
            return None

    return read


def with_long_texts(content: Any, read: Callable[[str], str | None]) -> Any:
    """Returns a message's content with long texts in place of their references; those to expired texts stay."""
    match content:
        case {"tailrace:blob": str(sha256)}:
            return content if (text := read(sha256)) is None else text
        case {"type": "text", "text": inner}:
            return {**content, "text": with_long_texts(inner, read)}
        case {"type": "tool_result", "content": inner}:
            return {**content, "content": with_long_texts(inner, read)}
        case list():
            return [with_long_texts(block, read) for block in content]
        case _:
            return content


def markdown(session: Record, read: Callable[[str], str | None]) -> str:
    """Returns the newest branch of a conversation as Markdown. `read` returns the text of a blob."""
    newest = branch(session["turns"])
    parts = [f"# {session['title'] or 'Conversation'}"]
    for turn in newest:
        for message in turn["input"]:
            content = with_long_texts(message["content"], read)
            parts += [f"## {'You' if message['role'] == 'user' else 'Assistant'}", text_of(content)]
        how = words_of(turn["outcome"], turn.get("stop_reason"))
        parts += [f"## {turn['model']}{f' ({how})' if how else ''}", text_of(turn["content"])]
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
