"""What `up` says to a person: who answers, what runs where, and what to try; pure text."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

from tailrace.deploy.local.processes import is_simulated
from tailrace.generators.settings import Settings
from tailrace.proto.runtime.settings import read

TURN = '{"message": "Why is the sky blue?"}'


def who_answers(environ: Mapping[str, str]) -> str:
    if is_simulated(environ):
        return "ANTHROPIC_API_KEY is not set: a simulated Claude answers, and costs nothing"
    where = read(Settings, environ).anthropic_base_url
    return f"ANTHROPIC_API_KEY is set: the real Claude answers, at {where}, and costs money"


def welcome(rows: Sequence[Sequence[str]], url: str, folder: str, *, is_key_needed: bool) -> str:
    """A row is a process: name, pid, addresses."""
    key = "-H 'Authorization: Bearer YOUR-KEY' " if is_key_needed else ""
    return f"""
{table(rows)}

  everything is kept in {folder}; try

  curl -N {url}/v1/turns {key}-H 'Content-Type: application/json' -H 'Accept: text/event-stream' -d '{TURN}'
"""


def table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    return "\n".join("  ".join(["", *map(str.ljust, row, widths)]).rstrip() for row in rows)
