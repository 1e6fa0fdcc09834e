"""Signatures of simulated thinking, and the checks of thinking that comes back. Pure.

A signature says which model wrote the block, what stood before it, and which thinking came before it, so the check
needs no memory. It has its own implementation of Anthropic's page "Preserved thinking": the product's rule
(PROTOCOL R140) and this check are written independently, and each is a test of the other.
"""

import base64
import hashlib
import hmac
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from tailrace.deploy.simulated_claude.model import BY_NAME
from tailrace.deploy.simulated_claude.refusal import Refusal

CONTROLS = "thinking-binding-controls-2026-08-01"
KEY = b"the simulated Claude"
PREFIX = "sim"
FIELDS = 6
DIGITS_MAX = 4_000
INVALID = "invalid_request_error"
KINDS = ("thinking", "redacted_thinking")
# Wording of anomalyco/opencode#48637 and of Anthropic's page "Preserved thinking".
FOREIGN = (
    "The block is bound to a different conversation. Remove the block, or set "
    '`thinking.block_binding.prefix_mismatch_behavior` to "drop_block".'
)
NEEDS_CONTROLS = f"That setting requires the `{CONTROLS}` value in the `anthropic-beta` header."
CANNOT_BE_MODIFIED = (
    "`thinking` or `redacted_thinking` blocks in the latest assistant message cannot be modified. These blocks must "
    "remain as they were in the original response."
)
EXPECTED = (
    "Expected `thinking` or `redacted_thinking`, but found `tool_use`. When `thinking` is enabled, a final `assistant` "
    "message must start with a thinking block."
)

Behavior = Literal["error", "drop", "none"]
Json = dict[str, Any]


class Bound(NamedTuple):
    """The content of a signature."""

    model: str
    system: str
    tools: str
    messages: str
    after: str
    """The seal of the thinking before this one; empty for the first."""
    seal: str
    """An HMAC of the text of the block and of the other fields."""


class Place(NamedTuple):
    """A content block of a request, with its position."""

    message: int
    number: int
    role: str
    block: Json

    @property
    def path(self) -> str:
        return f"messages.{self.message}.content.{self.number}"

    @property
    def is_thinking(self) -> bool:
        return self.block.get("type") in KINDS


class Transformation(msgspec.Struct, frozen=True, tag_field="type", tag="thinking_dropped"):
    """An entry of `input_transformations`: a thinking block that the model does not get."""

    path: str
    reason: Literal["prefix_binding_mismatch", "model_binding_mismatch"]


class Signer:
    """Signs the thinking of the answer to a request; `body` is that of the request."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    def sign(self, before: Sequence[Json], text: str) -> str:
        """Returns the signature of a thinking block with this text, after the blocks `before` of the same answer."""
        own = [Place(len(self._body["messages"]), index, "assistant", block) for index, block in enumerate(before)]
        places = [*read_places(self._body), *own]
        thoughts = [place for place in places if place.is_thinking]
        system, tools, messages = state_before(self._body, read_leaves(self._body, places))
        after = seal_of(thoughts[-1].block) if thoughts else ""
        fields = (str(self._body.get("model")), system, tools, messages, after)
        return write_signature(fields, text)


def write_signature(fields: tuple[str, ...], text: str) -> str:
    signed = "|".join((*fields, seal(fields, text)))
    return PREFIX + base64.urlsafe_b64encode(signed.encode()).decode()


def read_signature(block: Json) -> Bound | None:
    """Returns what the block's signature says; None if it is not of this program, or not for this text."""
    signature = str(block.get("signature"))
    try:
        fields = base64.urlsafe_b64decode(signature.removeprefix(PREFIX).encode()).decode().split("|")
    except ValueError:
        return None
    if not signature.startswith(PREFIX) or len(fields) != FIELDS:
        return None
    bound = Bound(*fields)
    return bound if hmac.compare_digest(bound.seal, seal(bound[:-1], str(block.get("thinking")))) else None


