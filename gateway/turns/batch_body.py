"""The body of `POST /v1/batches`, and the requests that it becomes: each as it will be asked, resolved and checked.

All of it is done before the batch is accepted, so that it is refused as a whole, by the number of what is wrong in it.
"""

import asyncio
import hashlib
import re
from typing import Annotated

import msgspec
from msgspec import Meta

from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.dependencies import Gateway
from tailrace.gateway.limits.cost_estimate import Estimate
from tailrace.gateway.limits.limiter import Admission
from tailrace.gateway.turns import store_blobs
from tailrace.gateway.turns.conversation_match import Position
from tailrace.gateway.turns.request_body import NewTurn, Params, build_entry, check, new_messages
from tailrace.proto import batch, entries
from tailrace.proto.blobs import blobs_needed
from tailrace.proto.entries import Via
from tailrace.proto.errors import EntryTooLarge, Refused
from tailrace.proto.ids import SessionId, TurnId, new_id
from tailrace.proto.schema import require_small_schema, schema_of
from tailrace.proto.subjects import TurnKey

INPUTS_MAX = 10_000
PARALLEL_MAX = 64
CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Requests are made one after the other; streams are written in between.
BREATHES_EVERY = 20
# What a parent's id and the fence add to a line (PROTOCOL R8).
ADDED = {"added": " " * 1024}
TOO_MUCH = "what the prompts make of the inputs until here is longer than {most} bytes: ask in several batches"


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of a batch's: `custom_id` is the client's own name for it."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=64)]
    params: Params


class NewBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/batches`. `parallel`: how many of its turns run at once."""

    requests: Annotated[list[Input], Meta(min_length=1, max_length=INPUTS_MAX)]
    parallel: Annotated[int, Meta(ge=1, le=PARALLEL_MAX)] = 8
    via: Via = "messages"
    """`message_batches`: Anthropic's Message Batches answer it, within a day and for half the price."""
    metadata: dict[str, str] | None = None
    webhook: str | None = None
    """The webhook URL that is called when the batch has ended."""


async def build_request(
    gateway: Gateway, caller: Principal, asked: NewBatch, turn: TurnId, admission: Admission
) -> entries.Request:
    """The request of a batch, whose inputs are stored. Raises Refused, LogFull, LogUnavailable."""
    session = SessionId(new_id())
    requests, estimates = await _requests(gateway, caller, asked, session, admission)
    # Nothing of it runs here while Anthropic has it.
    at_once = asked.parallel if asked.via == "messages" else 1
    each, slots, parallel = await admission.reserve_batch(turn, estimates, at_once)
    lines: list[entries.Request] = []
    for index, (request, holds) in enumerate(zip(requests, each, strict=True)):
        held = msgspec.structs.replace(request, holds=holds or None)
        try:
            line = await store_blobs.store(gateway, TurnKey(caller.tenant, turn), held, admission)
            gateway.connection.check_size(entries.encode(line), ADDED)
        except Refused as refused:
            raise _at(index, refused) from refused
        except EntryTooLarge as error:
            raise Refused("body_too_large", f"`requests[{index}]` is too long to be stored") from error
        lines.append(line)
    inputs = batch.encode_inputs(lines)
    # Elsewhere, as in blobs.py.
    sha256 = (await asyncio.to_thread(hashlib.sha256, inputs)).hexdigest()
    await admission.count_stored_bytes(len(inputs))
    await gateway.blob_pins.pin(caller.tenant, turn, [sha256])
    await gateway.blobs.put(caller.tenant, {sha256: inputs})
    referred = sorted({name for line in lines for name in blobs_needed(line)})
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
        batch=entries.Batch(sha256, len(inputs), len(lines), parallel, referred or None),
        via=asked.via,
    )


async def _requests(
    gateway: Gateway, caller: Principal, asked: NewBatch, session: SessionId, admission: Admission
) -> tuple[list[entries.Request], list[Estimate]]:
    settings, offer = gateway.settings, await gateway.catalogue.offer(caller.tenant)
    filled = await gateway.prompts.render_all([given.params for given in asked.requests], caller.tenant)
    room = settings.body_bytes_max
    requests: list[entries.Request] = []
    estimates: list[Estimate] = []
    names: set[str] = set()
    judged: set[bytes] = set()
    first: Params | None = None
    for index, given in enumerate(asked.requests):
        try:
            if CUSTOM_ID.fullmatch(given.custom_id) is None or given.custom_id in names:
                raise Refused("request_invalid", "`custom_id` is 1 to 64 of A-Z a-z 0-9 _ -, and no other's")
            names.add(given.custom_id)
            if isinstance(params := filled[index], Refused):
                raise params
            if given.params.prompt is not None and (room := room - len(msgspec.json.encode(params))) < 0:
                # A template may say a thousand times what it is given.
                raise Refused("body_too_large", TOO_MUCH.format(most=settings.body_bytes_max))
            ask = NewTurn(**msgspec.structs.asdict(params))
            check(ask)
            if asked.via == "message_batches":
                require_alike(params, first := first or params)
            named = {**(ask.metadata or {}), batch.CUSTOM_ID: given.custom_id}
            place = Position(session=session, new=new_messages(ask))
            request = build_entry(ask, place, settings.max_tokens, offer, by=caller.key, cache=settings.cache)
            if (schema := schema_of(request.options)) is not None:
                require_small_schema(schema)
                # Mostly all have the same, and each is judged by a process of its own.
                if (told := msgspec.json.encode(schema)) not in judged:
                    await gateway.schema_checker.check_schema(schema, caller.tenant)
                    judged.add(told)
        except Refused as refused:
            raise _at(index, refused) from refused
        requests.append(msgspec.structs.replace(request, metadata=named, via=asked.via))
        estimates.append(await admission.estimate(requests[-1]))
        if index % BREATHES_EVERY == 0:
            await asyncio.sleep(0)
    return requests, estimates


def require_alike(params: Params, first: Params) -> None:
    """Raises Refused for what Anthropic's Message Batches cannot do for one input of a batch."""
    if params.max_cost is not None:
        raise Refused("request_invalid", "`max_cost` is not supported with `message_batches`; remove it")
    if (params.betas or [], params.api_version) != (first.betas or [], first.api_version):
        raise Refused("request_invalid", "`betas` and `api_version` are the same for all inputs of a message batch")


def _at(index: int, refused: Refused) -> Refused:
    return Refused(refused.code, f"`requests[{index}]`: {refused.message}", retry_after_s=refused.retry_after_s)
