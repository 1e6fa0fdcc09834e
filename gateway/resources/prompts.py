"""Routes of prompt templates: their names, descriptions and variables, without their text."""

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tailrace.gateway.dependencies import gateway_of
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.prompts.templates import Prompt


class PromptList(msgspec.Struct, frozen=True, kw_only=True):
    """All prompt templates, by name."""

    object: Literal["list"] = "list"
    data: list[Prompt]


async def prompts(request: Request) -> Response:
    """`GET /v1/prompts`: all prompt templates, with description and variables."""
    return json_response(PromptList(data=gateway_of(request).prompts.list_all()))


async def prompt(request: Request) -> Response:
    """`GET /v1/prompts/{name}`: one prompt template."""
    return json_response(gateway_of(request).prompts.find(request.path_params["name"]))


ROUTES = [
    Route("/v1/prompts", prompts, methods=["GET"]),
    Route("/v1/prompts/{name}", prompt, methods=["GET"]),
]
