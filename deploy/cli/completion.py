"""`tailrace completion`: a script that completes commands, options and their values in a shell."""

import argparse
from collections.abc import Mapping
from pathlib import Path

import shtab

from tailrace.deploy.cli.main import all_parsers, parser_of_all

SHELLS = ("bash", "zsh", "fish")
DESCRIPTION = "Print a script that completes commands and options of tailrace in a shell."
EXAMPLES = """\
examples:
  bash  tailrace completion bash > ~/.local/share/bash-completion/completions/tailrace
  zsh   tailrace completion zsh > ~/.zfunc/_tailrace     with `fpath+=(~/.zfunc)` before `compinit` in ~/.zshrc
  fish  tailrace completion fish > ~/.config/fish/completions/tailrace.fish

It takes effect in a new shell.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def run(args: argparse.Namespace, _: Mapping[str, str]) -> int:
    """Prints the script for the shell `args.shell`."""
    print(script(parser_of_all(), args.shell))
    return 0


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Returns the script for `shell`, one of SHELLS."""
    for each in all_parsers(parser):
        for action in each._actions:  # noqa: SLF001  # argparse has no public list of actions; shtab uses this one, too
            if action.type is Path:
                action.complete = shtab.DIRECTORY if action.metavar in ("DIR", "FOLDER") else shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell=shell)
