"""`tailrace usage`: queries persistence over NATS, or a gateway over HTTP, and renders a table or CSV."""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from tailrace.deploy.cli.arguments import add_connection, add_json, day, tenant
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.keys import open_connection
from tailrace.deploy.cli.result import print_json
from tailrace.deploy.local import nats_server
from tailrace.deploy.local.terminal_text import table
from tailrace.features.admin.administration import Administration
from tailrace.features.usage.csv_table import NO_NAME, sum_counts
from tailrace.features.usage.csv_table import render_csv as render_csv_table
from tailrace.features.usage.records import (
    BY_TENANT,
    USAGE_BY,
    GetUsage,
    ListTenantUsage,
    UsagePage,
    UsageRecord,
)
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.ids import LOCAL, Tenant
from tailrace.proto.nats import Rpc
from tailrace.proto.usage import NANO_USD_PER_USD

DESCRIPTION = "Show turns, tokens and cost in US dollars, of a tenant or of all tenants."
EXAMPLES = """\
examples:
  tailrace usage                                   the last thirty days (UTC), one row a day
  tailrace usage --tenant acme --by key            one row for each API key, with the time of its last use
  tailrace usage --by model --from 2026-11-01 --to 2026-11-30
  tailrace usage --by tenant                       one row for each tenant
  tailrace usage --all-tenants --by metadata.team --csv > bill.csv
  tailrace usage --url https://tailrace.example    of the tenant of the key in TAILRACE_KEY

The rows of each grouping sum to the same total. The row `-` has the turns without a value, for example without this
field of metadata, and those of erased users.

With --url, or TAILRACE_URL and no TAILRACE_NATS_URL, it asks this gateway. Then --tenant, --all-tenants and --by tenant
need a key with the scope `admin`. Otherwise it connects to the NATS of the `tailrace up` with this data directory
(--data), or to TAILRACE_NATS_URL, and needs no key.
"""
DAYS = 30
TIMEOUT_S = 10.0
PAGE = 200
# The rows of several pages are read again if they have changed in between.
READS_MAX = 5
BY_HELP = f"one row for each {', '.join(USAGE_BY)}, metadata.NAME or tenant (default: %(default)s)"
COUNTS = ("turns", "input", "output", "cache writes", "cache reads")

ReadPage = Callable[[Tenant | None, str, str | None], Awaitable[UsagePage]]
"""Returns a page of the usage of a tenant by a dimension, after a cursor. Without a tenant: of the key's tenant, or
with the dimension `tenant` of all tenants."""


class Row(NamedTuple):
    """The usage of one tenant and one value of the dimension. `name` is the name of a key."""

    tenant: str
    key: str
    name: str
    record: UsageRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    today = datetime.now(UTC).date()
    add = parser.add_argument
    of = parser.add_mutually_exclusive_group().add_argument
    of("--tenant", type=tenant, metavar="NAME", help=f"tenant (default: {LOCAL}, or that of the key with --url)")
    of("--all-tenants", action="store_true", help="the rows of all tenants, each with its tenant")
    add("--by", type=dimension, default="day", help=BY_HELP)
    add("--from", type=day, dest="first", metavar="DAY", help=f"first day, UTC (default: the last {DAYS} days)")
    add("--to", type=day, dest="last", default=today, metavar="DAY", help="last day, UTC (default: today)")
    add("--csv", action="store_true", help="print CSV, with the exact cost and without the row of the total")
    add_json(parser)
    add_connection(parser)


