"""The body of `POST /v1/turns`, its validation, and the request entry that is built from it. Stores nothing."""

import re
from typing import Any, Literal

import msgspec

from tailrace.gateway.models.offer import Offer
from tailrace.gateway.turns.conversation_match import Position
from tailrace.gateway.turns.on_disconnect import grace_s
from tailrace.proto import blobs, entries
from tailrace.proto.depth import LEVELS_MAX, is_deeper
from tailrace.proto.entries import CacheFor, Message, OnInterrupt
from tailrace.proto.errors import Refused
from tailrace.proto.ids import is_session_name
from tailrace.proto.schema import with_schema
from tailrace.proto.usage import NANO_USD_PER_USD

Cache = CacheFor | Literal["off"]
OnBusy = Literal["reject", "interrupt", "branch"]
# With the levels that an entry adds around it, what a client nests stays within PROTOCOL R7's.
ASKED_LEVELS_MAX = LEVELS_MAX - 4
# What `options` would say a second time, and what is the gateway's to say.
NAMED = frozenset({"model", "messages", "max_tokens", "system", "tools", "stream", "betas", "max_cost"})
COST_USD_MAX = 1e6
# What stands where a session's name does in the path of another route.
PATHS = frozenset({"stats"})
API_VERSION = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
BETAS_MAX = 64
BETA = re.compile(r"[\x21-\x2b\x2d-\x7e]{1,64}")


