"""Options that several commands have, and the types of their values."""

import argparse
import errno
import re
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

from tailrace.deploy.local.data_dir import NamedDataDir
from tailrace.deploy.local.options import Options
from tailrace.deploy.local.running import find_data_dir
from tailrace.proto.ids import LOCAL, Tenant, TurnId, is_session_name, is_token


def add_data(
    parser: argparse.ArgumentParser, about: str = "data directory of a running `up`", *, finds_running: bool = True
) -> None:
    """Adds `--data`. Its default is the directory of this user's running `up`, or the directory that `up` would use."""
    default, kind = (find_data_dir(), named_folder) if finds_running else (Options().data_dir, folder)
    parser.add_argument("--data", type=kind, default=default, metavar="DIR", help=f"{about} (default: %(default)s)")


def add_address(parser: argparse.ArgumentParser) -> None:
    default = Options()
    parser.add_argument("--host", type=host, default=default.host, help="address to listen on (default: %(default)s)")
    add_number(parser, "--port", default.port, "port to listen on; 0: a free one", 0, 65535, "port")


def add_tenant(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tenant", type=tenant, default=LOCAL, metavar="NAME", help="tenant (default: %(default)s)")


def add_number(
    parser: argparse.ArgumentParser, name: str, default: int, about: str, lowest: int, highest: int, noun: str = "count"
) -> None:
    """Adds an option whose value is a number from `lowest` to `highest`."""
    kind = number(noun, lowest, highest)
    parser.add_argument(name, type=kind, default=default, metavar="N", help=f"{about} (default: %(default)s)")


def add_json(parser: argparse.ArgumentParser, about: str = "print JSON, in one line") -> None:
    parser.add_argument("--json", action="store_true", help=about)


def add_turn_id(parser: argparse.ArgumentParser) -> None:
    about = "id of the turn, or of its completion, response, message or batch"
    parser.add_argument("id", type=turn_id, metavar="ID", help=about)


def add_connection(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--url", metavar="URL", help="the gateway (default: TAILRACE_URL, else the running `up` of this user)")
    add("--key", metavar="KEY", help="its API key; TAILRACE_KEY is safer, because other users can see arguments")
    add_data(parser)


def add_labels(parser: argparse.ArgumentParser) -> None:
    """Adds the options that select turns by their labels (`labels_of`). `--key` is the API key of the request."""
    add = parser.add_argument
    add("--user", type=label, metavar="NAME", help="only turns of this user")
    add("--model", type=label, metavar="NAME", help="only turns of this model")
    add("--key-id", type=label, metavar="ID", help="only turns of the API key with this id, see `tailrace keys list`")
    about = "only turns with this field of metadata; may be repeated"
    add("--metadata", type=field_value, action="append", default=[], metavar="NAME=VALUE", help=about)


def labels_of(args: argparse.Namespace) -> dict[str, str]:
    """Returns the labels that turns must have, such as `user` and `metadata.team`."""
    labels = {"user": args.user, "model": args.model, "key": args.key_id} | {
        f"metadata.{n}": v for n, v in args.metadata
    }
    return {name: value for name, value in labels.items() if value is not None}


def label_parameters(labels: Mapping[str, str]) -> dict[str, str]:
    """Returns labels as parameters of the query of a request: a field of metadata is `metadata[NAME]`."""
    return {re.sub(r"^metadata\.(.*)", r"metadata[\1]", name): value for name, value in labels.items()}


def add_question(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="NAME", help="name of a model, such as opus (default: the gateway's)")
    add("--system", metavar="TEXT", help="system prompt")
    add("--session", type=session_id, metavar="ID", help="the session to continue")
    add("--max-tokens", type=number("count", 1, 1_000_000), metavar="N", help="the maximum length of the answer")
    add_connection(parser)


def number(noun: str, lowest: int, highest: int) -> Callable[[str], int]:
    """Returns an argparse type: an integer from `lowest` to `highest`. Its error calls the number a `noun`."""

    def parse(text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) <= len(str(highest)) and lowest <= int(text) <= highest:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a {noun} from {lowest} to {highest}")

    return parse


def folder(text: str) -> Path:
    """argparse type: a directory, which may not exist yet."""
    if not text:
        # The value of an unset variable. It would mean the working directory.
        raise argparse.ArgumentTypeError("'' is not a directory")
    try:
        Path(text).stat()
    except OSError as error:
        # A loop of symbolic links, or too long a name. The command itself reports any other error.
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise argparse.ArgumentTypeError(f"{text!r} is not a directory: {error.strerror}") from error
    return Path(text)


def named_folder(text: str) -> NamedDataDir:
    """argparse type: the data directory of the system that a command is for."""
    return NamedDataDir(folder(text))


def host(text: str) -> str:
    """argparse type: an address, also an IPv6 address in brackets, as in a URL."""
    if not text:
        # It would mean every address of the machine.
        raise argparse.ArgumentTypeError("'' is not an address")
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def day(text: str) -> date:
    """argparse type: a date such as 2026-01-31, from 1970 to 9998 as in `GET /v1/usage`."""
    try:
        found = date.fromisoformat(text)
    except ValueError:
        found = date.min
    if not 1970 <= found.year <= 9998:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day such as 2026-01-31")
    return found


def label(text: str) -> str:
    """argparse type: a value that turns may have. Turns without a value cannot be selected."""
    if not text:
        # The value of an unset variable.
        raise argparse.ArgumentTypeError("'' is not a value of turns: leave the option out")
    return text


def field_value(text: str) -> tuple[str, str]:
    """argparse type: a field of metadata and its value."""
    name, _, value = text.partition("=")
    if not (name and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a field of metadata and its value, such as team=search")
    return name, value


def tenant(text: str) -> Tenant:
    """argparse type: the name of a tenant."""
    if not is_token(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a tenant: use 1 to 64 characters of a-z 0-9 _ -")
    return Tenant(text)


def session_id(text: str) -> str:
    """argparse type: the id of a session."""
    if not is_session_name(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the id of a session: see `tailrace sessions`")
    return text


def turn_id(text: str) -> TurnId:
    """Returns the id of a turn. Also accepts the turn's id in OpenAI's or Anthropic's protocol."""
    for prefix in ("chatcmpl-", "resp_", "msg_", "batch_"):
        text = text.removeprefix(prefix)
    if not is_token(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the id of a turn: use the value of the field `turn`")
    return TurnId(text)
