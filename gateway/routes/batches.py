"""The routes of a batch: ask, look, take the results, cancel. A batch is a turn, and is read as one: `links.events`."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.accept import accept_request, claimed_key
from gateway.answer import asked
from gateway.auto_key import AUTO
from gateway.batch import NewBatch, prepared
from gateway.cancel import cancel
from gateway.context import Gateway, caller_of, gateway_of, refuse_when_draining, turn_named
from gateway.json_response import json_response
from gateway.webhook import check_webhook
from proto import batch, entries
from proto.blobs import Blob
from proto.entries import Failure, Outcome
from proto.errors import BlobUnknown, Refused, TurnUnknown
from proto.fold import Turn
from proto.ids import SessionId, TurnId, parse_cursor
from proto.records import record
from proto.subjects import TurnKey
from proto.usage import NUSD_PER_USD, Usage

# So many of its turns are read from the log at once.
READ_AT_ONCE = 32


class AcceptedBatch(msgspec.Struct, frozen=True):
    """A batch that is in the log, and where to go on. `of`: how many inputs it has."""

    batch: TurnId
    session: SessionId
    of: int
    links: dict[str, str]


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as far as it is. `done` of its turns are completed, `failed` have ended otherwise."""

    batch: TurnId
    session: SessionId
    outcome: Outcome | Literal["running"]
    done: int
    failed: int
    of: int
    parallel: int
    cost_usd: float
    error: Failure | None
    metadata: dict[str, str]
    asked_at: datetime
    ended_at: datetime | None
    links: dict[str, str]


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the results. Without a `turn`, the batch was ended before this input was asked."""

    index: int
    custom_id: str
    turn: TurnId | None = None
    outcome: Outcome = "cancelled"
    text: str = ""
    content: list[dict[str, Any]] = []
    stop_reason: str | None = None
    fits: bool | None = None
    error: Failure | None = None
    usage: Usage = Usage()
    cost_usd: float = 0.0


async def post(request: Request) -> Response:
    """`POST /v1/batches`: 202 with the batch's id. All of it is accepted, or none."""
    gateway, caller = gateway_of(request), caller_of(request)
    new, raw = await asked(request, NewBatch)
    check_webhook(new.webhook, gateway.settings)
    refuse_when_draining(gateway)
    idempotency_key = claimed_key(request)
    if idempotency_key == AUTO:
        raise Refused("idempotency_key_invalid", "a batch takes no `auto`: send a key of your own")
    async with gateway.limits.admission(caller) as admission:
        request.state.admission = admission

        async def made(turn: TurnId) -> entries.Request:
            return await prepared(gateway, caller, new, turn, admission)

        key, accepted = await accept_request(gateway, caller.tenant, made, idempotency_key, raw, admission)
    of = accepted.batch.count if accepted.batch is not None else 0
    told = AcceptedBatch(batch=key.turn, session=accepted.session, of=of, links=links_of(key))
    return json_response(told, status=202, headers={"location": f"/v1/batches/{key.turn}", "tailrace-turn": key.turn})


async def get(request: Request) -> Response:
    """`GET /v1/batches/{batch}`: how far the batch is."""
    key, turn, of = await batch_of(request)
    return json_response(batch_record(key, turn, of))


async def post_cancel(request: Request) -> Response:
    """`POST /v1/batches/{batch}/cancel`: the batch with its end. What runs of it is cancelled, too."""
    key, _, of = await batch_of(request)
    return json_response(batch_record(key, await cancel(gateway_of(request).log, key), of))


async def results(request: Request) -> Response:
    """`GET /v1/batches/{batch}/results`: a line of JSON for each input whose turn has ended, in the inputs' order."""
    key, turn, of = await batch_of(request)
    after = request.query_params.get("after")
    first = 0 if after is None else parse_cursor(after) + 1
    lines = _results(gateway_of(request), key, of, range(min(first, of.count), of.count), is_over=turn.end is not None)
    return StreamingResponse(lines, media_type="application/x-ndjson", headers={"cache-control": "no-store"})


