"""`tailrace usage`: queries persistence over NATS, or a gateway over HTTP, and renders a table."""

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import msgspec

from tailrace.deploy.cli.arguments import add_connection, add_json, day, tenant
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.keys import open_connection
from tailrace.deploy.cli.result import print_json
from tailrace.deploy.local import nats_server
from tailrace.deploy.local.terminal_text import table
from tailrace.features.admin.administration import Administration
from tailrace.features.usage.records import USAGE_BY, GetUsage, UsagePage, UsageRecord
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.ids import LOCAL, Tenant
from tailrace.proto.nats import Connection, Rpc
from tailrace.proto.nats.users import ADMIN

DESCRIPTION = "Show a tenant's turns, tokens and cost in US dollars."
EXAMPLES = """\
examples:
  tailrace usage                                   the last thirty days (UTC), one row a day
  tailrace usage --tenant acme --by key            one row for each API key, with the time of its last use
  tailrace usage --by model --from 2026-11-01 --to 2026-11-30
  tailrace usage --url https://tailrace.example    of the tenant of the key in TAILRACE_KEY

With --url, or TAILRACE_URL and no TAILRACE_NATS_URL, it asks this gateway. Then --tenant needs a key with the scope
`admin`. Otherwise it connects to the NATS of the `tailrace up` with this data directory (--data), or to
TAILRACE_NATS_URL, and needs no key.
"""
DAYS = 30
TIMEOUT_S = 10.0
PAGE = 200
NO_KEY = "-"
BY_HELP = f"one row for each {', '.join(USAGE_BY)} or metadata.NAME (default: %(default)s)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    today = datetime.now(UTC).date()
    add = parser.add_argument
    add("--tenant", type=tenant, metavar="NAME", help=f"tenant (default: {LOCAL}, or that of the key with --url)")
    add("--by", type=dimension, default="day", help=BY_HELP)
    add("--from", type=day, dest="first", metavar="DAY", help=f"first day, UTC (default: the last {DAYS} days)")
    add("--to", type=day, dest="last", default=today, metavar="DAY", help="last day, UTC (default: today)")
    add_json(parser)
    add_connection(parser)


def dimension(text: str) -> str:
    """argparse type: the dimension by which totals are grouped."""
    if text not in USAGE_BY and not text.startswith("metadata."):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(USAGE_BY)}, metadata.NAME")
    return text


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints the usage of the days from `--from` to `--to`, in UTC; by default of the last DAYS days.

    Reads the usage over HTTP if a gateway is named, else over NATS. Raises SettingsInvalid, GatewayFailed, Refused,
    LogUnavailable.
    """
    first = args.first or args.last - timedelta(days=DAYS - 1)
    if first > args.last:
        raise SettingsInvalid(f"--from {first} is after --to {args.last}: exchange them")
    if args.url or (environ.get("TAILRACE_URL") and not environ.get("TAILRACE_NATS_URL")):
        records, names = request(args, environ, first)
    else:
        url = nats_server.find_url(args.data, environ)
        records, names = asyncio.run(fetch_with_names(url, args, first))
    if args.json:
        print_json(records)
    else:
        print(render(args.by, records, names))
    return 0


def request(
    args: argparse.Namespace, environ: Mapping[str, str], first: date
) -> tuple[list[UsageRecord], dict[str, str]]:
    """Returns the usage of the key's tenant, or of `--tenant`, from a gateway, and names of keys by their ids.

    Only a key for operators, which `--tenant` needs, can read names. Raises GatewayFailed.
    """
    path = "/v1/usage" if args.tenant is None else f"/v1/admin/tenants/{args.tenant}/usage"
    query = {"by": args.by, "from": str(first), "to": str(args.last), "limit": str(PAGE)}
    with connect(args, environ) as client:
        records = msgspec.convert(list(client.items(path, query)), list[UsageRecord])
        has_names = args.by == "key" and args.tenant is not None
        keys = client.items("/v1/admin/keys", {"tenant": args.tenant, "limit": "200"}) if has_names else ()
        return records, {key["id"]: key.get("name", "") for key in keys}


async def fetch_with_names(url: str, args: argparse.Namespace, first: date) -> tuple[list[UsageRecord], dict[str, str]]:
    """Returns the usage, and with `--by key` the names of the keys by their ids. Raises Refused, LogError."""
    records = await fetch(url, args.tenant or LOCAL, args.by, first, args.last)
    if args.by != "key":
        return records, {}
    async with open_connection(url) as connection:
        return records, {key.id: key.name for key in await Administration(connection).list_keys()}


async def fetch(url: str, tenant: Tenant, by: str, first: date, last: date) -> list[UsageRecord]:
    """Returns the usage from the first to the last day, ordered by key. Raises Refused, LogUnavailable."""
    connection = await Connection.open(url, "tailrace-usage", ADMIN)
    try:
        rpc = Rpc(connection)
        found: list[UsageRecord] = []
        query = GetUsage(by, first, last, limit=PAGE)
        while True:
            answer = await rpc.request(tenant, GetUsage.query, msgspec.json.encode(query), timeout_s=TIMEOUT_S)
            page = msgspec.json.decode(answer, type=UsagePage)
            found += page.usage
            if page.next is None:
                return found
            query = msgspec.structs.replace(query, after=page.next)
    finally:
        await connection.close()


def render(by: str, records: Sequence[UsageRecord], names: Mapping[str, str]) -> str:
    """Returns a table with one row a record, and a row with the totals. `names` are the names of keys by their ids."""
    headings = (by.upper(), "TURNS", "INPUT", "OUTPUT", "CACHE WRITES", "CACHE READS", "COST $", "LAST USED")
    rows = [
        (
            " ".join(filter(None, (record.key or NO_KEY, names.get(record.key or "")))),
            *_counts([record]),
            f"{record.last_used:%Y-%m-%d %H:%M}",
        )
        for record in records
    ]
    return table([headings, *rows, ("all", *_counts(records), "")])


def _counts(records: Sequence[UsageRecord]) -> tuple[str, ...]:
    counts = (
        sum(record.turns for record in records),
        sum(record.usage.input_tokens for record in records),
        sum(record.usage.output_tokens for record in records),
        sum(record.usage.cache_creation_input_tokens for record in records),
        sum(record.usage.cache_read_input_tokens for record in records),
    )
    return (*map(str, counts), f"{sum(record.cost_usd for record in records):.4f}")
