"""The routes of batches: ask, list, look, take results, cancel. A batch is a turn, and read as one: `links.events`.

What has left the log is told by the database.
"""

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tailrace.gateway.dependencies import Gateway, caller_of, gateway_of, refuse_when_draining, tenant_of, turn_named
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.resources.paging import Page, page_of
from tailrace.gateway.streaming.download import Download
from tailrace.gateway.turns.auto_idempotency import AUTO
from tailrace.gateway.turns.batch_body import NewBatch, prepared
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.respond import asked
from tailrace.gateway.turns.submit import accept_request, claimed_key
from tailrace.gateway.turns.webhook_url import check_webhook
from tailrace.proto import batch, entries
from tailrace.proto.batch_records import GetBatch, ListBatches, ListBatchTurns, StoredBatch, stored_batch
from tailrace.proto.blobs import Blob
from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.entries import Failure, Outcome, Via
from tailrace.proto.errors import BlobUnknown, Refused, TurnUnknown
from tailrace.proto.fold import Turn
from tailrace.proto.ids import SessionId, TurnId, parse_cursor
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import NANO_USD_PER_USD, Usage

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
    via: Via
    message_batch: str | None
    """The id under which Anthropic's Message Batches have it."""
    cost_usd: float
    error: Failure | None
    metadata: dict[str, str]
    asked_at: datetime
    ended_at: datetime | None
    links: dict[str, str]


class BatchList(Page[BatchRecord], frozen=True, kw_only=True):
    """Newest first."""


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the results. Without a `turn`, the batch was ended before this input was asked."""

    index: int
    custom_id: str
    turn: TurnId | None = None
    outcome: Outcome = "cancelled"
    text: str = ""
    content: list[dict[str, Any]] = []
    stop_reason: str | None = None
    schema_valid: bool | None = None
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
    told = AcceptedBatch(batch=key.turn, session=accepted.session, of=of, links=links_of(key.turn))
    return json_response(told, status=202, headers={"location": f"/v1/batches/{key.turn}", "tailrace-turn": key.turn})


async def batches(request: Request) -> Response:
    """`GET /v1/batches`: all that there are, newest first."""
    gateway, tenant = gateway_of(request), tenant_of(request)
    after, limit = page_of(request)
    found = await gateway.history.ask(tenant, ListBatches(after, limit))
    told = await asyncio.gather(*(_now(gateway, TurnKey(tenant, batch.batch), batch) for batch in found.batches))
    return json_response(
        BatchList(data=[batch_record(one) for one in told], has_more=bool(found.next), next=found.next)
    )


async def get(request: Request) -> Response:
    """`GET /v1/batches/{batch}`: how far the batch is."""
    _, told, _ = await batch_of(request)
    return json_response(batch_record(told))


async def post_cancel(request: Request) -> Response:
    """`POST /v1/batches/{batch}/cancel`: the batch with its end. What runs of it is cancelled, too."""
    key, told, turn = await batch_of(request)
    if turn is not None:
        told = stored_batch(key, await cancel(gateway_of(request).log, key))
    return json_response(batch_record(told))


async def results(request: Request) -> ASGIApp:
    """`GET /v1/batches/{batch}/results`: a line of JSON for each input whose turn has ended, in the inputs' order."""
    gateway = gateway_of(request)
    key, told, turn = await batch_of(request)
    after = request.query_params.get("after")
    of = told.counts.of
    numbers = range(min(0 if after is None else parse_cursor(after) + 1, of), of)
    if turn is not None and turn.request is not None and turn.request.batch is not None:
        lines = _results(gateway, key, turn.request.batch, numbers, is_over=turn.end is not None)
    else:
        lines = _past(gateway, key, numbers)
    headers = {"content-type": "application/x-ndjson", "cache-control": "no-store"}
    return Download(gateway, lines, headers, is_stream=True)


async def _past(gateway: Gateway, key: TurnKey, numbers: range) -> AsyncGenerator[bytes, None]:
    """The lines of a batch that has left the log: the database has its turns, and nobody its inputs."""
    encode = msgspec.json.Encoder().encode
    first = numbers.start
    while first < numbers.stop:
        limit = min(READ_AT_ONCE, numbers.stop - first)
        page = await gateway.history.ask(key.tenant, ListBatchTurns(key.turn, first, limit))
        turns = {one.index: one.turn for one in page.turns}
        told = (
            result(number, turns[number]) if number in turns else BatchResult(index=number, custom_id="")
            for number in range(first, min(page.next, numbers.stop))
        )
        yield b"".join(encode(line) + b"\n" for line in told)
        first = page.next


