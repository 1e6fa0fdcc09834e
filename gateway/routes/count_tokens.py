"""The route that counts a prompt's tokens. It counts none itself: a generator asks, the answer goes back as it came."""

import re

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.answer import asked
from gateway.context import gateway_of, offer_to, tenant_of
from gateway.json_response import json_response
from proto.errors import EntryTooLarge, Refused
from proto.model_records import COUNT_TOKENS, AskTokenCount
from proto.subjects import GENERATORS

# A list of names, as Anthropic's SDKs send it.
BETAS = re.compile(r"[\x20-\x7e]{0,2000}")


class Prompt(msgspec.Struct, frozen=True):
    """A Messages request, of which only the model is the gateway's business: the rest is Anthropic's to judge."""

    model: str


async def count_tokens(request: Request) -> Response:
    """`POST /v1/messages/count_tokens`: how many a prompt has, as Anthropic counts them."""
    gateway, tenant = gateway_of(request), tenant_of(request)
    prompt, raw = await asked(request, Prompt)
    model = (await offer_to(request)).model(prompt.model)
    question = msgspec.json.encode(AskTokenCount(msgspec.Raw(named(raw, model.id)), betas_of(request)))
    try:
        answer = await gateway.services.ask(
            tenant, COUNT_TOKENS, question, timeout_s=gateway.settings.query_timeout_s, role=GENERATORS
        )
    except EntryTooLarge as error:
        too_long = "the prompt is too long to be counted here: count it without pictures and files"
        raise Refused("body_too_large", too_long) from error
    return json_response(msgspec.Raw(answer))


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
