"""`tailrace chat`: asks one question after the other in one session."""

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from tailrace.client import Client, End, TailraceError
from tailrace.deploy.cli import display
from tailrace.deploy.cli.answers import fields_of, report, warn_if_simulated
from tailrace.deploy.cli.arguments import add_json, add_question
from tailrace.deploy.cli.connection import connect, describe
from tailrace.deploy.cli.result import print_json
from tailrace.deploy.local.terminal_text import make_printable

DESCRIPTION = "Ask one question after the other in one session."
EXAMPLES = """\
Each line is a question of one session. Ctrl-C ends a running answer, Ctrl-D ends the chat. On a terminal, the chat goes
on after a question that was refused.

examples:
  tailrace chat
  tailrace chat --session 019aa8e2-4c1f-7d3a-9b52-6f0e8d7c5a41      continue a session
"""
PROMPT = "> "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser, "print each answer as a line of JSON when it is complete")
    add_question(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Asks one question for each line of the input, in one session. Ctrl-C during an answer cancels its turn."""
    with suppress(ImportError):
        import readline  # noqa: F401, PLC0415  # makes `input` edit lines and keep a history
    fields, screen = fields_of(args), display.new_display(is_json=args.json)

    def retry(error: TailraceError, tries: int) -> None:
        screen.retry(error, tries)

    with connect(args, environ, on_retry=retry) as client:
        show_end = partial(report, is_simulated=warn_if_simulated(client))
        while True:
            try:
                question = input(PROMPT if sys.stdin.isatty() else "").strip()
            except EOFError:
                return 0
            if not question:
                continue
            screen = display.new_display(is_json=args.json)
            try:
                fields["session"] = answer_one(client, question, screen, fields, show_end, is_json=args.json)
            except TailraceError as error:
                if not sys.stdin.isatty():
                    raise
                print(make_printable(describe(error, client.url)), file=sys.stderr)


def answer_one(
    client: Client,
    question: str,
    screen: display.Display,
    fields: dict[str, Any],
    show_end: Callable[[End], object],
    *,
    is_json: bool,
) -> str:
    """Asks a question, shows the answer, and returns the session. Ctrl-C cancels the turn. Raises TailraceError."""
    answer = client.ask(question, on_state=screen.state, **fields)
    try:
        end = display.show(answer, screen)
    except KeyboardInterrupt:
        answer.cancel()
        end = None
    finally:
        screen.close()
    if end is None:
        print("stopped", file=sys.stderr)
    else:
        if is_json:
            print_json(end)
        show_end(end)
    session: str = answer.session or client.turn(answer.turn)["session"]
    return session
