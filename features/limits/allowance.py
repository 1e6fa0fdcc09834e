"""Allowance: what a running turn has reserved of its budgets. It grows in steps, until a budget has no step left.

The request's reservation is the first step. A further one is reserved in the background when less than MARGIN_TOKENS
of the reservation is left, so that no stream waits for it. Only an answer that has used up its reservation is not read
on until the step is reserved or refused (PROTOCOL R149).
"""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec
import structlog

from tailrace.features.limits.give_back import give_back
from tailrace.generators.backends.model_event import CloseCall, Wait
from tailrace.proto.entries import Request, Reservation
from tailrace.proto.errors import LogDenied, LogError, LogUnavailable
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Counters
from tailrace.proto.nats.step_records import StepRecord, StepRecords

logger = structlog.get_logger()

# In output tokens at the model's price.
STEP_TOKENS = 1024
MARGIN_TOKENS = 256
# After a refusal, a step is tried again each time that the answer has cost so much more: other turns give back.
RETRY_TOKENS = 64
UNAVAILABLE_WAIT_S = 0.5
# The end of a turn waits this long for a step that is being reserved.
SETTLED_WAIT_S = 5.0


class Unstored(NamedTuple):
    """A step that is counted. Its record may be stored."""

    steps: list[Reservation]
    """The steps that the record has then."""
    amount: int


