"""`tailrace usage`: queries persistence over NATS and renders a table."""

from collections.abc import Sequence
from datetime import date

import msgspec

from tailrace.deploy.local.banner import table
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection, Rpc
from tailrace.proto.nats.permissions import ADMIN
from tailrace.proto.resources import GetUsage, UsageBy, UsagePage, UsageRecord

TIMEOUT_S = 10.0
PAGE = 200
NO_KEY = "-"


async def fetch(url: str, tenant: Tenant, by: UsageBy, first: date, last: date) -> list[UsageRecord]:
    """Returns the usage from the first to the last day, ordered by key. Raises Refused, LogUnavailable."""
    connection = await Connection.open(url, "tailrace-usage", ADMIN)
    try:
        services = Rpc(connection)
        found: list[UsageRecord] = []
        question = GetUsage(by, first, last, limit=PAGE)
        while True:
            answer = await services.request(tenant, GetUsage.query, msgspec.json.encode(question), timeout_s=TIMEOUT_S)
            page = msgspec.json.decode(answer, type=UsagePage)
            found += page.usage
            if page.next is None:
                return found
            question = msgspec.structs.replace(question, after=page.next)
    finally:
        await connection.close()


def render(by: UsageBy, records: Sequence[UsageRecord]) -> str:
    """Returns a table with one row a record, and a row with the totals."""
    headings = (by.upper(), "TURNS", "INPUT", "OUTPUT", "CACHE WRITES", "CACHE READS", "COST $", "LAST USED")
    rows = [(record.key or NO_KEY, *_counts([record]), f"{record.last_used:%Y-%m-%d %H:%M}") for record in records]
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
