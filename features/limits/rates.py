"""The rates that limits mean, and the settings that hold limits. Pure."""

from typing import NamedTuple

import msgspec

from tailrace.gateway.auth.limits import NAMES, Limits, parse_limits, require_useful
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import SettingsInvalid

MINUTE_S = 60.0
# The counter of a window is kept longer than the window lasts: see LIMITS_KEPT_S in stream_configs.py.
WINDOW_S_MAX = 3600.0


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
