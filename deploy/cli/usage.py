"""`tailrace usage`: queries persistence over NATS, or a gateway over HTTP, and renders a table or CSV."""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import NamedTuple

import msgspec

from tailrace.client import TailraceError
from tailrace.deploy.cli.arguments import (
    add_connection,
    add_json,
    add_labels,
    day,
    label,
    label_parameters,
    labels_of,
    session_id,
    tenant,
)
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.keys import open_connection
from tailrace.deploy.cli.result import print_json
from tailrace.deploy.local import nats_server
from tailrace.deploy.local.terminal_text import make_printable, table
from tailrace.features.admin.administration import Administration
from tailrace.features.usage.csv_table import NO_NAME, render_csv, sum_counts
from tailrace.features.usage.records import (
    BY_TENANT,
    USAGE_BY,
    ListTenantUsage,
    UsagePage,
    UsageRecord,
    parse_by,
    usage_query,
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
  tailrace usage --by tenant                       one row for each tenant
  tailrace usage --all-tenants --by metadata.team --csv > bill.csv
  tailrace usage --url https://tailrace.example    of the tenant of the key in TAILRACE_KEY

What did ada cost in October, by model?
  tailrace usage --by model --user ada --from 2026-10-01 --to 2026-10-31
  tailrace usage --by day,model --user ada --from 2026-10-01 --to 2026-10-31

Why was Tuesday expensive?
  tailrace usage --by user,model --from 2026-11-24 --to 2026-11-24
  tailrace turns --costliest --from 2026-11-24 --to 2026-11-24

The rows of each grouping sum to the same total. The row `-` has the turns without a value, for example without this
field of metadata, and those that were deleted, erased or not stored; with several filters, no row has these. Two
groupings, and filters on another dimension than --by, read the turns of at most 31 days. Costs are rounded: --csv and
--json print them exactly.

With --url, or TAILRACE_URL and no TAILRACE_NATS_URL, it asks this gateway. Then --tenant, --all-tenants and --by tenant
need a key with the scope `admin`. Otherwise it connects to the NATS of the `tailrace up` with this data directory
(--data), or to TAILRACE_NATS_URL, and needs no key. `tailrace turns` always needs a key: one of the tenant, or with its
option --tenant one with the scope `admin`.
"""
DAYS = 30
TIMEOUT_S = 10.0
PAGE = 200
# The rows of several pages are read again if they have changed in between.
READS_MAX = 5
BY_HELP = (
    f"one row for each {', '.join(USAGE_BY)} or metadata.NAME, or for each pair: day,model; or tenant (default: day)"
)
COUNTS = ("turns", "input", "output", "cache writes", "cache reads")

ReadPage = Callable[[Tenant | None, Sequence[str], str | None], Awaitable[UsagePage]]
"""Returns a page of the usage of a tenant by dimensions, after a cursor. Without a tenant: of the key's tenant, or with
the dimension `tenant` of all tenants."""


class Row(NamedTuple):
    """The usage of one tenant and one value of each dimension. `name` is the name of a key."""

    tenant: str
    keys: Sequence[str | None]
    name: str
    record: UsageRecord


class Found(NamedTuple):
    """The rows in the order of tenants and keys, and without any the tenants that have usage on these days."""

    rows: Sequence[Row]
    others: Sequence[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    today = datetime.now(UTC).date()
    add = parser.add_argument
    of = parser.add_mutually_exclusive_group().add_argument
    of("--tenant", type=tenant, metavar="NAME", help=f"tenant (default: {LOCAL}, or that of the key with --url)")
    of("--all-tenants", action="store_true", help="the rows of all tenants, each with its tenant")
    add("--by", type=dimensions, default=["day"], metavar="NAME[,NAME]", help=BY_HELP)
    add_labels(parser)
    add("--project", type=label, metavar="NAME", help="only turns of this project")
    add("--session", type=session_id, metavar="ID", help="only turns of this session")
    add("--from", type=day, dest="first", metavar="DAY", help=f"first day, UTC (default: the last {DAYS} days)")
    add("--to", type=day, dest="last", default=today, metavar="DAY", help="last day, UTC (default: today)")
    add("--csv", action="store_true", help="print CSV, with the exact cost and without the row of the total")
    add_json(parser)
    add_connection(parser)


def dimensions(text: str) -> list[str]:
    """argparse type: the dimension by which totals are grouped, or two of them."""
    try:
        return [BY_TENANT] if text == BY_TENANT else parse_by(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints the usage of the days from `--from` to `--to`, in UTC; by default of the last DAYS days.

    Reads the usage over HTTP if a gateway is named, else over NATS. Raises SettingsInvalid, GatewayFailed, Refused,
    LogUnavailable.
    """
    args.first = args.first or args.last - timedelta(days=DAYS - 1)
    if args.first > args.last:
        raise SettingsInvalid(f"--from {args.first} is after --to {args.last}: exchange them")
    is_by_tenant = args.by == [BY_TENANT]
    if is_by_tenant and args.tenant is not None:
        raise SettingsInvalid(f"--by {BY_TENANT} shows all tenants: leave out --tenant")
    if is_by_tenant and filters_of(args):
        raise SettingsInvalid(f"--by {BY_TENANT} has no filters: use --all-tenants --by day")
    if args.csv and args.json:
        raise SettingsInvalid("--csv and --json: choose one")
    # With `--by tenant` the key of a row is the tenant.
    args.all_tenants = args.all_tenants and not is_by_tenant
    args.over_http = bool(args.url or (environ.get("TAILRACE_URL") and not environ.get("TAILRACE_NATS_URL")))
    args.tenant_of_key = None
    rows, others = asyncio.run(read_rows(args, environ))
    if args.json:
        print_json([_builtins(row, args) for row in rows])
    elif args.csv:
        print(csv_of(args.by, rows, has_tenants=args.all_tenants))
    else:
        print(caption(args))
        if rows:
            print(render(args.by, rows, has_tenants=args.all_tenants))
    if not rows:
        print(explain_absence(args, others), file=sys.stderr if args.json or args.csv else sys.stdout)
    return 0


def filters_of(args: argparse.Namespace) -> dict[str, str]:
    """Returns the values that each turn must have, by their dimensions."""
    return labels_of(args) | {name: value for name in ("project", "session") if (value := getattr(args, name))}


def whose(args: argparse.Namespace) -> str:
    """Returns the tenant that is shown, in words."""
    if args.all_tenants or args.by == [BY_TENANT]:
        return "all tenants"
    if args.tenant is None and args.over_http:
        # A gateway of an older version does not name it.
        return f"tenant {args.tenant_of_key}" if args.tenant_of_key else "the tenant of the key"
    return f"tenant {args.tenant or LOCAL}"


def caption(args: argparse.Namespace) -> str:
    """Returns the tenant, the days and the filters of the table."""
    filters = "".join(f", {name} {value}" for name, value in filters_of(args).items())
    return make_printable(f"usage of {whose(args)}, {args.first} to {args.last} (UTC){filters}")


def explain_absence(args: argparse.Namespace, others: Sequence[str]) -> str:
    """Returns that there is no usage, and which tenants have some on these days."""
    wanted = " with these labels" if filters_of(args) else ""
    rest = f"; tenants with turns on these days: {', '.join(others)} (--tenant NAME)" if others else ""
    return f"{whose(args)}: no turn{wanted} has ended on these days{rest}"


async def read_rows(args: argparse.Namespace, environ: Mapping[str, str]) -> Found:
    """Returns the rows that the arguments select. Raises GatewayFailed, Refused, LogError."""
    source = read_over_http(args, environ) if args.over_http else read_over_nats(args, environ)
    async with source as (read_page, names):
        tenants: Sequence[Tenant | None] = [args.tenant]
        if args.all_tenants:
            tenants = [Tenant(one.key or "") for one in await read(read_page, None, [BY_TENANT])]
        rows = [
            Row(tenant or "", one.keys, " ".join(filter(None, (names.get(key or "") for key in one.keys))), one)
            for tenant in tenants
            for one in await read(read_page, tenant, args.by)
        ]
        return Found(rows, [] if rows else await list_tenants(read_page))


async def list_tenants(read_page: ReadPage) -> list[str]:
    """Returns the tenants that have usage on these days; none for a key that may not know them."""
    try:
        return [one.key or "" for one in await read(read_page, None, [BY_TENANT])]
    except TailraceError as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        return []


async def read(read_page: ReadPage, tenant: Tenant | None, by: Sequence[str]) -> list[UsageRecord]:
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

        async def read_page(tenant: Tenant | None, by: Sequence[str], after: str | None) -> UsagePage:
            is_by_tenant = by == [BY_TENANT]
            query = {"from": str(args.first), "to": str(args.last), "limit": str(PAGE)}
            query |= {} if is_by_tenant else {"by": ",".join(by)} | label_parameters(filters_of(args))
            query |= {} if after is None else {"after": after}
            path = "/v1/usage" if tenant is None else f"/v1/admin/tenants/{tenant}/usage"
            body = client.request("GET", "/v1/admin/usage" if is_by_tenant else path, params=query)
            args.tenant_of_key = args.tenant_of_key or body.get("tenant")
            # A gateway of an older version sends no total.
            return msgspec.convert({"usage": body["data"], "next": body["next"], "total": body.get("total")}, UsagePage)

        has_names = "key" in args.by and (args.tenant is not None or args.all_tenants)
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

        async def read_page(tenant: Tenant | None, by: Sequence[str], after: str | None) -> UsagePage:
            query = (
                ListTenantUsage(args.first, args.last, after, PAGE)
                if by == [BY_TENANT]
                else usage_query(by, filters_of(args), args.first, args.last, after, PAGE)
            )
            body = msgspec.json.encode(query)
            answer = await rpc.request(tenant or LOCAL, query.query, body, timeout_s=TIMEOUT_S)
            return msgspec.json.decode(answer, type=UsagePage)

        keys = await Administration(connection).list_keys() if "key" in args.by else ()
        yield read_page, {key.id: key.name for key in keys}


def render(by: Sequence[str], rows: Sequence[Row], *, has_tenants: bool) -> str:
    """Returns a table with a line for each row, and a line with the totals."""
    headings = (*_first(by, has_tenants=has_tenants), *COUNTS, "cost $", "last used")
    lines = [
        (
            *((row.tenant,) if has_tenants else ()),
            *(_key_text(row, dimension, key) for dimension, key in zip(by, row.keys, strict=True)),
            *map(str, sum_counts([row.record])[:-1]),
            f"{row.record.cost_usd:.4f}",
            f"{row.record.last_used:%Y-%m-%d %H:%M}" if row.record.last_used else "",
        )
        for row in rows
    ]
    *counts, cost = sum_counts([row.record for row in rows])
    first = ("all", *[""] * (len(_first(by, has_tenants=has_tenants)) - 1))
    total = (*first, *map(str, counts), f"{cost / NANO_USD_PER_USD:.4f}", "")
    return table([[one.upper() for one in headings], *lines, total])


def csv_of(by: Sequence[str], rows: Sequence[Row], *, has_tenants: bool) -> str:
    """Returns the rows as CSV, with the exact cost. `key_name` is the name of an API key."""
    names = ("key_name",) if "key" in by else ()
    lines = (
        ((*((row.tenant,) if has_tenants else ()), *row.keys, *((row.name,) if names else ())), row.record)
        for row in rows
    )
    return render_csv((*_first(by, has_tenants=has_tenants), *names), lines).rstrip("\n")


def _first(by: Sequence[str], *, has_tenants: bool) -> tuple[str, ...]:
    return (*((BY_TENANT,) if has_tenants else ()), *by)


def _key_text(row: Row, dimension: str, key: str | None) -> str:
    """Returns a value of a row; of an API key its id and name."""
    return NO_NAME if key is None else f"{key} {row.name}".rstrip() if dimension == "key" else key


def _builtins(row: Row, args: argparse.Namespace) -> object:
    of = {BY_TENANT: row.tenant} if args.all_tenants else {}
    return of | msgspec.to_builtins(row.record)
