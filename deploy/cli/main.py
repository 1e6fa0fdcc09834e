"""The `tailrace` command line: arguments, help texts and exit statuses of all commands."""

import argparse
import asyncio
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn, get_args

import msgspec

from tailrace import client
from tailrace.deploy.cli import (
    ask,
    batch,
    completion,
    conversations,
    doctor,
    keys,
    monitoring,
    nats_config,
    status,
    streams,
    top,
    turn,
    usage,
)
from tailrace.deploy.local import config_file, nats_cluster, nats_server
from tailrace.deploy.local import restart_node as node
from tailrace.deploy.local.console import printable
from tailrace.deploy.local.options import SYNCS, Options
from tailrace.deploy.local.running import find_data_dir
from tailrace.deploy.local.up import run
from tailrace.persistence.webhooks import signature
from tailrace.proto.api_key import SCOPES, TENANT_SCOPES
from tailrace.proto.did_you_mean import suggest
from tailrace.proto.entries import Via
from tailrace.proto.errors import SettingsInvalid, TailraceError
from tailrace.proto.ids import Tenant, TurnId, is_token
from tailrace.proto.limits import NAMES, parse_limits_setting
from tailrace.proto.nats.streams import CONSUMERS, EVERY_STREAM
from tailrace.proto.resources import UsageBy
from tailrace.proto.runtime.logging_setup import configure
from tailrace.proto.service import EXIT_ERROR, EXIT_USAGE
from tailrace.proto.version import VERSION

