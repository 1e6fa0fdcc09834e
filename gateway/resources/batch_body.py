"""The body of `POST /v1/turn-batches`, and the entry that is built from it.

The requests of all inputs are resolved and checked before the batch is stored: if one is not valid, the whole batch is
refused, with the index of that input.
"""

import asyncio
import hashlib
import re
from typing import Annotated

import msgspec
from msgspec import Meta

from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.limits.cost_estimate import Estimate
from tailrace.gateway.limits.limiter import Admission, Limiter
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.prompts.templates import Prompts
from tailrace.gateway.settings import Settings
from tailrace.gateway.turns.conversation_match import Position
from tailrace.gateway.turns.request_body import NewTurn, Params, build_entry, check, new_messages
from tailrace.gateway.turns.store_blobs import RequestBlobs
from tailrace.gateway.turns.store_trace import with_trace
from tailrace.gateway.turns.submission import Submission
from tailrace.proto import batch, entries
from tailrace.proto.blobs import blobs_needed
from tailrace.proto.entries import Via
from tailrace.proto.errors import EntryTooLarge, Refused
from tailrace.proto.ids import SessionId, new_id
from tailrace.proto.nats import Connection
from tailrace.proto.runtime.json_schema import SchemaChecker
from tailrace.proto.schema import require_small_schema, schema_of

INPUTS_MAX = 10_000
PARALLEL_MAX = 64
CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# After so many requests the loop may run other tasks, which write streams.
YIELD_EVERY = 20
# The bytes that a parent's id and the fence add to a line (PROTOCOL R8).
ADDED = {"added": " " * 1024}
TOO_MUCH = "what the prompts make of the inputs until here is longer than {most} bytes: ask in several batches"


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of a batch's: `custom_id` is the client's own name for it."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=64)]
    params: Params


class NewBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/turn-batches`. `parallel`: how many of its turns run at once."""

    requests: Annotated[list[Input], Meta(min_length=1, max_length=INPUTS_MAX)]
    parallel: Annotated[int, Meta(ge=1, le=PARALLEL_MAX)] = 8
    via: Via = "messages"
    """`message_batches`: Anthropic's Message Batches answer it, within a day and for half the price."""
    metadata: dict[str, str] | None = None
    webhook: str | None = None
    """The webhook URL that is called when the batch has ended."""


class BatchBuilder:
    """Builds the request entry of a batch and stores its inputs."""

    def __init__(
        self,
        connection: Connection,
        catalogue: Catalogue,
        prompts: Prompts,
        schema_checker: SchemaChecker,
        limiter: Limiter,
        blobs: RequestBlobs,
        settings: Settings,
    ) -> None:
        self._connection = connection
        self._catalogue = catalogue
        self._prompts = prompts
        self._schema_checker = schema_checker
        self._limiter = limiter
        self._blobs = blobs
        self._settings = settings

    async def build(self, submission: Submission, new: NewBatch) -> entries.Request:
        """Returns the request entry of a batch, whose inputs are stored. Raises Refused, LogFull, LogUnavailable."""
        # Without limits the admission reserves nothing.
        admission = submission.admission or self._limiter.admission(submission.principal)
        session = SessionId(new_id())
        requests, estimates = await self._requests(submission.principal, new, session, admission)
        # With `message_batches` the turns do not run here, so one slot is enough.
        at_once = new.parallel if new.via == "messages" else 1
        each, slots, parallel = await admission.reserve_batch(submission.turn.turn, estimates, at_once)
        await self._blobs.pin_until_over(submission)
        lines: list[entries.Request] = []
        for index, (request, holds) in enumerate(zip(requests, each, strict=True)):
            try:
                line, _ = await self._blobs.lift(submission, msgspec.structs.replace(request, holds=holds or None))
                self._connection.check_size(entries.encode(line), ADDED)
            except Refused as refused:
                raise _at(index, refused) from refused
            except EntryTooLarge as error:
                raise Refused("body_too_large", f"`requests[{index}]` is too long to be stored") from error
            lines.append(line)
        inputs = batch.encode_inputs(lines)
        # In a thread, as in store_blobs.py.
        sha256 = (await asyncio.to_thread(hashlib.sha256, inputs)).hexdigest()
        await self._blobs.put(submission.turn, {sha256: inputs}, {sha256}, submission.admission)
        referred = sorted({name for line in lines for name in blobs_needed(line)})
        first = lines[0]
        entry = entries.Request(
            model=first.model,
            max_tokens=first.max_tokens,
            messages=[],
            session=session,
            metadata=new.metadata,
            by=submission.principal.key,
            holds=slots or None,
            webhook=new.webhook,
            batch=entries.Batch(sha256, len(inputs), len(lines), parallel, referred or None),
            via=new.via,
        )
        return with_trace(submission.turn, entry)

    async def _requests(
        self, principal: Principal, new: NewBatch, session: SessionId, admission: Admission
    ) -> tuple[list[entries.Request], list[Estimate]]:
        """Returns the request and the estimate of each input. Raises Refused with the index of an input."""
        settings, offer = self._settings, await self._catalogue.offer(principal.tenant)
        rendered = await self._prompts.render_all([one.params for one in new.requests], principal.tenant)
        bytes_left = settings.body_bytes_max
        requests: list[entries.Request] = []
        estimates: list[Estimate] = []
        names: set[str] = set()
        checked_schemas: set[bytes] = set()
        first: Params | None = None
        for index, one in enumerate(new.requests):
            try:
                if CUSTOM_ID.fullmatch(one.custom_id) is None or one.custom_id in names:
                    raise Refused("request_invalid", "`custom_id` is 1 to 64 of A-Z a-z 0-9 _ -, and no other's")
                names.add(one.custom_id)
                if isinstance(params := rendered[index], Refused):
                    raise params
                if one.params.prompt is not None:
                    # A template may repeat its variables a thousand times.
                    bytes_left -= len(msgspec.json.encode(params))
                    if bytes_left < 0:
                        raise Refused("body_too_large", TOO_MUCH.format(most=settings.body_bytes_max))
                new_turn = NewTurn(**msgspec.structs.asdict(params))
                check(new_turn)
                if new.via == "message_batches":
                    require_alike(params, first := first or params)
                position = Position(session=session, new=new_messages(new_turn))
                request = build_entry(
                    new_turn, position, settings.max_tokens, offer, credential=principal.key, cache=settings.cache
                )
                if (schema := schema_of(request.options)) is not None:
                    require_small_schema(schema)
                    # Usually all inputs have the same schema, and each check starts a subprocess.
                    if (encoded := msgspec.json.encode(schema)) not in checked_schemas:
                        await self._schema_checker.check_schema(schema, principal.tenant)
                        checked_schemas.add(encoded)
            except Refused as refused:
                raise _at(index, refused) from refused
            metadata = {**(new_turn.metadata or {}), batch.CUSTOM_ID: one.custom_id}
            requests.append(msgspec.structs.replace(request, metadata=metadata, via=new.via))
            estimates.append(await admission.estimate(requests[-1]))
            if index % YIELD_EVERY == 0:
                await asyncio.sleep(0)
        return requests, estimates


def require_alike(params: Params, first: Params) -> None:
    """Raises Refused for what Anthropic's Message Batches cannot do for one input of a batch."""
    if params.max_cost is not None:
        raise Refused("request_invalid", "`max_cost` is not supported with `message_batches`; remove it")
    if (params.betas or [], params.api_version) != (first.betas or [], first.api_version):
        raise Refused("request_invalid", "`betas` and `api_version` are the same for all inputs of a message batch")


def _at(index: int, refused: Refused) -> Refused:
    where = f"requests[{index}]"
    param = where if refused.param is None else f"{where}.{refused.param}"
    return Refused(refused.code, f"`{where}`: {refused.message}", param=param, retry_after_s=refused.retry_after_s)
