"""`tailrace chat`: asks one question after the other in one session."""

import argparse
import sys
from collections.abc import Mapping
from contextlib import suppress

from tailrace.client import TailraceError
from tailrace.deploy.cli import display
from tailrace.deploy.cli.answers import fields_of, report
from tailrace.deploy.cli.arguments import add_question
from tailrace.deploy.cli.connection import connect

DESCRIPTION = "Ask one question after the other in one session."
EXAMPLES = """\
Each line is a question of one session. Ctrl-C ends a running answer, Ctrl-D ends the chat.

examples:
  tailrace chat
  tailrace chat --session 019aa8e2-4c1f-7d3a-9b52-6f0e8d7c5a41      continue a session
"""
PROMPT = "> "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_question(parser)


def run(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Asks one question for each line of the input, in one session. Ctrl-C during an answer cancels its turn."""
    with suppress(ImportError):
        import readline  # noqa: F401, PLC0415  # makes `input` edit lines and keep a history
    fields, screen = fields_of(given), display.new_display()

    def retry(error: TailraceError, tries: int) -> None:
        screen.retry(error, tries)

    with connect(given, environ, on_retry=retry) as client:
        while True:
            try:
                question = input(PROMPT if sys.stdin.isatty() else "").strip()
            except EOFError:
                return 0
            if not question:
                continue
            screen = display.new_display()
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
                report(end)
            fields["session"] = answer.session or client.turn(answer.turn)["session"]
