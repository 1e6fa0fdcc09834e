"""A new batch: the body of `POST /v1/turn-batches`, and the entry that is built from it or another API's body.

The requests of all inputs are resolved and checked before the batch is stored: if one is not valid, the whole batch is
refused, with the index of that input.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from tailrace.features.batches import input_lines
from tailrace.features.batches.records import StoredBatch, stored_batch
from tailrace.gateway.auth.admission import Admission, Reserved
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.http.hash_body import hash_body
from tailrace.gateway.http.parameters import KEY_SCHEMA
from tailrace.gateway.http.route import header
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.models.offer import Offer
from tailrace.gateway.settings import Settings
from tailrace.gateway.turns.conversation_match import Position
from tailrace.gateway.turns.draft import Draft, Stored
from tailrace.gateway.turns.file_references import FileReader, has_files
from tailrace.gateway.turns.idempotency_key import AUTO, idempotency_key_of
from tailrace.gateway.turns.optional_steps import OptionalSteps, check_fields
from tailrace.gateway.turns.request_body import NewTurn, Params, build_entry, check_turn, new_messages
from tailrace.gateway.turns.store_blobs import RequestBlobs
from tailrace.gateway.turns.submit import UNCLEAR, BuiltEntry, TurnSubmitter
from tailrace.proto import entries
from tailrace.proto.blobs import blobs_needed
from tailrace.proto.entries import BatchSource, Via
from tailrace.proto.errors import CODES, LogUnavailable, Refused
from tailrace.proto.forced_tools import require_offered
from tailrace.proto.ids import SessionId, Tenant, TurnKey, new_id
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.ownership import ScopedKey, owned_key
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
    """Labels of the batch and its turns. Those of an input replace labels of the same name."""
    webhook: str | None = None
    """The webhook URL that is called when the batch has ended."""


class NewBatch(BatchOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/turn-batches`."""

    requests: Annotated[list[Input], Meta(min_length=1, max_length=INPUTS_MAX)]
    """The inputs, each of which becomes a turn."""


AddInputs = Callable[["InputChecker"], Awaitable[tuple[BatchSource | None, Sequence[bytes]]]]
"""Adds the inputs of a batch. Returns their source, and the lines of the requests that were refused."""


def draft_batch(request: ApiRequest, raw: bytes) -> Draft:
    """Returns the draft of a batch. Raises Refused for the idempotency key `auto`."""
    idempotency_key = idempotency_key_of(request)
    if idempotency_key == AUTO:
        raise Refused(
            "idempotency_key_invalid", "A batch does not support `auto`; send an Idempotency-Key of your own."
        )
    if idempotency_key is not None:
        idempotency_key = owned_key(request.access, idempotency_key)
    path, headers = request.scope["path"], request.response_headers
    return Draft(request.principal, raw, idempotency_key, path=path, response_headers=headers)


async def read_new(log: TurnLog, key: ScopedKey, draft: Draft) -> StoredBatch:
    """Returns the record of a batch that `draft` has stored. Raises LogUnavailable."""
    try:
        return stored_batch(key.plain, await log.read_turn(key))
    except LogUnavailable as error:
        # The SDKs send no key: their repetition would be a second batch.
        raise LogUnavailable(UNCLEAR, may_repeat=draft.is_repeatable) from error