class Filled(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the prompts that the operator has written, with the values of its variables."""

    name: str
    variables: dict[str, Any] = {}


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of a turn without those of its conversation: all fields that an input of a batch may have."""

    message: str | None = None
    messages: list[Message] | None = None
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    max_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    options: dict[str, Any] | None = None
    schema: dict[str, Any] | None = None
    """The JSON Schema that the answer is to fit."""
    prompt: Filled | None = None
    """The name of a template, and what is put into it: it becomes `message` or `system` or both."""
    betas: list[str] | None = None
    api_version: str | None = None
    metadata: dict[str, str] | None = None
    cache: Cache | None = None
    """How long the model is to keep the prompt; none: as the operator has set it."""
    on_interrupt: OnInterrupt = "continue"
    max_cost: float | None = None
    """What the answer may cost, in dollars: it is closed when it has."""


class NewTurn(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/turns`, which every other client protocol's body is converted to."""

    session: str | None = None
    create_session: bool = False
    """Whether a session of that name that is not there is begun; else it is refused."""
    parent: str | msgspec.UnsetType | None = msgspec.UNSET
    full_history: bool = False
    """Whether `messages` are the conversation from its beginning. Where they agree with the session's, they are it."""
    verbatim: bool = False
    """Whether the model gets exactly `messages`, independent of the session."""
    project: str | None = None
    on_disconnect: str = "continue"
    on_busy: OnBusy = "reject"
    webhook: str | None = None
    """The URL that is notified when the turn has ended."""


def check(ask: NewTurn) -> None:
    """What the types of `NewTurn` do not say; raises Refused."""
    if (ask.message is None) == (ask.messages is None):
        raise Refused("request_invalid", "send either `message`, a string, or `messages`, a list")
    new = new_messages(ask)
    if not new:
        raise Refused("request_invalid", "`messages` is empty: send at least one")
    for index, message in enumerate(new):
        if not (message.content.strip() if isinstance(message.content, str) else message.content):
            where = "message" if ask.messages is None else f"messages[{index}].content"
            raise Refused("request_invalid", f"`{where}` is empty")
    if is_deeper(
        [[message.content for message in new], ask.system, ask.tools, ask.options, ask.schema], ASKED_LEVELS_MAX
    ):
        raise Refused("request_invalid", f"the body is nested more than {ASKED_LEVELS_MAX} levels deep")
    require_unclaimed([[message.content for message in new], ask.system, ask.tools])
    if taken := NAMED.intersection(ask.options or ()):
        raise Refused("request_invalid", f"`options` cannot hold {', '.join(sorted(taken))}: it has a place of its own")
    if len(ask.betas or ()) > BETAS_MAX or not all(BETA.fullmatch(beta) for beta in ask.betas or ()):
        raise Refused(
            "request_invalid",
            f"`betas` are at most {BETAS_MAX} names, of 1 to 64 visible ASCII characters without a comma",
        )
    if ask.api_version is not None and API_VERSION.fullmatch(ask.api_version) is None:
        raise Refused("request_invalid", "`api_version` is a date like 2026-10-21: what `anthropic-version` says")
    check_name("project", ask.project)
    if ask.create_session:
        check_session("session", ask.session)
    if new[-1].role == "assistant":
        raise Refused("request_invalid", "the last of `messages` must not be the assistant's: it has no answer")
    if ask.max_cost is not None and not 0 < ask.max_cost <= COST_USD_MAX:
        raise Refused("request_invalid", f"`max_cost` is dollars, above 0 and at most {COST_USD_MAX:,.0f}")
    if ask.on_disconnect != "continue" and grace_s(ask.on_disconnect) is None:
        raise Refused("request_invalid", "`on_disconnect` must be `continue`, `cancel` or `grace:SECONDS`")


def check_name(field: str, name: str | None) -> None:
    """Raises Refused for an invalid name of a session or a project."""
    if name is not None and not is_session_name(name):
        raise Refused("request_invalid", f"`{field}` is 1 to 128 of A-Z a-z 0-9 . _ : -")


def check_session(field: str, name: str | None) -> None:
    """The same for a session that is begun, which has to have a path of its own."""
    check_name(field, name)
    if name in PATHS:
        raise Refused("request_invalid", f"`{field}`: /v1/sessions/{name} is a route: call the session otherwise")


def require_unclaimed(body: object) -> None:
    """Raises Refused for a reference to a blob in a request body."""
    if blobs.has_reserved_key(body):
        raise Refused(
            "request_invalid",
            f"The key `{blobs.REFERENCE_KEY}` is reserved: Tailrace stores it in place of a long string. "
            "Send the string itself; GET /v1/blobs/{sha256} returns it.",
        )


def new_messages(ask: NewTurn) -> list[Message]:
    """What `ask` says, in either of its two ways."""
    return ask.messages if ask.messages is not None else [Message("user", ask.message or "")]


def build_entry(
    ask: NewTurn, place: Position, max_tokens: int, offer: Offer, *, by: str | None = None, cache: Cache = "off"
) -> entries.Request:
    """The entry for `ask`, at its place, `by` which credential; `max_tokens` and `cache` are for who names none.

    Raises Refused.
    """
    model = offer.model(ask.model or place.model or None)
    if ask.max_tokens is not None and not 1 <= ask.max_tokens <= model.output_tokens_max:
        raise Refused("request_invalid", f"`max_tokens` must be from 1 to {model.output_tokens_max} for {model.id}")
    system = ask.system if ask.system is not None else place.system
    # A session's own may be older than the rule that refuses it there.
    require_unclaimed(system)
    options = ask.options if ask.schema is None else with_schema(ask.options, ask.schema)
    return entries.Request(
        model=model.id,
        max_tokens=min(ask.max_tokens or max_tokens, model.output_tokens_max),
        messages=[*place.before, *place.new],
        history=len(place.before),
        system=system,
        tools=ask.tools,
        options=options,
        betas=ask.betas,
        api_version=ask.api_version,
        session=place.session,
        parent=place.parent,
        project=ask.project,
        metadata=ask.metadata,
        cache=None if (keep := ask.cache or cache) == "off" else keep,
        on_interrupt=ask.on_interrupt,
        on_disconnect=ask.on_disconnect,
        webhook=ask.webhook,
        # 0 would be passed before a call has begun, and each of them would be closed with nothing said.
        max_cost_nano_usd=max(1, round(ask.max_cost * NANO_USD_PER_USD)) if ask.max_cost is not None else None,
        by=by,
    )
