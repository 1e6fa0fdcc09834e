"""`tailrace turn`: reads a turn's log, record and readers over NATS as the administrator, and renders its timeline."""

import argparse
import asyncio
from collections.abc import Mapping
from datetime import datetime
from functools import partial

from tailrace.deploy.cli.arguments import add_data, add_json, add_turn_id, tenant
from tailrace.deploy.cli.result import print_json
from tailrace.deploy.local import nats_server
from tailrace.deploy.local.terminal_text import make_printable
from tailrace.features.timeline.timeline import EndStep, Step, Timeline, read
from tailrace.gateway.history_client import HistoryClient
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import Connection, Rpc, TurnLog
from tailrace.proto.nats.users import ADMIN
from tailrace.proto.ownership import ScopedKey

DESCRIPTION = "Show the timeline of one turn."
EXAMPLES = """\
It shows whether a user got the answer: when the turn was accepted, which attempts were made, when the first token
came, where the answer paused, which readers opened, resumed and were cut, how it ended, and whether it is in the
database. It shows no text of the conversation.

examples:
  tailrace turn 019aa8e2-4c1f-7d3a-9b52-6f0e8d7c5a41
  tailrace turn 019aa8e2-4c1f-7d3a-9b52-6f0e8d7c5a41 --json
  tailrace turn 019aa8e2-4c1f-7d3a-9b52-6f0e8d7c5a41 --tenant acme     a turn that has left the log

It connects to the NATS of the `tailrace up` with this data directory (--data), or to TAILRACE_NATS_URL with the user
admin. Each gateway remembers its last 10,000 streams until it stops. Not recorded: answers that were read without a
stream, and streams of turns that were no longer in the log. "Sent" means that the gateway wrote the entries to the
connection; it cannot know whether a client has shown them. A reader is cut because its client or a proxy closed the
connection (disconnected), after TAILRACE_STREAM_LIFE_S (aged), because the gateway stopped (draining) or its credential
expired, or by an error that the gateway's log has (broken, failed).
"""
QUERY_TIMEOUT_S = 5.0
# Gateways answer from memory.
GATEWAYS_WAIT_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_turn_id(parser)
    parser.add_argument("--tenant", type=tenant, metavar="NAME", help="its tenant (default: found in the log)")
    add_json(parser, "print JSON, with times in UTC")
    add_data(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints the timeline of a turn. Raises SettingsInvalid, TurnUnknown, Refused, LogUnavailable."""
    found = asyncio.run(fetch(nats_server.find_url(args.data, environ), args.id, args.tenant))
    if args.json:
        print_json(found)
    else:
        print(make_printable(render(found)))
    return 0


async def fetch(url: str, turn: TurnId, tenant: Tenant | None) -> Timeline:
    """Returns the timeline of a turn. Without `tenant` the turn must be in the log.

    Raises TurnUnknown, Refused, LogUnavailable.
    """
    connection = await Connection.open(url, "tailrace-turn", ADMIN)
    try:
        log = TurnLog(connection)
        key = TurnKey(tenant, turn) if tenant is not None else await log.find_turn(turn)
        if key is None:
            raise TurnUnknown(f"the log has no turn {turn}: if it is older than the log, name its tenant with --tenant")
        rpc = Rpc(connection)
        ask_gateways = partial(rpc.collect_readers_as_admin, key, wait_s=GATEWAYS_WAIT_S)
        return await read(log, HistoryClient(rpc, QUERY_TIMEOUT_S), ScopedKey.whole(key), ask_gateways)
    finally:
        await connection.close()


def render(found: Timeline) -> str:
    """Returns the timeline as text: one line for each step, with the local time and the seconds since acceptance."""
    recorded = {True: "yes", False: "not yet", None: "unknown: persistence does not answer"}[found.recorded]
    lines = [
        f"turn       {found.turn}",
        f"tenant     {found.tenant}",
        *([f"session    {found.session}", f"model      {found.model}"] if found.session else []),
        "",
        *(_line(step, found.accepted_at) for step in found.steps),
        "",
        f"recorded   {recorded}",
        *([f"used       {_usage(found.end)}"] if found.end is not None else []),
        *([f"prompt     {found.prompt}"] if found.prompt else []),
        *([f"skipped    {found.skipped_entries} entries: a fork, or damage"] if found.skipped_entries else []),
        f"delivered  {found.delivered}",
    ]
    return "\n".join(lines)


def _usage(end: EndStep) -> str:
    about = "about " if end.usage_is_estimated else ""
    cost = f"{end.cost_usd:.6f} $" if end.cost_usd is not None else "at an unknown price"
    return f"{about}{end.usage.input_tokens} tokens in, {end.usage.output_tokens} out, {cost}"


def _line(step: Step, start: datetime | None) -> str:
    since = f"{(step.at - start).total_seconds():+10.3f}" if start is not None else " " * 10
    return f"{step.at.astimezone():%H:%M:%S}.{step.at.microsecond // 1000:03d} {since}  {step.text}"
