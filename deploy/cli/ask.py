"""`tailrace ask`, `chat`, `tail` and `cancel`: ask, read and cancel turns in a terminal or a pipe."""

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from tailrace.client import Answer, End
from tailrace.deploy.cli import display
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.display import Display
from tailrace.deploy.local.console import printable
from tailrace.deploy.local.running import read_state, write_state
from tailrace.proto.errors import SettingsInvalid

# The state file with the id of the last turn that `tailrace ask` of this user started.
LAST_TURN = "last-turn"
PROMPT = "> "


def ask(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    with connect(given, environ) as client:
        screen = display.new_display(is_json=given.json)
        if given.resume:
            turn = last_turn()
            end = follow(lambda: client.resume(turn, on_state=screen.state), screen)
        else:
            question, fields = read_question(given.question), fields_of(given)
            if given.go_on:
                fields["session"] = client.turn(last_turn())["session"]
            end = follow(lambda: client.ask(question, on_state=screen.state, **fields), screen, is_new=True)
    if given.json:
        print(msgspec.json.encode(end).decode())
    return report(end)


def tail(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    with connect(given, environ) as client:
        if given.json:
            answer = client.resume(given.id, after=given.after)
            for event in answer:
                print(msgspec.json.encode(event).decode(), flush=True)
            return report(answer.done())
        screen = display.new_display()
        return report(follow(lambda: client.resume(given.id, after=given.after, on_state=screen.state), screen))


def cancel(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    with connect(given, environ) as client:
        found = client.cancel(given.id)
    print(msgspec.json.encode(found).decode() if given.json else printable(f"{found['turn']}: {found['outcome']}"))
    return 0


def chat(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Asks one question for each line of the input, in one session. Ctrl-C during an answer cancels its turn."""
    with suppress(ImportError):
        import readline  # noqa: F401, PLC0415  # makes `input` edit lines and keep a history
    fields = fields_of(given)
    with connect(given, environ) as client:
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


def follow(start: Callable[[], Answer], screen: Display, *, is_new: bool = False) -> End:
    """Starts or resumes an answer, and shows it. At Ctrl-C, prints how to read the rest. Raises TailraceError."""
    turn = ""
    try:
        answer = start()
        turn = answer.turn
        if is_new:
            write_state(LAST_TURN, turn)
        return display.show(answer, screen)
    except KeyboardInterrupt:
        if turn:
            screen.close()
            hint = f"the turn goes on: `tailrace tail {turn}` reads it, `tailrace cancel {turn}` ends it"
            print(printable(hint), file=sys.stderr)
        raise
    finally:
        screen.close()


def report(end: End) -> int:
    """Prints why a turn failed; on a terminal, tokens and cost of every turn. Returns the exit status."""
    is_complete = end.outcome in ("completed", None)
    if sys.stderr.isatty() or not is_complete:
        print(display.summary(end), file=sys.stderr)
    return 0 if is_complete else 1


def fields_of(given: argparse.Namespace) -> dict[str, Any]:
    named = {"model": given.model, "system": given.system, "session": given.session, "max_tokens": given.max_tokens}
    return {name: value for name, value in named.items() if value is not None}


def read_question(given: str | None) -> str:
    """Returns the question of the command line; without one, or for `-`, the text of the standard input."""
    if given is None and sys.stdin.isatty():
        raise SettingsInvalid(
            'there is no question: write `tailrace ask "Why is the sky blue?"`, or pipe a question into it'
        )
    question = sys.stdin.read().strip() if given in (None, "-") else given
    if not question:
        raise SettingsInvalid("the question is empty: write it after `tailrace ask`, or pipe a question into it")
    return question


def last_turn() -> str:
    """Returns the id of the turn that `tailrace ask` started last. Raises SettingsInvalid if there is none."""
    turn = read_state(LAST_TURN)
    if not turn:
        raise SettingsInvalid("there is no earlier `tailrace ask`: use `tailrace tail TURN` with the id of a turn")
    return turn
