"""The body of `POST /v1/messages`, and the question that it becomes. What we need no look at goes on as it came. Pure.

The API judges what it is asked: a field that is newer than this version reaches it, and its 400 comes back in its own
words. Only what a turn cannot be made of is refused here.
"""

from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.datastructures import Headers

from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.entries import Message


class MessageParam(Message, frozen=True, forbid_unknown_fields=True):
    """A message. What it has besides would be lost on its way to the model: better to say so."""


class MessagesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """As much of the body as is looked into; `fields` has all of it."""

    model: str
    max_tokens: int
    messages: list[MessageParam]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    stream: bool = False
    max_cost: float | None = None
    """Tailrace's own: what the answer may cost, in dollars. The model is not told of it."""


def ask_of(request: MessagesRequest, fields: dict[str, Any], headers: Headers) -> NewTurn:
    """The question; `fields` is the whole body.

    The model is told these messages and no others: `cache_control` and a prompt cache want them as they are.
    """
    return NewTurn(
        model=request.model,
        max_tokens=request.max_tokens,
        messages=[Message(told.role, told.content) for told in request.messages],
        system=request.system,
        tools=request.tools,
        options={name: field for name, field in fields.items() if name not in request.__struct_fields__} or None,
        betas=betas_of(headers.getlist("anthropic-beta")) or None,
        api_version=headers.get("anthropic-version"),
        max_cost=request.max_cost,
        session=headers.get("x-session-id"),
        project=headers.get("x-project-id"),
        create_session=True,
        full_history=True,
        verbatim=True,
        on_busy="branch",
    )


def betas_of(lines: Iterable[str]) -> list[str]:
    """The names in headers `anthropic-beta`, each once."""
    names = (name.strip() for line in lines for name in line.split(","))
    return list(dict.fromkeys(filter(None, names)))
