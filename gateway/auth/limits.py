"""Limits of a key or tenant: their names, how they are parsed, and the rates that they mean. Pure.

The settings and a key's record use the same names. A limit that is not set does not apply.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import Annotated

import msgspec
from msgspec import Meta

PositiveInt = Annotated[int, Meta(ge=1, le=10**12)]
Usd = Annotated[float, Meta(ge=0, le=1e9)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The limits of a key or tenant. None: no limit."""

    requests: PositiveInt | None = None
    """New turns a minute. A new file, session, project or login counts as one."""
    burst: PositiveInt | None = None
    """How many of these requests may come at once. Default: `requests`."""
    tokens: PositiveInt | None = None
    """Tokens per minute: input plus the largest possible output, and after the turn's end what the turn used."""
    running: Annotated[int, Meta(ge=1, le=4096)] | None = None
    """Turns running at once."""
    streams: Annotated[int, Meta(ge=1, le=4096)] | None = None
    """Streams open at once."""
    usd_day: Usd | None = None
    """Dollars for the turns of one day (UTC)."""
    usd_month: Usd | None = None
    """Dollars for the turns of one calendar month (UTC)."""
    bytes_day: PositiveInt | None = None
    """Bytes that requests store on one day (UTC), with each turn the text of its whole conversation."""

    @property
    def is_estimated(self) -> bool:
        """Whether any limit counts amounts that are only known after the turn's end."""
        return (self.tokens, self.usd_day, self.usd_month) != (None, None, None)


class BudgetUse(msgspec.Struct, frozen=True, kw_only=True):
    """A budget of a tenant or a key in its current period, in dollars."""

    name: str
    """`usd_day` or `usd_month`."""
    limit: float
    """The budget."""
    spent: float
    """The cost of the turns that have ended in the period, also of those from before the budget was set."""
    left: float
    """What new turns may cost: the rest of the budget, without what running turns have reserved."""
    renews_at: datetime
    """When the next period begins."""


GivenLimits = dict[str, int | float]
"""Limits by name, as a client gives them and as they are stored. With `float` alone, msgspec turns 100 into 100.0."""


class Unreadable(Enum):
    """In place of limits that cannot be read. A value and not None, which means no limits."""

    LIMITS = "limits"


NAMES = Limits.__struct_fields__
UNLIMITED = Limits()


def parse_limits(given: Mapping[str, float]) -> Limits:
    """Returns the limits in a key's record or a setting. Raises ValueError."""
    try:
        # JSON has one kind of number: 60.0 is a valid count.
        whole = {
            name: int(limit) if isinstance(limit, float) and limit.is_integer() else limit
            for name, limit in given.items()
        }
        return msgspec.convert(whole, Limits)
    except msgspec.ValidationError as error:
        why, _, where = str(error).partition(" - at `$.")
        message = f"{where.rstrip('`')}: {why}" if where else why
        raise ValueError(f"{message}; the limits are {', '.join(NAMES)}") from error


def require_useful(given: Mapping[str, float]) -> None:
    """Raises ValueError if a limit of `given`, which an operator sets, has no effect without another limit."""
    # Not in `parse_limits`: a key that an older Tailrace has stored must stay valid.
    if "burst" in given and "requests" not in given:
        raise ValueError("`burst` needs `requests`: set both")
