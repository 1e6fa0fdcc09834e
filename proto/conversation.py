"""The messages of a conversation branch, which a follow-up turn continues. Pure.

`messages` leaves out unfinished blocks, because the API rejects them: a thinking block without its signature, an empty
text, a server tool's call without its result. `accepted_before` leaves out calls of the client's tools without their
results: only the new messages show whether the client has answered a call.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from tailrace.proto import blobs
from tailrace.proto.containers import container_of
from tailrace.proto.entries import Message, Prefix, StoredThinking
from tailrace.proto.errors import REFUSED_REQUEST
from tailrace.proto.events import is_tool_use
from tailrace.proto.fold import without_mark
from tailrace.proto.ids import TurnId
from tailrace.proto.records import Context, SessionRecord, TurnRecord
from tailrace.proto.server_tools import is_executed_tool
from tailrace.proto.thinking_prefix import find_stored_thinking, thinking_ids

Block = dict[str, Any]

# After this stop reason, the result of a server tool's call may be in a later answer, when the client has sent the
# result of its own tool. Anthropic's docs: "Programmatic tool calling". After `pause_turn`, only a request that ends
# with the answer gets that result: here a user's message follows the answer.
AWAITS_CLIENT = "tool_use"
# In place of the id of a tool call without a valid id, name or input.
MALFORMED = ""


class History(NamedTuple):
    """The conversation of a branch, oldest first."""

    messages: list[Message]
    """The question of each turn, and its answer if it has one."""
    ends: list[tuple[TurnId, int]]
    """Each turn, and the number of `messages` up to and including the turn's answer."""
    left_out: dict[TurnId, list[Message]]
    """The turns that `messages` leaves out because of refusals (PROTOCOL R112)."""
    thinking: list[StoredThinking]
    """The thinking blocks of the answers (PROTOCOL R140)."""
    prompts: dict[TurnId, Prefix]
    """The prompt of each turn's last call."""
    containers: dict[TurnId, str]
    """The container in which code of the newest answer, up to each turn, waits for results of the client's tools."""


def read_history(branch: Iterable[TurnRecord]) -> History:
    """Returns the conversation of `branch`, a turn and all turns before it, oldest first."""
    found = History([], [], {}, [], {}, {})
    container: str | None = None
    for turn, of_turn in _by_turn(branch):
        if turn.stop_reason == AWAITS_CLIENT and any(map(has_results, turn.input)):
            # The answer goes on, and code of its beginning may still wait.
            container = open_container(turn) or container
        elif turn.stop_reason is not None:
            container = open_container(turn)
        if container is not None:
            found.containers[turn.turn] = container
        found.messages.extend(of_turn)
        found.ends.append((turn.turn, len(found.messages)))
        if turn.prefixes:
            found.prompts[turn.turn] = turn.prefixes[-1]
            if not turn.prefixes[0].thinking:
                # The API has refused the thinking that the client has sent, if any.
                found.thinking.extend(map(StoredThinking, thinking_ids(turn.input)))
        found.thinking.extend(find_stored_thinking(turn.prefixes, map(_as_sent, turn.content)))
        if not of_turn:
            answer = _answer(turn)
            found.left_out[turn.turn] = turn.input if answer is None else [*turn.input, answer]
    return found


def messages(branch: Iterable[TurnRecord]) -> list[Message]:
    """Returns only the messages of `read_history`."""
    return read_history(branch).messages


def open_container(turn: TurnRecord) -> str | None:
    """Returns the id of the container in which code waits for the results of the calls that it has made; None: no code.

    The API requires it with these results. Source: Anthropic's page "Programmatic tool calling".
    """
    if turn.stop_reason != AWAITS_CLIENT or all(_caller(block) is None for block in turn.content):
        return None
    return container_of(turn.envelope)


def build_context(session: SessionRecord, parent: TurnId | None, branch: list[TurnRecord]) -> Context:
    """Returns the context of a turn after `branch`, whose last turn is `parent`, in a session."""
    history = read_history(branch)
    return Context(
        session.session,
        parent,
        history.messages,
        history.ends,
        session.system_prompt,
        session.model,
        session.project_id,
        history.left_out,
        history.thinking,
        history.prompts,
        history.containers,
        session.owner,
    )


def accepted_before(new: Iterable[Message], history: Sequence[Message]) -> list[Message]:
    """Returns `history`, messages of a branch, as the API accepts them before the messages `new`.

    The API requires one result of each tool call, at the start of the user messages after it. A call without a result,
    a malformed call and a result without its call are left out. Of two results of a call, the newer result stays.
    """
    new = list(new)
    history = _with_whole_pauses(new, history)
    found: list[Message] = []
    at = 0
    while at < len(history):
        end = at + 1
        while end < len(history) and _is_question(history[end]):
            end += 1
        if _is_question(history[at]):
            found += _without_results(history[at:end])
        else:
            following = list(takewhile(_is_question, new)) if end == len(history) else []
            found += _with_results(history[at], history[at + 1 : end], following)
        at = end
    return without_lost_calls(found, new)


