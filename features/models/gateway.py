"""Routes of models: the available ones, their limits, features and prices."""

from starlette.requests import Request
from starlette.responses import Response

from tailrace.features.models.card import (
    LIMIT_MAX,
    ModelCard,
    ModelPage,
    ModelSheets,
    build_card,
    build_page,
    build_sheet,
)
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.parameters import AZURE, BETA, SENT_BY_SDKS
from tailrace.gateway.http.route import MODELS, Route, query
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.resources.paging import limit_of
from tailrace.proto.errors import Refused
from tailrace.proto.models import find_model
from tailrace.proto.runtime.settings import NoSettings

LIFECYCLES = ("active", "deprecated", "retired")


async def models(request: ApiRequest, catalogue: Catalogue) -> Response:
    """`GET /v1/models`: OpenAI's list and Anthropic's page in one body, with Anthropic's parameters.

    The ids can be sent as `model`. Retired models are listed with `lifecycle[]=retired`.
    """
    offer, query = await catalogue.offer(request.access.tenant), request.query_params
    wanted = lifecycles_of(request)
    cards = [build_card(model, offer.listed) for model in offer.models if model.lifecycle in wanted]
    cursors = {name: query.get(name) for name in ("after_id", "before_id")}
    # Without `limit`, list all models: the openai SDKs do not page this list.
    limit = limit_of(request, LIMIT_MAX, LIMIT_MAX)
    return json_response(build_page(cards, limit=limit, is_simulated=offer.is_simulated, **cursors))


async def model(request: ApiRequest, catalogue: Catalogue) -> Response:
    """`GET /v1/models/{model}`: one model, by any of its names.

    An alias or another name leads to the same model.
    """
    offer = await catalogue.offer(request.access.tenant)
    found = offer.model(request.path_params["model"])
    # A dated name has the card of its model.
    return json_response(build_card(find_model(found.id) or found, offer.listed))


async def capabilities(request: ApiRequest, catalogue: Catalogue) -> Response:
    """`GET /v1/models/capabilities`: limits, prices and supported parameters of each model.

    Unknown values are left out.
    """
    offer = await catalogue.offer(request.access.tenant)
    return json_response(ModelSheets(data=[build_sheet(model, offer.listed) for model in offer.models]))


def lifecycles_of(request: Request) -> list[str]:
    """Returns the lifecycles in the query; without any, all but `retired`. Raises Refused for an unknown one."""
    wanted = request.query_params.getlist("lifecycle[]") or ["active", "deprecated"]
    if not set(wanted) <= set(LIFECYCLES):
        raise Refused("request_invalid", f"`lifecycle[]` must be one of {', '.join(LIFECYCLES)}")
    return wanted


LISTING = (
    query("limit", "The maximum number of models.", type="integer", minimum=1, maximum=1000),
    query("after_id", "Only models after this one."),
    query("before_id", "Only models before this one."),
    query("lifecycle[]", "`active`, `deprecated` or `retired`; the first two by default."),
    BETA,
    query("client_version", "Sent by OpenAI's Codex. It has no effect."),
    *AZURE,
)

ROUTES = [
    Route("GET", "/v1/models", models, "read", MODELS, result=ModelPage, parameters=LISTING),
    Route("GET", "/v1/models/capabilities", capabilities, "read", MODELS, result=ModelSheets),
    Route("GET", "/v1/models/{model}", model, "read", MODELS, result=ModelCard, parameters=SENT_BY_SDKS),
]

FEATURE = Feature(NoSettings, lambda _gateway, _settings: Parts(), routes=ROUTES)