async def _results(
    gateway: Gateway, key: TurnKey, of: entries.Batch, numbers: range, *, is_over: bool
) -> AsyncGenerator[bytes, None]:
    encode = msgspec.json.Encoder().encode
    unasked: list[bytes] | None = None
    for first in range(0, len(numbers), READ_AT_ONCE):
        some = numbers[first : first + READ_AT_ONCE]
        turns = await asyncio.gather(*(_turn(gateway, batch.child_key(key, number)) for number in some))
        told = []
        for number, turn in zip(some, turns, strict=True):
            if turn is not None and turn.end is not None:
                told.append(result(number, record_from_fold(batch.child_key(key, number), turn)))
            elif turn is None and is_over:
                # Only then: the inputs are as long as a body may be.
                unasked = await _inputs(gateway, key, of) if unasked is None else unasked
                name = batch.custom_id(batch.decode_input(unasked[number])) if unasked else ""
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
        return batch.split_inputs(await gateway.bodies.read(key.tenant, Blob(of.sha256, of.bytes)))
    except BlobUnknown:
        return []


def result(index: int, told: TurnRecord) -> BatchResult:
    return BatchResult(
        index=index,
        custom_id=told.metadata.get(batch.CUSTOM_ID, ""),
        turn=told.turn,
        outcome="failed" if told.outcome == "running" else told.outcome,
        text=told.text,
        content=told.content,
        stop_reason=told.stop_reason,
        schema_valid=told.schema_valid,
        error=told.error,
        usage=told.usage,
        cost_usd=told.cost_usd,
    )


async def batch_of(request: Request) -> tuple[TurnKey, StoredBatch, Turn | None]:
    """The batch that the path names, and its fold, if the log still has it.

    Raises Refused, the same for one that never was and for a turn that is none.
    """
    unknown = Refused("batch_not_found", "there is no such batch")
    try:
        key = turn_named(request, "batch")
    except Refused as error:
        if error.code != "turn_not_found":
            raise
        raise unknown from error
    try:
        turn = await gateway_of(request).log.turn(key)
    except TurnUnknown:
        return key, past(await gateway_of(request).history.ask(key.tenant, GetBatch(key.turn))), None
    try:
        return key, stored_batch(key, turn), turn
    except TurnUnknown as error:
        raise unknown from error


async def _now(gateway: Gateway, key: TurnKey, told: StoredBatch) -> StoredBatch:
    """A batch as it is now: the database is told of its beginning and its end, and of nothing in between."""
    if told.outcome != "running":
        return told
    try:
        return stored_batch(key, await gateway.log.turn(key))
    except TurnUnknown:
        return past(told)


def past(told: StoredBatch) -> StoredBatch:
    """One that the log does not know any more. Without an end it has failed: nobody can write one now."""
    return msgspec.structs.replace(told, outcome="failed", error=LOST_FAILURE) if told.outcome == "running" else told


def batch_record(told: StoredBatch) -> BatchRecord:
    counts = told.counts
    return BatchRecord(
        batch=told.batch,
        session=told.session,
        outcome=told.outcome,
        done=counts.done,
        failed=counts.failed,
        of=counts.of,
        parallel=counts.parallel,
        via=counts.via,
        message_batch=counts.message_batch,
        cost_usd=counts.cost_nano_usd / NANO_USD_PER_USD,
        error=told.error,
        metadata=told.metadata,
        asked_at=told.asked_at,
        ended_at=told.ended_at,
        links=links_of(told.batch),
    )


def links_of(turn: TurnId) -> dict[str, str]:
    path = f"/v1/batches/{turn}"
    return {
        "self": path,
        "events": f"/v1/turns/{turn}/events",
        "results": f"{path}/results",
        "cancel": f"{path}/cancel",
    }


ROUTES = [
    Route("/v1/batches", batches, methods=["GET"]),
    Route("/v1/batches", post, methods=["POST"]),
    Route("/v1/batches/{batch}", get, methods=["GET"]),
    Route("/v1/batches/{batch}/results", results, methods=["GET"]),
    Route("/v1/batches/{batch}/cancel", post_cancel, methods=["POST"]),
]
