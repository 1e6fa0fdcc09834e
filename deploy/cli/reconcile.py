"""`tailrace reconcile`: compares usage and cost with Anthropic's usage and cost report, by day and model."""

import argparse
import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

import msgspec

from tailrace.deploy.cli import vendor_report
from tailrace.deploy.cli.arguments import add_data, add_json, day
from tailrace.deploy.cli.result import print_json
from tailrace.deploy.cli.usage import TIMEOUT_S
from tailrace.deploy.cli.vendor_report import COMPARED_COSTS, KEY_SETTING, Report, ReportClient, counts_of, model_name
from tailrace.deploy.local import nats_server
from tailrace.deploy.local.terminal_text import table
from tailrace.features.usage.records import BilledUsage, BilledUsageList, GetBilledUsage
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection, Rpc
from tailrace.proto.nats.users import ADMIN
from tailrace.proto.runtime.exit_status import EXIT_ERROR
from tailrace.proto.usage import NANO_USD_PER_USD, Usage

DESCRIPTION = "Compare tokens and cost of all tenants with Anthropic's report of the organisation."
EXAMPLES = f"""\
examples:
  {KEY_SETTING}=sk-ant-admin… tailrace reconcile          the seven days until yesterday (UTC)
  tailrace reconcile --from 2026-11-01 --to 2026-11-30
  tailrace reconcile --workspace wrkspc_01J… --tolerance 1     if others use the organisation, too
  tailrace reconcile --json | jq '.rows[] | select(.is_equal | not)'

The Admin key is read from {KEY_SETTING}, is sent to Anthropic only, and is never stored. The command connects to the
NATS of the `tailrace up` with this data directory (--data), or to TAILRACE_NATS_URL.

Exit status 0: all models of all days are equal within the tolerance; 1: one is not, or an error; 2: a wrong argument
or setting. A turn counts on the day on which it was accepted, and a call in Anthropic's report on the day of the call.
So around midnight (UTC), two days may differ by the same tokens. The report does not have the calls of the last minutes
yet.
"""
DAYS = 7
DAYS_MAX = 366
TENANTS_FIRST = Tenant("-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    before = f"(default: {DAYS - 1} days before the last day)"
    add("--from", type=day, dest="first", metavar="DAY", help=f"first day, UTC {before}")
    add("--to", type=day, dest="last", metavar="DAY", help="last day, UTC (default: yesterday)")
    add("--workspace", action="append", default=[], metavar="ID", help="only this workspace of the report; repeatable")
    add(
        "--tolerance",
        type=percent,
        default=Decimal("0.1"),
        metavar="PERCENT",
        help="largest difference that counts as equal (default: %(default)s)",
    )
    add("--api", default=vendor_report.API, metavar="URL", help="address of the Admin API (default: %(default)s)")
    add_json(parser)
    add_data(parser)


def percent(text: str) -> Decimal:
    """argparse type: a percentage from 0 to 100."""
    try:
        found = Decimal(text)
    except ArithmeticError:
        found = Decimal(-1)
    if not (found.is_finite() and 0 <= found <= 100):
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage from 0 to 100")
    return found


class Row(NamedTuple):
    """A model on a day: the tokens and costs that we and the report have, and whether these agree within the tolerance.

    The row of a whole day has the model "all". Costs are in dollars. Only a row for a whole day compares the cost: the
    report has searches without their model.
    """

    day: date
    model: str
    ours: Usage
    theirs: Usage
    our_usd: Decimal
    their_usd: Decimal
    is_equal: bool


class Comparison(NamedTuple):
    """The rows of all days, the costs of the report that are not compared, and since when our cost is complete."""

    rows: list[Row]
    other_usd: Mapping[str, Decimal]
    is_equal: bool


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints the comparison. Returns 1 if something differs by more than the tolerance.

    Raises SettingsInvalid, ReportFailed, Refused, LogUnavailable.
    """
    last = args.last or datetime.now(UTC).date() - timedelta(days=1)
    first = args.first or last - timedelta(days=DAYS - 1)
    if first > last:
        raise SettingsInvalid(f"--from {first} is after --to {last}: exchange them")
    if (last - first).days >= DAYS_MAX:
        raise SettingsInvalid(f"--from {first} --to {last} are more than {DAYS_MAX} days: compare fewer")
    client = ReportClient(environ, args.api)
    url = nats_server.find_url(args.data, environ)
    ours, whole_since = asyncio.run(fetch(url, first, last))
    found = compare(ours, client.read(first, last, args.workspace), args.tolerance)
    is_partial = whole_since is not None and whole_since.date() >= first
    if args.json:
        print_json(to_json(found, whole_since))
    else:
        print(render(found))
        if is_partial:
            print(f"\nAn older version has counted turns up to {whole_since:%Y-%m-%d %H:%M} (UTC) without all tokens.")
    return 0 if found.is_equal else EXIT_ERROR


async def fetch(url: str, first: date, last: date) -> tuple[list[BilledUsage], datetime | None]:
    """Returns the usage of all tenants, and since when it is complete. Raises Refused, LogUnavailable."""
    connection = await Connection.open(url, "tailrace-reconcile", ADMIN)
    try:
        rpc = Rpc(connection)
        found: list[BilledUsage] = []
        whole_since: datetime | None = None
        tenants: list[Tenant] = [TENANTS_FIRST]
        body = msgspec.json.encode(GetBilledUsage(first, last))
        while tenants:
            answers: list[Tenant] = []
            for tenant in tenants:
                answer = await rpc.request(tenant, GetBilledUsage.query, body, timeout_s=TIMEOUT_S)
                page = msgspec.json.decode(answer, type=BilledUsageList)
                found += page.usage
                answers = page.tenants
                if page.whole_since is not None:
                    whole_since = max(whole_since or page.whole_since, page.whole_since)
            # The last answer names the following tenants.
            tenants = answers
        return found, whole_since
    finally:
        await connection.close()


def compare(ours: Iterable[BilledUsage], report: Report, tolerance: Decimal) -> Comparison:
    """Returns the comparison of all models and days that have usage here or in the report."""
    tokens: dict[tuple[date, str], Usage] = {}
    usd: dict[tuple[date, str], Decimal] = {}
    for one in ours:
        key = one.day, model_name(one.model)
        tokens[key] = tokens.get(key, Usage()) + one.usage
        usd[key] = usd.get(key, Decimal(0)) + Decimal(one.cost_nano_usd) / NANO_USD_PER_USD
    kinds = {key for key in report.cost_usd if key not in report.usage and key not in tokens}
    rows: list[Row] = []
    for today in sorted({key[0] for key in (*tokens, *report.usage, *report.cost_usd)}):
        models = sorted({model for on_day, model in (*tokens, *report.usage) if on_day == today})
        for model in models:
            key = today, model
            mine, theirs = tokens.get(key, Usage()), report.usage.get(key, Usage())
            is_equal = all(
                is_within(Decimal(one), Decimal(other), tolerance)
                for one, other in zip(mine.counts, theirs.counts, strict=True)
            )
            rows.append(
                Row(
                    today, model, mine, theirs, usd.get(key, Decimal(0)), report.cost_usd.get(key, Decimal(0)), is_equal
                )
            )
        of_today = [row for row in rows if row.day == today]
        searches = sum(
            (report.cost_usd[key] for key in kinds if key[0] == today and key[1] in COMPARED_COSTS), Decimal(0)
        )
        our_usd = sum((row.our_usd for row in of_today), Decimal(0))
        their_usd = sum((row.their_usd for row in of_today), searches)
        rows.append(
            Row(
                today,
                "all",
                sum((row.ours for row in of_today), start=Usage()),
                sum((row.theirs for row in of_today), start=Usage()),
                our_usd,
                their_usd,
                is_within(our_usd, their_usd, tolerance),
            )
        )
    other: dict[str, Decimal] = {}
    for key in kinds:
        if key[1] not in COMPARED_COSTS:
            other[key[1]] = other.get(key[1], Decimal(0)) + report.cost_usd[key]
    return Comparison(rows, other, all(row.is_equal for row in rows))


def is_within(one: Decimal, other: Decimal, tolerance: Decimal) -> bool:
    """Returns whether two amounts differ by at most `tolerance` percent of the larger one."""
    return abs(one - other) * 100 <= tolerance * max(one, other)


def difference(one: Decimal, other: Decimal) -> str:
    """Returns our amount's difference in percent of the report's amount."""
    if one == other:
        return "0 %"
    return f"{(one - other) * 100 / other:+.2f} %" if other else "not in report"


def render(found: Comparison) -> str:
    """Returns the comparison as a table, with a sentence about the result."""
    headings = ("DAY", "MODEL", "TOKENS", "IN REPORT", "DIFFERENCE", "COST $", "IN REPORT", "DIFFERENCE", "")
    lines = [_line(row) for row in found.rows]
    other = [f"{name}: ${amount:.2f}" for name, amount in sorted(found.other_usd.items())]
    differing = sum(not row.is_equal for row in found.rows)
    result = "All are equal within the tolerance." if not differing else f"{differing} rows differ."
    more = [f"Of the report, not in the cost of turns: {', '.join(other)}."] if other else []
    return "\n".join([table([headings, *lines]), "", *more, result if found.rows else "No usage on these days."])


def _line(row: Row) -> Sequence[str]:
    ours, theirs = Decimal(sum(row.ours.counts)), Decimal(sum(row.theirs.counts))
    cost = (f"{row.our_usd:.4f}", f"{row.their_usd:.4f}", difference(row.our_usd, row.their_usd))
    return (
        str(row.day),
        row.model,
        str(ours),
        str(theirs),
        difference(ours, theirs),
        *cost,
        "" if row.is_equal else "differs",
    )


def to_json(found: Comparison, whole_since: datetime | None) -> dict[str, object]:
    """Returns the comparison as an object for JSON."""
    rows = [
        {
            "day": row.day,
            "model": row.model,
            "usage": counts_of(row.ours),
            "reported_usage": counts_of(row.theirs),
            "cost_usd": float(row.our_usd),
            "reported_cost_usd": float(row.their_usd),
            "is_equal": row.is_equal,
        }
        for row in found.rows
    ]
    other = {name: float(amount) for name, amount in found.other_usd.items()}
    return {"is_equal": found.is_equal, "rows": rows, "other_cost_usd": other, "whole_since": whole_since}
