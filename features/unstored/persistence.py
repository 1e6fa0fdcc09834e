"""Turns with `store: false`: settings, and the part of the persistence process that counts and erases them."""

from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta

from tailrace.features.unstored.unstored_turns import UnstoredTurns
from tailrace.persistence.feature import Feature, Parts, Services
from tailrace.persistence.run_every import run_beside
from tailrace.persistence.settings import SECONDS_MAX
from tailrace.persistence.sql import read_queries
from tailrace.persistence.tables import Tables


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of turns with `store: false`."""

    unstored_s: Annotated[
        float,
        Meta(gt=0, le=SECONDS_MAX, description="time after its end in which a turn with `store: false` can be read"),
    ] = 600.0


def _start(services: Services, settings: Settings) -> Parts:
    unstored = UnstoredTurns(services.log, services.tombstones, services.store, settings.unstored_s)
    return Parts(beside=[partial(run_beside, unstored.run)], unrecorded=unstored)


FEATURE = Feature(Settings, _start, Tables(read_queries(__package__)))