class BatchBuilder:
    """Builds the request entry of a batch and stores its inputs."""

    def __init__(
        self,
        connection: Connection,
        catalogue: Catalogue,
        blobs: RequestBlobs,
        settings: Settings,
        submitter: TurnSubmitter,
    ) -> None:
        self._connection = connection
        self._catalogue = catalogue
        self._blobs = blobs
        self._settings = settings
        self._submitter = submitter

    async def submit(self, draft: Draft, new: BatchOptions, add: AddInputs) -> Stored:
        """Stores a batch of the inputs that `add` adds. Raises Refused, LogError."""
        return await self._submitter.store(draft, partial(self._build, new=new, add=add))

    async def add_inputs(
        self, inputs: "InputChecker", *, tenant: Tenant, new: NewBatch
    ) -> tuple[None, Sequence[bytes]]:
        """Adds the inputs of Tailrace's own API. Raises Refused, LogUnavailable."""
        rendered: Sequence[Params | Refused] = [one.params for one in new.requests]
        if any(one.params.prompt is not None for one in new.requests):
            rendered = await self._submitter.steps.render_prompts(
                [one.params for one in new.requests], tenant, self._settings.body_bytes_max
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
                fields = msgspec.structs.asdict(params)
                fields["metadata"] = {**(new.metadata or {}), **(params.metadata or {})} or None
                await inputs.add(one.custom_id, NewTurn(**fields))
            except Refused as refused:
                raise _locate(index, refused) from refused
        return None, ()

    async def _build(
        self,
        draft: Draft,
        own: TurnKey,
        turn: TurnKey,
        admission: Admission | None,
        held: AsyncExitStack,
        *,
        new: BatchOptions,
        add: AddInputs,
    ) -> BuiltEntry:
        """Returns the request entry of a batch, whose inputs are checked and stored. Raises Refused, LogError."""
        steps, principal = self._submitter.steps, draft.principal
        check_fields(steps, NewTurn(webhook=new.webhook))
        offer = await self._catalogue.offer(own.tenant)
        inputs = InputChecker(draft, offer, steps, held, self._settings, new.via, self._submitter.pseudonym)
        source, refused = await add(inputs)
        # With `message_batches` the turns do not run here, so one slot is enough.
        at_once = new.parallel if new.via == "messages" else 1
        reserved = Reserved([[]] * len(inputs.requests), [], [], at_once)
        if admission is not None:
            reserved = await admission.reserve_batch(turn.turn, inputs.requests, at_once)
        await held.enter_async_context(self._blobs.hold_pins(own))
        lines: list[entries.Request] = []
        referred: set[str] = set()
        for index, (request, holds) in enumerate(zip(inputs.requests, reserved.each, strict=True)):
            try:
                line, size = await self._blobs.lift(
                    own, msgspec.structs.replace(request, holds=holds or None), admission
                )
            except Refused as refusal:
                raise _locate(index, refusal) from refusal
            if size + ADDED_BYTES > self._connection.client.max_payload:
                raise Refused("body_too_large", f"`requests[{index}]` is too long to be stored: shorten it")
            lines.append(line)
            # Per line, because the loop serves streams after each line: 10,000 lines take 0.1 s.
            referred.update(blobs_needed(line))
        content = input_lines.encode_inputs(lines) + b"".join(line + b"\n" for line in refused)
        sha256 = await hash_body(content)
        await self._blobs.put(own, {sha256: content}, {sha256}, admission)
        entry = entries.Request(
            model=inputs.model,
            max_tokens=lines[0].max_tokens if lines else 1,
            messages=[],
            session=inputs.session,
            metadata=new.metadata,
            user=principal.user,
            owner=principal.user,
            by=principal.key,
            holds=reserved.slots or None,
            webhook=new.webhook,
            batch=entries.Batch(
                sha256,
                len(content),
                len(lines),
                reserved.parallel,
                sorted(referred) or None,
                source,
                reserved.together or None,
            ),
            via=new.via,
        )
        return entry, 0


class InputChecker:
    """Checks the inputs of one batch, and collects their request entries."""

    def __init__(
        self,
        draft: Draft,
        offer: Offer,
        steps: OptionalSteps,
        held: AsyncExitStack,
        settings: Settings,
        via: Via,
        pseudonym: Callable[[str], str],
    ) -> None:
        """`held` holds the memory of large files until the batch is stored."""
        self.offer = offer
        self.held = held
        self.session = SessionId(new_id())
        self.names: set[str] = set()
        self.requests: list[entries.Request] = []
        self.added_bytes = 0
        """The bytes of the inputs that are not in the request's body."""
        self._draft = draft
        self._steps = steps
        self._files: FileReader | None = None
        self._settings = settings
        self._via = via
        self._pseudonym = pseudonym
        self._checked_schemas: dict[bytes, Refused | None] = {}
        self._first: Params | None = None

    @property
    def model(self) -> str:
        """The model of the first input; the default one if there is none."""
        return self.requests[0].model if self.requests else self.offer.model(None).id

    async def add(self, custom_id: str, new_turn: NewTurn) -> None:
        """Adds an input. Raises Refused if it cannot become a turn."""
        check_turn(new_turn)
        check_fields(self._steps, new_turn)
        principal = self._draft.principal
        if new_turn.messages is not None and has_files([message.content for message in new_turn.messages]):
            if self._files is None:
                size = self._draft.body_bytes + self.added_bytes
                self._files = self._steps.open_files(principal.access, size, self.held)
            new_turn = msgspec.structs.replace(new_turn, messages=await self._files.insert(new_turn.messages))
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
            pseudonym=self._pseudonym,
            principal=principal,
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
                await self._steps.check_schema(schema, self._draft.principal.access.tenant)
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
