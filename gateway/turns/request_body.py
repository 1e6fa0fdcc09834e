"""The body of `POST /v1/turns`, its validation, and the request entry that is built from it. Stores nothing."""

import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec

from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.models.offer import Offer
from tailrace.gateway.turns.account_choice import refuse_account_fields
from tailrace.gateway.turns.api_version import choose_version
from tailrace.gateway.turns.conversation_match import Position
from tailrace.gateway.turns.image_types import with_image_types
from tailrace.gateway.turns.user_ids import with_opaque_user
from tailrace.proto import blobs, entries, entry_encryption, odd_json
from tailrace.proto.containers import with_container
from tailrace.proto.depth import LEVELS_MAX, is_deeper
from tailrace.proto.entries import CacheFor, Message, OnInterrupt, OnPause
from tailrace.proto.errors import Refused
from tailrace.proto.ids import LOCAL, USER_CHARS_MAX, is_session_name, is_user
from tailrace.proto.models import Model
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.proto.schema import schema_of, with_schema
from tailrace.proto.system_messages import fit_system_messages
from tailrace.proto.usage import NANO_USD_PER_USD

Cache = CacheFor | Literal["off"]
OnBusy = Literal["reject", "interrupt", "branch", "queue"]
# An entry adds four levels around the values of a body, and may have LEVELS_MAX of them (PROTOCOL R7).
BODY_LEVELS_MAX = LEVELS_MAX - 4
# Fields of a model request that `options` must not have: NewTurn has them, or the gateway sets them.
TOP_LEVEL_FIELDS = frozenset({"model", "messages", "max_tokens", "system", "tools", "stream", "betas", "max_cost"})
# The largest `max_tokens` for a model whose limit is unknown.
MAX_TOKENS = 10_000_000
# Names that no session may have: /v1/sessions/stats is another route.
RESERVED_NAMES = frozenset({"stats"})
API_VERSION = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
BETAS_MAX = 64
# Blocks of an answer that the API may pause.
SENT_BACK = ("server_tool_use", "mcp_tool_use", "compaction")
BETA = re.compile(r"[\x21-\x2b\x2d-\x7e]{1,64}")


class PromptUse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt template of the operator, with the values of its variables."""

    name: str
    """The name of the template."""
    variables: dict[str, Any] = {}
    """The values of the template's variables."""


class MessageParam(Message, frozen=True, forbid_unknown_fields=True):
    """A message of a request. Further fields would be lost on the way to the model, so they are refused."""

    content: str | list[dict[str, Any]] = msgspec.field(default_factory=list)
    """The text of the message, or content blocks. Only a system message with an `output_config` may have none."""


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of a turn, except the fields of its conversation: all fields that an input of a batch may have."""

    message: str | None = None
    """The new user message. A turn has either `message` or `messages`."""
    messages: list[MessageParam] | None = None
    """The new messages, oldest first."""
    model: str | None = None
    """The model that answers; if it is left out, the session's model, else the operator's default."""
    system: str | list[dict[str, Any]] | None = None
    """The system prompt, as a string or as text blocks."""
    max_tokens: int | None = None
    """The most tokens that the answer may have."""
    tools: list[dict[str, Any]] | None = None
    """The tools that the model may call, in Anthropic's format."""
    options: dict[str, Any] | None = None
    """Further fields of Anthropic's Messages API: `thinking`, `tool_choice`, `stop_sequences`, `output_config`,
    `mcp_servers`, `container`, `context_management`, `compaction`, `fallbacks`, `inference_geo`, `service_tier`,
    `speed`, `temperature` and others, unchanged.
    """
    schema: dict[str, Any] | None = None
    """The JSON Schema of the answer."""
    prompt: PromptUse | None = None
    """A prompt template, which is rendered into `message`, `system` or both."""
    betas: list[str] | None = None
    """The features that the header `anthropic-beta` turns on."""
    api_version: str | None = None
    """The version of Anthropic's API, as the header `anthropic-version` names it; without it, Tailrace chooses one."""
    metadata: dict[str, str] | None = None
    """Labels of the turn, by which it can be found."""
    user: str | None = None
    """The end user who receives the answer. The user that a JWT names takes precedence."""
    cache: Cache | None = None
    """How long the model caches the prompt; None: the operator's setting."""
    on_interrupt: OnInterrupt = "continue"
    """The reaction to a model call that breaks off: continue the answer, restart it, or fail."""
    on_pause: OnPause = "continue"
    """The reaction to a pause for tools of the model's API: continue the answer, or return `pause_turn`."""
    max_cost: float | None = None
    """The most that the answer may cost, in dollars. The answer ends when its cost reaches this."""


