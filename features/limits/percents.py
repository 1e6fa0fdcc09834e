"""The setting of soft limits, which gateways and persistence read."""

from typing import Annotated

import msgspec
from msgspec import Meta

from tailrace.proto.errors import SettingsInvalid

# Few, because they are the values of a metric's label.
PERCENTS = frozenset(map(str, range(5, 101, 5)))


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The shares of a budget of which a webhook, a metric and a log line say that they are reached."""

    soft_limits: Annotated[
        str,
        Meta(
            description="percents of a budget, from 5 to 100 in steps of 5, separated by commas: a webhook, a metric "
            "and a log line say once in each period that they are spent; empty: none"
        ),
    ] = "80, 100"


def parse_percents(text: str) -> list[int]:
    """Returns the percents of the setting, in order. Raises SettingsInvalid."""
    found = [one.strip() for one in text.split(",") if one.strip()]
    if not set(found) <= PERCENTS:
        raise SettingsInvalid(f"TAILRACE_SOFT_LIMITS: {text!r} is not a list of percents from 5 to 100 in steps of 5")
    return sorted({int(one) for one in found})
