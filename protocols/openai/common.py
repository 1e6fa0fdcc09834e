"""The common part of OpenAI's two protocols: fields, and the conversion of files, tools, effort and sampling.

A parameter that the model does not support is refused with its name, or removed if the answer stays the same.
Sources: OpenAI's API reference; Anthropic's docs, "Vision", "Tool use", "Effort", "Adaptive thinking".
"""

from typing import Annotated, Any, Literal

from tailrace.proto.errors import Refused
from tailrace.proto.models import Model
from tailrace.protocols.common.turn_settings import TurnSettings
from tailrace.protocols.common.unsupported import ignored, refused

Fields = dict[str, Any]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Choice = Literal["auto", "none", "required"]
NoCaching = Annotated[Any, ignored("use `cache_control` for caching")]

# Claude has no JSON mode. With this schema, which no API enforces, the prompt asks for an object, and the answer is
# checked and requested once more (PROTOCOL R60). Its stream is not held back for the check: nearly every answer fits,
# and would otherwise have no first token before its end.
ANY_OBJECT: Fields = {"type": "json_schema", "schema": {"type": "object"}}
ALWAYS_STORED = "every turn is stored; `/v1/responses` and `/v1/turns` have `store: false`"
NO_PROBABILITIES = "Claude does not return probabilities"


class RequestBody(TurnSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields that the bodies of both protocols have. Null means absent, as in OpenAI's API.

    The headers `X-Project-ID` and `Tailrace-On-Pause` have the same effect as `project_id` and `on_pause`.
    The second group is what Tailrace and other OpenAI-compatible servers of Claude add. The last group is not
    supported.
    """

    stream: bool | None = None
    """Whether the response is a stream of events."""
    temperature: float | None = None
    """How random the answer is, 0 to 1, for models that support it. Current models ignore it."""
    top_p: float | None = None
    """The share of the most likely tokens from which the model selects, for models that support it.

    1 is not passed on, because Claude refuses `temperature` and `top_p` together.
    """
    top_k: int | None = None
    """The number of most likely tokens from which the model selects, for models that support it."""
    parallel_tool_calls: bool | None = None
    """Whether the model may call several functions at once."""
    user: str | None = None
    """The end user who receives the answer, and the `user_id` that Anthropic receives.

    The user that a JWT names takes precedence.
    """
    safety_identifier: str | None = None
    """OpenAI's newer name of `user`. It takes precedence over `user`."""

    cache_control: Fields | None = None
    """Anthropic's field `cache_control`, passed on: caches the prompt up to its last block."""
    thinking: Fields | None = None
    """Anthropic's field `thinking`, passed on to the model. It takes precedence over the effort of reasoning."""
    session_id: str | None = None
    """The session to continue or create; also as header `X-Session-ID`."""

    moderation: Annotated[Any, refused("there is no moderation")] = None
    top_logprobs: Annotated[Any, refused(NO_PROBABILITIES, 0)] = None
    service_tier: Annotated[Any, refused("there is one tier; send `auto` or `default`", "auto", "default")] = None
    store: Annotated[Any, ignored(ALWAYS_STORED)] = None
    prompt_cache_key: NoCaching = None
    prompt_cache_options: NoCaching = None
    prompt_cache_retention: NoCaching = None


def client_names(body: RequestBody) -> dict[str, str]:
    """Returns the names in `body` of the turn's fields that both protocols have."""
    user = "safety_identifier" if body.safety_identifier else "user"
    return {"session": "session_id", "project": "project_id", "user": user}


def options(body: RequestBody, given: Fields) -> Fields:
    """Returns the options of a turn, `given` and those that both protocols have, without the empty ones."""
    user = body.safety_identifier or body.user
    given |= {"metadata": {"user_id": user} if user else None, "cache_control": body.cache_control}
    return {name: value for name, value in given.items() if value}


def tool_choice(choice: Choice | None, name: str | None, *, parallel: bool | None) -> Fields | None:
    """Returns Anthropic's `tool_choice`, None for its default. `name` takes precedence."""
    if name is None and choice == "none":
        return {"type": "none"}
    built: Fields = {"type": "any" if choice == "required" else "auto"}
    if name is not None:
        built = {"type": "tool", "name": name}
    if parallel is False:
        built["disable_parallel_tool_use"] = True
    return built if built != {"type": "auto"} else None


def effort(level: Effort | None, model: Model, where: str) -> str | None:
    """Returns the effort for `output_config`; None for `none`, which `thinking` expresses. Raises Refused."""
    efforts = model.supports.effort
    if level is None or level == "none" or efforts is None or level in efforts:
        return None if level == "none" else level
    hint = f"supports {', '.join(efforts)}" if efforts else "has no effort levels: send `thinking`"
    raise Refused("request_invalid", f"`{where}`: {model.id} {hint}")


def thinking(level: Effort | None, model: Model, where: str) -> Fields | None:
    """Returns the `thinking` field for an effort level: some models think only on request. Raises Refused."""
    ways = model.supports.thinking or ()
    match level:
        case None:
            return None
        case "none" if model.supports.thinking is None:
            return None
        case "none" if "disabled" not in ways:
            raise Refused("request_invalid", f"`{where}`: {model.id} always thinks, and has no `none`: leave it out")
        case "none":
            return {"type": "disabled"}
        case _:
            return {"type": "adaptive"} if "adaptive" in ways else None


def thinking_tokens(envelope: Fields | None) -> int | None:
    """Returns how many output tokens were thinking in the answer's last model call; None if Claude has not said so."""
    match envelope:
        case {"usage": {"output_tokens_details": {"thinking_tokens": int(count)}}}:
            return count
        case _:
            return None


def sampling(body: RequestBody, model: Model) -> tuple[Fields, list[str]]:
    """Returns the sampling fields that the model supports, and the names of those that it ignores. Raises Refused."""
    # A `top_p` of 1 leaves no token out. Many clients always send it, and Claude refuses both fields together.
    fields = {
        "temperature": body.temperature,
        "top_p": body.top_p if body.top_p != 1 else None,
        "top_k": body.top_k,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    if not model.supports.sampling:
        return {}, list(given)
    if not 0 <= given.get("temperature", 0) <= 1:
        raise Refused("request_invalid", f"`temperature` must be from 0 to 1 for {model.id}")
    return given, []
