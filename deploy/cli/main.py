"""The `tailrace` command: its commands with their modules, and the errors that a user sees.

Each command is a module of this folder with DESCRIPTION, EXAMPLES, `add_arguments` and `run`. It is imported when the
command is used, because loading all takes a second.
"""

import argparse
import errno
import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, NoReturn

from tailrace.deploy.local import configuration
from tailrace.deploy.local.data_dir import without_overridden
from tailrace.deploy.local.terminal_text import make_printable, one_line
from tailrace.proto.errors import SettingsInvalid, TailraceError
from tailrace.proto.runtime.certificates import require_certificates
from tailrace.proto.runtime.did_you_mean import suggest
from tailrace.proto.runtime.exit_status import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_USAGE
from tailrace.proto.version import VERSION

# The commands in groups, with their lines in `tailrace --help`. The module of `restart-node` is `restart_node`.
GROUPS = {
    "run": {
        "up": "start the whole system on this machine",
        "restart": "restart the processes of `up`, without a pause",
        "restart-node": "restart one nats-server of `up --cluster`",
    },
    "ask": {
        "ask": "ask a question, and show the answer",
        "chat": "chat in the terminal",
        "tail": "show the answer of a turn while it arrives",
        "cancel": "end a turn; its text so far remains",
        "batch": "run all inputs of a file as one batch",
    },
    "look": {
        "turns": "list turns: running, of a user, by day, by words, the slowest",
        "turn": "show the steps of one turn, and its readers",
        "sessions": "list the sessions",
        "export": "write a conversation, or all data of a user or a tenant",
        "usage": "show turns, tokens and cost",
        "reconcile": "compare tokens and cost with Anthropic's report",
        "status": "show the processes, the queue and the last errors",
        "top": "watch processes, tokens a second and the slowest turns",
    },
    "operate": {
        "doctor": "check this machine, NATS, the database and the model key",
        "verify": "compare the turns of the log with the database",
        "keys": "create, list, rotate and revoke API keys",
        "tenants": "list tenants, and set whether their users are private",
        "limits": "show and set the limits of tenants",
        "audit": "show the changes of keys, limits and tenants",
        "backup": "write all state into one file",
        "restore": "restore the state from such a file",
        "migrate-database": "copy the history from SQLite to PostgreSQL, or back",
        "erase": "erase all data of a user or of the tenant",
        "webhook-secret": "show a tenant's webhook signing secret",
        "monitoring": "write dashboards and alert rules into a folder",
    },
    "set up": {
        "init": "write a configuration file with every setting",
        "explain": "explain an error code or a setting",
        "completion": "print a completion script for a shell",
        "nats-config": "write the configuration of your own NATS",
        "copy-log": "copy the log of one nats-server for three",
        "streams": "create the streams in your own NATS",
    },
}
# argparse's message for an invalid choice. Groups: the value, the list of choices with brackets, the choices.
CHOICE = re.compile(r"invalid choice: '([^']*)'( \(choose from (.*)\))")

# The program that reads the output has ended, as in `tailrace turns | head -1`, or the disk or a quota is full.
OUTPUT_FAILED = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT)