class NewTurn(Params, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/turns`, which every other client protocol's body is converted to."""

    session: str | None = None
    """The session that the turn belongs to. A turn without one begins a new session."""
    create_session: bool = False
    """Whether an unknown session is created instead of refused."""
    parent: str | msgspec.UnsetType | None = msgspec.UNSET
    """The turn that this one continues: the newest of the session by default. An older turn starts a branch; null: no
    history."""
    full_history: bool = False
    """Whether `messages` are the whole conversation, perhaps without answers that have no text. The turn continues the
    last turn up to which the session is equal; equal messages are not stored again."""
    verbatim: bool = False
    """With `full_history`: whether the model gets exactly `messages`, in place of the session's own messages."""
    project: str | None = None
    """The project of the session."""
    on_disconnect: str = "continue"
    """The reaction when the last reader disconnects: `continue`, `cancel` or `grace:SECONDS` (at most 99999). A reader
    that vanishes without closing its connection counts for up to a minute."""
    on_busy: OnBusy = "reject"
    """The reaction while the turn to continue still runs: reject the request, cancel that turn, let both run, or
    wait for its end."""
    webhook: str | None = None
    """The URL that is notified when the turn has ended."""
    store: bool = True
    """Whether the turn is kept. False: it belongs to no session, and is erased some minutes after its end."""


class AppendedTurn(NewTurn, frozen=True, kw_only=True):
    """A turn of OpenAI's protocols whose body has no answer of the model. Its messages are added to the session.

    Messages at its beginning that the session already has without an answer are not added again.
    """


def check_turn(new_turn: NewTurn) -> None:
    """Checks what the types of `NewTurn` do not. Raises Refused."""
    _check_prompt(new_turn)
    _check_call(new_turn)
    _check_conversation(new_turn)


def _check_prompt(new_turn: NewTurn) -> None:
    """Checks the messages, and values that may nest to any depth."""
    if new_turn.message is None and new_turn.messages is None:
        raise Refused("request_invalid", "`message`, a string, or `messages`, a list, is required: send one of them")
    if new_turn.message is not None and new_turn.messages is not None:
        raise Refused("request_invalid", "both `message` and `messages` were sent: send one of them")
    new = new_messages(new_turn)
    if not new:
        raise Refused("request_invalid", "`messages` has no message of the user: send at least one")
    for index, message in enumerate(new):
        has_text = message.content and not (isinstance(message.content, str) and message.content.isspace())
        if not has_text and not (message.role == "system" and message.content == [] and message.output_config):
            where = "message" if new_turn.messages is None else f"messages[{index}].content"
            raise Refused("request_invalid", f"`{where}` is empty")
    contents, system, tools, options = nested_values(new), new_turn.system, new_turn.tools, new_turn.options
    # Texts, which most turns consist of, have no levels and no keys.
    if any(isinstance(value, list | dict) for value in (*contents, system, tools, options, new_turn.schema)):
        if is_deeper([contents, system, tools, options, new_turn.schema], BODY_LEVELS_MAX):
            raise Refused("request_invalid", f"the body is nested more than {BODY_LEVELS_MAX} levels deep")
        refuse_blob_references([contents, system, tools])
        check_system("system", system)


def _check_call(new_turn: NewTurn) -> None:
    """Checks the parameters of the model's call."""
    if new_turn.options is not None:
        if taken := TOP_LEVEL_FIELDS.intersection(new_turn.options):
            raise Refused("request_invalid", f"`{min(taken)}` is not an option: send it as a field of its own")
        refuse_account_fields(new_turn.options)
    if len(new_turn.betas or ()) > BETAS_MAX or not all(BETA.fullmatch(beta) for beta in new_turn.betas or ()):
        raise Refused(
            "request_invalid",
            f"`betas` has at most {BETAS_MAX} names, of 1 to 64 visible ASCII characters without a comma",
        )
    if new_turn.api_version is not None and API_VERSION.fullmatch(new_turn.api_version) is None:
        raise Refused("request_invalid", "`api_version` is not a date such as 2026-10-21")


def _check_conversation(new_turn: NewTurn) -> None:
    """Checks what the turn belongs to, and what happens while it runs."""
    if not new_turn.store:
        refuse_fields(new_turn, "session", "parent", "full_history", "project", "webhook")
    if new_turn.verbatim and not new_turn.full_history:
        why = "`verbatim` has no effect without `full_history`: send both with the whole conversation, or neither"
        raise Refused("request_invalid", why, param="verbatim")
    if new_turn.project is not None:
        check_name("project", new_turn.project)
    if new_turn.user is not None:
        check_user(new_turn.user)
    if new_turn.create_session:
        check_session("session", new_turn.session)


def refuse_fields(body: msgspec.Struct, *names: str) -> None:
    """Raises Refused if `body`, with `store: false`, has one of the fields `names`, which need a stored turn."""
    for name in names:
        if getattr(body, name) not in (None, False, msgspec.UNSET):
            raise Refused(
                "request_invalid",
                f"`store: false` keeps nothing after the end: leave out `{name}`, and send all messages",
                param=name,
            )


def check_name(field: str, name: str | None) -> None:
    """Raises Refused for an invalid name of a session or a project."""
    if name is not None and not is_session_name(name):
        raise Refused("request_invalid", f"`{field}` is 1 to 128 of A-Z a-z 0-9 . _ : -, but not `.` or `..`")


def check_user(user: str | None) -> None:
    """Raises Refused for an invalid name of a user."""
    if user is not None and not is_user(user):
        raise Refused("request_invalid", f"`user` is 1 to {USER_CHARS_MAX} printable characters", param="user")


def check_system(field: str, system: str | list[dict[str, Any]] | None) -> None:
    """Raises Refused for a system prompt that is neither a string nor a list of text blocks."""
    for index, block in enumerate(system if isinstance(system, list) else ()):
        if block.get("type") != "text" or not isinstance(block.get("text"), str) or not block["text"]:
            why = 'is not a text block: send {"type": "text", "text": "…"}, whose text is not empty'
            raise Refused("request_invalid", f"`{field}[{index}]` {why}", param=field)


def check_session(field: str, name: str | None) -> None:
    """Like `check_name`, for a new session. Its name must not be the name of another route under /v1/sessions."""
    check_name(field, name)
    if name in RESERVED_NAMES:
        raise Refused("request_invalid", f"`{field}`: /v1/sessions/{name} is a route: choose another name")


def refuse_blob_references(body: object) -> None:
    """Raises Refused for a reference to a blob, or a wrapper of odd JSON, in a request body."""
    if blobs.has_reserved_key(body):
        if odd_json.has_key(body):
            raise Refused(
                "request_invalid",
                f"The key `{odd_json.KEY}` is reserved: Tailrace stores it around JSON that a model has written. "
                "Send the JSON itself.",
            )
        raise Refused(
            "request_invalid",
            f"The key `{blobs.REFERENCE_KEY}` is reserved: Tailrace stores it in place of a long string. "
            "Send the string itself; GET /v1/blobs/{sha256} returns it.",
        )


def nested_values(messages: Iterable[Message]) -> list[object]:
    """Returns the values in `messages` that a client may nest to any depth."""
    return [value for one in messages for value in (one.content, one.output_config)]


def new_messages(new_turn: NewTurn) -> list[Message]:
    """Returns the `messages` of `new_turn`, or its `message` as one user message. Images have the types of their bytes.

    They have the type of stored messages, with which they are compared: msgspec's objects of two types are never equal.
    """
    if new_turn.messages is None:
        return [Message("user", new_turn.message or "")]
    return [
        Message(
            one.role,
            one.content if isinstance(one.content, str) else with_image_types(one.content),
            one.output_config,
            one.clear_at,
        )
        for one in new_turn.messages
    ]


# No credential was needed.
ANYONE = Principal(Scope(LOCAL, WHOLE))


def build_entry(
    new_turn: NewTurn,
    position: Position,
    max_tokens: int,
    offer: Offer,
    *,
    pseudonym: Callable[[str], str],
    principal: Principal = ANYONE,
    cache: Cache = "off",
    body_sha256: str | None = None,
) -> entries.Request:
    """Returns the request entry for `new_turn` at `position` in its session.

    `max_tokens` and `cache` are the defaults of turns without their own. `pseudonym` makes the id of an end user that
    Anthropic receives. `principal` creates the turn: usage is counted for its key. `body_sha256` is the
    hash of the body that the client sent. Raises Refused.
    """
    model = offer.model(new_turn.model or position.model or None)
    most = model.output_tokens_max or MAX_TOKENS
    if new_turn.max_tokens == 0:
        # Source: platform.claude.com/docs/en/build-with-claude/prompt-caching, "Pre-warming the cache".
        raise Refused(
            "request_invalid",
            "`max_tokens` is 0, which only fills the prompt cache: the API refuses it in a streamed call, and Tailrace "
            "streams every call. Send 1, which fills the cache, too",
            param="max_tokens",
        )
    if new_turn.max_tokens is not None and not 1 <= new_turn.max_tokens <= most:
        raise Refused("request_invalid", f"`max_tokens` must be from 1 to {most} for {model.id}")
    if new_turn.max_cost is not None and model.prices is None:
        raise Refused("price_unknown", f"`max_cost`: the price of {model.id} is unknown")
    system = new_turn.system
    if system is None:
        system = position.system
        if system is not None:
            # A session's prompt may have been stored before `POST /v1/sessions` checked it.
            refuse_blob_references(system)
    options = new_turn.options if new_turn.schema is None else with_schema(new_turn.options, new_turn.schema)
    if position.container is not None:
        options = with_container(options, position.container)
    before = position.before
    if before and not new_turn.verbatim:
        before = fit_system_messages(position.new, before, model.id, options)
    messages = [*before, *position.new]
    options, api_version = choose_version(options, messages, model, new_turn.api_version)
    # A system message at the end moves before the answer (PROTOCOL R132).
    last = next((message for message in reversed(messages) if message.role != "system"), None)
    if last is not None and last.role == "assistant" and not is_sent_back(last, options):
        require_prefill(model, options)
    owner = principal.user if position.owner is msgspec.UNSET else position.owner
    is_for_another = new_turn.create_session and new_turn.user is not None and owner not in (None, new_turn.user)
    if principal.has_private_users and is_for_another:
        # A user may have taken the name that the company wants to begin for another user.
        raise Refused("session_exists", "`session`: it belongs to another user than `user`: choose another name")
    return entries.Request(
        model=model.id,
        max_tokens=min(new_turn.max_tokens or max_tokens, most),
        messages=messages,
        history=len(before),
        thinking=position.thinking or None,
        previous=position.previous,
        system=system,
        tools=new_turn.tools,
        options=None if options is None else with_opaque_user(options, pseudonym),
        betas=new_turn.betas,
        api_version=api_version,
        session=position.session,
        store=new_turn.store,
        encryption_key=None if new_turn.store else entry_encryption.new_key(),
        parent=position.parent,
        is_queued=position.is_queued,
        project=new_turn.project,
        user=principal.user or new_turn.user,
        owner=owner,
        metadata=new_turn.metadata,
        cache=None if (lifetime := new_turn.cache or cache) == "off" else lifetime,
        on_interrupt=new_turn.on_interrupt,
        on_pause=new_turn.on_pause,
        on_disconnect=new_turn.on_disconnect,
        webhook=new_turn.webhook,
        max_cost_nano_usd=None if new_turn.max_cost is None else nano_usd_max(new_turn.max_cost),
        by=principal.key,
        body_sha256=body_sha256,
    )


def is_sent_back(answer: Message, options: dict[str, Any] | None) -> bool:
    """Returns whether the API continues `answer`, the last message, on every model: it is not a prefill.

    Such an answer was paused (`pause_turn`, `compaction`), or was refused with a credit for a fallback model. The API
    decides whether it is complete. Source: Anthropic's page "Server tools"; anthropic 2.14.0, `lib/tools/_beta_runner`
    and `BetaRefusalStopDetails`.
    """
    if "fallback_credit_token" in (options or {}):
        return True
    blocks = answer.content if isinstance(answer.content, list) else []
    return any(block.get("type") in SENT_BACK for block in blocks)


def require_prefill(model: Model, options: dict[str, Any] | None) -> None:
    """Raises Refused if the model cannot continue the assistant's last message. If that is unknown, its API decides."""
    if model.supports.prefill is False:
        raise Refused(
            "request_invalid",
            f"`messages` must not end with a message of the assistant: {model.id} cannot continue it (prefill). "
            "End with a user message that asks for that beginning, or request JSON with a schema; "
            "GET /v1/models/capabilities lists the models with `prefill`",
        )
    if schema_of(options) is not None:
        raise Refused(
            "request_invalid",
            "`messages` must not end with a message of the assistant if a schema is requested: leave the message out",
        )


def nano_usd_max(usd: float) -> int:
    """Returns dollars as nano-dollars, at least 1: with 0 every model call would end before its first token."""
    return max(1, round(usd * NANO_USD_PER_USD))
