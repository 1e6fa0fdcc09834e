"""Allowance: what a running turn has reserved of its budgets. It grows in steps, until a budget has no step left.

The request's reservation is the first step. A further one is reserved in the background when less than MARGIN_TOKENS
of the reservation is left, so that no stream waits for it. Only an answer that has used up its reservation is not read
on until the step is reserved or refused (PROTOCOL R149).
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import structlog

from tailrace.generators.backends.model_event import CloseCall, Wait
from tailrace.proto import subjects
from tailrace.proto.entries import Request, Reservation
from tailrace.proto.errors import LogError, LogUnavailable
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
        self._record: StepRecord | None = record
        """None: the last write may have been stored or not."""
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
        return amount <= self.reserved or await self._reserve(amount - self.reserved)

    async def settled(self) -> Sequence[Reservation]:
        """Returns the steps when no further one is being reserved."""
        if self._reserving is not None:
            await asyncio.wait([self._reserving])
        return self.steps

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

        Raises LogUnavailable. What may then stay counted is not recorded, so that it is taken back (PROTOCOL R148).
        """
        if self._record is None:
            self._record = await self._records.read(self._key)
            self.steps = self._record.steps
        before = {step.subject: step.amount for step in self.steps}
        added: list[Reservation] = []
        is_recorded = False
        try:
            for hold in self._holds:
                value, seq = await self._counters.increment(hold.subject, amount)
                total = before.get(hold.subject, 0) + amount
                added.append(msgspec.structs.replace(hold, amount=total, seq=seq))
                if hold.limit is not None and value > hold.limit:
                    return False
            record, self._record = self._record._replace(steps=added), None
            # If the outcome of the write is unclear, nothing is given back: it would be missing from a recorded step.
            is_recorded = True
            revision = await self._records.write(self._key, record)
            is_recorded = revision is not None
            if revision is None:
                # An earlier write of this process was late, or another generator has the turn.
                raise LogUnavailable("the steps of this turn were changed meanwhile: read them again")
            self._record, self.steps = record._replace(revision=revision), added
            return True
        finally:
            if not is_recorded:
                for one in added:
                    await self._give_back(one.subject, amount)

    async def _give_back(self, subject: str, amount: int) -> None:
        with suppress(LogError):
            await self._counters.add(subjects.given_back(subject), amount)
            await self._counters.add(subject, -amount)


def budgets_of(request: Request) -> list[Reservation]:
    """Returns the reservations of a request that can grow; none if a gateway of an older version has made them."""
    return [hold for hold in request.holds or () if hold.unit == "nusd" and hold.limit is not None]
