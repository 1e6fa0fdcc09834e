"""The route that counts a prompt's tokens. It counts none itself: a generator asks, the answer goes back as it came."""

import asyncio
import re
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tailrace.gateway.clients.anthropic import request as messages_request
from tailrace.gateway.dependencies import Gateway, gateway_of, offer_to, tenant_of
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.turns import read_body
from tailrace.gateway.turns.request_body import ASKED_LEVELS_MAX, require_unclaimed
from tailrace.gateway.turns.respond import asked
from tailrace.proto import blobs
from tailrace.proto.depth import is_deeper
from tailrace.proto.errors import EntryTooLarge, Refused
from tailrace.proto.ids import Tenant, new_id
from tailrace.proto.model_records import COUNT_TOKENS, CountTokens, PromptFields, replace_prompt
from tailrace.proto.subjects import GENERATORS

# A list of names, as Anthropic's SDKs send it.
BETAS = re.compile(r"[\x20-\x7e]{0,2000}")
TOO_LONG = "the prompt is too long to be counted, also without its pictures, files and long texts: count it in parts"


class Prompt(msgspec.Struct, frozen=True):
    """A Messages request, of which only the model is the gateway's business: the rest is Anthropic's to judge."""

    model: str


class TokenCount(msgspec.Struct, frozen=True):
    """As much of it as may be long, when it is too long for one message."""

    messages: list[messages_request.MessageParam]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


async def count_tokens(request: Request) -> Response:
    """`POST /v1/messages/count_tokens`: how many a prompt has, as Anthropic counts them."""
    gateway, tenant = gateway_of(request), tenant_of(request)
    prompt, raw = await asked(request, Prompt)
    model = (await offer_to(request)).model(prompt.model)
    question = CountTokens(msgspec.Raw(named(raw, model.id)), betas_of(request))
    try:
        answer = await asked_of_generators(gateway, tenant, question, gateway.settings.query_timeout_s)
    except EntryTooLarge:
        # As long as it may take to come, it may take to go on.
        timeout_s = gateway.settings.query_timeout_s + gateway.settings.body_timeout_s
        holder = new_id()
        try:
            async with gateway.holds.release_after(tenant, holder):
                lifted = await lift(gateway, tenant, question, holder)
                answer = await asked_of_generators(gateway, tenant, lifted, timeout_s)
        except EntryTooLarge as error:
            raise Refused("body_too_large", TOO_LONG) from error
    return json_response(msgspec.Raw(answer))


async def asked_of_generators(gateway: Gateway, tenant: Tenant, question: CountTokens, timeout_s: float) -> bytes:
    asked = msgspec.json.encode(question)
    return await gateway.services.request(tenant, COUNT_TOKENS, asked, timeout_s=timeout_s, role=GENERATORS)


async def lift(gateway: Gateway, tenant: Tenant, question: CountTokens, holder: str) -> CountTokens:
    """The same question, with references for what is long, which is stored and held.

    Raises Refused, LogFull, LogUnavailable.
    """
    prompt = read_body.decode(bytes(question.body), TokenCount)
    told = [[message.content for message in prompt.messages], prompt.system, prompt.tools]
    if is_deeper(told, ASKED_LEVELS_MAX):
        raise Refused("request_invalid", f"the body is nested more than {ASKED_LEVELS_MAX} levels deep")
    require_unclaimed(told)
    # Elsewhere: to hash 30 MB takes 15 ms, for which every stream would stand still.
    short, lifted = await asyncio.to_thread(
        blobs.lift, PromptFields(list(prompt.messages), prompt.system, prompt.tools)
    )
    await gateway.holds.pin(tenant, holder, lifted)
    await gateway.bodies.put(tenant, lifted)
    return CountTokens(msgspec.Raw(replace_prompt(bytes(question.body), short)), question.betas, is_lifted=True)


def named(raw: bytes, model: str) -> bytes:
    """The same request, of the model by its own name."""
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return msgspec.json.encode(fields | {"model": msgspec.Raw(msgspec.json.encode(model))})


def betas_of(request: Request) -> str:
    betas = ",".join(request.headers.getlist("anthropic-beta"))
    if BETAS.fullmatch(betas) is None:
        raise Refused("request_invalid", "anthropic-beta is a list of names in visible ASCII characters")
    return betas


ROUTES = [Route("/v1/messages/count_tokens", count_tokens, methods=["POST"])]
