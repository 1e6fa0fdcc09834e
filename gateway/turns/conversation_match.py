"""Where a question belongs: its session, the turn that it follows, what was said until there. Pure.

A client that sends the whole conversation each time (OpenAI's and Anthropic's protocols, `useChat`) goes on from the
last turn up to which it says what the session holds. From there on it is a branch.
"""

from typing import Any

import msgspec

from tailrace.proto import blobs
from tailrace.proto.entries import Message
from tailrace.proto.ids import SessionId, TurnId
from tailrace.proto.records import Context


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """`before` is what the session knows already, `new` what this turn adds; `model` and `system` are the session's."""

    session: SessionId
    parent: TurnId | None = None
    before: list[Message] = []
    new: list[Message]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None


def after(context: Context, new: list[Message]) -> Position:
    """The place of what is said at the end of the branch that `context` tells."""
    return Position(
        session=context.session,
        parent=context.parent,
        before=context.messages,
        new=new,
        model=context.model,
        system=context.system,
    )


def agreed(context: Context, said: list[Message]) -> Position:
    """The place of a conversation that a client tells from its beginning.

    It follows the last turn up to which it tells what the session holds; what comes after that is new. The session's
    own messages stand for the told ones: they have what a client leaves out (signatures, citations).
    """
    like = common(context.messages, said)
    for turn, upto in reversed(context.turns):
        if upto <= like and upto < len(said):
            place = after(context, said[upto:])
            return msgspec.structs.replace(place, parent=turn, before=context.messages[:upto])
    return msgspec.structs.replace(after(context, said), parent=None, before=[])


def verbatim(place: Position, said: list[Message]) -> Position:
    """`place` with what was said until there in the client's own words, and nothing that it does not say.

    Its marks for the prompt cache move from message to message, and what it has cleared it wants forgotten.
    """
    upto = len(said) - len(place.new)
    return Position(session=place.session, parent=place.parent, before=said[:upto], new=said[upto:])


def common(held: list[Message], told: list[Message]) -> int:
    """How many messages from the beginning say the same."""
    count = 0
    for ours, theirs in zip(held, told, strict=False):
        if gist(ours) != gist(theirs):
            break
        count += 1
    return count


def gist(message: Message) -> tuple[str, str, tuple[str, ...]]:
    """Who says what, whatever the protocol makes of it: the text, which files, which tool calls it makes or answers."""
    if isinstance(message.content, str):
        return message.role, blobs.comparison_key(message.content).strip(), ()
    texts, calls = [], []
    for block in message.content:
        match block:
            case {"type": "text", "text": str(text) | dict(text)}:
                texts.append(blobs.comparison_key(text))
            case {"type": "tool_use", "id": str(call)} | {"type": "tool_result", "tool_use_id": str(call)}:
                calls.append(call)
            case {
                "type": "image" | "document" as kind,
                "source": {"data": str(file) | dict(file)} | {"url": str(file)},
            }:
                calls += [kind, blobs.comparison_key(file)]
            case {"type": "image" | "document" as kind}:
                calls.append(kind)
            case _:
                pass
    return message.role, "".join(texts).strip(), tuple(calls)