UP_EXAMPLES = """\
examples:
  tailrace up                          start on http://127.0.0.1:8000
  ANTHROPIC_API_KEY=… tailrace up      answers from Claude; without a key from a simulated Claude, free of charge
  tailrace up --port 0                 use a free port; the line `ready http://…` shows which
  tailrace up --generators 4           four processes call the model
  tailrace up --cluster                three nats-servers with a copy of the log each; any one of them may fail
  tailrace up --data try --port 8001   start a second, separate system

It runs nats-server, one persistence process, the generators and the gateways, and restarts any of them that ends.
Ctrl-C stops all of them in order; a second Ctrl-C kills them.

Settings are in a file that `tailrace init` writes, or in environment variables (docs/SETTINGS.md), which are passed to
all processes. `up` itself chooses the addresses. With TAILRACE_METRICS_PORT=9100 the metrics of persistence are on
port 9100, those of the generators on 9101 and following, then those of the gateways; without it, free ports are used
and printed.
"""
STREAMS_EXAMPLES = """\
`tailrace up` does this itself. For your own NATS servers:
  TAILRACE_NATS_URL=nats://admin:PASSWORD@nats.internal:4222 tailrace streams --replicas 3
"""
WEBHOOK_EXAMPLES = """\
Give it to the receiver's Standard Webhooks library (https://www.standardwebhooks.com). The secret is not stored: it is
derived from TAILRACE_WEBHOOK_KEY and the tenant's name.

  TAILRACE_WEBHOOK_KEY=… tailrace webhook-secret --tenant acme
"""
MONITORING_EXAMPLES = """\
example:
  tailrace monitoring tailrace-monitoring --runbook https://wiki.example/RUNBOOK.md

The folder has dashboards for Grafana, rules for Prometheus, and example configurations of Grafana, Prometheus and
Alertmanager.
docs/RUNBOOK.md says how to install them.
"""
KEYS_EXAMPLES = """\
examples:
  tailrace keys create --tenant acme --name 'web shop'     a key with all scopes
  tailrace keys create --tenant acme --scope read          a key that can only read
  tailrace keys create --tenant acme --expires 90d         a key that expires after 90 days
  tailrace keys list
  tailrace keys revoke key_0123456789abcdef                takes effect within a second, also for open streams

Keys are stored in the NATS of the `tailrace up` with this data directory (--data), or in TAILRACE_NATS_URL.
"""
USAGE_EXAMPLES = """\
examples:
  tailrace usage                                   the last thirty days (UTC), one row a day
  tailrace usage --tenant acme --by key            one row for each API key, with the time of its last use
  tailrace usage --by model --from 2026-11-01 --to 2026-11-30

It connects to the NATS of the `tailrace up` with this data directory (--data), or to TAILRACE_NATS_URL.
"""
DOCTOR_EXAMPLES = """\
examples:
  tailrace doctor
  tailrace doctor --port 9000 --data try     for a `tailrace up` with these options
  tailrace doctor --json

It checks Python, the settings, the port, the disk, the file limit, the database, NATS with its version and setup, and
the model key with one request that is free of charge. It changes nothing. Exit status 1: something does not work.
"""
STATUS_EXAMPLES = """\
examples:
  tailrace status
  tailrace status --watch          repeat it every two seconds
  tailrace status --json | jq .nats.queued

It shows the `tailrace up` with this data directory (--data): processes, pids, addresses, and the last errors in its
output. For your own NATS, set TAILRACE_NATS_URL with the user admin: it then shows what NATS, the generators and
persistence report. Exit status 1: something is not ready.
"""
TOP_EXAMPLES = """\
examples:
  tailrace top                                          repeated every two seconds until Ctrl-C
  tailrace top > now.txt                                once
  tailrace top --json                                   a line of JSON every two seconds
  TAILRACE_KEY=… tailrace top --url https://tailrace.example

It shows the processes and the queue of the running `up` of this user. With --url, or without a running `up`, it shows
only turns.
"""
TURN_EXAMPLES = """\
It shows whether a user got the answer: when the turn was accepted, which attempts were made, when the first token
came, where the answer paused, which readers opened, resumed and were cut, how it ended, and whether it is in the
database. It shows no text of the conversation.

examples:
  tailrace turn 019aa8e2-4c1f-7d3a-9b52-6f0e8d7c5a41
  tailrace turn 019aa8e2-4c1f-7d3a-9b52-6f0e8d7c5a41 --json
  tailrace turn 019aa8e2-4c1f-7d3a-9b52-6f0e8d7c5a41 --tenant acme     a turn that has left the log

It connects to the NATS of the `tailrace up` with this data directory (--data), or to TAILRACE_NATS_URL with the user
admin. Each gateway remembers its last 10,000 streams until it stops. It does not remember answers that were read
without a stream, and streams of turns that had left the log. "Sent" means that the gateway wrote the entries to the
connection; it cannot know whether a client has shown them.
"""
BATCH_EXAMPLES = """\
Each line of the file is one input, for example
  {"custom_id": "one", "params": {"message": "Why is the sky blue?", "max_tokens": 500}}

examples:
  tailrace batch questions.jsonl                         print the answers
  tailrace batch questions.jsonl --output answers.jsonl
  tailrace batch questions.jsonl --via message_batches   half the price, within a day
  TAILRACE_KEY=… tailrace batch questions.jsonl --url https://tailrace.example

If it is interrupted, run the same command again: with the same file, --parallel and --via it continues the same batch.
If one of them differs, the command creates a new batch, which you pay for again. Exit status 1: an input has no answer.
"""
NODE_EXAMPLES = """\
Before it exits, the server hands over its leaderships, so that appends continue; `up` starts it again, with the version
of nats-server that is installed then. To upgrade all three, restart one after the other:

  for node in nats-1 nats-2 nats-3; do tailrace restart-node $node || break; done
"""
INIT_EXAMPLES = """\
examples:
  tailrace init                        write tailrace.toml into the current folder
  tailrace init ~/.config/tailrace/tailrace.toml
  tailrace up --config production.toml

`tailrace` reads the file that --config names, or else tailrace.toml in the current folder, or else in the folder of
your user's settings. It also reads a file called .env beside it, for secrets: one NAME=VALUE in each line.
"""
NATS_EXAMPLES = """\
examples:
  tailrace nats-config nats --server nats.internal                one server, without TLS
  tailrace nats-config nats --tls /etc/tailrace/tls --server nats-1.internal --server nats-2.internal \\
    --server nats-3.internal                                      three servers; any one may fail

The folder gets one configuration for each server (nats-1.conf …), and gateway.env, generators.env, persistence.env and
admin.env with the TAILRACE_NATS_URL of each process. The passwords are new. docs/NATS.md has the next steps.
"""
COMPLETION_EXAMPLES = """\
examples:
  bash  tailrace completion bash > ~/.local/share/bash-completion/completions/tailrace
  zsh   tailrace completion zsh > ~/.zfunc/_tailrace     with `fpath+=(~/.zfunc)` before `compinit` in ~/.zshrc
  fish  tailrace completion fish > ~/.config/fish/completions/tailrace.fish

It takes effect in a new shell.
"""
ASK_EXAMPLES = """\
The answer is shown while it arrives, as Markdown on a terminal and as plain text in a pipe. If the connection is lost
or the gateway is killed, the command reconnects and shows the rest. Ctrl-C stops reading, and the turn goes on.

examples:
  tailrace ask "Why is the sky blue?"
  git diff | tailrace ask - --system "You review changes." > review.md
  tailrace ask --continue "And why is it red at night?"      in the session of the last `tailrace ask`
  tailrace ask --resume                                      the answer of the last `tailrace ask`, from its start
  tailrace ask "Name a river." --json | jq -r .text
  tailrace ask "Name a river." --url https://tailrace.example --key my-secret-key

Exit status 1: the turn failed or was cancelled.
"""
CHAT_EXAMPLES = """\
Each line is a question of one session. Ctrl-C ends a running answer, Ctrl-D ends the chat.

examples:
  tailrace chat
  tailrace chat --session 019aa8e2-4c1f-7d3a-9b52-6f0e8d7c5a41      continue a session
"""
TAIL_EXAMPLES = """\
examples:
  tailrace tail 019aa8e2-4c1f-7d3a-9b52-6f0e8d7c5a41
  tailrace tail 019aa8e2-4c1f-7d3a-9b52-6f0e8d7c5a41 --json      each event as a line, with its cursor
"""
LIST_EXAMPLES = """\
examples:
  tailrace turns                        the running turns, oldest first
  tailrace turns --session SESSION      all turns of a session
  tailrace sessions --json | jq -r '.[].session'
"""
EXPORT_EXAMPLES = """\
Markdown has the newest branch of the session, JSON all of its turns.

examples:
  tailrace export SESSION --output conversation.md
  tailrace export SESSION --json > conversation.json
"""
USAGE_DAYS = 30
WATCH_EVERY_S = 2.0
NAME_CHARS_MAX = 100
LIFE = re.compile(r"([1-9][0-9]{0,3})([dhm])")
LIFE_MAX = 9999
GIB = 1024**3
EXIT_INTERRUPTED = 130  # as in shells: 128 + SIGINT


