"""Makes model calls: chooses backend and model name, loads blobs into the call, repeats a call that fails early."""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from typing import Protocol

import msgspec

from tailrace.generators import metrics
from tailrace.generators.backend_order import BackendOrder, BackendOrders
from tailrace.generators.backends import Backend, Call
from tailrace.generators.backends.measured import ObserveCall, measured
from tailrace.generators.backends.model_event import ModelEvent, Put, Wait, await_each
from tailrace.generators.key_health import KeyHealth
from tailrace.generators.load_blobs import BlobLoader
from tailrace.generators.outage import NoteWait, Outage
from tailrace.generators.retry import Retry
from tailrace.proto.errors import BackendError
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnKey


class Routing(Protocol):
    """Chooses the backends of calls."""

    def begin_call(self, tenant: str, model: str, last: str = "") -> BackendOrder:
        """Returns the order of backends for a call that begins now. `last` is the backend of the last attempt."""
        ...

    def note_begin(self, backend: str, call: Call, error: BackendError | None) -> None:
        """Is called when a call of `backend` has returned its first event, or with the error that prevented it."""
        ...


class OneBackend:
    """The Routing without failover: a turn uses the backend that has begun it, or else the first for its model."""

    def __init__(self, orders: BackendOrders) -> None:
        self._orders = orders

    def begin_call(self, tenant: str, model: str, last: str = "") -> BackendOrder:  # noqa: ARG002
        """See Routing."""
        return self._orders.order_for(model, last).alone

    def note_begin(self, backend: str, call: Call, error: BackendError | None) -> None:
        """See Routing."""


class ModelCaller:
    """The backends of this process and how they are called. Shared by all turns."""

    def __init__(
        self,
        backends: Mapping[str, Backend],
        routing: Routing,
        retry: Retry,
        blobs: BlobLoader,
        observe: Sequence[ObserveCall] = (),
    ) -> None:
        """`backends`: all that `routing` names, by name. Each of `observe` observes every call, beside the metrics."""
        self.backends = backends
        self.routing = routing
        self.retry = retry
        self.blobs = blobs
        self.observe = (measured, *observe)
        self.keys = KeyHealth(backends)

    def note_begin(self, backend: str, call: Call, error: BackendError | None) -> None:
        """Notes that the call `call` of `backend` begins: see retry.NoteBegin."""
        self.routing.note_begin(backend, call, error)
        self.keys.note_call(backend, error)

    def route(self, key: TurnKey, turn: Turn) -> "Route":
        """Returns the route of the turn's next call, which begins with the backend of the last attempt."""
        assert turn.request is not None  # noqa: S101  # the fold of a turn that is run has one
        return Route(self, self.routing.begin_call(key.tenant, turn.request.model, turn.backend))


class Route:
    """The backend of a turn's next call. After a failure, `after_failure` returns the route of the following call."""

    def __init__(
        self, caller: ModelCaller, order: BackendOrder, failures: int = 0, outage: Outage | None = None
    ) -> None:
        """`failures` counts the failed attempts in this run of the turn. `outage` is the outage in this run."""
        self._caller = caller
        self._order = order
        self._failures = failures
        self._outage = outage or Outage()

    @property
    def backend(self) -> str:
        return self._order.current.backend

    async def stream(self, call: Call, key: TurnKey, put: Put, *, note_wait: NoteWait) -> None:
        """Makes the call and passes the events of its answer to `put`. Cancelling it closes the connection.

        `note_wait` is called when the turn waits because it cannot connect to the model, and no other backend is left.
        Raises BackendError, LogUnavailable, and what `put` raises.
        """
        name, caller = self.backend, self._caller
        backend, retry = caller.backends[name], caller.retry
        model = self._order.current.model_id or backend.model_id(call.model)
        call = msgspec.structs.replace(call, model=model, tenant=key.tenant, turn=key.turn)
        is_single = self._order.current.is_single
        if is_single:
            retry = msgspec.structs.replace(retry, tries_max=1)
        if is_single or self._order.has_untried:
            retry = msgspec.structs.replace(retry, unreachable_s=0.0)
        async with AsyncExitStack() as blobs:
            whole = await blobs.enter_async_context(caller.blobs.load(key.tenant, call))
            # The only reference to the long strings. It is dropped before the answer is read.
            calls = [msgspec.structs.replace(whole, is_large=True)] if whole is not call else []
            del whole

            async def call_model(put: Put) -> None:
                with ExitStack() as observing:
                    for observe in caller.observe:
                        put = observing.enter_context(observe(put, backend.provider, call))
                    await backend.stream(calls[-1] if calls else call, put)

            def put_first(event: ModelEvent) -> Wait | None:
                wait = put(event)
                if not calls:
                    return wait
                calls.clear()
                return partial(await_each, blobs.aclose, wait)

            note = partial(caller.note_begin, name, call)
            await retry.stream(call_model, put_first if calls else put, note, self._outage, note_wait)

    async def after_failure(self, error: BackendError, *, has_begun: bool) -> "Route | None":
        """Returns the route after a call that failed with `error`; None if no backend could do better.

        Waits before a backend is called again. `has_begun`: readers have seen the beginning of an answer.
        """
        order = self._order.after_failure(error, has_begun=has_begun)
        if order is None:
            return None
        if order.current != self._order.current:
            metrics.FAILOVERS.labels(order.current.backend, error.code).inc()
        failures = self._failures + 1
        if order.is_repeat:
            await self._caller.retry.pause(failures, error)
        self._outage.next_attempt()
        return Route(self._caller, order, failures, self._outage)
