"""`POST /v1/messages/count_tokens`: a generator asks Anthropic's API, and its answer is passed on unchanged."""

import asyncio
import re
from typing import Any

import msgspec
from starlette.responses import Response

from tailrace.features.count_tokens.records import COUNT_TOKENS, CountTokens, PromptFields, TokenCount
from tailrace.gateway.auth.admission import Admissions
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http import read_body
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.large_bodies import SMALL_BYTES_MAX
from tailrace.gateway.http.parameters import BETA
from tailrace.gateway.http.route import Route
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.settings import Settings
from tailrace.gateway.turns.account_choice import refuse_account_fields, refuse_account_headers
from tailrace.gateway.turns.api_version import SAMPLING, version_for
from tailrace.gateway.turns.file_references import has_files
from tailrace.gateway.turns.image_types import with_image_types
from tailrace.gateway.turns.request_body import (
    API_VERSION,
    BODY_LEVELS_MAX,
    MessageParam,
    nested_values,
    refuse_blob_references,
)
from tailrace.gateway.turns.store_blobs import RequestBlobs
from tailrace.gateway.turns.submit import TurnSubmitter
from tailrace.gateway.turns.user_ids import with_opaque_user
from tailrace.proto import blobs
from tailrace.proto.depth import is_deeper
from tailrace.proto.errors import EntryTooLarge, Refused
from tailrace.proto.ids import TurnId, TurnKey, new_id
from tailrace.proto.nats import Rpc
from tailrace.proto.runtime.settings import NoSettings
from tailrace.proto.subjects import GENERATORS
from tailrace.proto.tool_ids import map_tool_ids
from tailrace.protocols.anthropic.routes import SECTION

# A comma-separated list of names, as Anthropic's SDKs send it.
BETAS = re.compile(r"[\x20-\x7e]{0,2000}")
TOO_LONG = "the prompt is too long to be counted, even without its images, files and long texts: count it in parts"


class CountTokensRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The prompt of a Messages request. The gateway reads it only if it is large or has files."""

    model: str | None = None
    """The model whose tokens are counted."""
    messages: list[MessageParam]
    """The conversation, oldest message first."""
    system: str | list[dict[str, Any]] | None = None
    """The system prompt, as a string or as text blocks."""
    tools: list[dict[str, Any]] | None = None
    """The tools that the model may call."""


class ReadFields(msgspec.Struct, frozen=True):
    """The fields that the gateway reads of a small CountTokensRequest. The model's API checks the messages."""

    messages: list[Any]
    model: str | None = None


async def post_count_tokens(
    request: ApiRequest,
    catalogue: Catalogue,
    rpc: Rpc,
    request_blobs: RequestBlobs,
    admissions: Admissions,
    settings: Settings,
    submitter: TurnSubmitter,
) -> Response:
    """`POST /v1/messages/count_tokens`: returns the number of tokens in a prompt, as Anthropic counts them.

    The request is the same as for `POST /v1/messages`. No answer is generated.
    """
    scope, timeout_s = request.access, settings.query_timeout_s
    # Not the key of a turn: an id that pins the blobs until they are counted.
    key = TurnKey(scope.tenant, TurnId(new_id()))
    fields, raw = await request.read(dict[str, Any], has_model_output=True)
    refuse_account_headers(request.headers)
    refuse_account_fields(fields)
    body = read_body.convert(fields, ReadFields)
    # The name that Anthropic's API knows, instead of an alias.
    fields["model"] = (await catalogue.offer(scope.tenant)).model(body.model).id
    fields = with_opaque_user(fields, submitter.pseudonym)
    betas, is_large = betas_of(request), len(raw) > SMALL_BYTES_MAX
    messages = fields["messages"] = _as_in_calls(body.messages)
    version = request.headers.get("anthropic-version")
    if version is None:
        # These fields do not change the count.
        fields = {name: value for name, value in fields.items() if name not in SAMPLING}
        pairs = [(one.get("role"), one.get("content")) for one in messages if isinstance(one, dict)]
        version = version_for(pairs)
    elif API_VERSION.fullmatch(version) is None:
        raise Refused("request_invalid", "anthropic-version is not a date such as 2026-10-21")
    if has_files([one.get("content") for one in messages if isinstance(one, dict)]):
        files = submitter.steps.open_files(scope, len(raw), request.until_answered)
        inlined = await files.insert(read_body.convert(messages, list[MessageParam]))
        fields["messages"], is_large = msgspec.to_builtins(inlined), True
    async with request_blobs.hold_pins(key):
        if is_large:
            fields |= await store_long_strings(request_blobs, key, fields, admissions, request.principal)
            # Passing a large body on may take as long as receiving it.
            timeout_s += settings.body_timeout_s
        query = CountTokens(msgspec.Raw(msgspec.json.encode(fields)), betas, is_large, version)
        try:
            answer = await rpc.request(
                scope.tenant, COUNT_TOKENS, msgspec.json.encode(query), timeout_s=timeout_s, role=GENERATORS
            )
        except EntryTooLarge as error:
            raise Refused("body_too_large", TOO_LONG) from error
    return json_response(msgspec.Raw(answer))


def _as_in_calls(messages: list[Any]) -> list[Any]:
    """Returns the messages of a body with the image types and tool call ids (PROTOCOL R130) of a model call."""
    contents = [one.get("content") if isinstance(one, dict) else None for one in messages]
    mapped = map_tool_ids([with_image_types(one) if isinstance(one, list) else one for one in contents])
    return [
        one if new is old else {**one, "content": new} for one, old, new in zip(messages, contents, mapped, strict=True)
    ]


async def store_long_strings(
    request_blobs: RequestBlobs, key: TurnKey, fields: dict[str, Any], admissions: Admissions, principal: Principal
) -> dict[str, Any]:
    """Stores the long strings of a prompt as blobs, pinned for `key`. Returns its fields with references to them.

    Their bytes count against the same limits as the blobs of a turn. Raises Refused, LogFull, LogUnavailable.
    """
    prompt = read_body.convert(fields, CountTokensRequest)
    content = [nested_values(prompt.messages), prompt.system, prompt.tools]
    if is_deeper(content, BODY_LEVELS_MAX):
        raise Refused("request_invalid", f"the body is nested more than {BODY_LEVELS_MAX} levels deep")
    refuse_blob_references(content)
    # In a thread: hashing 30 MB takes 15 ms, during which no stream would advance.
    short, lifted = await asyncio.to_thread(
        blobs.lift, PromptFields(list(prompt.messages), prompt.system, prompt.tools)
    )
    async with admissions.open(principal) as admission:
        await request_blobs.put(key, lifted, set(lifted), admission)
    return dict(msgspec.to_builtins(short))


def betas_of(request: ApiRequest) -> str:
    """Returns all `anthropic-beta` headers, joined by commas. Raises Refused if too long or not ASCII."""
    betas = ",".join(request.headers.getlist("anthropic-beta"))
    if BETAS.fullmatch(betas) is None:
        raise Refused("request_invalid", "anthropic-beta must be a list of names in visible ASCII characters")
    return betas


ROUTES = [
    Route(
        "POST",
        "/v1/messages/count_tokens",
        post_count_tokens,
        "write",
        SECTION,
        body=CountTokensRequest,
        result=TokenCount,
        parameters=(BETA,),
    ),
]

FEATURE = Feature(NoSettings, lambda _gateway, _settings: Parts(), routes=ROUTES)
