"""Limits of a key or tenant: their names, how they are parsed, and the rates that they mean. Pure.

The settings and a key's record use the same names. A limit that is not set does not apply.
"""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import SettingsInvalid

PositiveInt = Annotated[int, Meta(ge=1, le=10**12)]
Usd = Annotated[float, Meta(ge=0, le=1e9)]
MINUTE_S = 60.0
# The counter of a window is kept longer than the window lasts: see LIMITS_KEPT_S in stream_configs.py.
WINDOW_S_MAX = 3600.0


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The limits of a key or tenant. None: no limit."""

    requests: PositiveInt | None = None
    """New turns a minute. A new file, session, project or login counts as one."""
    burst: PositiveInt | None = None
    """How many of these may come at once. Default: `requests`."""
    tokens: PositiveInt | None = None
    """Tokens per minute: input plus the largest possible output, and after the turn's end what it used."""
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
        """Whether any limit counts what is only known after the turn's end."""
        return (self.tokens, self.usd_day, self.usd_month) != (None, None, None)


GivenLimits = dict[str, int | float]
"""Limits by name, as a client gives them and as they are stored. With `float` alone, msgspec turns 100 into 100.0."""
NAMES = Limits.__struct_fields__
UNLIMITED = Limits()


class Rate(NamedTuple):
    """At most `most` in each window of `window_s` seconds."""

    most: int
    window_s: float


def request_rate(limits: Limits) -> Rate | None:
    """Returns `burst` per window, where the window is as long as `burst` requests take at `requests` per minute."""
    if limits.requests is None:
        return None
    # A longer window would need counters that are kept longer.
    burst = min(limits.burst or limits.requests, round(limits.requests * WINDOW_S_MAX / MINUTE_S))
    return Rate(burst, MINUTE_S * burst / limits.requests)


def token_rate(limits: Limits) -> Rate | None:
    """Returns the limit of tokens in a minute, or None if there is none."""
    return Rate(limits.tokens, MINUTE_S) if limits.tokens is not None else None


def parse_limits(given: Mapping[str, float]) -> Limits:
    """Returns the limits in a key's record or a setting. Raises ValueError."""
    try:
        # JSON has one kind of number: 60.0 is a valid count.
        whole = {name: int(limit) if float(limit).is_integer() else limit for name, limit in given.items()}
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


def merge_limits(own: Limits, common: Limits) -> Limits:
    """Returns `own` with `common` for each limit that `own` does not set."""
    given = {name: limit for name in NAMES if (limit := getattr(own, name)) is not None}
    return msgspec.structs.replace(common, **given)


def parse_limits_setting(variable: str, text: str) -> Limits:
    """Parses the setting `variable`: `NAME=NUMBER,…`. Raises SettingsInvalid."""
    given: dict[str, float] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        name, _, number = (part.strip() for part in pair.partition("="))
        if name in given:
            raise SettingsInvalid(f"{variable}: {name!r} is set twice")
        try:
            given[name] = msgspec.json.decode(number, type=float)
        except DECODE_ERRORS as error:
            known = ", ".join(NAMES)
            raise SettingsInvalid(f"{variable}: {pair!r} is not NAME=NUMBER; the limits are {known}") from error
    try:
        require_useful(given)
        return parse_limits(given)
    except ValueError as error:
        raise SettingsInvalid(f"{variable}: {error}") from error