def seal(fields: tuple[str, ...], text: str) -> str:
    return hmac.new(KEY, "|".join((*fields, text)).encode(errors="replace"), "sha256").hexdigest()[:24]


def seal_of(block: Json) -> str:
    """Returns what identifies a thinking block: the seal in its signature, or a digest of a foreign signature."""
    bound = read_signature(block)
    return bound.seal if bound else digest(block.get("signature") or block.get("data"))


def check_thinking(
    body: Json, behavior: Behavior, betas: str, known: frozenset[str] = frozenset()
) -> list[Transformation] | None:
    """Returns the thinking that is dropped from a request, or None if the request did not send the beta's header.

    `behavior` is that of the account for thinking under another prefix. `known` are signatures of tests, which are
    bound to nothing. Raises Refusal as the API does.
    """
    has_controls = CONTROLS in betas
    wanted = read_wanted(body, has_controls=has_controls)
    places = read_places(body)
    thoughts = [place for place in places if place.is_thinking]
    for place in thoughts:
        refuse_altered(place, known)
    refuse_changed_loop(body, places)
    unread = [place for place in thoughts if not can_read(str(body.get("model")), place.block)]
    dropped = {place.path: Transformation(place.path, "model_binding_mismatch") for place in unread}
    is_checked = runs_check(str(body.get("model"))) and (behavior != "none" or wanted is not None)
    mismatch = find_mismatch(body, places, dropped) if is_checked else None
    if mismatch is not None:
        first, reason = mismatch
        if wanted == "error" or (wanted is None and behavior == "error"):
            needs = "" if has_controls else f" {NEEDS_CONTROLS}"
            raise Refusal(INVALID, f"{first.path}: {invalid_signature(first)} {FOREIGN}{needs}{reason}")
        for place in thoughts[thoughts.index(first) :]:
            dropped.setdefault(place.path, Transformation(place.path, "prefix_binding_mismatch"))
    return [dropped[place.path] for place in thoughts if place.path in dropped] if has_controls else None


def read_wanted(body: Json, *, has_controls: bool) -> str | None:
    """Returns `prefix_mismatch_behavior` of a request, or None. Raises Refusal."""
    thinking = body.get("thinking") or {}
    if "block_binding" not in thinking:
        return None
    if not has_controls:
        raise Refusal(INVALID, f"thinking.{thinking.get('type')}.block_binding: Extra inputs are not permitted")
    wanted = (thinking["block_binding"] or {}).get("prefix_mismatch_behavior")
    if wanted not in (None, "error", "drop_block"):
        raise Refusal(
            INVALID,
            f"thinking.{thinking.get('type')}.block_binding.prefix_mismatch_behavior: Input should be 'error' or "
            "'drop_block'",
        )
    return wanted


def refuse_altered(place: Place, known: frozenset[str]) -> None:
    """Raises Refusal for a signature that the API did not write for this block."""
    given = place.block.get("signature") if place.block["type"] == "thinking" else place.block.get("data")
    if given not in known and read_signature(place.block) is None:
        raise Refusal(INVALID, f"{place.path}: {invalid_signature(place)}")
    if "cache_control" in place.block:
        kind = place.block["type"]
        raise Refusal(INVALID, f"{place.path}.{kind}.cache_control: Extra inputs are not permitted")


def invalid_signature(place: Place) -> str:
    kind = place.block["type"]
    return f"Invalid `{'signature' if kind == 'thinking' else 'data'}` in `{kind}` block."


def refuse_changed_loop(body: Json, places: Sequence[Place]) -> None:
    """Raises Refusal if the answer that the request continues lacks thinking before a call.

    The id of a call names the thinking before it (`mark_call`). A model that checks prefixes also accepts an answer
    without all of its thinking (page "Fix a thinking block bound to a different conversation").
    """
    open_places = list(find_open(places))
    lacks = [place for place in open_places if not has_its_thinking(place, open_places)]
    if not lacks or (body.get("thinking") or {}).get("type") == "disabled":
        return
    if is_modified(places, open_places, lacks[0]):
        raise Refusal(INVALID, f"{lacks[0].path}: {CANNOT_BE_MODIFIED}")
    if not runs_check(str(body.get("model"))):
        raise Refusal(INVALID, f"messages.{lacks[0].message}.content.0.type: {EXPECTED}")


