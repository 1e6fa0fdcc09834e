"""A new batch: the body of `POST /v1/turn-batches`, and the entry that is built from it or another API's body.

The requests of all inputs are resolved and checked before the batch is stored: if one is not valid, the whole batch is
refused, with the index of that input.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from tailrace.features.batches import input_lines
from tailrace.gateway.auth.admission import Reserved
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.http.hash_body import hash_body
from tailrace.gateway.http.parameters import KEY_SCHEMA
from tailrace.gateway.http.route import header
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.models.offer import Offer
from tailrace.gateway.settings import Settings
from tailrace.gateway.turns.conversation_match import Position
from tailrace.gateway.turns.draft import Draft
from tailrace.gateway.turns.file_references import FileReader, has_files
from tailrace.gateway.turns.idempotency_key import AUTO, idempotency_key_of
from tailrace.gateway.turns.optional_steps import Admitted, BuiltEntry, OptionalSteps, require
from tailrace.gateway.turns.request_body import NewTurn, Params, build_entry, check_turn, new_messages
from tailrace.gateway.turns.store_blobs import RequestBlobs
from tailrace.gateway.turns.store_trace import with_trace
from tailrace.proto import entries
from tailrace.proto.blobs import blobs_needed
from tailrace.proto.entries import BatchSource, Via
from tailrace.proto.errors import CODES, Refused
from tailrace.proto.forced_tools import require_offered
from tailrace.proto.ids import SessionId, new_id
from tailrace.proto.nats import Connection
from tailrace.proto.schema import schema_of

B = TypeVar("B")

INPUTS_MAX = 10_000
PARALLEL_MAX = 64
CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Each check of a schema starts a subprocess.
SCHEMAS_MAX = 32
# The bytes that a parent's id and the fence add to a line (PROTOCOL R8).
ADDED_BYTES = 1024
KEY_OF_BATCH = header(
    "Idempotency-Key",
    "A repeated request with the same key and body gets the same batch. `auto` is refused.",
    **KEY_SCHEMA,
)

# OpenAI's limits. Each page of the list contains the metadata.
MetadataName = Annotated[str, Meta(max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input of a batch: `custom_id` is the client's own name for it."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=64)]
    """The client's own name for this input."""
    params: Params
    """The fields of the turn."""


class BatchOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a batch. `parallel`: the number of its turns that run at the same time."""

    parallel: Annotated[int, Meta(ge=1, le=PARALLEL_MAX)] = 8
    """The number of turns of the batch that run at the same time."""
    via: Via = "messages"
    """`message_batches`: Anthropic's Message Batches answer it, within a day and for half the price."""
    metadata: Annotated[dict[MetadataName, MetadataValue], Meta(max_length=16)] | None = None
    """Labels of the batch and its turns."""
    webhook: str | None = None
    """The webhook URL that is called when the batch has ended."""