def without_lost_calls(history: Sequence[Message], new: Sequence[Message] = ()) -> list[Message]:
    """Returns `history`, which `new` follows, without calls of server tools that can get no result any more.

    It also leaves out what their code did. The API executes or continues such a call only while nothing but results of
    the client's tools follows the call.
    """
    conversation = [*history, *new]
    answered = {
        str(block.get("tool_use_id"))
        for message in conversation
        if not _is_question(message)
        for block in _blocks(message)
    }
    last = max((at for at, one in enumerate(conversation) if one.role == "user" and not _results(one)), default=0)
    found: list[Message] = []
    lost: set[str] = set()
    for message in history[:last]:
        if not _is_question(message):
            lost |= _server_call_ids(message) - answered
            lost |= {str(block.get("id")) for block in _blocks(message) if _caller(block) in lost}
        kept = [block for block in _blocks(message) if not _ids(block) & lost]
        if len(kept) == len(_blocks(message)):
            found.append(message)
        elif blocks := without_trailing_thinking(kept):
            found.append(Message(message.role, simplify(blocks) if message.role == "assistant" else blocks))
    return [*found, *history[last:]]


def _server_call_ids(message: Message) -> set[str]:
    """Returns the ids of the calls in `message` that the API executes itself."""
    return {
        call
        for block in _blocks(message)
        if (kind := str(block.get("type"))) != "tool_use"
        and is_tool_use(kind)
        and isinstance(call := block.get("id"), str)
    }


def _ids(block: Block) -> set[str]:
    return {one for one in (block.get("id"), block.get("tool_use_id")) if isinstance(one, str)}


def _caller(block: Block) -> str | None:
    """Returns the id of the server tool's call whose code has made this call; None if the model has made it."""
    match block:
        case {"caller": {"tool_id": str(caller)}, "id": str()}:
            return caller
    return None


def _with_whole_pauses(new: Sequence[Message], history: Sequence[Message]) -> list[Message]:
    """Returns `history` with one copy of each paused answer that a client has sent back, joined with its rest.

    The copy that was sent back follows the stored answer, which it repeats. The rest begins with the results that calls
    of server tools in the answer lack.
    """
    found: list[Message] = []
    for message in history:
        if found and _is_sent_back(message, found[-1]):
            found.pop()
        begun = _as_blocks(found.pop()) if found and _is_rest(message, found[-1]) else []
        found.append(Message("assistant", [*begun, *_as_blocks(message)]) if begun else message)
    return found[:-1] if found and new and _is_sent_back(new[0], found[-1]) else found


def _is_sent_back(message: Message, before: Message) -> bool:
    """Returns whether `message` is a paused answer, and `before` the part of it that the API accepts."""
    if message.role != "assistant" or before.role != "assistant" or not _pending_calls(message):
        return False
    blocks, accepted = _as_blocks(message), _as_blocks(before)
    return blocks[: len(accepted)] == accepted


def _is_rest(message: Message, before: Message) -> bool:
    """Returns whether `message` has the result of a call in `before`, which lacks it."""
    if message.role != "assistant" or before.role != "assistant":
        return False
    return any(block.get("tool_use_id") in _pending_calls(before) for block in _blocks(message))


def _pending_calls(message: Message) -> list[object]:
    """Returns the ids of the calls of server tools in `message` whose results are not in it."""
    blocks = _blocks(message)
    return [block.get("id") for block in blocks if not _has_result(block, blocks)]


def _as_blocks(message: Message) -> list[Block]:
    return [{"type": "text", "text": message.content}] if isinstance(message.content, str) else message.content


def _is_question(message: Message) -> bool:
    return message.role != "assistant"


def _with_results(answer: Message, questions: Sequence[Message], new: Sequence[Message]) -> list[Message]:
    """Returns `answer` and the `questions` after it, with the results of the answer's calls directly after it.

    `new`, the messages after `questions`, stay as they are. If they have results of the calls, the rest of `questions`
    comes before `answer`: the API allows no text between a call and its result.
    """
    calls = {call for block in _blocks(answer) if (call := call_id(block))}
    late = {call for message in new for call in _results(message)} & calls
    results = {call: block for message in questions for call, block in _results(message).items()}
    results = {call: block for call, block in results.items() if call in calls and call not in late}
    called = _without_calls(answer, {MALFORMED, *calls} - late - results.keys())
    if not late and results and results == _results(questions[0]):
        return [*called, questions[0], *_without_results(questions[1:])]
    collected = [Message("user", list(results.values()))] if results else []
    rest = _without_results(questions)
    return [*rest, *called, *collected] if late else [*called, *collected, *rest]


def _blocks(message: Message) -> list[Block]:
    return message.content if isinstance(message.content, list) else []


def call_id(block: Block) -> str | None:
    """Returns the id of a call of the client's tools, MALFORMED if the API refuses the call; None for another block."""
    match block:
        case {"type": "tool_use", "id": str(call), "name": str(name), "input": dict()} if name:
            return call
        case {"type": "tool_use"}:
            return MALFORMED
    return None


