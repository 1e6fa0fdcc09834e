"""RPC handlers: cancel a turn, list the models of Anthropic's API.

No failure of the model's API is retried here: the client that called the gateway may try again.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from tailrace.generators.backends.anthropic_api import AnthropicApi
from tailrace.proto.errors import BackendError, LogUnavailable, Refused
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.model_records import CancelTurn, TurnCancelled
from tailrace.proto.nats import TurnLog
from tailrace.proto.nats.cancellation import append_cancellation
from tailrace.proto.nats.rpc import decode_query

# A gateway waits for 2 s.
CANCEL_TURN_S = 2.0


async def cancel_turn(log: TurnLog, tenant: Tenant, body: bytes) -> bytes:
    """The handler that cancels a turn for a gateway far from NATS (PROTOCOL R22)."""
    query = decode_query(body, CancelTurn)
    key = TurnKey(tenant, query.turn)
    try:
        async with asyncio.timeout(CANCEL_TURN_S):
            _, was_running = await append_cancellation(
                log, key, cause=query.cause, by=query.by, successor=query.successor, timeout_s=CANCEL_TURN_S
            )
    except TimeoutError as error:
        raise LogUnavailable(f"{key.turn} could not be cancelled in time") from error
    return msgspec.json.encode(TurnCancelled(was_running))


async def list_models(claude: AnthropicApi, _: Tenant, __: bytes) -> bytes:
    """The handler that lists the models of Anthropic's API (PROTOCOL R36)."""
    with refuse_backend_errors():
        return msgspec.json.encode(await claude.models())


@contextmanager
def refuse_backend_errors() -> Iterator[None]:
    """Raises Refused for a BackendError."""
    try:
        yield
    except BackendError as error:
        raise Refused(error.code, error.message, retry_after_s=error.retry_after_s, details=error.details) from error
