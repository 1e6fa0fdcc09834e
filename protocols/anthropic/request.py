"""The body of `POST /v1/messages`, and the turn that it becomes.

Anthropic's API validates the request: fields that this version does not know are passed on, and the API's own 400
comes back. The gateway refuses only what cannot become a turn.
"""

from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.datastructures import Headers

from tailrace.gateway.turns.account_choice import refuse_account_headers
from tailrace.gateway.turns.request_body import MessageParam, NewTurn
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.entries import OnPause
from tailrace.proto.errors import Refused
from tailrace.protocols.common.session_headers import read_on_pause

NO_THREADS = "`thread` is not supported: send the whole conversation in `messages`, and no `thread`"

# The fields and headers that become fields of a turn with another name.
CLIENT_NAMES = {
    "user": "metadata.user_id",
    "session": "x-session-id",
    "project": "x-project-id",
    "api_version": "anthropic-version",
    "betas": "anthropic-beta",
}


class MessagesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of the body that the gateway reads; it passes all others on."""

    model: str | None = None
    """The model that answers; the operator's default if it is left out."""
    max_tokens: int
    """The most tokens that the answer may have."""
    messages: list[MessageParam]
    """The conversation, oldest message first."""
    system: str | list[dict[str, Any]] | None = None
    """The system prompt, as a string or as text blocks."""
    tools: list[dict[str, Any]] | None = None
    """The tools that the model may call."""
    stream: bool = False
    """Whether the response is a stream of events."""
    max_cost: float | None = None
    """A field of Tailrace: the most that the answer may cost, in dollars. It is not sent to the model."""
    on_disconnect: str = "continue"
    """A field of Tailrace: what happens when the last reader leaves: `continue`, `cancel` or `grace:SECONDS`."""
    on_pause: OnPause | None = None
    """A field of Tailrace: what happens when the model pauses its answer (`pause_turn`): continue it, or return it."""


def build_turn(request: MessagesRequest, fields: dict[str, Any], headers: Headers) -> NewTurn:
    """Returns the turn for `request`, of which `fields` is the whole body.

    The model gets exactly these messages, not the session's: `cache_control` and the prompt cache depend on them.
    Raises Refused for `thread`, with which Anthropic's servers keep the conversation under the id of its last answer.
    Anthropic's servers do not know the ids of Tailrace's answers. The tool runners of Anthropic's SDKs send `thread` by
    default; after this error code they send the whole conversation. Source: `recovers_from` in
    `anthropic/lib/threads/_thread_state.py`.
    """
    refuse_account_headers(headers)
    if fields.get("thread") is not None:
        raise Refused("request_invalid", NO_THREADS, details={"error_code": "thread_unsupported_request"})
    return NewTurn(
        model=request.model,
        max_tokens=request.max_tokens,
        messages=[without_half_thoughts(message) for message in request.messages],
        system=request.system,
        tools=request.tools,
        options={name: value for name, value in fields.items() if name not in request.__struct_fields__} or None,
        betas=beta_names(headers.getlist("anthropic-beta")) or None,
        api_version=headers.get("anthropic-version"),
        max_cost=request.max_cost,
        on_disconnect=request.on_disconnect,
        # The SDKs send a paused answer back themselves (`tool_runner`).
        on_pause=request.on_pause or read_on_pause(headers) or "return",
        user=_user(fields.get("metadata")),
        session=headers.get("x-session-id"),
        project=headers.get("x-project-id"),
        create_session=True,
        full_history=True,
        verbatim=True,
        on_busy="branch",
    )


def without_half_thoughts(message: MessageParam) -> MessageParam:
    """Returns an answer without `thinking` blocks that have no signature, which the API refuses.

    Such a block is in an answer whose generator died while the model thought, after calls of server tools that must
    not run again (PROTOCOL R119).
    """
    if message.role != "assistant" or not isinstance(message.content, list):
        return message
    kept = [block for block in message.content if block.get("type") != "thinking" or block.get("signature")]
    is_same = not kept or len(kept) == len(message.content)
    return message if is_same else msgspec.structs.replace(message, content=kept)


def _user(metadata: object) -> str | None:
    """Returns `metadata.user_id` without Claude Code's session: JSON `session_id` (2.1.329), once `…_session_ID`."""
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    if not isinstance(user, str):
        return None
    try:
        ids = msgspec.json.decode(user, type=dict[str, Any])
    except DECODE_ERRORS:
        return user.partition("_session_")[0] or None
    if ids.pop("session_id", None) is None:
        return user
    return msgspec.json.encode(ids).decode() if ids else None


def beta_names(lines: Iterable[str]) -> list[str]:
    """Returns the names in `anthropic-beta` headers, each once, in their order."""
    names = (name.strip() for line in lines for name in line.split(","))
    return list(dict.fromkeys(filter(None, names)))