async def _results(
    gateway: Gateway, key: TurnKey, of: entries.Batch, numbers: range, *, is_over: bool
) -> AsyncGenerator[bytes, None]:
    encode = msgspec.json.Encoder().encode
    unasked: list[bytes] | None = None
    for first in range(0, len(numbers), READ_AT_ONCE):
        some = numbers[first : first + READ_AT_ONCE]
        turns = await asyncio.gather(*(_turn(gateway, batch.child(key, number)) for number in some))
        told = []
        for number, turn in zip(some, turns, strict=True):
            if turn is not None and turn.end is not None:
                told.append(result(number, batch.child(key, number), turn))
            elif turn is None and is_over:
                # Only then: the inputs are as long as a body may be.
                unasked = await _inputs(gateway, key, of) if unasked is None else unasked
                name = batch.custom_id(batch.read(unasked[number])) if unasked else ""
                told.append(BatchResult(index=number, custom_id=name))
        yield b"".join(encode(line) + b"\n" for line in told)


async def _turn(gateway: Gateway, key: TurnKey) -> Turn | None:
    """None: it was not asked, or is deleted. While the log has a batch, it has its turns, which are younger."""
    try:
        return await gateway.log.turn(key)
    except TurnUnknown:
        return None


async def _inputs(gateway: Gateway, key: TurnKey, of: entries.Batch) -> list[bytes]:
    """None of them, once they have expired."""
    try:
        return batch.lines(await gateway.bodies.read(key.tenant, Blob(of.sha256, of.bytes)))
    except BlobUnknown:
        return []


def result(index: int, key: TurnKey, turn: Turn) -> BatchResult:
    told = record(key, turn)
    return BatchResult(
        index=index,
        custom_id=told.metadata.get(batch.CUSTOM_ID, ""),
        turn=key.turn,
        outcome=turn.end.outcome if turn.end is not None else "failed",
        text=told.text,
        content=told.content,
        stop_reason=told.stop_reason,
        fits=told.fits,
        error=told.error,
        usage=told.usage,
        cost_usd=told.cost_usd,
    )


async def batch_of(request: Request) -> tuple[TurnKey, Turn, entries.Batch]:
    """The batch that the path names; raises Refused, the same for one that never was and for a turn that is none."""
    unknown = Refused("batch_not_found", "there is no such batch, or the log does not have it any more")
    try:
        key = turn_named(request, "batch")
        turn = await gateway_of(request).log.turn(key)
    except (Refused, TurnUnknown) as error:
        if isinstance(error, Refused) and error.code != "turn_not_found":
            raise
        raise unknown from error
    if turn.request is None or turn.request.batch is None:
        raise unknown
    return key, turn, turn.request.batch


def batch_record(key: TurnKey, turn: Turn, of: entries.Batch) -> BatchRecord:
    told = record(key, turn)
    progress = turn.progress
    return BatchRecord(
        batch=key.turn,
        session=told.session,
        outcome=told.outcome,
        done=progress.done if progress else 0,
        failed=progress.failed if progress else 0,
        of=of.count,
        parallel=of.parallel,
        cost_usd=(progress.cost_nusd if progress else 0) / NUSD_PER_USD,
        error=told.error,
        metadata=told.metadata,
        asked_at=told.asked_at,
        ended_at=told.ended_at,
        links=links_of(key),
    )


def links_of(key: TurnKey) -> dict[str, str]:
    path = f"/v1/batches/{key.turn}"
    return {
        "self": path,
        "events": f"/v1/turns/{key.turn}/events",
        "results": f"{path}/results",
        "cancel": f"{path}/cancel",
    }


ROUTES = [
    Route("/v1/batches", post, methods=["POST"]),
    Route("/v1/batches/{batch}", get, methods=["GET"]),
    Route("/v1/batches/{batch}/results", results, methods=["GET"]),
    Route("/v1/batches/{batch}/cancel", post_cancel, methods=["POST"]),
]
