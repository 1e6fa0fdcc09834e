"""`tailrace explain`: explains error codes, errors of the database and settings, without a running system."""

import argparse
import csv
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

import msgspec

from tailrace.deploy.cli.arguments import add_json
from tailrace.deploy.cli.result import print_json
from tailrace.deploy.local.check_environment import SERVICES
from tailrace.proto.errors import CODES, SettingsInvalid
from tailrace.proto.runtime import settings
from tailrace.proto.runtime.did_you_mean import suggest

DESCRIPTION = "Explain an error code, an error of the database or a setting, or list all of them."
EXAMPLES = """\
examples:
  tailrace explain log_unavailable    what the error means, and what to do
  tailrace explain SQLITE_FULL        an error of the database, or of PostgreSQL: 53100
  tailrace explain TAILRACE_HOSTS     type, default and meaning of the setting
  tailrace explain errors             every error code
  tailrace explain database           every error of the database
  tailrace explain settings           every setting, with the processes that read it
  tailrace explain settings --json | jq '.[].name'
"""


CODE = re.compile("`([^`]+)`")
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
SQLSTATE_CHARS = 5


class ErrorCode(msgspec.Struct, frozen=True):
    """An error code, with its row of the error table."""

    name: str
    status: int
    type: str
    is_retryable: bool
    meaning: str
    advice: str

    def __str__(self) -> str:
        retry = "may succeed later" if self.is_retryable else "fails again"
        facts = f"status {self.status}, {self.type}; the same request {retry}"
        return f"{self.name}  ({facts})\n    {self.meaning}\n    {self.advice}"


class DatabaseError(msgspec.Struct, frozen=True):
    """An error of the database: its cause, what persistence does, and what to do. A row of docs/database_errors.csv."""

    name: str
    database: str
    cause: str
    persistence: str
    advice: str

    def __str__(self) -> str:
        return (
            f"{self.name}  ({self.database})\n    {self.cause}\n    persistence: {self.persistence}\n    {self.advice}"
        )

    def is_named(self, name: str) -> bool:
        """Returns whether this is the row of an error code. `53…` stands for each SQLSTATE that begins with 53."""
        codes = CODE.findall(self.name)
        classes = tuple(code.removesuffix("…") for code in codes if code.endswith("…"))
        return name in codes or (len(name) == SQLSTATE_CHARS and name.startswith(classes))


class Setting(msgspec.Struct, frozen=True):
    """A setting, with the processes that read it."""

    name: str
    type: str
    default: str
    meaning: str
    processes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}  ({self.type}, default {self.default}; {', '.join(self.processes)})\n    {self.meaning}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="an error code, a setting, `errors`, `database` or `settings`")
    add_json(parser)


def run(args: argparse.Namespace, _: Mapping[str, str]) -> int:
    """Prints the rows that the name stands for. Raises SettingsInvalid for an unknown name or a removed setting."""
    lists: dict[str, Sequence[ErrorCode | DatabaseError | Setting]] = {
        "errors": all_errors(),
        "database": database_errors(),
        "settings": all_settings(),
    }
    rows = [row for found in lists.values() for row in found]
    found = (
        lists.get(args.name)
        or [row for row in rows if args.name in (row.name, name_in_file(row.name))]
        or [row for row in database_errors() if row.is_named(args.name)]
    )
    for removed, why in settings.REMOVED.items():
        if args.name in (removed, name_in_file(removed)):
            raise SettingsInvalid(f"{removed} has no effect: {why}")
    if not found:
        hint = suggest(args.name, [*lists, *(row.name for row in rows)], settings.PREFIX)
        raise SettingsInvalid(f"{args.name} is not an error code or a setting{hint}")
    if args.json:
        print_json(found)
    else:
        print("\n".join(map(str, found)))
    return 0


def name_in_file(variable: str) -> str:
    """Returns the name of a setting in the configuration file."""
    return variable.removeprefix(settings.PREFIX).lower()


def all_errors() -> list[ErrorCode]:
    return [
        ErrorCode(code, row.status, row.type, row.is_retryable, row.meaning, row.advice) for code, row in CODES.items()
    ]


def database_errors() -> list[DatabaseError]:
    """Returns the rows of docs/database_errors.csv, without Markdown links."""
    lines = (files("tailrace") / "docs/database_errors.csv").read_text(encoding="utf-8").splitlines()
    rows = [{column: LINK.sub(r"\1", cell) for column, cell in row.items()} for row in csv.DictReader(lines)]
    return [
        DatabaseError(row["error"], row["database"], row["cause"], row["persistence"], row["action"]) for row in rows
    ]


def all_settings() -> list[Setting]:
    """Returns each setting once. A setting whose default depends on the process has a row for each default."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for process, kind in SERVICES:
        for row in settings.table(kind):
            found.setdefault(row, []).append(process)
    return [Setting(*row, tuple(processes)) for row, processes in found.items()]
