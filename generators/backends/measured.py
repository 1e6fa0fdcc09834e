"""Metrics of the calls to a model, with OpenTelemetry's names for generative AI.

Source: OpenTelemetry's semantic conventions for generative AI, "Generative AI client metrics" (in development). Dots
become underscores, as its Prometheus exporter writes them.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from prometheus_client import Histogram

from tailrace.generators.backends import Call
from tailrace.generators.backends.model_event import CloseCall, ModelEvent, Put, Wait
from tailrace.proto.errors import BackendError
from tailrace.proto.events import BlockDelta
from tailrace.proto.models import model_label
from tailrace.proto.runtime.fast_metrics import FastHistogram

PREFIX = re.compile(r".*[./]")
CANCELLED, OTHER = "cancelled", "_OTHER"
# The conventions' buckets, in seconds.
CALL_BUCKETS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_BUCKETS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
DELTA_BUCKETS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)

CALL_S = Histogram(
    "gen_ai_client_operation_duration_seconds",
    "Time of a call to the model, whole or broken off; `error_type` is empty, the code of the failure, `cancelled` "
    "(stopped by a deadline, a client or a drain) or `_OTHER` (an internal error)",
    ["gen_ai_provider_name", "gen_ai_request_model", "error_type"],
    buckets=CALL_BUCKETS_S,
)
FIRST_S = Histogram(
    "gen_ai_client_operation_time_to_first_chunk_seconds",
    "Time from a call to the model until the first delta of its answer",
    ["gen_ai_provider_name", "gen_ai_request_model"],
    buckets=FIRST_BUCKETS_S,
)
DELTA_S = FastHistogram(
    "gen_ai_client_operation_time_per_output_chunk_seconds",
    "Time between two deltas as the model sent them, by model",
    label="gen_ai_request_model",
    buckets=DELTA_BUCKETS_S,
)


ObserveCall = Callable[[Put, str, Call], AbstractContextManager[Put]]
"""Observes a call to a provider, a value of `gen_ai.provider.name`, until the context is left.

Yields a Put that takes the events of the call and passes them to the given Put. Keeps nothing of the call.
"""


@contextmanager
def measured(put: Put, provider: str, call: Call) -> Iterator[Put]:
    """Measures a call. See ObserveCall."""
    # Bedrock and LiteLLM put the provider before the name of the model, with a dot or a slash.
    label = model_label(PREFIX.sub("", call.model))
    # The call's long strings use much memory.
    del call
    observe, begun_at, last_at, error_type = DELTA_S.get_series(label).observe, time.monotonic(), 0.0, ""

    def put_measured(event: ModelEvent) -> Wait | None:
        nonlocal last_at
        if type(event.event) is BlockDelta:
            now = time.monotonic()
            if last_at:
                observe(now - last_at)
            else:
                FIRST_S.labels(provider, label).observe(now - begun_at)
            last_at = now
        return put(event)

    try:
        yield put_measured
    except BaseException as error:
        error_type = error_type_of(error)
        raise
    finally:
        CALL_S.labels(provider, label, error_type).observe(time.monotonic() - begun_at)


def error_type_of(error: BaseException) -> str:
    """Returns the value of OpenTelemetry's `error.type` for a call; empty if the call did not fail.

    The conventions ("Recording errors") count every call that raises as failed; `_OTHER` is their value for errors
    without a type. A call that its sink closes, because it needs no more, did not fail. CANCELLED is a call that this
    process stopped before its answer was complete: at the turn's deadline, because a client cancelled the turn, or in a
    drain.
    """
    match error:
        case BackendError():
            return error.code
        case CloseCall():
            return ""
        case asyncio.CancelledError():
            return CANCELLED
        case _:
            return OTHER
