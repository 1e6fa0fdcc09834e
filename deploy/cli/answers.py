"""Shows answers for `tailrace ask`, `chat` and `tail`, and remembers the last turn of `tailrace ask`."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from tailrace.client import Answer, Client, End, TailraceError
from tailrace.deploy.cli import display
from tailrace.deploy.cli.display import Display
from tailrace.deploy.local.running import read_state, write_state
from tailrace.deploy.local.terminal_text import make_printable
from tailrace.proto.errors import SettingsInvalid

# The state file with the id of the turn that this user's `tailrace ask` started last.
LAST_TURN = "last-turn"
SIMULATED = "simulated model: no API key is set (ANTHROPIC_API_KEY)"


def follow(
    start: Callable[[], Answer],
    screen: Display,
    *,
    is_new: bool = False,
    show: Callable[[Answer], End] | None = None,
) -> End:
    """Starts or resumes an answer, and shows it. At Ctrl-C, prints how to read the rest. Raises TailraceError."""
    answer = None
    try:
        answer = start()
        if is_new:
            write_state(LAST_TURN, answer.turn)
        return show(answer) if show else display.show(answer, screen)
    except KeyboardInterrupt:
        if answer:
            turn = answer.turn
            screen.close()
            print("the turn goes on", file=sys.stderr)
            print(make_printable(f"  to read it: tailrace tail {turn}"), file=sys.stderr)
            print(make_printable(f"  to end it:  tailrace cancel {turn}"), file=sys.stderr)
        raise
    finally:
        screen.close()


def warn_if_simulated(client: Client) -> bool:
    """Prints a line if the simulated Claude answers, and returns whether it does. Without a terminal: False."""
    if not sys.stderr.isatty():
        return False
    try:
        is_simulated = bool(client.request("GET", "/v1/models", params={"limit": "1"}).get("is_simulated"))
    except TailraceError as error:
        # The key may lack the scope `read`.
        if error.status is None:
            raise
        return False
    if is_simulated:
        print(SIMULATED, file=sys.stderr)
    return is_simulated


def report(end: End, *, is_simulated: bool = False) -> int:
    """Prints why a turn failed or its answer is not whole; on a terminal, tokens and cost of every turn.

    Returns the exit status: 0 also for an answer that is not whole.
    """
    is_complete = end.outcome in ("completed", None)
    if sys.stderr.isatty() or not (end.is_whole or end.outcome is None):
        print(display.summary(end, is_simulated=is_simulated), file=sys.stderr)
    return 0 if is_complete else 1


def fields_of(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of `POST /v1/turns` that the command line names."""
    named = {"model": args.model, "system": args.system, "session": args.session, "max_tokens": args.max_tokens}
    return {name: value for name, value in named.items() if value is not None}


def last_turn() -> str:
    """Returns the id of the turn that `tailrace ask` started last. Raises SettingsInvalid if there is none."""
    turn = read_state(LAST_TURN)
    if not turn:
        raise SettingsInvalid("there is no earlier `tailrace ask`: use `tailrace tail TURN` with the id of a turn")
    return turn
