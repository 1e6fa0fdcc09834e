"""Routes of prompt templates: their names, descriptions and variables, without their text."""

from typing import Literal

import msgspec
from starlette.responses import Response

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.route import MODELS, Route
from tailrace.gateway.prompts.templates import Prompt, Prompts


class PromptList(msgspec.Struct, frozen=True, kw_only=True):
    """All prompt templates, by name."""

    object: Literal["list"] = "list"
    """The type of this object in OpenAI's API."""
    data: list[Prompt]
    """All prompt templates, by name."""


async def list_prompts(_: ApiRequest, prompts: Prompts) -> Response:
    """`GET /v1/prompts`: all prompt templates, with description and variables.

    The operator writes the templates, as files in `TAILRACE_PROMPTS`.
    """
    return json_response(PromptList(data=prompts.list_all()))


async def get_prompt(request: ApiRequest, prompts: Prompts) -> Response:
    """`GET /v1/prompts/{name}`: one prompt template.

    A turn uses it with the field `prompt`.
    """
    return json_response(prompts.find(request.path_params["name"]))


ROUTES = [
    Route("GET", "/v1/prompts", list_prompts, "read", MODELS, result=PromptList),
    Route("GET", "/v1/prompts/{name}", get_prompt, "read", MODELS, result=Prompt),
]