def dimension(text: str) -> str:
    """argparse type: the dimension by which totals are grouped."""
    if text not in (*USAGE_BY, BY_TENANT) and not text.startswith("metadata."):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(USAGE_BY)}, metadata.NAME, {BY_TENANT}")
    return text


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints the usage of the days from `--from` to `--to`, in UTC; by default of the last DAYS days.

    Reads the usage over HTTP if a gateway is named, else over NATS. Raises SettingsInvalid, GatewayFailed, Refused,
    LogUnavailable.
    """
    args.first = args.first or args.last - timedelta(days=DAYS - 1)
    if args.first > args.last:
        raise SettingsInvalid(f"--from {args.first} is after --to {args.last}: exchange them")
    if args.by == BY_TENANT and args.tenant is not None:
        raise SettingsInvalid(f"--by {BY_TENANT} shows all tenants: leave out --tenant")
    if args.csv and args.json:
        raise SettingsInvalid("--csv and --json: choose one")
    # With `--by tenant` the key of a row is the tenant.
    args.all_tenants = args.all_tenants and args.by != BY_TENANT
    rows = asyncio.run(read_rows(args, environ))
    if args.json:
        print_json([_builtins(row, args) for row in rows])
    else:
        print((render_csv if args.csv else render)(args.by, rows, has_tenants=args.all_tenants))
    return 0


async def read_rows(args: argparse.Namespace, environ: Mapping[str, str]) -> list[Row]:
    """Returns the rows in the order of tenants and keys. Raises GatewayFailed, Refused, LogError."""
    is_http = args.url or (environ.get("TAILRACE_URL") and not environ.get("TAILRACE_NATS_URL"))
    source = read_over_http(args, environ) if is_http else read_over_nats(args, environ)
    async with source as (read_page, names):
        tenants: Sequence[Tenant | None] = [args.tenant]
        if args.all_tenants:
            tenants = [Tenant(one.key or "") for one in await read(read_page, None, BY_TENANT)]
        return [
            Row(tenant or "", NO_NAME if one.key is None else one.key, names.get(one.key or "", ""), one)
            for tenant in tenants
            for one in await read(read_page, tenant, args.by)
        ]


async def read(read_page: ReadPage, tenant: Tenant | None, by: str) -> list[UsageRecord]:
    """Returns all pages; reads them again if a turn has ended, or a user was erased, between two pages."""
    for _ in range(READS_MAX):
        page = await read_page(tenant, by, None)
        found, has_more = [*page.usage], page.next is not None
        while page.next is not None:
            page = await read_page(tenant, by, page.next)
            found += page.usage
        if not has_more or page.total is None or sum_counts(found) == sum_counts([page.total]):
            return found
    print("turns ended while their usage was read: the rows are of different moments", file=sys.stderr)
    return found


@asynccontextmanager
async def read_over_http(
    args: argparse.Namespace, environ: Mapping[str, str]
) -> AsyncIterator[tuple[ReadPage, Mapping[str, str]]]:
    """Yields the reader of a gateway, and names of keys by their ids. Raises GatewayFailed.

    Only a key for operators, which `--tenant` and `--all-tenants` need, can read names.
    """
    with connect(args, environ) as client:

        async def read_page(tenant: Tenant | None, by: str, after: str | None) -> UsagePage:
            query = {"from": str(args.first), "to": str(args.last), "limit": str(PAGE)}
            query |= {} if by == BY_TENANT else {"by": by}
            query |= {} if after is None else {"after": after}
            path = "/v1/usage" if tenant is None else f"/v1/admin/tenants/{tenant}/usage"
            body = client.request("GET", "/v1/admin/usage" if by == BY_TENANT else path, params=query)
            # A gateway of an older version sends no total.
            return msgspec.convert({"usage": body["data"], "next": body["next"], "total": body.get("total")}, UsagePage)

        has_names = args.by == "key" and (args.tenant is not None or args.all_tenants)
        of = {} if args.tenant is None else {"tenant": args.tenant}
        keys = client.items("/v1/admin/keys", {"limit": str(PAGE), **of}) if has_names else ()
        yield read_page, {key["id"]: key.get("name", "") for key in keys}


@asynccontextmanager
async def read_over_nats(
    args: argparse.Namespace, environ: Mapping[str, str]
) -> AsyncIterator[tuple[ReadPage, Mapping[str, str]]]:
    """Yields the reader of persistence, and the names of keys by their ids. Raises Refused, LogError."""
    async with open_connection(nats_server.find_url(args.data, environ)) as connection:
        rpc = Rpc(connection)

        async def read_page(tenant: Tenant | None, by: str, after: str | None) -> UsagePage:
            query = (
                ListTenantUsage(args.first, args.last, after, PAGE)
                if by == BY_TENANT
                else GetUsage(by, args.first, args.last, after, PAGE)
            )
            body = msgspec.json.encode(query)
            answer = await rpc.request(tenant or LOCAL, query.query, body, timeout_s=TIMEOUT_S)
            return msgspec.json.decode(answer, type=UsagePage)

        keys = await Administration(connection).list_keys() if args.by == "key" else ()
        yield read_page, {key.id: key.name for key in keys}


def render(by: str, rows: Sequence[Row], *, has_tenants: bool) -> str:
    """Returns a table with a line for each row, and a line with the totals."""
    headings = (*_first(by, has_tenants=has_tenants), *COUNTS, "cost $", "last used")
    lines = [
        (
            *((row.tenant,) if has_tenants else ()),
            " ".join(filter(None, (row.key, row.name))),
            *map(str, sum_counts([row.record])[:-1]),
            f"{row.record.cost_usd:.4f}",
            f"{row.record.last_used:%Y-%m-%d %H:%M}" if row.record.last_used else "",
        )
        for row in rows
    ]
    *counts, cost = sum_counts([row.record for row in rows])
    total = ("all", *(("",) if has_tenants else ()), *map(str, counts), f"{cost / NANO_USD_PER_USD:.4f}", "")
    return table([[one.upper() for one in headings], *lines, total])


def render_csv(by: str, rows: Sequence[Row], *, has_tenants: bool) -> str:
    """Returns the rows as CSV (RFC 4180), with the exact cost. `key_name` is the name of an API key."""
    names = ("key_name",) if by == "key" else ()
    lines = (
        (
            (
                *((row.tenant,) if has_tenants else ()),
                None if row.key == NO_NAME else row.key,
                *((row.name,) if names else ()),
            ),
            row.record,
        )
        for row in rows
    )
    return render_csv_table((*_first(by, has_tenants=has_tenants), *names), lines).rstrip("\n")


def _first(by: str, *, has_tenants: bool) -> tuple[str, ...]:
    return (*((BY_TENANT,) if has_tenants else ()), by)


def _builtins(row: Row, args: argparse.Namespace) -> object:
    of = {BY_TENANT: row.tenant} if args.all_tenants else {}
    return of | msgspec.to_builtins(row.record)
