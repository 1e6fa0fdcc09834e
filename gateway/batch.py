"""The body of `POST /v1/batches`, and the requests that it becomes: each as it will be asked, resolved and checked.

All of it is done before the batch is accepted, so that it is refused as a whole, by the number of what is wrong in it.
"""

import asyncio
import hashlib
import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway import blobs
from gateway.ask import Ask, Cache, check, new_messages, request_of
from gateway.context import Gateway
from gateway.door.caller import Caller
from gateway.limits.estimate import Estimate, estimate_of
from gateway.limits.limits import Admission
from gateway.place import Place
from proto import batch, entries
from proto.entries import Message, OnInterrupt
from proto.errors import EntryTooLarge, Refused
from proto.ids import SessionId, TurnId, new_id
from proto.schema import require_small, schema_of

INPUTS_MAX = 10_000
PARALLEL_MAX = 64
CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Requests are made one after the other; streams are written in between.
BREATHES_EVERY = 20
# What a parent's id and the fence add to a line (PROTOCOL R8).
ADDED = {"added": " " * 1024}


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one input asks: as `POST /v1/turns` has it, without what belongs to a conversation."""

    message: str | None = None
    messages: list[Message] | None = None
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    max_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    options: dict[str, Any] | None = None
    schema: dict[str, Any] | None = None
    betas: list[str] | None = None
    api_version: str | None = None
    metadata: dict[str, str] | None = None
    cache: Cache | None = None
    on_interrupt: OnInterrupt = "continue"
    max_cost: float | None = None


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of a batch's: `custom_id` is the client's own name for it."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=64)]
    params: Params


class NewBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/batches`. `parallel`: how many of its turns run at once."""

    requests: Annotated[list[Input], Meta(min_length=1, max_length=INPUTS_MAX)]
    parallel: Annotated[int, Meta(ge=1, le=PARALLEL_MAX)] = 8
    metadata: dict[str, str] | None = None
    webhook: str | None = None
    """The URL that is told when the batch has ended."""


async def prepared(
    gateway: Gateway, caller: Caller, asked: NewBatch, turn: TurnId, admission: Admission
) -> entries.Request:
    """The request of a batch, whose inputs are stored. Raises Refused, LogFull, LogUnavailable."""
    session = SessionId(new_id())
    requests, estimates = await _requests(gateway, caller, asked, session)
    each, slots, parallel = await admission.batch(turn, estimates, asked.parallel)
    lines: list[entries.Request] = []
    for index, (request, holds) in enumerate(zip(requests, each, strict=True)):
        held = msgspec.structs.replace(request, holds=holds or None)
        try:
            line = await blobs.check_in(gateway, caller.tenant, held, admission)
            gateway.connection.check_size(entries.encode(line), ADDED)
        except Refused as refused:
            raise _at(index, refused) from refused
        except EntryTooLarge as error:
            raise Refused("body_too_large", f"`requests[{index}]` is too long to be stored") from error
        lines.append(line)
    inputs = batch.written(lines)
    sha256 = hashlib.sha256(inputs).hexdigest()
    await admission.stored(len(inputs))
    await gateway.bodies.put(caller.tenant, {sha256: inputs})
    first = lines[0]
    return entries.Request(
        model=first.model,
        max_tokens=first.max_tokens,
        messages=[],
        session=session,
        metadata=asked.metadata,
        by=caller.key,
        holds=slots or None,
        webhook=asked.webhook,
        batch=entries.Batch(sha256, len(inputs), len(lines), parallel),
    )


async def _requests(
    gateway: Gateway, caller: Caller, asked: NewBatch, session: SessionId
) -> tuple[list[entries.Request], list[Estimate]]:
    settings, offer = gateway.settings, await gateway.catalogue.offer(caller.tenant)
    requests: list[entries.Request] = []
    estimates: list[Estimate] = []
    names: set[str] = set()
    judged: set[bytes] = set()
    for index, given in enumerate(asked.requests):
        try:
            if CUSTOM_ID.fullmatch(given.custom_id) is None or given.custom_id in names:
                raise Refused("request_invalid", "`custom_id` is 1 to 64 of A-Z a-z 0-9 _ -, and no other's")
            names.add(given.custom_id)
            ask = Ask(**msgspec.structs.asdict(given.params))
            check(ask)
            named = {**(ask.metadata or {}), batch.CUSTOM_ID: given.custom_id}
            place = Place(session=session, new=new_messages(ask))
            request = request_of(ask, place, settings.max_tokens, offer, by=caller.key, cache=settings.cache)
            if (schema := schema_of(request.options)) is not None:
                require_small(schema)
                # Mostly all have the same, and each is judged by a process of its own.
                if (told := msgspec.json.encode(schema)) not in judged:
                    await gateway.judge.require(schema, caller.tenant)
                    judged.add(told)
        except Refused as refused:
            raise _at(index, refused) from refused
        requests.append(msgspec.structs.replace(request, metadata=named))
        estimates.append(estimate_of(request))
        if index % BREATHES_EVERY == 0:
            await asyncio.sleep(0)
    return requests, estimates


def _at(index: int, refused: Refused) -> Refused:
    return Refused(refused.code, f"`requests[{index}]`: {refused.message}", retry_after_s=refused.retry_after_s)
