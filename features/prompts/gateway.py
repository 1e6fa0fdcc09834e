"""Prompt templates of the operator: their routes, and the step of a submission that renders them."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.responses import Response

from tailrace.features.prompts.templates import RENDER_S_MAX, Prompt, Prompts
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.route import MODELS, Route
from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.optional_steps import OptionalSteps

# How long the rendering of a prompt waits for a free subprocess.
RENDER_WAIT_S = 10.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of prompt templates."""

    prompts: Annotated[
        str, Meta(description="folder of prompt templates NAME.j2, read at start; empty: no templates")
    ] = ""


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


async def check(settings: Settings) -> None:
    """Reads the templates. Raises SettingsInvalid."""
    await Prompts(settings.prompts, wait_s=RENDER_S_MAX).load()


def start(_: Gateway, settings: Settings) -> Parts:
    """Makes the service of the templates, which reads them before the gateway serves requests."""
    prompts = Prompts(settings.prompts, wait_s=RENDER_WAIT_S)
    steps = OptionalSteps(render_prompt=prompts.render, render_prompts=prompts.render_all)
    return Parts(services=(prompts,), prepare=prompts.load, steps=steps)


FEATURE = Feature(Settings, start, check=check, routes=ROUTES)