class NewBatch(BatchOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/turn-batches`."""

    requests: Annotated[list[Input], Meta(min_length=1, max_length=INPUTS_MAX)]
    """The inputs, each of which becomes a turn."""


def draft_batch(request: ApiRequest, raw: bytes) -> Draft:
    """Returns the draft of a batch. Raises Refused for the idempotency key `auto`."""
    idempotency_key = idempotency_key_of(request)
    if idempotency_key == AUTO:
        raise Refused(
            "idempotency_key_invalid", "A batch does not support `auto`; send an Idempotency-Key of your own."
        )
    return Draft(request.principal, raw, idempotency_key, response_headers=request.response_headers)


class BatchBuilder:
    """Builds the request entry of a batch and stores its inputs."""

    def __init__(
        self,
        connection: Connection,
        catalogue: Catalogue,
        blobs: RequestBlobs,
        settings: Settings,
    ) -> None:
        self._connection = connection
        self._catalogue = catalogue
        self._blobs = blobs
        self._settings = settings

    async def build(self, admitted: Admitted, new: NewBatch) -> BuiltEntry:
        """Returns the request entry of a batch, whose inputs are stored. Raises Refused, LogFull, LogUnavailable."""
        inputs = await self.checker(admitted, new)
        rendered: Sequence[Params | Refused] = [one.params for one in new.requests]
        if any(one.params.prompt is not None for one in new.requests):
            render = require(admitted.steps.render_prompts, "prompt")
            rendered = await render(
                [one.params for one in new.requests], admitted.principal.tenant, self._settings.body_bytes_max
            )
        for index, one in enumerate(new.requests):
            if CUSTOM_ID.fullmatch(one.custom_id) is None or one.custom_id in inputs.names:
                where = f"requests[{index}].custom_id"
                raise Refused(
                    "request_invalid", f"`{where}` is 1 to 64 characters of A-Z a-z 0-9 _ -, unique in the batch"
                )
            try:
                if isinstance(params := rendered[index], Refused):
                    raise params
                await inputs.add(one.custom_id, NewTurn(**msgspec.structs.asdict(params)))
            except Refused as refused:
                raise _locate(index, refused) from refused
        return await self.store(admitted, inputs, new)

    async def checker(self, admitted: Admitted, new: BatchOptions, file_bytes: int = 0) -> "InputChecker":
        """Checks the webhook of a new batch. Returns the checker of its inputs, which have `file_bytes` as a file."""
        principal = admitted.principal
        if new.webhook is not None:
            require(admitted.steps.check_webhook, "webhook")(new.webhook)
        offer = await self._catalogue.offer(principal.tenant)
        size, open_files = admitted.body_bytes + file_bytes, admitted.steps.open_files
        files = None if open_files is None else open_files(principal.tenant, size, admitted.held)
        return InputChecker(principal, offer, admitted.steps, files, self._settings, new.via)

    async def store(
        self,
        admitted: Admitted,
        inputs: "InputChecker",
        new: BatchOptions,
        source: BatchSource | None = None,
        refused: Sequence[bytes] = (),
    ) -> BuiltEntry:
        """Stores the checked inputs, and the lines of `refused` requests; returns the request entry of their batch."""
        # With `message_batches` the turns do not run here, so one slot is enough.
        at_once = new.parallel if new.via == "messages" else 1
        turn = admitted.turn.turn
        reserved = Reserved([[]] * len(inputs.requests), [], at_once)
        if admitted.admission is not None:
            reserved = await admitted.admission.reserve_batch(turn, inputs.requests, at_once)
        await self._blobs.pin_until_over(admitted)
        lines: list[entries.Request] = []
        referred: set[str] = set()
        for index, (request, holds) in enumerate(zip(inputs.requests, reserved.each, strict=True)):
            try:
                line, size = await self._blobs.lift(admitted, msgspec.structs.replace(request, holds=holds or None))
            except Refused as refusal:
                raise _locate(index, refusal) from refusal
            if size + ADDED_BYTES > self._connection.client.max_payload:
                raise Refused("body_too_large", f"`requests[{index}]` is too long to be stored: shorten it")
            lines.append(line)
            # Per line, because the loop serves streams after each line: 10,000 lines take 0.1 s.
            referred.update(blobs_needed(line))
        content = input_lines.encode_inputs(lines) + b"".join(line + b"\n" for line in refused)
        sha256 = await hash_body(content)
        await self._blobs.put(admitted.own, {sha256: content}, {sha256}, admitted.admission)
        entry = entries.Request(
            model=inputs.model,
            max_tokens=lines[0].max_tokens if lines else 1,
            messages=[],
            session=inputs.session,
            metadata=new.metadata,
            user=admitted.principal.user,
            by=admitted.principal.key,
            holds=reserved.slots or None,
            webhook=new.webhook,
            batch=entries.Batch(sha256, len(content), len(lines), reserved.parallel, sorted(referred) or None, source),
            via=new.via,
        )
        return with_trace(admitted.turn, entry), 0


class InputChecker:
    """Checks the inputs of one batch, and collects their request entries."""

    def __init__(
        self,
        principal: Principal,
        offer: Offer,
        steps: OptionalSteps,
        files: FileReader | None,
        settings: Settings,
        via: Via,
    ) -> None:
        self.offer = offer
        self.session = SessionId(new_id())
        self.names: set[str] = set()
        self.requests: list[entries.Request] = []
        self._principal = principal
        self._steps = steps
        self._files = files
        self._settings = settings
        self._via = via
        self._checked_schemas: dict[bytes, Refused | None] = {}
        self._first: Params | None = None

    @property
    def model(self) -> str:
        """The model of the first input; the default one if there is none."""
        return self.requests[0].model if self.requests else self.offer.model(None).id

    async def add(self, custom_id: str, new_turn: NewTurn) -> None:
        """Adds an input. Raises Refused if it cannot become a turn."""
        check_turn(new_turn)
        if new_turn.on_disconnect != "continue":
            require(self._steps.check_on_disconnect, "on_disconnect")(new_turn.on_disconnect)
        if new_turn.on_busy == "queue":
            require(self._steps.check_queue, "on_busy: queue")(new_turn)
        if new_turn.max_cost is not None:
            require(self._steps.check_max_cost, "max_cost")(new_turn.max_cost)
        if new_turn.messages is not None and has_files([message.content for message in new_turn.messages]):
            messages = await require(self._files, "file_id").insert(new_turn.messages)
            new_turn = msgspec.structs.replace(new_turn, messages=messages)
        if self._via == "message_batches":
            self._first = self._first or new_turn
            require_alike(new_turn, self._first)
        settings = self._settings
        position = Position(session=self.session, new=new_messages(new_turn))
        request = build_entry(
            new_turn,
            position,
            settings.max_tokens,
            self.offer,
            credential=self._principal.key,
            user=self._principal.user,
            cache=settings.cache,
        )
        require_offered(request)
        if (schema := schema_of(request.options)) is not None:
            await self._check_schema(schema)
        metadata = {**(new_turn.metadata or {}), input_lines.CUSTOM_ID: custom_id}
        request = msgspec.structs.replace(request, metadata=metadata, via=self._via)
        self.names.add(custom_id)
        self.requests.append(request)
        # An input of many messages takes 30 ms. Other tasks, which write streams, run after each.
        await asyncio.sleep(0)

    async def _check_schema(self, schema: dict[str, Any]) -> None:
        """Checks each of the inputs' schemas once: usually all have the same one. Raises Refused."""
        encoded, checked = msgspec.json.encode(schema), self._checked_schemas
        if encoded not in checked:
            if len(checked) == SCHEMAS_MAX:
                raise Refused("request_invalid", f"a batch has at most {SCHEMAS_MAX} different schemas: create several")
            try:
                await require(self._steps.check_schema, "schema")(schema, self._principal.tenant)
                checked[encoded] = None
            except Refused as refusal:
                if CODES[refusal.code].is_retryable:
                    raise
                checked[encoded] = refusal
        if (known := checked[encoded]) is not None:
            raise known


async def add_all(
    inputs: Iterable[tuple[str, B]],
    add: Callable[[str, B], Awaitable[None]],
    refused_line: Callable[[str, Refused], object],
) -> list[bytes]:
    """Adds the requests of another API, by their custom id. Returns the lines of those that their route would refuse.

    Raises Refused for a retryable refusal.
    """
    lines: list[bytes] = []
    for name, body in inputs:
        try:
            await add(name, body)
        except Refused as refusal:
            if CODES[refusal.code].is_retryable:
                raise
            lines.append(msgspec.json.encode(refused_line(name, refusal)))
            await asyncio.sleep(0)
    return lines


def require_alike(params: Params, first: Params) -> None:
    """Raises Refused for features of an input that Anthropic's Message Batches do not support."""
    if params.max_cost is not None:
        raise Refused("request_invalid", "`max_cost` is not supported with `message_batches`; remove it")
    if (params.betas or [], params.api_version) != (first.betas or [], first.api_version):
        raise Refused("request_invalid", "`betas` and `api_version` are the same for all inputs of a message batch")


def _locate(index: int, refused: Refused) -> Refused:
    where = f"requests[{index}]"
    param = where if refused.param is None else f"{where}.params.{refused.param}"
    return Refused(refused.code, f"`{where}`: {refused.message}", param=param, retry_after_s=refused.retry_after_s)
