"""Gives money of a reservation back to its budget (PROTOCOL R37)."""

from tailrace.proto.nats import Counters
from tailrace.proto.subjects import given_back


async def give_back(counters: Counters, budget: str, amount: int) -> int:
    """Subtracts `amount` from the counter `budget`; returns its new value. LogUnavailable: it may be subtracted or not.

    First it is added to what was given back: persistence, which compares the counter with the reservations, must not
    subtract it, too.
    """
    await counters.add(given_back(budget), amount)
    return await counters.add(budget, -amount)