def is_modified(places: Sequence[Place], open_places: Sequence[Place], lacks: Place) -> bool:
    """Returns whether a part of an answer's thinking is missing, and not all that its writer had.

    The API asks for the blocks of an answer as it has sent them (message: NousResearch/hermes-agent#35265,
    Yeachan-Heo/gajae-code#4262). When exactly a checking model refuses a part is not written: here, always.

    The thinking of the answer comes before a call that lacks its own, or was written after thinking that is missing.
    """
    seals = {seal_of(place.block) for place in places if place.is_thinking}
    of_answer = [place for place in open_places if place.is_thinking]
    bounds = [read_signature(place.block) for place in of_answer]
    is_before = any(places.index(place) < places.index(lacks) for place in of_answer)
    return is_before or any(bound is not None and bound.after and bound.after not in seals for bound in bounds)


def find_open(places: Sequence[Place]) -> Iterator[Place]:
    """Yields the blocks of the answer that a request continues: those after the last question of the user."""
    spoken = [place for place in places if place.role != "system"]
    turns = [list(turn) for _, turn in itertools.groupby(spoken, lambda place: place.role)]
    open_turns = itertools.takewhile(lambda turn: turn[0].role == "assistant" or is_result(turn), reversed(turns))
    yield from itertools.chain.from_iterable(reversed(list(open_turns)))


def is_result(turn: Sequence[Place]) -> bool:
    return any(place.block.get("type") == "tool_result" for place in turn)


def mark_call(call: str, thoughts: str) -> str:
    """Returns the id of a call with a mark of the thinking before it in its answer."""
    return f"{call}t{digest(thoughts)[:8]}" if thoughts else call


def has_its_thinking(call: Place, places: Sequence[Place]) -> bool:
    """Returns whether the thinking that the id of a call names is among `places`, before it."""
    name, _, mark = str(call.block.get("id")).rpartition("t")
    if call.block.get("type") != "tool_use" or not name.startswith("toolu_sim") or len(mark) != 8:
        return True
    before = itertools.takewhile(lambda place: place is not call, places)
    return any(digest(place.block.get("thinking"))[:8] == mark for place in before if place.is_thinking)


def find_mismatch(
    body: Json, places: Sequence[Place], unread: Mapping[str, Transformation]
) -> tuple[Place, str] | None:
    """Returns the first thinking that is bound to another conversation, and a sentence that says what has changed.

    Of consecutive blocks, the first one may follow any thinking: earlier thinking may have been removed. Blocks before
    the newest compaction are not read. Those of models that are not checked are not bound.
    """
    start = max((n for n, place in enumerate(places) if is_compaction(place)), default=0)
    before: str | None = None
    leaves = read_leaves(body, places)
    for number, place in enumerate(places):
        if not place.is_thinking or number < start:
            continue
        bound = read_signature(place.block)
        if bound is not None and place.path not in unread and runs_check(bound.model):
            if before is not None and bound.after != before:
                return place, ""
            system, tools, messages = state_before(body, leaves[:number])
            if bound.system != system:
                return place, " The `system` prompt differs from the one this block was created with."
            if bound.tools != tools:
                return place, " The `tools` list differs from the one this block was created with."
            if bound.messages != messages:
                return place, " A message before it differs from when this block was created."
        before = seal_of(place.block)
    return None


class Leaf(NamedTuple):
    """A block other than thinking, as a part of the prefix of later thinking."""

    role: str
    message: int
    """The number of its message, if it is a system message: these are not joined."""
    digest: str
    """Of the block, and of the fields of its message."""
    names: frozenset[str]
    """The names of tools that it uses or refers to."""
    is_compaction: bool


def read_leaves(body: Mapping[str, Any], places: Sequence[Place]) -> list[Leaf | None]:
    """Returns a leaf for each place; None for thinking, which does not count."""
    return [None if place.is_thinking else read_leaf(body, place) for place in places]