def has_results(message: Message) -> bool:
    """Returns whether the message has results of the client's tools."""
    return bool(_results(message))


def _results(message: Message) -> dict[str, Block]:
    return {str(block.get("tool_use_id")): block for block in _blocks(message) if block.get("type") == "tool_result"}


def _without_results(questions: Iterable[Message]) -> list[Message]:
    """Returns `questions` without tool results. A message that has nothing else is left out."""
    found = []
    for message in questions:
        if not _results(message):
            found.append(message)
        elif blocks := [block for block in _blocks(message) if block.get("type") != "tool_result"]:
            found.append(Message(message.role, blocks))
    return found


def _without_calls(answer: Message, unanswered: set[str]) -> list[Message]:
    """Returns `answer` without the calls `unanswered`; no message if it has nothing else."""
    if not any(call_id(block) in unanswered for block in _blocks(answer)):
        return [answer]
    blocks = [block for block in _blocks(answer) if call_id(block) not in unanswered]
    # The code of a server tool may have made the call: the server tool's result would have come after the call's.
    blocks = without_trailing_thinking([block for block in blocks if _has_result(block, blocks)])
    return [Message("assistant", simplify(blocks))] if blocks else []


def _by_turn(branch: Iterable[TurnRecord]) -> list[tuple[TurnRecord, list[Message]]]:
    """Returns each turn with its messages in the conversation: none if the question is left out."""
    found: list[tuple[TurnRecord, list[Message]]] = []
    # The number of refused turns since the last answer, and the first turn whose question may still be left out.
    refused = kept_from = 0
    for turn in branch:
        answer = _answer(turn)
        if answer is not None and turn.stop_reason != "refusal":
            found.append((turn, [*turn.input, answer]))
            refused, kept_from = 0, len(found)
        elif _is_refused(turn):
            found.append((turn, []))
            refused += 1
            if refused > 1:
                # An earlier question that no model has answered may be the reason of both refusals.
                found[kept_from:] = [(one, []) for one, _ in found[kept_from:]]
                kept_from = len(found)
        else:
            found.append((turn, turn.input))
    return found


def _is_refused(turn: TurnRecord) -> bool:
    """Returns whether the model or its API has refused the request, and would refuse it in every later turn."""
    return turn.stop_reason == "refusal" or (turn.error is not None and turn.error.code in REFUSED_REQUEST)


def _answer(turn: TurnRecord) -> Message | None:
    """Returns the answer as the API accepts it; None if nothing of it can be used."""
    blocks = [_as_sent(block) for block in turn.content if _is_usable(block, turn)]
    blocks = without_trailing_thinking(blocks)
    return Message("assistant", simplify(blocks)) if blocks else None


def _as_sent(block: Block) -> Block:
    found: Block = _escape_references(without_mark(block))
    return found


def _is_usable(block: Block, turn: TurnRecord) -> bool:
    match block.get("type"):
        case "text":
            return bool(block["text"].strip())
        case "thinking":
            return turn.outcome == "completed" and bool(block["signature"])
        case _ if turn.outcome != "completed" or is_executed_tool(block) or is_empty_compaction(block):
            return False
        case _:
            return turn.stop_reason == AWAITS_CLIENT or _has_result(block, turn.content)


def _has_result(block: Block, content: Iterable[Block]) -> bool:
    """Returns True if `block` is no call of a server tool, or if `content` has the call's result."""
    kind = str(block.get("type"))
    if kind == "tool_use" or not is_tool_use(kind):
        return True
    return any("id" in block and other.get("tool_use_id") == block["id"] for other in content)


def is_empty_compaction(block: Mapping[str, Any]) -> bool:
    """Returns whether `block` is a summary with empty text, which the API refuses. It accepts null: a failed summary.

    Source: anthropic 2.14.0, `BetaCompactionBlockParam`.
    """
    return block.get("type") == "compaction" and block.get("content") == ""


def without_trailing_thinking(blocks: list[Block]) -> list[Block]:
    """Returns `blocks` without thinking at the end: the API refuses an answer whose last block is thinking."""
    while blocks and blocks[-1].get("type") in ("thinking", "redacted_thinking"):
        blocks = blocks[:-1]
    return blocks


def simplify(blocks: list[Block]) -> str | list[Block]:
    """Returns a single text block without further fields as a string, the form that the log has for it."""
    is_text = len(blocks) == 1 and len(blocks[0]) == 2 and blocks[0].get("type") == "text"
    return blocks[0]["text"] if is_text and isinstance(blocks[0]["text"], str) else blocks


def _escape_references(value: Any) -> Any:
    """Marks what looks like a blob reference in a model's output: only requests refer to blobs (PROTOCOL R33)."""
    match value:
        case list():
            return [_escape_references(one) for one in value]
        case dict() if blobs.parse_reference(value) is not None:
            return {**value, "is_reference": False}
        case dict():
            return {name: _escape_references(one) for name, one in value.items()}
        case _:
            return value
