"""The `tailrace` command: turns its arguments into Options; never starts a process itself."""

import argparse
import asyncio
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NoReturn, get_args

import msgspec

from tailrace.deploy.cli import batch, keys, streams, usage
from tailrace.deploy.local import nats_cluster, nats_server
from tailrace.deploy.local import restart_node as node
from tailrace.deploy.local.options import SYNCS, Options
from tailrace.deploy.local.up import run
from tailrace.persistence.webhooks import signature
from tailrace.proto.api_key import SCOPES
from tailrace.proto.entries import Via
from tailrace.proto.errors import SettingsInvalid, TailraceError
from tailrace.proto.ids import Tenant, is_token
from tailrace.proto.limits import NAMES, parse_limits_setting
from tailrace.proto.resources import UsageBy
from tailrace.proto.runtime.logging_setup import configure
from tailrace.proto.service import EXIT_ERROR, EXIT_USAGE
from tailrace.proto.version import VERSION

UP_EXAMPLES = """\
examples:
  tailrace up                          everything on http://127.0.0.1:8000, kept in .tailrace
  tailrace up --port 0                 on a free port; the line `ready http://…` says which
  tailrace up --generators 4           four generators share the turns
  tailrace up --cluster                three copies of the log: any one nats-server may die
  tailrace up --data try --port 8001   a second Tailrace beside the first
  ANTHROPIC_API_KEY=… tailrace up      the real Claude; without a key a simulated one answers

Ctrl-C stops everything in order; a second Ctrl-C stops it at once.
Any TAILRACE_… setting in the environment reaches the processes, but for addresses, which `up` gives out itself.
TAILRACE_METRICS_PORT=9100 gives persistence 9100, the generators 9101 and on, and then the gateways; without it each
start has free ones, and prints them.
"""
STREAMS_EXAMPLES = """\
`up` does this by itself. For a NATS of your own:
  TAILRACE_NATS_URL=nats://admin:PASSWORD@nats.internal:4222 tailrace streams --replicas 3
"""
WEBHOOK_EXAMPLES = """\
It is what a receiver's library of Standard Webhooks wants (https://www.standardwebhooks.com). It is stored nowhere:
it is made of TAILRACE_WEBHOOK_KEY and the tenant's name, and the same as long as they are.

  TAILRACE_WEBHOOK_KEY=… tailrace webhook-secret --tenant acme
"""
KEYS_EXAMPLES = """\
examples:
  tailrace keys create --tenant acme --name 'web shop'     a key that may do all
  tailrace keys create --tenant acme --scope read          one that may look, and no more
  tailrace keys create --tenant acme --expires 90d         one that is good for so long
  tailrace keys list
  tailrace keys revoke key_0123456789abcdef                everywhere within a second, open streams too

The NATS is that of the `up` in .tailrace (another: --data), or the one at TAILRACE_NATS_URL.
"""
USAGE_EXAMPLES = """\
examples:
  tailrace usage                                   of the last thirty days (UTC), a line a day
  tailrace usage --tenant acme --by key            a line for each API key, with when it was last used
  tailrace usage --by model --from 2026-11-01 --to 2026-11-30

The NATS is that of the `up` in .tailrace (another: --data), or the one at TAILRACE_NATS_URL.
"""
BATCH_EXAMPLES = """\
A line of the file is one input, such as
  {"custom_id": "one", "params": {"message": "Why is the sky blue?", "max_tokens": 500}}

examples:
  tailrace batch questions.jsonl                       the answers on the standard output
  tailrace batch questions.jsonl --output answers.jsonl
  tailrace batch questions.jsonl --via message_batches   for half the price, within a day
  TAILRACE_KEY=… tailrace batch questions.jsonl --url https://tailrace.example

Stopped and run again with the same file, --parallel and --via, it goes on with the same batch. With another of these
it is a new batch, which is paid for anew. Status 1: an input was not answered.
"""
NODE_EXAMPLES = """\
Before it stops, the server hands over what it leads, so that appends go on; `up` starts it again, with the nats-server
that is installed by then. One after the other is how all three are upgraded:

  for node in nats-1 nats-2 nats-3; do tailrace restart-node $node || break; done
"""
USAGE_DAYS = 30
NAME_CHARS_MAX = 100
LIFE = re.compile(r"([1-9][0-9]{0,3})([dhm])")
LIFE_MAX = 9999
GIB = 1024**3
EXIT_INTERRUPTED = 130  # as shells say it: 128 and SIGINT


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence and status 2; argparse would print the whole usage before it."""
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 done or stopped as asked, 1 refused or not ready, 2 a wrong argument or setting."""
    given = parser().parse_args(argv)
    # What a command prints may be read by a program, and what goes wrong it says in a sentence of its own.
    configure("tailrace", "console", level="error")
    try:
        status: int = given.command(given, os.environ)
    except TailraceError as error:
        print(f"tailrace: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, SettingsInvalid) else EXIT_ERROR
    except KeyboardInterrupt:
        # `up` stops in order by itself; of other commands there is nothing to tell, and a traceback looks like a fault.
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    return status


def up(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    options = Options(
        host=given.host,
        port=given.port,
        data_dir=given.data.resolve(),
        generators=given.generators,
        gateways=given.gateways,
        cluster=given.cluster,
        sync=given.sync,
    )
    return run(options, environ)


def make_streams(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    url = environ.get("TAILRACE_NATS_URL", "nats://127.0.0.1:4222")
    asyncio.run(streams.apply(url, file_bytes_max=given.gib * GIB, replicas=given.replicas))
    print("NATS has all that Tailrace needs; what was there before is as it was")
    return 0


def restart_node(given: argparse.Namespace, _: Mapping[str, str]) -> int:
    asyncio.run(node.restart(given.data, given.node))
    print(f"{given.node} runs again, and has all that the others have")
    return 0


def show_webhook_secret(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    signing = signature.parse_keys(environ.get("TAILRACE_WEBHOOK_KEY", ""))
    if not signing:
        raise SettingsInvalid("TAILRACE_WEBHOOK_KEY is not set: give the key that persistence has")
    print(signature.format_secret(signature.derive_secret(signing[0], given.tenant)))
    return 0


def create_key(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    made, is_first = asyncio.run(
        keys.create(
            nats_server.url(given.data, environ),
            given.tenant,
            given.name,
            given.scope or SCOPES,
            given.limits,
            given.expires,
        )
    )
    print(f"{made.record.id} of {made.record.tenant}; the key itself is shown only now:", file=sys.stderr)
    print(made.secret)
    if made.record.expires_at is not None:
        print(f"It expires at {keys.day(made.record.expires_at)} UTC.", file=sys.stderr)
    if is_first:
        print("It is the first one: from now on every request needs a key.", file=sys.stderr)
    return 0


def show_usage(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    first = given.first or given.last - timedelta(days=USAGE_DAYS - 1)
    if first > given.last:
        raise SettingsInvalid(f"--from {first} is after --to {given.last}")
    url = nats_server.url(given.data, environ)
    print(usage.shown(given.by, asyncio.run(usage.used(url, given.tenant, given.by, first, given.last))))
    return 0


def ask_batch(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    is_whole = batch.run(batch.door(given.url, environ), given.file, given.output, given.parallel, given.via)
    return 0 if is_whole else EXIT_ERROR


def list_keys(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    print(keys.shown(asyncio.run(keys.every(nats_server.url(given.data, environ)))))
    return 0


def revoke_key(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    revoked = asyncio.run(keys.revoke(nats_server.url(given.data, environ), given.id))
    if revoked is None:
        print(f"tailrace: there is no key {given.id!r}: see `tailrace keys list`", file=sys.stderr)
        return EXIT_ERROR
    key, was_before, is_last = revoked
    how = f"was revoked already, {keys.day(key.revoked_at)}" if was_before else "is revoked"
    print(f"{key.id} of {key.tenant} {how}")
    if is_last:
        print("No key is left, and every request still needs one: `tailrace keys create`.", file=sys.stderr)
    return 0


def parser() -> Parser:
    tailrace = Parser(
        prog="tailrace",
        description="Carries Claude's answers to everybody who reads them, and loses none of it half-way.",
        allow_abbrev=False,
    )
    tailrace.add_argument("--version", action="version", version=f"tailrace {VERSION}")
    commands = tailrace.add_subparsers(required=True, metavar="COMMAND")
    add_up(commands)
    add_streams(commands)
    add_restart_node(commands)
    add_keys(commands)
    add_usage(commands)
    add_batch(commands)
    add_webhook_secret(commands)
    return tailrace


def command(
    commands: "argparse._SubParsersAction[Parser]", name: str, *, shown: str, description: str, epilog: str
) -> Parser:
    """A command; `shown` in the list of them. Its examples, the `epilog`, are shown as they are written."""
    return commands.add_parser(
        name,
        help=shown,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    default = Options().data_dir
    parser.add_argument("--data", type=Path, default=default, metavar="FOLDER", help="of a running `up` (%(default)s)")


def add_up(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = command(
        commands,
        "up",
        shown="start the whole system on this machine",
        description="Start the whole system on this machine, and keep it running.",
        epilog=UP_EXAMPLES,
    )
    parser.set_defaults(command=up)
    add, default = parser.add_argument, Options()
    count = number("count", 1, 64)
    add("--host", default=default.host, help="address to listen on (%(default)s)")
    add("--port", type=number("port", 0, 65535), default=default.port, metavar="N", help="0: a free one (%(default)s)")
    add("--data", type=Path, default=default.data_dir, metavar="FOLDER", help="all is kept there (%(default)s)")
    add("--generators", type=count, default=default.generators, metavar="N", help="they call the model (%(default)s)")
    add("--gateways", type=count, default=default.gateways, metavar="N", help="they share the port (%(default)s)")
    add("--cluster", action="store_true", help="three nats-servers with three copies of the log, not one")
    add(
        "--sync",
        choices=SYNCS,
        default=default.sync,
        help="what a power cut may take: nothing that was acknowledged (always), the last second (1s),"
        " the last two minutes (default, NATS's own). A crash takes nothing in any case (%(default)s)",
    )


def add_streams(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = command(
        commands,
        "streams",
        shown="make the streams in a NATS that runs",
        description="Make what is missing in the NATS at TAILRACE_NATS_URL; nothing that is there is changed.",
        epilog=STREAMS_EXAMPLES,
    )
    parser.set_defaults(command=make_streams)
    add = parser.add_argument
    add("--replicas", type=number("count", 1, 5), default=1, metavar="N", help="copies of the log (%(default)s)")
    add("--gib", type=number("size", 1, 65536), default=10, metavar="N", help="room of each server (%(default)s)")


def add_restart_node(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = command(
        commands,
        "restart-node",
        shown="restart one nats-server of `up --cluster`, in order",
        description="Restart one nats-server of a running `up --cluster`; returns when it has caught up.",
        epilog=NODE_EXAMPLES,
    )
    parser.set_defaults(command=restart_node)
    add = parser.add_argument
    add("node", choices=nats_cluster.names(), metavar="NAME", help=", ".join(nats_cluster.names()))
    add_data(parser)


def add_webhook_secret(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = command(
        commands,
        "webhook-secret",
        shown="show what a tenant's webhooks are signed with",
        description="Show the secret that a tenant's webhooks are signed with.",
        epilog=WEBHOOK_EXAMPLES,
    )
    parser.set_defaults(command=show_webhook_secret)
    parser.add_argument("--tenant", type=tenant, default=Tenant("local"), metavar="NAME", help="whose (%(default)s)")


def tenant(text: str) -> Tenant:
    if not is_token(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a tenant: 1 to 64 of a-z 0-9 _ -")
    return Tenant(text)


def add_keys(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = command(
        commands,
        "keys",
        shown="make, list and revoke API keys",
        description="Make, list and revoke API keys. Gateways know of it within a second.",
        epilog=KEYS_EXAMPLES,
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key, and show it once", allow_abbrev=False)
    create.set_defaults(command=create_key)
    create.add_argument("--tenant", type=tenant, required=True, metavar="NAME", help="whose turns it is for")
    create.add_argument("--name", type=key_name, default="", metavar="TEXT", help="what it is called in the list")
    create.add_argument(
        "--scope", action="append", choices=sorted(SCOPES), help="what it may do; given several times: all of them"
    )
    create.add_argument(
        "--limits", type=limits, metavar="NAME=NUMBER,…", help=f"its own, of {', '.join(NAMES)} (docs/LIMITS.md)"
    )
    create.add_argument(
        "--expires", type=life, metavar="TIME", help="how long it is good: 90d, 12h or 30m; else until it is revoked"
    )
    listing = actions.add_parser("list", help="show the keys that there are and were", allow_abbrev=False)
    listing.set_defaults(command=list_keys)
    revoking = actions.add_parser("revoke", help="end a key, everywhere, for good", allow_abbrev=False)
    revoking.set_defaults(command=revoke_key)
    revoking.add_argument("id", metavar="ID", help="as the list has it: key_…")
    for action in (create, listing, revoking):
        add_data(action)


def life(text: str) -> int:
    """Seconds."""
    found = LIFE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90d, 12h or 30m, of 1 to {LIFE_MAX} of those")
    return int(found[1]) * {"d": 86400, "h": 3600, "m": 60}[found[2]]


def limits(text: str) -> dict[str, float]:
    try:
        given: dict[str, float] = msgspec.to_builtins(parse_limits_setting("--limits", text))
    except SettingsInvalid as error:
        # argparse names the option itself.
        raise argparse.ArgumentTypeError(str(error).removeprefix("--limits: ")) from error
    return given


def add_usage(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = command(
        commands,
        "usage",
        shown="show what was used, in turns, tokens and dollars",
        description="Show what a tenant has used, in turns, tokens and dollars.",
        epilog=USAGE_EXAMPLES,
    )
    parser.set_defaults(command=show_usage)
    today = datetime.now(UTC).date()
    add = parser.add_argument
    add("--tenant", type=tenant, default=Tenant("local"), metavar="NAME", help="whose (%(default)s)")
    add("--by", choices=get_args(UsageBy), default="day", help="what a line stands for (%(default)s)")
    add("--from", type=day, dest="first", metavar="DAY", help=f"{USAGE_DAYS} days, when it is not said")
    add("--to", type=day, dest="last", default=today, metavar="DAY", help="the last one (today)")
    add_data(parser)


def add_batch(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = command(
        commands,
        "batch",
        shown="ask a file of inputs at once, and write the answers",
        description="Ask all inputs of a file, a line of JSON each, and write a line of JSON for each answer.",
        epilog=BATCH_EXAMPLES,
    )
    parser.set_defaults(command=ask_batch)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE.jsonl")
    add("--output", type=Path, metavar="FILE", help="where the answers go (the standard output)")
    add("--parallel", type=number("count", 1, 64), default=8, metavar="N", help="asked at once (%(default)s)")
    add("--via", choices=get_args(Via), default="messages", help="message_batches: within a day, for half the price")
    add("--url", default="http://127.0.0.1:8000", help="the gateway (%(default)s); its key is TAILRACE_KEY")


def day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day such as 2026-01-31") from error


def key_name(text: str) -> str:
    # It is shown on terminals.
    if not text.isprintable() or len(text) > NAME_CHARS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name: at most {NAME_CHARS_MAX} printable characters")
    return text


def number(noun: str, lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) <= len(str(highest)) and lowest <= int(text) <= highest:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a {noun} from {lowest} to {highest}")

    return parse
