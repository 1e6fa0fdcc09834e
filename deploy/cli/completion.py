"""`tailrace completion`: a script that completes commands, options and their values in a shell."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import shtab

SHELLS = ("bash", "zsh", "fish")


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Returns the script for `shell`, one of SHELLS."""
    for action in all_actions(parser):
        if action.type is Path:
            action.complete = shtab.DIRECTORY if action.metavar in ("DIR", "FOLDER") else shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell=shell)


def all_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yields the actions of a parser and of its subcommands."""
    for action in parser._actions:  # noqa: SLF001  # argparse has no public list of actions; shtab uses this one, too
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for each in action.choices.values():
                yield from all_actions(each)
