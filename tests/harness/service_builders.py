"""Builders of services that need many others, with defaults for those that a test does not need."""

from collections.abc import Awaitable, Callable
from typing import Any

from tailrace.features.batches.message_batches_api import MessageBatchesApi
from tailrace.features.batches.runner import BatchRunner
from tailrace.features.generators import FEATURES
from tailrace.gateway.auth.admission import Admissions, Limiter
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.log.fullness import LogFullness
from tailrace.gateway.models.offer import Offer
from tailrace.gateway.settings import Settings
from tailrace.gateway.streaming.feed import FanOut
from tailrace.gateway.turns.conversation import Conversations
from tailrace.gateway.turns.deleted_parent import ParentCheck
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.gateway.turns.queue_estimate import QueueEstimate
from tailrace.gateway.turns.repeats import Repeats
from tailrace.gateway.turns.store_blobs import RequestBlobs
from tailrace.gateway.turns.submit import TurnSubmitter
from tailrace.generators.backend_order import parse_backends
from tailrace.generators.feature import join_hooks
from tailrace.generators.load_blobs import BlobLoader
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import BlobStore, Claims, Tombstones, TurnLog
from tailrace.proto.nats.step_records import StepRecords
from tailrace.proto.runtime.fair_semaphore import FairSemaphore
from tailrace.proto.runtime.flag import Flag

UNUSED: Any = None
NO_STEPS = OptionalSteps()


class AnyModel:
    """A catalogue whose server offers every model."""

    async def offer(self, _: Tenant) -> Offer:
        return Offer()


ANY_MODEL: Any = AnyModel()


def build_turn_submitter(
    log: TurnLog,
    claims: Claims,
    tombstones: Tombstones,
    *,
    steps: OptionalSteps = NO_STEPS,
    limiter: Limiter | None = None,
    is_full: bool = False,
    is_draining: bool = False,
    history: HistoryClient = UNUSED,
    parents: ParentCheck = UNUSED,
    blobs: RequestBlobs | None = None,
    settings: Settings | None = None,
) -> TurnSubmitter:
    """Returns a submitter of turns for any model. Without `history` and `parents`, they continue no other turn."""
    fullness, draining = LogFullness(UNUSED, full_at=0.9), Flag()
    fullness.detail = "nearly full" if is_full else ""
    if is_draining:
        draining.set()
    submitter = TurnSubmitter(
        log=log,
        repeats=Repeats(log, claims, tombstones),
        conversations=Conversations(log, history),
        catalogue=ANY_MODEL,
        settings=settings or Settings(),
        fullness=fullness,
        queue=QueueEstimate(UNUSED, UNUSED, most=1),
        blobs=blobs or RequestBlobs(UNUSED, UNUSED, Admissions(limiter), bytes_max=1_000_000),
        parents=parents,
        draining=draining,
        admissions=Admissions(limiter),
        expect=FanOut(log, UNUSED, linger_s=1, heartbeat_s=1).expect,
        pseudonym=str,
    )
    submitter.add_steps(steps)
    return submitter


def build_batch_runner(
    log: TurnLog,
    blob_store: BlobStore,
    tombstones: Tombstones,
    fullness: Callable[[], Awaitable[float]],
    *,
    step_records: StepRecords = UNUSED,
    name: str = "runner",
    concurrency: int = 1,
    message_batches: MessageBatchesApi | None = None,
    backends: str = "claude",
) -> BatchRunner:
    """Returns a runner of batches, which runs one turn at a time unless `concurrency` is greater."""
    return BatchRunner(
        log,
        blob_store,
        tombstones,
        step_records,
        fullness,
        name=name,
        concurrency=concurrency,
        attempts_max=3,
        message_batches=message_batches,
        hooks=join_hooks(FEATURES),
        blobs=BlobLoader(blob_store, FairSemaphore(1)),
        orders=parse_backends(backends),
    )