def read_leaf(body: Mapping[str, Any], place: Place) -> Leaf:
    number = place.message if place.role == "system" else 0
    value = [extra_fields(body, place), plain(place.block)]
    return Leaf(place.role, number, digest(value), frozenset(names_in(place.block)), is_compaction(place))


def state_before(body: Mapping[str, Any], leaves: Sequence[Leaf | None]) -> tuple[str, str, str]:
    """Returns digests of system, tools and messages, as they count for a block that follows `leaves`."""
    found = [leaf for leaf in leaves if leaf is not None]
    start = max((number for number, leaf in enumerate(found) if leaf.is_compaction), default=0)
    used = frozenset[str]().union(*(leaf.names for leaf in found))
    tools = [
        plain(tool) for tool in body.get("tools") or [] if not tool.get("defer_loading") or tool.get("name") in used
    ]
    # The numbers of system messages only keep them apart: they count from the compaction on.
    numbers: dict[int, int] = {}
    counted = [(leaf.role, numbers.setdefault(leaf.message, len(numbers)), leaf.digest) for leaf in found[start:]]
    return digest(list(map(plain, as_blocks(body.get("system"))))), digest(tools), digest(counted)


def extra_fields(body: Mapping[str, Any], place: Place) -> list[Any]:
    """Returns the fields of the block's message other than its role and content."""
    messages = body["messages"]
    if place.message >= len(messages):
        return []
    fields = sorted(messages[place.message].items())
    return [[name, value] for name, value in fields if name not in ("role", "content") and value is not None]


def is_compaction(place: Place) -> bool:
    return place.block.get("type") == "compaction" and bool(place.block.get("content"))


def read_places(body: Mapping[str, Any]) -> list[Place]:
    """Returns all blocks of the messages. A system message without content has one empty block."""
    return [
        Place(number, index, message["role"], block)
        for number, message in enumerate(body["messages"])
        for index, block in enumerate(as_blocks(message.get("content")) or [{}] * (message["role"] == "system"))
    ]


def as_blocks(content: Any) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) and content else list(content or [])


def names_in(value: Any) -> set[str]:
    """Returns the names of tools that a block uses or refers to."""
    if isinstance(value, list):
        return set().union(*map(names_in, value))
    if not isinstance(value, dict):
        return set()
    own = {str(value[field]) for field in ("name", "tool_name") if field in value}
    return own.union(*map(names_in, value.values()))


def plain(block: Any) -> Any:
    """Returns a block without marks of the cache, at any level but in the input of a call; its fields sorted."""
    if isinstance(block, list):
        return [plain(one) for one in block]
    if not isinstance(block, dict):
        return block
    return [
        [name, value if name in ("input", "input_schema") else plain(value)]
        for name, value in sorted(block.items())
        if name != "cache_control" and value is not None
    ]


def digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).hexdigest()


def parse(body: bytes) -> Any:
    """Returns the value of JSON that the API accepts, also with numbers that no double holds and half surrogates."""
    return json.loads(body, parse_int=lambda digits: int(digits) if len(digits) <= DIGITS_MAX else digits)


def runs_check(model: str) -> bool:
    """Returns whether the model checks what stood before thinking."""
    return model not in BY_NAME or BY_NAME[model].binds_thinking


def can_read(reader: str, block: Json) -> bool:
    """Returns whether a model can read a thinking block; it reads every signature that only tests know.

    Anthropic's page "Preserved thinking": a model reads its own thinking and that of a fixed set of other models. No
    earlier model reads that of Fable 5.1, which reads that of Opus 5.5 and of all earlier models.
    """
    bound = read_signature(block)
    if bound is None or bound.model == reader or not runs_check(bound.model):
        return True
    return runs_check(reader) and rank(reader) >= rank(bound.model)


def rank(model: str) -> int:
    """Returns a larger number for a model that reads the thinking of models with smaller numbers."""
    return 1 + any(line in model for line in ("fable", "mythos"))