# argparse's message for an invalid choice. Groups: the value, the list of choices with brackets, the choices.
CHOICE = re.compile(r"invalid choice: '([^']*)'( \(choose from (.*)\))")

Command = Callable[[argparse.Namespace, Mapping[str, str]], int]


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints one sentence and exits with status 2; argparse would print the whole usage before it."""
        if found := CHOICE.search(message):
            # A similar choice helps more than the whole list.
            message = message.replace(found[2], suggest(found[1], re.split("[', ]+", found[3])) or found[2])
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


class CommandParser(Parser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses an unknown option here, where the options of the command are known."""
        found, rest = super().parse_known_args(args, namespace)
        if rest and rest[0].startswith("--"):
            self.error(f"unrecognized arguments: {' '.join(rest)}{suggest(rest[0], self._option_string_actions, '--')}")
        return found, rest


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns its exit status: 0 done, 1 refused or failed, 2 invalid argument or setting."""
    try:
        configuration = config_file.load(config_path(argv), os.environ)
        given = parser(configuration.options).parse_args(argv)
        # Programs may read the output of a command, and each error is printed as one sentence below.
        configure("tailrace", "console", level="error")
        status: int = given.command(given, configuration.environ)
    except TailraceError as error:
        print(f"tailrace: {printable(str(error))}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, SettingsInvalid) else EXIT_ERROR
    except client.TailraceError as error:
        hint = "; set the key in TAILRACE_KEY" if error.status == HTTPStatus.UNAUTHORIZED else ""
        if error.is_temporary and error.status is None:
            hint = ": start the gateway with `tailrace up`, or name one with --url"
        print(f"tailrace: {printable(str(error))}{hint}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:
        # The program that reads the output has ended, as in `tailrace turns | head -1`. Python would print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except KeyboardInterrupt:
        # `up` handles signals itself; other commands end without a traceback, which would look like a bug.
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    return status


def config_path(argv: Sequence[str] | None) -> Path | None:
    """Returns the value of `--config`. It is parsed first, because the file sets the defaults of other options."""
    first = Parser(prog="tailrace", add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    found: Path | None = first.parse_known_args(argv)[0].config
    return found


def write_config(given: argparse.Namespace, _: Mapping[str, str]) -> int:
    try:
        with given.file.open("x", encoding="utf-8") as file:
            given.file.chmod(0o600)
            file.write(config_file.example())
    except OSError as error:
        print(f"tailrace: cannot write {given.file}: {error.strerror}; name another file", file=sys.stderr)
        return EXIT_ERROR
    print(f"{given.file} lists every setting with its default, except secrets. Change it, then run `tailrace up`.")
    return 0


def print_completion(given: argparse.Namespace, _: Mapping[str, str]) -> int:
    print(completion.script(parser(), given.shell))
    return 0


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
    created = asyncio.run(streams.apply(url, file_bytes_max=given.gib * GIB, replicas=given.replicas))
    existed = len(EVERY_STREAM) + len(CONSUMERS) - created
    print(f"{created} streams, buckets and consumers created; {existed} existed and were not changed")
    return 0


def restart_node(given: argparse.Namespace, _: Mapping[str, str]) -> int:
    asyncio.run(node.restart(given.data, given.node))
    print(f"{given.node} runs again and has caught up")
    return 0


def show_webhook_secret(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    signing = signature.parse_keys(environ.get("TAILRACE_WEBHOOK_KEY", ""))
    if not signing:
        raise SettingsInvalid("TAILRACE_WEBHOOK_KEY is not set: set it to the key that persistence uses")
    print(signature.format_secret(signature.derive_secret(signing[0], given.tenant)))
    return 0


def write_monitoring(given: argparse.Namespace, _: Mapping[str, str]) -> int:
    try:
        written = monitoring.write(given.folder, given.runbook)
    except FileExistsError:
        print(f"tailrace: {given.folder} exists already: name a new folder", file=sys.stderr)
        return EXIT_ERROR
    print(*written, sep="\n")
    return 0


def write_nats_config(given: argparse.Namespace, _: Mapping[str, str]) -> int:
    if len(given.server) not in (1, 3) or len(set(given.server)) < len(given.server):
        print("tailrace: name one server, or three different ones", file=sys.stderr)
        return EXIT_USAGE
    try:
        written = nats_config.write(given.folder, given.server, given.tls, given.store, given.gib)
    except OSError as error:
        print(f"tailrace: cannot make {given.folder} ({error.strerror}): name a new folder", file=sys.stderr)
        return EXIT_ERROR
    print(*written, sep="\n")
    if given.tls is None and not all(server.is_loopback for server in given.server):
        print("warning: without --tls, passwords and answers cross the network in plain text", file=sys.stderr)
    return 0


def create_key(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    made, is_first = asyncio.run(
        keys.create(
            nats_server.url(given.data, environ),
            given.tenant,
            given.name,
            given.scope or TENANT_SCOPES,
            given.limits,
            given.expires,
        )
    )
    print(f"{made.record.id} of {made.record.tenant} was created; the key is shown only once:", file=sys.stderr)
    print(made.secret)
    if made.record.expires_at is not None:
        print(f"It expires at {keys.day(made.record.expires_at)} UTC.", file=sys.stderr)
    if is_first:
        print("It is the first key: from now on every request needs one.", file=sys.stderr)
    return 0


def show_usage(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    first = given.first or given.last - timedelta(days=USAGE_DAYS - 1)
    if first > given.last:
        raise SettingsInvalid(f"--from {first} is after --to {given.last}: exchange them")
    url = nats_server.url(given.data, environ)
    print(usage.render(given.by, asyncio.run(usage.fetch(url, given.tenant, given.by, first, given.last))))
    return 0


def show_status(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    while True:
        found = asyncio.run(status.fetch(given.data, environ))
        text = msgspec.json.encode(found).decode() if given.json else status.render(found)
        # On a terminal, each output replaces the one before.
        clear = "\x1b[H\x1b[2J" if given.watch and not given.json and sys.stdout.isatty() else ""
        print(clear + text, flush=True)
        if not given.watch:
            return 0 if found.ok else EXIT_ERROR
        time.sleep(WATCH_EVERY_S)


def run_doctor(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    options = Options(host=given.host, port=given.port, data_dir=given.data)
    findings = asyncio.run(doctor.examine(options, environ))
    print(msgspec.json.encode(findings).decode() if given.json else doctor.render(findings))
    return EXIT_ERROR if any(one.level == "error" for one in findings) else 0


def show_turn(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    found = asyncio.run(turn.fetch(nats_server.url(given.data, environ), given.id, given.tenant))
    print(msgspec.json.encode(found).decode() if given.json else printable(turn.render(found)))
    return 0


def list_keys(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    print(keys.render(asyncio.run(keys.list_all(nats_server.url(given.data, environ)))))
    return 0


def revoke_key(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    revoked = asyncio.run(keys.revoke(nats_server.url(given.data, environ), given.id))
    if revoked is None:
        print(f"tailrace: no key has the id {given.id!r}: see `tailrace keys list`", file=sys.stderr)
        return EXIT_ERROR
    key, was_before, is_last = revoked
    how = f"was revoked already, {keys.day(key.revoked_at)}" if was_before else "is revoked"
    print(f"{key.id} of {key.tenant} {how}")
    if is_last:
        print("No valid key is left, and every request needs one: run `tailrace keys create`.", file=sys.stderr)
    return 0


def parser(defaults: Mapping[str, object] | None = None) -> Parser:
    """Returns the parser of all commands. `defaults` are those of the configuration file, by option."""
    tailrace = Parser(
        prog="tailrace",
        description="Durable streams of Claude's answers: readers can resume, and no acknowledged turn is lost.",
        allow_abbrev=False,
    )
    tailrace.add_argument("--version", action="version", version=f"tailrace {VERSION}")
    commands = tailrace.add_subparsers(required=True, metavar="COMMAND", parser_class=CommandParser)
    add_up(commands)
    add_ask(commands)
    add_chat(commands)
    add_tail(commands)
    add_cancel(commands)
    add_lists(commands)
    add_export(commands)
    add_streams(commands)
    add_restart_node(commands)
    add_keys(commands)
    add_status(commands)
    add_top(commands)
    add_doctor(commands)
    add_usage(commands)
    add_turn(commands)
    add_batch(commands)
    add_webhook_secret(commands)
    add_monitoring(commands)
    add_nats_config(commands)
    add_init(commands)
    add_completion(commands)
    for action in completion.all_actions(tailrace):
        action.default = (defaults or {}).get(action.dest, action.default)
    return tailrace


def command(
    commands: "argparse._SubParsersAction[CommandParser]",
    name: str,
    run: Command | None,
    *,
    summary: str,
    description: str = "",
    epilog: str = "",
) -> Parser:
    """Adds a command. `summary` is its line in the list of commands; `epilog` is printed without reformatting.

    `run` is None for a command that has only actions.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=description or None,
        epilog=epilog or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=run)
    if run is not None:
        parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file (default: tailrace.toml)")
    return parser


