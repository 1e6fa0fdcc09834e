"""The position of a new turn in its session: the parent, the messages before it, and its own messages. Pure.

A client that sends the whole conversation each time (OpenAI's and Anthropic's protocols, `useChat`) continues from the
last turn up to which its messages equal those of the session. What follows is a new branch.
"""

from functools import partial
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from tailrace.proto import blobs
from tailrace.proto.conversation import accepted_before, has_results
from tailrace.proto.entries import Message, Prefix, StoredThinking
from tailrace.proto.ids import SessionId, TurnId
from tailrace.proto.records import Context
from tailrace.proto.thinking_prefix import thinking_ids


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """`before` are the session's messages, `new` the messages of this turn; `model` and `system` are the session's."""

    session: SessionId
    parent: TurnId | None = None
    before: list[Message] = []
    new: list[Message]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    thinking: list[StoredThinking] = []
    """The stored thinking in `before` (PROTOCOL R140)."""
    container: str | None = None
    """The container in which code waits for the results in `new`."""
    previous: Prefix | None = None
    """The prompt of the turn before this one."""
    owner: str | UnsetType | None = UNSET
    """The owner of the session. Left out: the turn begins it."""
    is_queued: bool = False
    """Whether the turn waits for the end of its parent, whose answer is not known yet."""


def position_after(context: Context, new: list[Message]) -> Position:
    """Returns the position at the end of the branch in `context`."""
    before = accepted_before(new, context.messages)
    parent = context.parent
    return Position(
        session=context.session,
        parent=parent,
        before=before,
        new=new,
        model=context.model,
        system=context.system,
        thinking=context.thinking,
        owner=context.owner,
        container=context.containers.get(parent) if parent is not None and any(map(has_results, new)) else None,
        previous=context.prompts.get(parent) if parent is not None else None,
    )


def match_history(context: Context, conversation: list[Message]) -> Position:
    """Returns the position of a conversation that a client sent as a whole.

    The position is after the last turn up to which the messages equal the session's; the rest is new. The session's own
    messages replace the client's: they have what clients leave out (signatures, citations).
    """
    parent, before, sent = None, 0, 0
    for index, (turn, upto) in enumerate(context.turns):
        found = _end_of_turn(_messages_of_turn(context, index), conversation, sent)
        if found is None or found == len(conversation):
            break
        parent, before, sent = turn, upto, found
    up_to_parent = msgspec.structs.replace(context, parent=parent, messages=context.messages[:before])
    return position_after(up_to_parent, conversation[sent:])


def append_to_history(context: Context, new: list[Message]) -> Position:
    """Returns the position of `new` after the branch in `context`.

    If `new` begins with the questions of the branch's last turns without an answer, these messages are not new: the
    client has sent them again.
    """
    for first in range(_answered_turns(context), len(context.turns)):
        sent: int | None = 0
        for messages in map(partial(_messages_of_turn, context), range(first, len(context.turns))):
            if sent is None:
                break
            sent = _end_of_turn(messages, new, sent)
        if sent is not None and sent < len(new):
            return position_after(context, new[sent:])
    return position_after(context, new)


def _answered_turns(context: Context) -> int:
    """Returns the number of turns up to the last one whose answer every client sends back."""
    count = len(context.turns)
    while count and all(
        message.role != "assistant" or _is_answer_without_text(message)
        for message in _messages_of_turn(context, count - 1)
    ):
        count -= 1
    return count


def _messages_of_turn(context: Context, index: int) -> list[Message]:
    """Returns the messages of a turn of the branch, also those that the model does not get."""
    turn, end = context.turns[index]
    return context.left_out.get(turn) or context.messages[context.turns[index - 1][1] if index else 0 : end]


def _end_of_turn(stored: list[Message], sent: list[Message], start: int) -> int | None:
    """Returns the index in `sent` after a turn with the messages `stored` that begins at `start`; None: they differ.

    Client protocols have no question beside results: such a message comes as two.
    Clients leave out an answer without text, or send it as an empty message, and leave out calls without a result.
    They also leave out a system message that only sets the effort, or that the gateway has made of a page's context.
    """
    at = start
    for message in stored:
        if at < len(sent) and _is_same(message, sent[at]):
            at += 1
        elif has_results(message) and len(sent) > at + 1 and identify(message) == _joined(sent[at], sent[at + 1]):
            at += 2
        elif not _is_answer_without_text(message) and is_seen(message):
            return None
    while at < len(sent) and _is_answer_without_text(sent[at]) and not identify(sent[at]).calls:
        at += 1
    return at


def is_seen(message: Message) -> bool:
    """Returns whether a client has a message: none has the context of its page as one."""
    return message.role != "system" or (bool(message.content) and message.clear_at != "next_user_message")


def _is_same(stored: Message, sent: Message) -> bool:
    ours, theirs = identify(stored), identify(sent)
    if stored.role == "assistant":
        # Some clients keep only the calls of an answer that has calls.
        has_only_calls = bool(theirs.calls) and theirs[:-1] == ("assistant", "", ())
        return (has_only_calls or ours[:-1] == theirs[:-1]) and set(theirs.calls) <= set(ours.calls)
    return ours == theirs


def _is_answer_without_text(message: Message) -> bool:
    identity = identify(message)
    return message.role == "assistant" and not identity.text and not identity.files


def verbatim_position(position: Position, conversation: list[Message]) -> Position:
    """Returns `position` with the client's own messages before the turn in place of the session's.

    A client moves its prompt cache marks from message to message, and may have cleared old tool results. Its thinking
    is sent as it is, except thinking that was written after what a generator had added to the prompt: the client does
    not know of that, and no prompt of the client's has that prefix.
    """
    upto = len(conversation) - len(position.new)
    sent = set(thinking_ids(conversation)) if position.thinking else set()
    return Position(
        session=position.session,
        parent=position.parent,
        before=conversation[:upto],
        new=conversation[upto:],
        thinking=[one for one in position.thinking if one.prefix == "" and one.id in sent],
        previous=position.previous,
        owner=position.owner,
    )


class Identity(NamedTuple):
    """The parts of a message by which it is compared: the same in each client protocol."""

    role: str
    text: str
    files: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    """The ids of tool calls, or of the calls whose results the message has, in the order of the alphabet."""


def _joined(message: Message, following: Message) -> Identity | None:
    """Returns the identity of two messages as one; None if their roles differ."""
    one, two = identify(message), identify(following)
    if one.role != two.role:
        return None
    return Identity(one.role, one.text + two.text, one.files + two.files, tuple(sorted(one.calls + two.calls)))


def identify(message: Message) -> Identity:
    """Returns the identity of a message. A long text or file is identified by its hash."""
    if isinstance(message.content, str):
        return Identity(message.role, blobs.comparison_key(message.content).strip())
    texts, files, calls = [], [], []
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
                files += [kind, blobs.comparison_key(file)]
            case {"type": "image" | "document" as kind}:
                files.append(kind)
            case _:
                pass
    return Identity(message.role, "".join(texts).strip(), tuple(files), tuple(sorted(calls)))