# Python puts surrogates in the place of bytes that are not text in the encoding of the locale.
SURROGATE = re.compile("[\ud800-\udfff]")


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one sentence, without control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Python 3.15 would add a suggestion of its own, and print the whole list beside it.
        self.suggest_on_error = False

    def error(self, message: str) -> NoReturn:
        """Prints one sentence and exits with status 2; argparse would print the whole usage before it."""
        if found := CHOICE.search(message):
            # A similar choice helps more than the whole list.
            message = message.replace(found[2], suggest(found[1], re.split("[', ]+", found[3])) or found[2])
        # An argument may contain sequences that control the terminal.
        self.exit(2, f"{self.prog}: {one_line(message)}; see `{self.prog} --help`\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Prints help or a version. Raises OSError if the output cannot be written, which argparse would ignore."""
        if file is sys.stdout:
            print(message, end="", flush=True)
        else:
            super()._print_message(message, file)


class MainParser(Parser):
    """The parser of `tailrace`, whose help lists the commands in groups. argparse knows one list only."""

    def format_help(self) -> str:
        groups = [
            "\n".join([f"{group}:", *(f"  {name:<18}{summary}" for name, summary in commands.items())])
            for group, commands in GROUPS.items()
        ]
        usage = "usage: tailrace COMMAND …, tailrace --version"
        more = "`tailrace COMMAND --help` lists the options of a command, with examples."
        return "\n\n".join([usage, str(self.description), *groups, f"{more}\n"])


class CommandParser(Parser):
    """The parser of a command, which gets its arguments from the command's module when the command is used."""

    module = ""
    defaults: Mapping[str, object]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses an unknown argument here, where the options of the command are known."""
        self.load()
        # Options first: argparse would report an unknown option's value, which it takes for the command's argument.
        if not any(isinstance(action, argparse._SubParsersAction) for action in self._actions):  # noqa: SLF001  # see below
            self._refuse_unknown([one for one in takewhile("--".__ne__, args or ()) if self._is_unknown_option(one)])
        found, rest = super().parse_known_args(args, namespace)
        self._refuse_unknown(rest)
        return found, rest

    def _is_unknown_option(self, argument: str) -> bool:
        # As in argparse, an argument with a space is no option.
        name = argument.partition("=")[0]
        return name.startswith("--") and " " not in argument and name not in self._option_string_actions

    def _refuse_unknown(self, arguments: Sequence[str]) -> None:
        if arguments:
            suggestion = suggest(arguments[0], self._option_string_actions, "--")
            self.error(f"unrecognized arguments: {' '.join(arguments)}{suggestion}")

    def load(self) -> None:
        """Adds the arguments of the command, at the first call."""
        if not self.module:
            return
        command, self.module = import_module(self.module), ""
        self.description, self.epilog = command.DESCRIPTION, command.EXAMPLES
        self.set_defaults(command=command.run)
        add_config(self)
        command.add_arguments(self)
        for parser in all_parsers(self):
            for action in parser._actions:  # noqa: SLF001  # argparse has no public list of actions
                action.default = self.defaults.get(action.dest, action.default)


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file (default: tailrace.toml)")


def set_missing_home() -> None:
    """Sets HOME to /, as container runtimes do, if it is not set and this user has no entry in /etc/passwd."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns its exit status: 0 done, 1 refused or failed, 2 invalid argument or setting."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The stream is closed, as by `>&-`: read nothing, or write to nothing.
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  # until the process ends
    if isinstance(sys.stdin, io.TextIOWrapper):
        # A question may contain a file that is not UTF-8: `git diff | tailrace ask "Review this change."`
        sys.stdin.reconfigure(errors="replace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The encoding of the locale may lack a character, such as the … of a title.
        sys.stdout.reconfigure(errors="backslashreplace")
    set_missing_home()
    try:
        configured = configuration.load(config_path(argv), os.environ)
        commands = parser(configured.options)
        for argument in sys.argv[1:] if argv is None else argv:
            if SURROGATE.search(argument):
                encoding = sys.getfilesystemencoding().upper()
                advice = "" if encoding == "UTF-8" else ", the encoding of the locale: set LC_ALL=C.UTF-8"
                commands.error(f"the argument {argument!r} is not {encoding}{advice}")
        args = commands.parse_args(argv)
        configure_logging()
        require_certificates(configured.environ)
        status: int = args.command(args, without_overridden(configured.environ, getattr(args, "data", None)))
        print(end="", flush=True)
    except TailraceError as error:
        print(f"tailrace: {make_printable(str(error))}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, SettingsInvalid) else EXIT_ERROR
    except OSError as error:
        if isinstance(error, PermissionError) and error.filename is not None:
            path = one_line(os.fsdecode(error.filename))
            print(f"tailrace: {path}: {error.strerror}: run it as the user who owns the file", file=sys.stderr)
            return EXIT_ERROR
        if error.errno not in OUTPUT_FAILED:
            raise
        # Python would write the rest of the output at exit, and fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            print(f"tailrace: the output cannot be written: {error.strerror}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        # `up` handles signals itself; other commands end without a traceback, which would look like a bug.
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    return status


def config_path(argv: Sequence[str] | None) -> Path | None:
    """Returns the value of `--config`.

    Parses this option first, because the file sets the defaults of other options.
    """
    first = Parser(prog="tailrace", add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    found: Path | None = first.parse_known_args(argv)[0].config
    return found


def configure_logging() -> None:
    """Keeps logs out of the output, which programs may read: each error is printed as one sentence.

    A command whose modules have not loaded structlog logs nothing, and saves the 0.1 s of loading it.
    """
    if "structlog" in sys.modules:
        from tailrace.proto.runtime.logging_setup import configure  # noqa: PLC0415  # see above

        configure("tailrace", "console", level="error")


def parser(defaults: Mapping[str, object] | None = None) -> Parser:
    """Returns the parser of all commands. `defaults` are the values of the configuration file, by option."""
    tailrace = MainParser(
        prog="tailrace",
        description="Durable streams of Claude's answers: readers can resume, and no acknowledged turn is lost.",
        allow_abbrev=False,
    )
    tailrace.add_argument("--version", action="version", version=f"tailrace {VERSION}")
    commands = tailrace.add_subparsers(required=True, metavar="COMMAND", parser_class=CommandParser)
    for name, summary in chain.from_iterable(group.items() for group in GROUPS.values()):
        command = commands.add_parser(
            name, help=summary, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.module, command.defaults = f"tailrace.deploy.cli.{name.replace('-', '_')}", defaults or {}
    return tailrace


def parser_of_all() -> Parser:
    """Returns the parser with the arguments of all commands."""
    tailrace = parser()
    for each in all_parsers(tailrace):
        if isinstance(each, CommandParser):
            each.load()
    return tailrace


def all_parsers(parser: argparse.ArgumentParser) -> "list[argparse.ArgumentParser]":
    """Returns a parser and the parsers of its subcommands."""
    found = [parser]
    for action in parser._actions:  # noqa: SLF001  # argparse has no public list of actions; shtab uses this one, too
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            found += [each for one in action.choices.values() for each in all_parsers(one)]
    return found