def add_data(parser: argparse.ArgumentParser, about: str = "data directory of a running `up`") -> None:
    """Adds `--data`. Its default is the data directory of this user's running `up`, from any folder."""
    default = Options().data_dir if about == "data directory" else find_data_dir()
    parser.add_argument("--data", type=Path, default=default, metavar="DIR", help=f"{about} (default: %(default)s)")


def add_tenant(parser: argparse.ArgumentParser) -> None:
    default = Tenant("local")
    parser.add_argument("--tenant", type=tenant, default=default, metavar="NAME", help="tenant (default: %(default)s)")


def add_number(
    parser: argparse.ArgumentParser, name: str, default: int, about: str, lowest: int, highest: int, noun: str = "count"
) -> None:
    """Adds an option whose value is a number from `lowest` to `highest`."""
    kind = number(noun, lowest, highest)
    parser.add_argument(name, type=kind, default=default, metavar="N", help=f"{about} (default: %(default)s)")


def add_up(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "up",
        up,
        summary="start the whole system on this machine",
        description="Start the whole system on this machine and keep it running.",
        epilog=UP_EXAMPLES,
    )
    add, default = parser.add_argument, Options()
    add_address(parser)
    add_data(parser, "data directory")
    add_number(parser, "--generators", default.generators, "processes that call the model", 1, 64)
    add_number(parser, "--gateways", default.gateways, "processes that serve HTTP", 1, 64)
    add("--cluster", action="store_true", help="run three nats-servers, with a copy of the log each")
    add(
        "--sync",
        choices=SYNCS,
        default=default.sync,
        help="what a power cut may lose: nothing that was acknowledged (always), the last second (1s), or the last"
        " two minutes (default: that of NATS). A crash of a process loses nothing in any case (default: %(default)s)",
    )


