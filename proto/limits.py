"""How much a key or a tenant may: the names of limits, and what they mean as rates. Pure; it counts nothing.

The same names stand in the settings and in a key's own record. What is not named is not limited.
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
# Counters of a window are kept for longer than it lasts; see tailrace.proto.nats.streams.
WINDOW_S_MAX = 3600.0


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """None: no limit."""

    requests: PositiveInt | None = None
    """Turns asked a minute."""
    burst: PositiveInt | None = None
    """How many of those at once; `requests` when it is not said."""
    tokens: PositiveInt | None = None
    """Tokens a minute: what is asked, and the most that may be answered; once the turn has ended, what it used."""
    running: Annotated[int, Meta(ge=1, le=4096)] | None = None
    """Turns that have not ended."""
    streams: Annotated[int, Meta(ge=1, le=4096)] | None = None
    """Streams that are being read."""
    usd_day: Usd | None = None
    """Dollars for the turns that are asked on one day (UTC)."""
    usd_month: Usd | None = None
    """Dollars for the turns that are asked in one calendar month (UTC)."""
    bytes_day: PositiveInt | None = None
    """Bytes of pictures, documents and long texts that are stored on one day (UTC)."""

    @property
    def is_estimated(self) -> bool:
        """Whether any of them is of what nobody knows before a turn has ended."""
        return (self.tokens, self.usd_day, self.usd_month) != (None, None, None)


NAMES = Limits.__struct_fields__
UNLIMITED = Limits()


class Rate(NamedTuple):
    """So many in each window of so many seconds."""

    most: int
    window_s: float


def request_rate(limits: Limits) -> Rate | None:
    """`requests` a minute, of which `burst` may come at once: so many in each window that is as long as they last."""
    if limits.requests is None:
        return None
    # A longer window would be a counter that is remembered for longer; a larger burst in it, another rate.
    burst = min(limits.burst or limits.requests, round(limits.requests * WINDOW_S_MAX / MINUTE_S))
    return Rate(burst, MINUTE_S * burst / limits.requests)


def token_rate(limits: Limits) -> Rate | None:
    return Rate(limits.tokens, MINUTE_S) if limits.tokens is not None else None


def parse_limits(given: Mapping[str, float]) -> Limits:
    """What a record or a setting says; raises ValueError with what is wrong."""
    try:
        # JSON knows one kind of number: 60.0 is a count, too.
        whole = {name: int(limit) if float(limit).is_integer() else limit for name, limit in given.items()}
        return msgspec.convert(whole, Limits)
    except msgspec.ValidationError as error:
        why, _, where = str(error).partition(" - at `$.")
        said = f"{where.rstrip('`')}: {why}" if where else why
        raise ValueError(f"{said}; there are {', '.join(NAMES)}") from error


def merge_limits(own: Limits, common: Limits) -> Limits:
    """A key's own limits where it has them, and else the common ones."""
    said = {name: limit for name in NAMES if (limit := getattr(own, name)) is not None}
    return msgspec.structs.replace(common, **said)


def parse_limits_setting(variable: str, text: str) -> Limits:
    """The setting `variable`, `NAME=NUMBER,…`; raises SettingsInvalid."""
    given: dict[str, float] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        name, _, number = (part.strip() for part in pair.partition("="))
        if name in given:
            raise SettingsInvalid(f"{variable}: {name!r} stands there twice")
        try:
            given[name] = msgspec.json.decode(number, type=float)
        except DECODE_ERRORS as error:
            raise SettingsInvalid(f"{variable}: {pair!r} is not NAME=NUMBER; there are {', '.join(NAMES)}") from error
    if "burst" in given and "requests" not in given:
        raise SettingsInvalid(f"{variable}: burst says how many of `requests` may come at once: name those, too")
    try:
        return parse_limits(given)
    except ValueError as error:
        raise SettingsInvalid(f"{variable}: {error}") from error
