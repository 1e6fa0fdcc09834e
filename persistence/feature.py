"""An optional feature of persistence. The core knows features only by this type, and `__main__` lists them."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from tailrace.persistence.blob_gc import BlobCollector
from tailrace.persistence.commands import EraseTenant, RequireExists
from tailrace.persistence.database import Databases, Driver
from tailrace.persistence.queries import Queries
from tailrace.persistence.rpc import CatchUp, QueryHandler
from tailrace.persistence.store import Store
from tailrace.persistence.tables import Tables
from tailrace.persistence.unrecorded_turns import UnrecordedTurns
from tailrace.proto.nats import Connection, Deliveries, Tombstones, TurnLog
from tailrace.proto.resources import Kind
from tailrace.proto.runtime.feature_parts import join_distinct
from tailrace.proto.runtime.settings import select

S = TypeVar("S", bound=msgspec.Struct)


class Services(NamedTuple):
    """The services of a persistence process, from which features make their parts."""

    connection: Connection
    log: TurnLog
    deliveries: Deliveries
    """The consumer of the recorder."""
    tombstones: Tombstones
    store: Store
    queries: Queries
    blobs: BlobCollector
    caught_up: CatchUp
    retry_wait_s: float
    """The wait before a database that cannot be used is tried again."""


class Parts(NamedTuple):
    """The parts of a feature in one process."""

    handlers: Sequence[QueryHandler] = ()
    """Queries, each with the method that answers it. A query may replace one of the core, but none of another
    feature."""
    beside: Sequence[Callable[[asyncio.Event], AbstractAsyncContextManager[None]]] = ()
    """Each runs while the process records. The event is set when the process stops; a part that fails sets it."""
    unrecorded: UnrecordedTurns | None = None
    """The turns for which the feature prevents the recorder from writing rows."""
    erase_tenant: EraseTenant | None = None
    """Deletes the feature's data of a tenant, when the tenant has no turn left."""
    require_exists: Mapping[Kind, RequireExists] = {}
    """For each kind of resource that the feature deletes: raises Refused if the resource does not exist."""


class Feature(NamedTuple, Generic[S]):
    """A feature: its settings, its tables, and the function that makes its parts."""

    settings: type[S]
    """Read from the environment, and printed by `--env`, with the settings of the core."""
    start: Callable[[Services, S], Parts]
    tables: Tables | None = None
    check: Callable[[S], None] | None = None
    """Checks the settings before the process connects to NATS. Raises SettingsInvalid."""
    driver: Driver | None = None
    """Opens databases that a URL names."""


Features = Sequence[Feature[Any]]


def tables_of(features: Features) -> list[Tables]:
    """Returns the part of each feature in the database."""
    return [feature.tables for feature in features if feature.tables is not None]


def databases_of(features: Features) -> Databases:
    """Returns the databases that a process with `features` can open."""
    return Databases([feature.driver for feature in features if feature.driver is not None])


def join_handlers(of_core: Iterable[QueryHandler], started: Iterable[Parts]) -> list[QueryHandler]:
    """Returns the handlers of the core and of features. A handler of a feature replaces that of the core.

    Raises ValueError if two features handle the same query.
    """
    every = (one for part in started for one in part.handlers)
    of_features = join_distinct(((query.query, (query, run)) for query, run in every), "query")
    kept = [(query, run) for query, run in of_core if query.query not in of_features]
    return [*kept, *of_features.values()]


def check(settings: msgspec.Struct, features: Features) -> None:
    """Raises SettingsInvalid if a feature cannot run with `settings`."""
    for feature in features:
        if feature.check is not None:
            feature.check(select(settings, feature.settings))