def add_address(parser: argparse.ArgumentParser) -> None:
    default = Options()
    parser.add_argument("--host", default=default.host, help="address to listen on (default: %(default)s)")
    add_number(parser, "--port", default.port, "port to listen on; 0: a free one", 0, 65535, "port")


def add_streams(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "streams",
        make_streams,
        summary="create the streams in your own NATS",
        description="Create missing streams and buckets in the NATS at TAILRACE_NATS_URL; existing ones do not change.",
        epilog=STREAMS_EXAMPLES,
    )
    add_number(parser, "--replicas", 1, "copies of the log", 1, 5)
    add_number(parser, "--gib", 10, "storage a server, GiB", 1, 65536, "size")


def add_restart_node(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "restart-node",
        restart_node,
        summary="restart one nats-server of `up --cluster`",
        description="Restart one nats-server of a running `up --cluster`, and wait until it has caught up.",
        epilog=NODE_EXAMPLES,
    )
    parser.add_argument("node", choices=nats_cluster.names(), metavar="NAME", help=", ".join(nats_cluster.names()))
    add_data(parser)


def add_webhook_secret(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "webhook-secret",
        show_webhook_secret,
        summary="show a tenant's webhook signing secret",
        description="Show the secret with which a tenant's webhooks are signed.",
        epilog=WEBHOOK_EXAMPLES,
    )
    add_tenant(parser)


