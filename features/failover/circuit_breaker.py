"""Circuit breakers: a generator remembers for some seconds that a backend is down; new turns do not call it.

A breaker opens when all calls of this process to its backend have failed before their answer began, for at least
FAILING_S seconds and in at least TURNS_MIN turns. While it is open, a new turn begins with another backend of its list.
If all of them are down, the turn fails at once. Every OPEN_S seconds, one new turn of each tenant calls the backend
nevertheless, as a probe (half-open). An answer to any call closes the breaker. A turn that was begun earlier goes on:
its calls are still repeated.

The content of a request can make a backend fail. Therefore an open breaker affects only tenants whose own turns have
failed since the last answer. The error of a turn that fails at once has no text of the backend, because that may quote
another tenant's request.

No library is used: purgatory 3.0 counts failures without their time, and lets every call through while it is half-open.
"""

import math
import time
from collections.abc import Callable

import msgspec
import structlog

from tailrace.features.failover import metrics
from tailrace.generators.backend_order import BackendOrder, BackendOrders
from tailrace.generators.backends import Call
from tailrace.proto.errors import CODES, BackendError
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey, is_child_id

logger = structlog.get_logger()

# About as long as one attempt repeats its calls, so that a short interruption opens no breaker.
FAILING_S = 5.0
TURNS_MIN = 5
OPEN_S = 5.0
# Bounds the memory. Turns of further tenants always call the backend.
TENANTS_MAX = 10_000
# A rate limit, a refused key and a refused request are answers: the backend is not down.
DOWN_CODES = frozenset({"backend_overloaded", "backend_unreachable", "backend_failed", "backend_stalled"})


class Breaker:
    """The circuit breaker of one backend, in this process."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._failed_turns: set[tuple[str, str]] = set()
        """Tenant and id of turns whose calls have failed since the last answer, TURNS_MIN at most."""
        self._failing_since = 0.0
        self._probe_at: dict[str, float] = {}
        """For each tenant whose turns have failed, the time from which its next new turn is a probe."""
        self._is_open = False
        self._last_code = ""
        """The code of the last failure."""
        metrics.BACKEND_DOWN.labels(name).set(0)

    def is_down(self, tenant: str) -> bool:
        """Returns whether new turns of the tenant avoid the backend."""
        return self._is_open and self._clock() < self._probe_at.get(tenant, 0.0)

    def begin_probe(self, tenant: str) -> bool:
        """Returns whether a call that begins now is a probe. After a probe, the next probe is due in OPEN_S seconds."""
        if not self._is_open or tenant not in self._probe_at or self.is_down(tenant):
            return False
        self._probe_at[tenant] = self._clock() + OPEN_S
        return True

    def note_answer(self) -> None:
        """Closes the breaker: the backend has answered. Forgets earlier failures."""
        if self._is_open:
            logger.info("backend answers again", backend=self._name)
            metrics.BACKEND_DOWN.labels(self._name).set(0)
        self._is_open = False
        self._failed_turns.clear()
        self._probe_at.clear()

    def note_failure(self, tenant: str, turn: str, error: BackendError) -> None:
        """Notes a call that failed before its first event."""
        if error.code not in DOWN_CODES:
            self.note_answer()
            return
        now = self._clock()
        if not self._failed_turns:
            self._failing_since = now
        if len(self._failed_turns) < TURNS_MIN:
            self._failed_turns.add((tenant, turn))
        is_known = tenant in self._probe_at
        # Turns that were begun before the breaker opened, and those of batches, do not postpone a probe.
        if (is_known and not self._is_open) or (not is_known and len(self._probe_at) < TENANTS_MAX):
            self._probe_at[tenant] = now + OPEN_S
        self._last_code = error.code
        if not self._is_open and len(self._failed_turns) >= TURNS_MIN and now - self._failing_since >= FAILING_S:
            logger.warning("backend is down", backend=self._name, **error.log_fields)
            metrics.BACKEND_DOWN.labels(self._name).set(1)
            self._is_open = True

    def build_error(self, tenant: str) -> BackendError:
        """Returns the error of a turn that does not call the backend because it is down."""
        wait_s = math.ceil(max(1.0, self._probe_at[tenant] - self._clock()))
        message = f"{self._name} is down: {CODES[self._last_code].meaning}"
        return BackendError(self._last_code, message, retry_after_s=float(wait_s))


class CircuitBreakers:
    """The breakers of all backends. For a new turn, backends that are down come last."""

    def __init__(self, orders: BackendOrders, clock: Callable[[], float] = time.monotonic) -> None:
        self._orders = orders
        self._breakers = {name: Breaker(name, clock) for name in orders.backends}

    def note_begin(self, backend: str, call: Call, error: BackendError | None) -> None:
        """Notes that a call of `backend` has returned its first event, or with `error` that it failed before."""
        breaker = self._breakers[backend]
        if error is None:
            breaker.note_answer()
        else:
            breaker.note_failure(call.tenant, call.turn, error)

    async def prepare(self, key: TurnKey, turn: Turn) -> Turn:
        """Returns `turn`. Raises BackendError if no generator has begun it and all of its backends are down.

        The turns of a batch are not refused: thousands of them would fail within seconds.
        """
        request = turn.request
        if request is None or turn.attempt or turn.end is not None:
            return turn
        if request.parent is not None and is_child_id(key.turn, request.parent):
            return turn
        breakers = [self._breakers[one.backend] for one in self._orders.order_for(request.model).candidates]
        if all(breaker.is_down(key.tenant) for breaker in breakers):
            raise breakers[0].build_error(key.tenant)
        return turn

    def begin_call(self, tenant: str, model: str, last: str = "") -> BackendOrder:
        """Like BackendOrders.order_for, for a call that begins now. For a new turn, backends that are down come last.

        If a probe of the first backend is due, the turn is the probe. If other backends follow, the probe is one call,
        without repeats.
        """
        order = self._orders.order_for(model, last)
        if last:
            return order
        down = [one for one in order.candidates if self._breakers[one.backend].is_down(tenant)]
        first, *others = [*(one for one in order.candidates if one not in down), *down]
        if self._breakers[first.backend].begin_probe(tenant):
            first = msgspec.structs.replace(first, is_single=bool(others))
        return BackendOrder((first, *others), order.untried)
