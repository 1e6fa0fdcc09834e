"""`tailrace ask`: asks a question, and shows the answer in a terminal or a pipe."""

import argparse
import select
import sys
from collections.abc import Callable, Mapping
from functools import partial

from tailrace.client import Answer, Client, End
from tailrace.deploy.cli import display
from tailrace.deploy.cli.answers import fields_of, follow, last_turn, report, warn_if_simulated
from tailrace.deploy.cli.arguments import add_json, add_question
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.display import Display
from tailrace.deploy.cli.result import print_json
from tailrace.proto.errors import SettingsInvalid

DESCRIPTION = "Ask a question, and show the answer while it arrives."
EXAMPLES = """\
The answer is shown while it arrives, as Markdown on a terminal and as plain text in a pipe. If the connection is lost
or the gateway is killed, the command reconnects and shows the rest. Ctrl-C stops reading, and the turn goes on.

On a terminal, type while the answer arrives, and press Enter: your line changes the answer. The answer ends there, and
the answer to your line follows.

examples:
  tailrace ask "Why is the sky blue?"
  git diff | tailrace ask "Review this change." > review.md     the standard input, then the question
  tailrace ask - < question.txt
  tailrace ask --continue "And why is it red at night?"      in the session of the last `tailrace ask`
  tailrace ask --resume                                      the answer of the last `tailrace ask`, from its start
  tailrace ask "Name a river." --json | jq -r .text
  tailrace ask "Name a river." --url https://tailrace.example --key my-secret-key

Exit status 1: the turn failed or was cancelled.
"""
NOTICE_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "question",
        nargs="?",
        metavar="QUESTION",
        help="the question; piped text is put before it; `-`: the piped text is the question",
    )
    which.add_argument("--resume", action="store_true", help="show the answer of the last `tailrace ask`")
    parser.add_argument(
        "--continue", dest="go_on", action="store_true", help="ask in the session of the last `tailrace ask`"
    )
    add_json(parser, "print JSON, in one line, when the answer is complete")
    add_question(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Asks the question and shows the answer; with `--resume`, shows the last answer from its start.

    Returns 1 if the turn did not complete. Raises SettingsInvalid, GatewayFailed.
    """
    screen = display.new_display(is_json=args.json)
    with connect(args, environ, on_retry=screen.retry) as client:
        is_simulated = warn_if_simulated(client)
        show = show_on(client, screen)
        if args.resume:
            turn = last_turn()
            end = follow(lambda: client.resume(turn, on_state=screen.state), screen, show=show)
        else:
            question, fields = read_question(args.question), fields_of(args)
            if args.go_on:
                fields["session"] = client.turn(last_turn())["session"]
            end = follow(lambda: client.ask(question, on_state=screen.state, **fields), screen, is_new=True, show=show)
    if args.json:
        print_json(end)
    return report(end, is_simulated=is_simulated)


def show_on(client: Client, screen: Display) -> Callable[[Answer], End]:
    """Returns the function that shows an answer. On a terminal, a line that is typed meanwhile steers it."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        # Both load rich, which takes 0.1 s.
        from tailrace.deploy.cli.markdown_display import MarkdownDisplay  # noqa: PLC0415
        from tailrace.deploy.cli.typed_lines import is_in_foreground, show_and_steer  # noqa: PLC0415

        if isinstance(screen, MarkdownDisplay) and is_in_foreground(sys.stdin.fileno()):
            return partial(show_and_steer, client, screen)
    return partial(display.show, display=screen)


def read_question(argument: str | None) -> str:
    """Returns the text of the standard input, unless it is a terminal, followed by the question of the command line."""
    if sys.stdin.isatty() and argument in (None, "-"):
        raise SettingsInvalid(
            'there is no question: write `tailrace ask "Why is the sky blue?"`, or pipe a question into it'
        )
    typed = "" if argument in (None, "-") else argument
    question = "\n\n".join(filter(None, [read_piped(is_optional=bool(typed)), typed]))
    if not question:
        raise SettingsInvalid("the question is empty: write it after `tailrace ask`, or pipe a question into it")
    return question


def read_piped(*, is_optional: bool) -> str:
    """Returns the text of the standard input; empty for a terminal."""
    if sys.stdin.isatty():
        return ""
    # A program that starts this command may keep the other end of the pipe open and send nothing.
    if is_optional and not select.select([sys.stdin], [], [], NOTICE_S)[0]:
        print("waiting for the standard input; `< /dev/null` asks without it", file=sys.stderr, flush=True)
    return sys.stdin.read().strip()