def add_monitoring(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "monitoring",
        write_monitoring,
        summary="write dashboards and alert rules into a folder",
        description="Write the files of monitoring, whose panels and alerts link to your copy of docs/RUNBOOK.md.",
        epilog=MONITORING_EXAMPLES,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder")
    parser.add_argument("--runbook", type=url, required=True, metavar="URL", help="address of your copy of the runbook")


def add_nats_config(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "nats-config",
        write_nats_config,
        summary="write the configuration of your own NATS",
        description="Write whole configurations of nats-server, and the environment of each process of Tailrace.",
        epilog=NATS_EXAMPLES,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="a new folder")
    add(
        "--server",
        type=nats_address,
        action="append",
        required=True,
        metavar="HOST[:PORT]",
        help="address of a server; give it once or three times (default port: 4222; port + 2000 for the other servers)",
    )
    add("--tls", type=Path, metavar="DIR", help="use TLS: folder of ca.pem, cert.pem and key.pem on each machine")
    add(
        "--store",
        type=Path,
        default=Path("/var/lib/nats"),
        metavar="DIR",
        help="folder of the log (default: %(default)s)",
    )
    add_number(parser, "--gib", 10, "storage a server, GiB", 1, 65536, "size")


def nats_address(text: str) -> nats_config.Server:
    try:
        return nats_config.parse_server(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_init(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "init",
        write_config,
        summary="write a configuration file with every setting",
        description="Write a configuration file that lists every setting but secrets, with meaning and default.",
        epilog=INIT_EXAMPLES,
    )
    parser.add_argument(
        "file", type=Path, nargs="?", default=Path(config_file.NAME), metavar="FILE", help="default: %(default)s"
    )


def add_completion(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "completion",
        print_completion,
        summary="print a completion script for a shell",
        description="Print a script that completes commands and options of tailrace in a shell.",
        epilog=COMPLETION_EXAMPLES,
    )
    parser.add_argument("shell", choices=completion.SHELLS, metavar="SHELL", help=", ".join(completion.SHELLS))


def url(text: str) -> str:
    # Quotes and the like would end a string in the files.
    if not re.fullmatch(r"""https?://[^\s"'\\<>]+""", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an http or https URL such as https://wiki.example/RUNBOOK.md"
        )
    return text


def tenant(text: str) -> Tenant:
    if not is_token(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a tenant: use 1 to 64 characters of a-z 0-9 _ -")
    return Tenant(text)


def add_keys(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "keys",
        None,
        summary="create, list and revoke API keys",
        description="Create, list and revoke API keys. Changes take effect within a second.",
        epilog=KEYS_EXAMPLES,
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION", parser_class=CommandParser)
    create = command(actions, "create", create_key, summary="create a key and show it once")
    create.add_argument("--tenant", type=tenant, required=True, metavar="NAME", help="tenant of the key's turns")
    create.add_argument("--name", type=key_name, default="", metavar="TEXT", help="description, shown in the list")
    create.add_argument(
        "--scope",
        action="append",
        choices=sorted(SCOPES),
        help="permission; repeat it for several (default: all but operate, which shows the metrics of all tenants)",
    )
    create.add_argument(
        "--limits",
        type=limits,
        metavar="NAME=NUMBER,…",
        help=f"limits of the key: {', '.join(NAMES)} (docs/LIMITS.md)",
    )
    create.add_argument(
        "--expires", type=life, metavar="TIME", help="lifetime: 90d, 12h or 30m (default: until it is revoked)"
    )
    listing = command(actions, "list", list_keys, summary="list all keys, including revoked ones")
    revoking = command(actions, "revoke", revoke_key, summary="revoke a key permanently")
    revoking.add_argument("id", metavar="ID", help="id in the list: key_…")
    for action in (create, listing, revoking):
        add_data(action)


def life(text: str) -> int:
    """Returns a lifetime in seconds."""
    found = LIFE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time such as 90d, 12h or 30m, with a number from 1 to {LIFE_MAX}"
        )
    return int(found[1]) * {"d": 86400, "h": 3600, "m": 60}[found[2]]


def limits(text: str) -> dict[str, float]:
    try:
        given: dict[str, float] = msgspec.to_builtins(parse_limits_setting("--limits", text))
    except SettingsInvalid as error:
        # argparse names the option itself.
        raise argparse.ArgumentTypeError(str(error).removeprefix("--limits: ")) from error
    return given


def add_usage(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "usage",
        show_usage,
        summary="show turns, tokens and cost",
        description="Show a tenant's turns, tokens and cost in US dollars.",
        epilog=USAGE_EXAMPLES,
    )
    today = datetime.now(UTC).date()
    add_tenant(parser)
    add = parser.add_argument
    add("--by", choices=get_args(UsageBy), default="day", help="one row for each of these (default: %(default)s)")
    add("--from", type=day, dest="first", metavar="DAY", help=f"first day, UTC (default: the last {USAGE_DAYS} days)")
    add("--to", type=day, dest="last", default=today, metavar="DAY", help="last day, UTC (default: today)")
    add_data(parser)


def add_status(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "status",
        show_status,
        summary="show the processes, the queue and the last errors",
        description="Show whether everything works.",
        epilog=STATUS_EXAMPLES,
    )
    parser.add_argument("--watch", action="store_true", help="repeat it until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print JSON, in one line")
    add_data(parser)


def add_top(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "top",
        top.run,
        summary="watch processes, tokens a second and the slowest turns",
        description="Watch processes, the queue, tokens a second and the slowest running turns.",
        epilog=TOP_EXAMPLES,
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON every two seconds")
    add_connection(parser)


def add_doctor(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "doctor",
        run_doctor,
        summary="check this machine, NATS, the database and the model key",
        description="Check what `tailrace up` needs, and say what to do about each problem.",
        epilog=DOCTOR_EXAMPLES,
    )
    add_address(parser)
    add_data(parser, "data directory")
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_turn(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "turn",
        show_turn,
        summary="show the steps of one turn, and its readers",
        description="Show the timeline of one turn.",
        epilog=TURN_EXAMPLES,
    )
    add = parser.add_argument
    add_turn_id(parser)
    add("--tenant", type=tenant, metavar="NAME", help="its tenant (default: found in the log)")
    add("--json", action="store_true", help="print JSON, with times in UTC")
    add_data(parser)


def turn_id(text: str) -> TurnId:
    """Returns the id of a turn. Also accepts the id that the turn has in OpenAI's or Anthropic's protocol."""
    for prefix in ("chatcmpl-", "resp_", "msg_", "batch_"):
        text = text.removeprefix(prefix)
    if not is_token(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the id of a turn: use the value of the field `turn`")
    return TurnId(text)


def add_connection(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--url", metavar="URL", help="the gateway (default: TAILRACE_URL, else the running `up` of this user)")
    add("--key", metavar="KEY", help="its API key; TAILRACE_KEY is safer, because other users can see arguments")
    add_data(parser)


def add_question(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="NAME", help="name of a model, such as opus (default: the gateway's)")
    add("--system", metavar="TEXT", help="system prompt")
    add("--session", metavar="ID", help="the session to continue")
    add("--max-tokens", type=number("count", 1, 1_000_000), metavar="N", help="the maximum length of the answer")
    add_connection(parser)


def add_ask(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "ask",
        ask.ask,
        summary="ask a question, and show the answer",
        description="Ask a question, and show the answer while it arrives.",
        epilog=ASK_EXAMPLES,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "question", nargs="?", metavar="QUESTION", help="the question; - reads it from the standard input"
    )
    which.add_argument("--resume", action="store_true", help="show the answer of the last `tailrace ask`")
    parser.add_argument(
        "--continue", dest="go_on", action="store_true", help="ask in the session of the last `tailrace ask`"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, in one line, when the answer is complete")
    add_question(parser)


def add_chat(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    description = "Ask one question after the other in one session."
    parser = command(
        commands, "chat", ask.chat, summary="chat in the terminal", description=description, epilog=CHAT_EXAMPLES
    )
    add_question(parser)


def add_tail(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "tail",
        ask.tail,
        summary="show the answer of a turn while it arrives",
        description="Show the answer of a turn from its start, and follow it to its end.",
        epilog=TAIL_EXAMPLES,
    )
    add_turn_id(parser)
    parser.add_argument("--after", default="", metavar="CURSOR", help="show only the events after this cursor")
    parser.add_argument("--json", action="store_true", help="print each event as a line of JSON")
    add_connection(parser)


def add_cancel(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "cancel",
        ask.cancel,
        summary="end a turn; its text so far remains",
        description="End a turn, even if another program has started it. Its text so far remains.",
        epilog="example:\n  tailrace cancel 019aa8e2-4c1f-7d3a-9b52-6f0e8d7c5a41\n",
    )
    add_turn_id(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, in one line")
    add_connection(parser)


def add_lists(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    turns = command(
        commands,
        "turns",
        conversations.turns,
        summary="list the running turns, or those of a session",
        description="List the running turns, or all turns of a session.",
        epilog=LIST_EXAMPLES,
    )
    turns.add_argument("--session", metavar="ID", help="all turns of this session, oldest first")
    sessions = command(
        commands,
        "sessions",
        conversations.sessions,
        summary="list the sessions",
        description="List the sessions, newest first.",
        epilog=LIST_EXAMPLES,
    )
    for parser in (turns, sessions):
        add_number(parser, "--limit", 50, "the maximum number of lines", 1, 100_000)
        parser.add_argument("--json", action="store_true", help="print JSON, in one line")
        add_connection(parser)


def add_export(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "export",
        conversations.export,
        summary="write a conversation as Markdown or JSON",
        description="Write the conversation of a session as Markdown or JSON.",
        epilog=EXPORT_EXAMPLES,
    )
    parser.add_argument("id", metavar="SESSION", help="id of the session: see `tailrace sessions`")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write (default: standard output)")
    parser.add_argument("--json", action="store_true", help="write JSON")
    add_connection(parser)


def add_turn_id(parser: argparse.ArgumentParser) -> None:
    about = "id of the turn, or of its completion, response, message or batch"
    parser.add_argument("id", type=turn_id, metavar="ID", help=about)


def add_batch(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    parser = command(
        commands,
        "batch",
        batch.run,
        summary="run all inputs of a file as one batch",
        description="Run all inputs of a file (one line of JSON each) as a batch; write a line for each answer.",
        epilog=BATCH_EXAMPLES,
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE.jsonl")
    add("--output", type=Path, metavar="FILE", help="file for the answers (default: standard output)")
    add_number(parser, "--parallel", 8, "concurrent inputs", 1, 64)
    add("--via", choices=get_args(Via), default="messages", help="message_batches: half the price, within a day")
    add_connection(parser)


def day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day such as 2026-01-31") from error


def key_name(text: str) -> str:
    # Names are printed on terminals: no control characters.
    if not text.isprintable() or len(text) > NAME_CHARS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name: at most {NAME_CHARS_MAX} printable characters")
    return text


def number(noun: str, lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) <= len(str(highest)) and lowest <= int(text) <= highest:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a {noun} from {lowest} to {highest}")

    return parse
