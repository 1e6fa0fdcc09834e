"""What a turn's answer has to be, byte for byte: the simulated Claude's own function of the question. Pure."""

import msgspec

from tailrace.deploy.simulated_claude import answer, conversation, directive
from tailrace.deploy.simulated_claude.request import Message
from tailrace.proto.entries import Request
from tailrace.proto.fold import Turn
from tailrace.proto.schema import schema_of

KINDS = ("text", "thinking", "tool_use")
# Whatever these say, the answer may stop before its end.
CUT_SHORT = ("max_tokens", "max_cost", "stop_sequence")


def answer_of(request: Request) -> dict[str, str] | None:
    """The whole answer, joined by kind of block; None for what is not answered by the question's words alone."""
    if request.batch is not None or schema_of(request.options) is not None or not request.messages:
        return None
    asked = conversation.read(_messages(request))
    try:
        directed = directive.read(asked.question)
    except directive.DirectiveInvalid:
        return None
    if directed.files:
        return None
    blocks = answer.whole(asked, directed).blocks
    return {kind: "".join(block.content for block in blocks if block.kind == kind) for kind in KINDS}


def said(turn: Turn) -> dict[str, str]:
    """What the log holds of it, joined in the same way."""
    return {kind: "".join(block.text for block in turn.blocks if block.type == kind) for kind in KINDS}


def has_to_be_whole(turn: Turn) -> bool:
    return turn.outcome == "completed" and turn.stop.stop_reason not in CUT_SHORT


def call_key(request: Request) -> str | None:
    """The key under which the model's account has the turn's calls; None for a turn that makes none by itself."""
    return conversation.read(_messages(request)).key if request.messages and request.batch is None else None


def question_of(request: Request) -> str:
    """The text of the last message."""
    return _messages(request)[-1].text if request.messages else ""


def difference(wanted: str, came: str) -> str:
    """Where two texts part, with what stands there."""
    place = next((n for n, (one, other) in enumerate(zip(wanted, came, strict=False)) if one != other), None)
    if place is None:
        place = min(len(wanted), len(came))
    begin = max(place - 10, 0)
    return f"after {place} characters comes {came[begin : place + 20]!r} where {wanted[begin : place + 20]!r} is due"


def _messages(request: Request) -> list[Message]:
    # A blob's reference is no text (PROTOCOL R33); what is decoded here is what is not lifted.
    return [msgspec.convert(msgspec.to_builtins(message), Message) for message in request.messages]
