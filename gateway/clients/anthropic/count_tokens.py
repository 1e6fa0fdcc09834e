"""`POST /v1/messages/count_tokens`: a generator asks Anthropic's API, and its answer is passed on unchanged."""

import asyncio
import re
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.routing import Route

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.clients.anthropic.request import MessageParam
from tailrace.gateway.http import read_body
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.settings import Settings
from tailrace.gateway.turns.request_body import BODY_LEVELS_MAX, require_unclaimed
from tailrace.proto import blobs
from tailrace.proto.depth import is_deeper
from tailrace.proto.errors import EntryTooLarge, Refused
from tailrace.proto.ids import Tenant, new_id
from tailrace.proto.model_records import COUNT_TOKENS, CountTokens, PromptFields, replace_prompt
from tailrace.proto.nats import BlobPins, BlobStore, Rpc
from tailrace.proto.subjects import GENERATORS

# A comma-separated list of names, as Anthropic's SDKs send it.
BETAS = re.compile(r"[\x20-\x7e]{0,2000}")
TOO_LONG = "the prompt is too long to be counted, even without its images, files and long texts: count it in parts"


class CountTokensRequest(msgspec.Struct, frozen=True):
    """A Messages request. The gateway reads only the model; Anthropic's API validates the rest."""

    model: str


class LongFields(msgspec.Struct, frozen=True):
    """The fields of a prompt that may be too long for one NATS message."""

    messages: list[MessageParam]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


async def post_count_tokens(
    request: ApiRequest, catalogue: Catalogue, rpc: Rpc, blob_store: BlobStore, blob_pins: BlobPins, settings: Settings
) -> Response:
    """`POST /v1/messages/count_tokens`: returns the number of tokens in a prompt, as Anthropic counts them."""
    tenant = request.tenant
    body, raw = await request.read(CountTokensRequest)
    model = (await catalogue.offer(tenant)).model(body.model)
    query = CountTokens(msgspec.Raw(with_model(raw, model.id)), betas_of(request))
    try:
        answer = await ask_generator(rpc, tenant, query, settings.query_timeout_s)
    except EntryTooLarge:
        # Passing a long body on may take as long as receiving it.
        timeout_s = settings.query_timeout_s + settings.body_timeout_s
        holder = new_id()
        try:
            async with blob_pins.release_after(tenant, holder):
                shortened = await store_long_fields(blob_store, blob_pins, tenant, query, holder)
                answer = await ask_generator(rpc, tenant, shortened, timeout_s)
        except EntryTooLarge as error:
            raise Refused("body_too_large", TOO_LONG) from error
    return json_response(msgspec.Raw(answer))


async def ask_generator(rpc: Rpc, tenant: Tenant, query: CountTokens, timeout_s: float) -> bytes:
    """Returns the answer of Anthropic's API as JSON. Raises EntryTooLarge for a query too long for one message."""
    payload = msgspec.json.encode(query)
    return await rpc.request(tenant, COUNT_TOKENS, payload, timeout_s=timeout_s, role=GENERATORS)


async def store_long_fields(
    blob_store: BlobStore, blob_pins: BlobPins, tenant: Tenant, query: CountTokens, holder: str
) -> CountTokens:
    """Stores long strings of the prompt as blobs, pinned by `holder`. Returns the query with references to them.

    Raises Refused, LogFull, LogUnavailable.
    """
    prompt = read_body.decode(bytes(query.body), LongFields)
    content = [[message.content for message in prompt.messages], prompt.system, prompt.tools]
    if is_deeper(content, BODY_LEVELS_MAX):
        raise Refused("request_invalid", f"the body is nested more than {BODY_LEVELS_MAX} levels deep")
    require_unclaimed(content)
    # In a thread: hashing 30 MB takes 15 ms, during which no stream would advance.
    short, lifted = await asyncio.to_thread(
        blobs.lift, PromptFields(list(prompt.messages), prompt.system, prompt.tools)
    )
    await blob_pins.pin(tenant, holder, lifted)
    await blob_store.put(tenant, lifted)
    return CountTokens(msgspec.Raw(replace_prompt(bytes(query.body), short)), query.betas, is_lifted=True)


def with_model(raw: bytes, model: str) -> bytes:
    """Returns the request with `model`, the name that Anthropic's API knows, instead of an alias."""
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return msgspec.json.encode(fields | {"model": msgspec.Raw(msgspec.json.encode(model))})


def betas_of(request: ApiRequest) -> str:
    betas = ",".join(request.headers.getlist("anthropic-beta"))
    if BETAS.fullmatch(betas) is None:
        raise Refused("request_invalid", "anthropic-beta must be a list of names in visible ASCII characters")
    return betas


ROUTES = [Route("/v1/messages/count_tokens", post_count_tokens, methods=["POST"])]
