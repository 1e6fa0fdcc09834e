"""The position of a new turn in its session: the parent, the messages before it, and its own messages. Pure.

A client that sends the whole conversation each time (OpenAI's and Anthropic's protocols, `useChat`) continues from the
last turn up to which its messages equal those of the session. What follows is a new branch.
"""

from typing import Any

import msgspec

from tailrace.proto import blobs
from tailrace.proto.conversation import accepted_before
from tailrace.proto.entries import Message
from tailrace.proto.ids import SessionId, TurnId
from tailrace.proto.records import Context


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """`before` are the session's messages, `new` those of this turn; `model` and `system` are the session's."""

    session: SessionId
    parent: TurnId | None = None
    before: list[Message] = []
    new: list[Message]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    is_queued: bool = False
    """Whether the turn waits for the end of its parent, whose answer is not known yet."""


def position_after(context: Context, new: list[Message]) -> Position:
    """Returns the position at the end of the branch in `context`."""
    return Position(
        session=context.session,
        parent=context.parent,
        before=accepted_before(new, context.messages),
        new=new,
        model=context.model,
        system=context.system,
    )


def match_history(context: Context, conversation: list[Message]) -> Position:
    """Returns the position of a conversation that a client sent as a whole.

    It follows the last turn up to which the messages equal those of the session; the rest is new. The session's own
    messages replace the client's: they have what clients leave out (signatures, citations).
    """
    common = common_prefix(context.messages, conversation)
    for turn, upto in reversed(context.turns):
        if upto <= common and upto < len(conversation):
            up_to_turn = msgspec.structs.replace(context, parent=turn, messages=context.messages[:upto])
            return position_after(up_to_turn, conversation[upto:])
    return position_after(msgspec.structs.replace(context, parent=None, messages=[]), conversation)


def verbatim_position(position: Position, conversation: list[Message]) -> Position:
    """Returns `position` with the client's own messages before it instead of the session's.

    A client moves its prompt cache marks from message to message, and may have cleared old tool results.
    """
    upto = len(conversation) - len(position.new)
    return Position(
        session=position.session, parent=position.parent, before=conversation[:upto], new=conversation[upto:]
    )


def common_prefix(stored: list[Message], sent: list[Message]) -> int:
    """Returns how many messages from the start are equal in both lists."""
    count = 0
    for ours, theirs in zip(stored, sent, strict=False):
        if identify(ours) != identify(theirs):
            break
        count += 1
    return count


def identify(message: Message) -> tuple[str, str, tuple[str, ...]]:
    """Returns what identifies a message in every client protocol: role, text, and the ids of files and tool calls."""
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
