"""Compares the counter of a budget with what is recorded and reserved (PROTOCOL R148). Pure.

A counter is read at a point in time, and the database some time later. So a turn may have been reserved, or settled,
before or after the reading. Where that is not known, the comparison has a range.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnId
from tailrace.proto.nats.counters import RESERVED_WITHIN_S

# A generator settles a turn this long after its end at the latest, if it does not die.
SETTLED_WITHIN = timedelta(seconds=10)
# The leaders of two streams may run on servers whose clocks differ by this much.
CLOCKS_DIFFER = timedelta(seconds=2)
RESERVED_WITHIN = timedelta(seconds=RESERVED_WITHIN_S)
# An amount in a counter that was read this long ago belongs to a stored turn, or never will: an append that was in
# flight has arrived.
APPENDED_WITHIN = RESERVED_WITHIN + timedelta(seconds=10)
LAST = datetime.max.replace(tzinfo=UTC)


class Reading(NamedTuple):
    """The value of a counter after the increment `seq`, which was stored at `at` and was still the last at `until`.

    The stream was `created` then. It may have been lost, so that its numbers begin again.
    """

    value: int
    seq: Seq
    at: datetime
    until: datetime
    created: datetime


class Held(NamedTuple):
    """What a turn has reserved of a budget by the increment `seq` (0: not known), and its cost in the period."""

    turn: TurnId
    amount: int
    seq: Seq
    asked_at: datetime
    ended_at: datetime | None = None
    cost: int = 0
    is_batch: bool = False
    """Whether its turns are settled, and not it."""
    settled_seq: Seq | None = None
    """The increment that has settled it; None: not known."""


class Owed(NamedTuple):
    """The range of what a counter has to be: recorded costs, and reservations of turns that exist."""

    least: int
    most: int


def owed(reading: Reading, recorded: int, turns: Iterable[Held], steps: Mapping[TurnId, int] | None = None) -> Owed:
    """Returns what the counter had to be at `reading`.

    `recorded` is the cost of all turns of the period, and `turns` those that run or have ended since shortly before the
    reading; both were read at one moment after it. `steps` are the further reservations of running turns, which may be
    in the counter.
    """
    least = most = recorded
    for one in turns:
        is_counted, is_settled = _is_counted(one, reading), _is_settled(one, reading)
        # `recorded` has the cost of a turn that has ended.
        cost = one.cost if one.ended_at is not None else 0
        parts = set[int]()
        if is_counted is not True:
            parts.add(-cost)
        if may_be_reserved(one, reading):
            parts.add(one.amount - cost)
            parts.add(one.amount - cost + (steps or {}).get(one.turn, 0))
        if is_counted is not False and is_settled is not False:
            parts.add(0)
        least, most = least + min(parts), most + max(parts)
    return Owed(least, most)


def correction(reading: Reading, owed: Owed, given_back: int) -> int:
    """Returns the amount that makes the counter right. `given_back` was subtracted from it since `reading`."""
    if reading.value < owed.least:
        return owed.least - reading.value
    return min(0, owed.most + given_back - reading.value)


def lost_with_stream(created: datetime, recorded: int, turns: Iterable[Held]) -> int:
    """Returns what a counter had when its stream was lost, and `created` again: nothing if no turn is older.

    Unlike `owed`, it does not depend on the new counter, which has reservations of turns that are not stored yet.
    `turns` are those that run or have ended since.
    """
    lost = recorded
    for one in turns:
        # `recorded` has its cost, which is settled with the new counter.
        lost -= one.cost if one.ended_at is not None and one.ended_at > created else 0
        lost += one.amount if one.asked_at <= created < (one.ended_at or LAST) else 0
    return lost


def may_be_reserved(one: Held, reading: Reading) -> bool:
    """Returns whether the value may have the reservation of the turn."""
    return _is_counted(one, reading) is not False and _is_settled(one, reading) is not True


def _is_counted(one: Held, reading: Reading) -> bool | None:
    """Returns whether the value has the reservation of the turn; None: not known."""
    # A reservation comes before its request. If its number is greater than that of a later increment, the stream was
    # lost, and the amount is missing.
    is_before = one.asked_at <= max(reading.created, reading.until - CLOCKS_DIFFER)
    if is_before or BEFORE_FIRST < one.seq <= reading.seq:
        return True
    if one.seq == BEFORE_FIRST and one.asked_at < reading.until + RESERVED_WITHIN + CLOCKS_DIFFER:
        return None
    return False


def _is_settled(one: Held, reading: Reading) -> bool | None:
    """Returns whether the value has the cost of the turn, in place of its reservation; None: not known."""
    if one.settled_seq is not None:
        return one.settled_seq <= reading.seq
    if one.ended_at is None:
        return False
    if one.ended_at + SETTLED_WITHIN + CLOCKS_DIFFER <= reading.until:
        return True
    return False if one.ended_at > reading.at + CLOCKS_DIFFER else None
