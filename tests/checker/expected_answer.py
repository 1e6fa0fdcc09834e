"""The expected answer of a turn: the simulated Claude's own function of the request. Pure functions."""

import msgspec

from tailrace.deploy.simulated_claude import answer, conversation, directive
from tailrace.deploy.simulated_claude.request import Message
from tailrace.proto.entries import Request
from tailrace.proto.fold import Turn
from tailrace.proto.schema import schema_of

# With these stop reasons an answer may be incomplete.
CUT_SHORT = ("max_tokens", "max_cost", "budget", "stop_sequence")


def expected_answer(request: Request) -> answer.Part | None:
    """Returns the whole answer; None if it does not depend on the request's text alone."""
    if request.batch is not None or schema_of(request.options) is not None or not request.messages:
        return None
    read = conversation.read(_messages(request))
    try:
        directed = directive.read(read.question)
    except directive.DirectiveInvalid:
        return None
    if directed.files:
        return None
    return answer.build_answer(read, directed)


def is_whole(turn: Turn) -> bool:
    return turn.outcome == "completed" and turn.stop.stop_reason not in CUT_SHORT


def call_key(request: Request) -> str | None:
    """Returns the key of the turn's calls in the model's report; None for a turn without calls of its own."""
    return conversation.read(_messages(request)).key if request.messages and request.batch is None else None


def question_of(request: Request) -> str:
    """Returns the text of the last message."""
    return _messages(request)[-1].text if request.messages else ""


def _messages(request: Request) -> list[Message]:
    # Only messages without references to blobs (PROTOCOL R33) can be decoded.
    return [msgspec.convert(msgspec.to_builtins(message), Message) for message in request.messages]
