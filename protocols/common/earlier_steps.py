"""The steps of an answer before a request that goes on with it: answers, and results of their calls.

A turn goes on with the answer before it if it has results of that one's calls, or after a pause of the model. Claude's
API then may begin the new answer with results of the earlier one's calls: it runs its own tools only after the client
has sent the results of tools that the model has called beside them (Anthropic's docs, "Server tools").
"""

from collections.abc import Sequence

from tailrace.gateway.history_client import HistoryClient
from tailrace.proto.entries import Message, Request
from tailrace.proto.ownership import Scope
from tailrace.proto.records import GetAncestry, TurnRecord

# The turns of one answer that are read at most.
STEPS_MAX = 100


def is_question(message: Message) -> bool:
    """Returns whether a message begins another answer: one of the user with more than results of tools."""
    blocks = message.content if isinstance(message.content, list) else []
    return message.role == "user" and not (blocks and all(block.get("type") == "tool_result" for block in blocks))


def own_messages(asked: Request | TurnRecord) -> list[Message]:
    """Returns the messages that a turn has added to its conversation."""
    return asked.input if isinstance(asked, TurnRecord) else asked.messages[asked.history :]


def goes_on(asked: Request | TurnRecord) -> bool:
    """Returns whether the answer of a turn goes on with an earlier answer."""
    last = next((message for message in reversed(own_messages(asked)) if message.role != "system"), None)
    return last is None or not is_question(last)


def steps_of(messages: Sequence[Message]) -> list[Message]:
    """Returns the messages behind the last question."""
    last = max((number for number, message in enumerate(messages) if is_question(message)), default=-1)
    return list(messages[last + 1 :])


async def read_steps(history: HistoryClient, scope: Scope, turn: TurnRecord) -> tuple[TurnRecord, list[Message]]:
    """Returns the turn that has begun the answer with which `turn` goes on, and the steps since then.

    They are those of the turn's own messages if these have a question, else those of the turns before it. Raises
    Refused.
    """
    turns = [turn]
    if turn.parent is not None and not any(map(is_question, turn.input)):
        turns += (await history.query(scope, GetAncestry(turn.parent, STEPS_MAX))).turns
    first = next((at for at, one in enumerate(turns) if any(map(is_question, one.input))), len(turns) - 1)
    steps = [part for one in turns[first::-1] for part in (*one.input, Message("assistant", one.content))]
    return turns[first], steps_of(steps[:-1])
