"""Usage as CSV (RFC 4180), for the API and the command line."""

import csv
import io
import re
from collections.abc import Iterable, Sequence

from tailrace.features.usage.records import UsageRecord
from tailrace.proto.records import Totals
from tailrace.proto.usage import NANO_USD_PER_USD

COUNTS = ("turns", "input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
NO_NAME = "-"
# A spreadsheet computes a cell that begins with one of these characters (OWASP, CSV injection), also in their wide
# forms. Where it divides lines at semicolons or tabs, a text has several cells. A text that begins with the mark has it
# twice, so that no two texts are the same cell.
FORMULA = re.compile(r"(^|[;\t\r\n]\s*)(?=[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20'])")


def render_csv(headings: Sequence[str], rows: Iterable[tuple[Sequence[str | None], UsageRecord]]) -> str:
    """Returns a line with the headings, and a line for each row: its texts, counts, exact cost in dollars, last use.

    `headings` are those of the texts. None becomes NO_NAME. `'` precedes what a spreadsheet would compute.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*map(_cell, headings), *COUNTS, "cost_usd", "last_used"))
    for texts, record in rows:
        *numbers, cost = sum_counts([record])
        used = f"{record.last_used:%Y-%m-%dT%H:%M:%SZ}" if record.last_used else ""
        names = (NO_NAME if one is None else _cell(one) for one in texts)
        writer.writerow((*names, *numbers, f"{cost / NANO_USD_PER_USD:.9f}", used))
    return text.getvalue()


def sum_counts(records: Sequence[Totals]) -> tuple[int, ...]:
    """Returns the sums of COUNTS, and of the cost in nano-dollars."""
    return (
        sum(record.turns for record in records),
        sum(record.usage.input_tokens for record in records),
        sum(record.usage.output_tokens for record in records),
        sum(record.usage.cache_creation_input_tokens for record in records),
        sum(record.usage.cache_read_input_tokens for record in records),
        sum(round(record.cost_usd * NANO_USD_PER_USD) for record in records),
    )


def _cell(text: str) -> str:
    return FORMULA.sub(r"\1'", text)
