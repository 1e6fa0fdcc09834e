"""The limits of requests, streams and stores as the core knows them. The core sets none; a feature may."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol

from tailrace.gateway.auth.api_key import ApiKey
from tailrace.gateway.auth.limits import UNLIMITED, BudgetUse, GivenLimits, Limits
from tailrace.gateway.auth.principal import Principal
from tailrace.proto.entries import Request, Reservation
from tailrace.proto.errors import LogError, LogUnavailable, Refused
from tailrace.proto.ids import Tenant, TurnId


class Reserved(NamedTuple):
    """The reservations of a batch."""

    each: Sequence[list[Reservation]]
    """The reservations of each turn, which the turn's end settles."""
    together: list[Reservation]
    """The reservations of all turns, summed for each counter."""
    slots: list[Reservation]
    """The slots of the batch itself."""
    parallel: int
    """How many turns of the batch may run at the same time."""


class Admission(Protocol):
    """The counts and reservations of a request. Methods after the first two raise Refused, LogUnavailable."""

    append_until: float
    """The event loop's time after which the request is not appended (PROTOCOL R37); infinite without reservations."""

    def headers(self, path: str) -> Mapping[str, str]:
        """Returns the response headers with what is left of the limits, as the route's client protocol names them."""

    async def release(self) -> None:
        """Gives back everything if nothing was stored. If a turn was stored, its end settles the reservations."""

    async def count_request(self) -> None:
        """Counts one request."""

    async def count_stored_bytes(self, size: int) -> None:
        """Counts bytes of an entry, of its blobs, or of a row."""

    async def reserve_turn(self, turn: TurnId, request: Request) -> Request:
        """Returns `request` with its reservations until its end, in `holds`."""

    async def reserve_batch(self, turn: TurnId, requests: Sequence[Request], parallel: int) -> Reserved:
        """Reserves what all turns of a batch may use, and slots for up to `parallel` of them."""


class Slots(Protocol):
    """The slots of one stream, for limits on the open streams of all gateways."""

    async def acquire(self) -> None:
        """Acquires the slots. Raises Refused if all are taken."""

    async def release(self) -> None:
        """Frees the slots."""


class Share:
    """The share of a store that each tenant may fill: here all."""

    def check(self, tenant: Tenant, size: int) -> None:
        """Raises Refused if `size` more bytes would be too many for the tenant."""

    def add(self, tenant: Tenant, size: int) -> None:
        """Counts bytes that were stored, or may be stored."""


class Limiter:
    """The limits of one gateway: here none. The limiter of a feature replaces this class."""

    log_share = Share()
    blob_share = Share()

    def admission(self, _principal: Principal) -> Admission | None:
        """Returns the admission of one request; None if no limit can apply."""
        return None

    def slots_of(self, _principal: Principal) -> Slots | None:
        """Returns the slots for one stream of the principal; None without a limit."""
        return None

    def effective_limits(self, _own: GivenLimits, *, of_key: bool = False) -> Limits:  # noqa: ARG002
        """Returns the limits that apply to a tenant, or to a key, whose own limits are `_own`."""
        return UNLIMITED

    async def budget_uses(self, _tenant: Tenant, _own: GivenLimits) -> list[BudgetUse]:
        """Returns the use of each budget of a tenant whose own limits are `_own`. Raises Refused, LogUnavailable."""
        return []

    async def budget_uses_of_key(self, _key: ApiKey) -> list[BudgetUse]:
        """Returns the use of each budget of a key. Raises Refused, LogUnavailable."""
        return []


class Admissions:
    """Admits requests by the limiter, which is set once, at the start of the gateway."""

    def __init__(self, limiter: Limiter | None = None) -> None:
        self.limiter = limiter or Limiter()

    @asynccontextmanager
    async def open(self, principal: Principal) -> AsyncIterator[Admission | None]:
        """Yields the admission of a request that stores no turn. Refused and LogError release its counts.

        LogUnavailable and `persistence_unavailable` do not: data may be stored although no answer came.
        """
        admission = self.limiter.admission(principal)
        try:
            yield admission
        except (Refused, LogError) as error:
            # A count that is too high is safer: otherwise a slow disk would make every limit of storage ineffective.
            if admission is not None and not _may_be_stored(error):
                await admission.release()
            raise

    @asynccontextmanager
    async def count(self, principal: Principal, stored_bytes: int = 0) -> AsyncIterator[Admission | None]:
        """Like `open`, but first counts the request, and the bytes that the block stores.

        Raises Refused, LogUnavailable.
        """
        async with self.open(principal) as admission:
            if admission is not None:
                await admission.count_request()
                # A request that stores nothing, such as a login, is not refused when no bytes are left.
                if stored_bytes:
                    await admission.count_stored_bytes(stored_bytes)
            yield admission


def _may_be_stored(error: Refused | LogError) -> bool:
    """Returns whether the request may have been stored although it failed."""
    if isinstance(error, Refused):
        return error.code == "persistence_unavailable"
    return isinstance(error, LogUnavailable)