class Allowance:
    """The reservation of one running turn."""

    def __init__(
        self,
        counters: Counters,
        records: StepRecords,
        key: TurnKey,
        holds: Sequence[Reservation],
        *,
        record: StepRecord,
        token_price: int,
        most: int | None = None,
    ) -> None:
        """`holds`: the reservations of the request, in budgets. `record`: of its steps so far.

        `token_price`: of an output token, in nano-dollars. `most`: the turn's `max_cost`, beyond which no step is
        reserved.
        """
        self._counters = counters
        self._records = records
        self._key = key
        self._holds = holds
        self._first = min(hold.amount for hold in holds)
        self._record = record
        self._unstored: Unstored | None = None
        self._is_unclear = False
        """Whether a write of `_unstored` may have been stored."""
        self.steps = record.steps
        self.token_price = token_price
        self.attempt = 0
        """The last attempt of this process."""
        self._most = most
        self._cost = 0
        self._following = 0
        """How many output tokens may follow."""
        self._reserving: asyncio.Task[bool] | None = None
        self._retry_at = 0
        """The cost at which a step is tried again after a refusal."""
        self.is_closed = False
        """Whether the last call was closed because a step was refused."""

    @property
    def reserved(self) -> int:
        """The reservation in nano-dollars."""
        return self._first + min((step.amount for step in self.steps), default=0)

    def spend(self, cost: int, tokens_left: int) -> Wait | None:
        """Notes that the turn has cost `cost`, and begins a step if it is due. `tokens_left`: the most that may follow.

        Returns a wait if the reservation is used up; it raises CloseCall if a step is refused.
        """
        # The estimate of a text may exceed `max_tokens`, its price cannot.
        self._cost = cost + min(0, tokens_left) * self.token_price
        self._following = max(0, tokens_left)
        if self.reserved - self._cost >= self._margin or self._step == 0:
            return None
        if self._is_used_up:
            self._begin_step()
            return self._wait_for_step
        if self._cost >= self._retry_at:
            self._begin_step()
        return None

    def next_check(self) -> int:
        """Returns how much more the turn may cost before `spend` has anything to do."""
        rest = self.reserved - self._cost
        margin = self._margin
        return rest - margin if rest > margin else min(rest, RETRY_TOKENS * self.token_price)

    async def reach(self, amount: int) -> bool:
        """Reserves at least `amount` in total. Returns False if a budget refuses it. Raises LogUnavailable."""
        await self.settled()
        if self._most is not None:
            amount = min(amount, self._most)
        while amount > self.reserved:
            if not await self._reserve(amount - self.reserved):
                return False
        return True

    async def settled(self) -> Sequence[Reservation]:
        """Returns the steps when no further one is being reserved. Raises LogUnavailable."""
        if self._reserving is not None:
            await asyncio.wait([self._reserving], timeout=SETTLED_WAIT_S)
            self.cancel()
            await asyncio.wait([self._reserving])
        if self._unstored is not None:
            # Persistence takes back an amount that is counted and not recorded (PROTOCOL R148).
            self._note_record(await self._records.read(self._key))
        return self.steps

    def cancel(self) -> None:
        """Stops reserving."""
        if self._reserving is not None:
            self._reserving.cancel()

    @property
    def _is_used_up(self) -> bool:
        return self._cost > self.reserved

    @property
    def _margin(self) -> int:
        """The rest of the reservation below which a step is due."""
        return min(MARGIN_TOKENS, self._following) * self.token_price

    @property
    def _step(self) -> int:
        """The amount of the next step."""
        amount = max(0, self._cost - self.reserved) + min(STEP_TOKENS, self._following) * self.token_price
        return amount if self._most is None else max(0, min(amount, self._most - self.reserved))

    def _begin_step(self) -> asyncio.Task[bool]:
        if self._reserving is None or self._reserving.done():
            self._retry_at = self._cost + RETRY_TOKENS * self.token_price
            self._reserving = asyncio.create_task(self._reserve_quietly(self._step))
        return self._reserving

    async def _wait_for_step(self) -> None:
        """Returns when the reservation covers the cost. Raises CloseCall when a step is refused."""
        while self._is_used_up:
            step = self._begin_step()
            await asyncio.wait([step])
            if not step.result():
                self.is_closed = True
                raise CloseCall

    async def _reserve_quietly(self, amount: int) -> bool:
        """Like `_reserve`, but tries again while NATS does not answer: this must not close the call."""
        while True:
            try:
                return await self._reserve(amount)
            except LogError as error:
                logger.debug("a step is reserved later", turn=self._key.turn, why=str(error))
            await asyncio.sleep(UNAVAILABLE_WAIT_S)

    async def _reserve(self, amount: int) -> bool:
        """Reserves `amount` more of each budget, or of none. Returns False if one has not so much left.

        Raises LogUnavailable. If the step is counted by then, the next call only records it, and ignores `amount`.
        """
        if self._unstored is None:
            self._unstored = await self._count(amount)
            self._is_unclear = False
        if self._unstored is None:
            return False
        (steps, counted), was_unclear, self._is_unclear = self._unstored, self._is_unclear, True
        try:
            revision = await self._records.write(self._key, StepRecord(steps, self._record.revision))
        except LogDenied as error:
            logger.error("a step of a turn cannot be recorded, and its call is closed", why=str(error))  # noqa: TRY400
            self._unstored = None
            await self._give_back(steps, counted)
            return False
        if revision is not None:
            self._note_record(StepRecord(steps, revision))
            return True
        # Another generator has the turn, or an earlier write of this step was stored.
        self._note_record(await self._records.read(self._key))
        if not was_unclear:
            await self._give_back(steps, counted)
        if self.steps != steps:
            raise LogUnavailable("the steps of this turn were changed meanwhile: try again")
        return True

    def _note_record(self, record: StepRecord) -> None:
        self._record, self.steps, self._unstored = record, record.steps, None

    async def _count(self, amount: int) -> Unstored | None:
        """Adds `amount` to each counter, or to none; returns None if one has not so much left. Raises LogUnavailable.

        What may then stay counted is not recorded, so that it is taken back (PROTOCOL R148).
        """
        before = {step.subject: step.amount for step in self.steps}
        added: list[Reservation] = []
        is_counted = False
        try:
            for hold in self._holds:
                value, seq = await self._counters.increment(hold.subject, amount)
                total = before.get(hold.subject, 0) + amount
                added.append(msgspec.structs.replace(hold, amount=total, seq=seq))
                if hold.limit is not None and value > hold.limit:
                    return None
            is_counted = True
            return Unstored(added, amount)
        finally:
            if not is_counted:
                await self._give_back(added, amount)

    async def _give_back(self, steps: Iterable[Reservation], amount: int) -> None:
        for step in steps:
            with suppress(LogError):
                await give_back(self._counters, step.subject, amount)


def budgets_of(request: Request) -> list[Reservation]:
    """Returns the reservations of a request that can grow; none if a gateway of an older version has made them."""
    return [hold for hold in request.holds or () if hold.unit == "nusd" and hold.limit is not None]
