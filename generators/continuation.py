"""Continuing a partial answer: the call to make, and how its events continue the stored message. Pure.

Readers do not notice a continuation. The new call's `message_start` is hidden, its text goes into the block that was
open, and its further blocks get the following numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tailrace.generators.backends import Call
from tailrace.generators.backends.model_event import (
    CloseCall,
    ModelEvent,
    Sink,
    from_event,
    move,
    report_left_out,
    stop_message,
)
from tailrace.generators.continuation_filters import RepetitionFilter, StopSequenceFilter
from tailrace.generators.half_calls import (
    continued_content,
    is_accepted,
    is_sendable,
    without_half_calls,
    without_pending_calls,
)
from tailrace.generators.plan import tokens_left
from tailrace.generators.repeated_answer import RepeatedAnswer, repeatable_texts
from tailrace.proto import events
from tailrace.proto.containers import container_of, with_container
from tailrace.proto.entries import Block, Message, Mode, Request, StoredThinking
from tailrace.proto.fold import EMPTY_TURN, Turn, content
from tailrace.proto.models import find_model
from tailrace.proto.server_tools import is_real_result
from tailrace.proto.system_messages import fold_into_prompt, place_system_messages, with_betas
from tailrace.proto.thinking_prefix import (
    BoundPrompt,
    bind,
    checks_thinking,
    find_stored_thinking,
    is_extended,
    thinking_ids,
)
from tailrace.proto.usage import utf8_bytes

# Models after 4.5 refuse a prefilled answer; Anthropic's migration guide recommends a user message like this instead.
CONTINUE_PROMPT = (
    "Your previous response was interrupted and ended with: {tail}\n"
    "Continue it from exactly that point, in the middle of a word if need be. "
    "Write only what comes after it: no repetition, no introduction."
)
# The same for an answer whose last block is the result of a server tool.
AFTER_TOOL_PROMPT = (
    "Your previous response was interrupted after the result of its last tool call. "
    "Continue it from exactly that point. Write only what comes next: no repetition, no introduction."
)
# Before an answer that is the first message: the API refuses it there (langbot-app/LangBot#867).
BEGINNING = "[The conversation begins with the assistant.]"
TAIL_CHARS = 200
# The API refuses a smaller thinking budget, and a budget that is not below `max_tokens`.
THINKING_TOKENS_MIN = 1024
# When so many bytes of text are left out, the log gets their number, although the call goes on.
LEFT_OUT_BYTES_MAX = 4096


FilterCall = Callable[[Call, Request, Turn], Call]
"""Returns the call that an optional feature makes of a call. The turn is the fold before the call."""


def build_call(request: Request, filters: Sequence[FilterCall] = (), turn: Turn = EMPTY_TURN) -> Call:
    """Returns the call that answers `request` from the beginning, changed by `filters` one after the other."""
    placed = place_system_messages(begin_with_user(request.messages))
    messages, system = fold_into_prompt(placed, request.system, request.model)
    call = Call(
        model=request.model,
        max_tokens=request.max_tokens,
        messages=messages,
        system=system,
        tools=request.tools,
        options=request.options,
        betas=with_betas(request.betas, request.messages),
        api_version=request.api_version,
        project=request.project,
    )
    for change in filters:
        call = change(call, request, turn)
    return call


def begin_with_user(messages: list[Message]) -> list[Message]:
    """Returns `messages` behind one of the user if an answer is the first, such as the greeting of a page."""
    first = next((one.role for one in messages if one.role != "system"), "user")
    return messages if first == "user" else [Message("user", BEGINNING), *messages]


def build_continuation_call(request: Request, turn: Turn, filters: Sequence[FilterCall] = ()) -> Call:
    """Returns the call that continues the partial answer in `turn`.

    A paused answer is sent back as the last message. After an interruption, the API gets the answer without its half
    blocks, and then a prompt; or, for an older model, the text that it continues (prefill).
    """
    call = free_choice(send_container(build_call(request, filters, turn), turn), turn)
    if turn.is_paused:
        # The API takes back neither texts of white space nor half thoughts.
        paused = [content(one) for one in without_half_calls(turn.blocks, keeps_pending=True) if is_accepted(one)]
        return msgspec.structs.replace(call, messages=append_blocks(call.messages, paused))
    partial = continued_content(turn.blocks)
    if not partial:
        return call
    call = msgspec.structs.replace(call, messages=without_pending_calls(call.messages, turn.blocks))
    if can_prefill(request) and not any(is_sendable(block["type"]) for block in partial):
        return msgspec.structs.replace(call, messages=append_answer(call.messages, turn.text.rstrip()))
    tail = msgspec.json.encode(turn.text[-TAIL_CHARS:]).decode()
    prompt = CONTINUE_PROMPT.format(tail=tail) if partial[-1]["type"] == "text" else AFTER_TOOL_PROMPT
    return msgspec.structs.replace(call, messages=[*append_blocks(call.messages, partial), Message("user", prompt)])


def append_blocks(messages: list[Message], blocks: list[dict[str, Any]]) -> list[Message]:
    """Returns `messages` with an answer, which continues a last message of the assistant (an answer sent back).

    Without `blocks`, adds none: the API refuses an answer without content.
    """
    if not blocks:
        return messages
    *before, last = messages
    if last.role != "assistant":
        return [*messages, Message("assistant", blocks)]
    begun = last.content if isinstance(last.content, list) else [{"type": "text", "text": last.content}]
    return [*before, Message("assistant", [*begun, *blocks])]


def send_container(call: Call, turn: Turn) -> Call:
    """Returns `call` with the id of the container in which the answer has run code so far, if it has one.

    The files of that container would be missing in a new container.
    """
    container = container_of(turn.envelope)
    return call if container is None else msgspec.structs.replace(call, options=with_container(call.options, container))


def free_choice(call: Call, turn: Turn) -> Call:
    """Returns `call` without a forced tool call if the answer has made it: the API would execute a second one."""
    has_called = turn.is_paused or any(is_real_result(block.start) for block in turn.blocks)
    match call.options:
        case {"tool_choice": {"type": "any" | "tool"} as choice, **others} if has_called:
            free = {name: value for name, value in choice.items() if name != "name"} | {"type": "auto"}
            return msgspec.structs.replace(call, options={**others, "tool_choice": free})
    return call


def can_prefill(request: Request) -> bool:
    """Returns whether the model accepts a partial answer as the last message of this request.

    With a thinking budget, the API requires that such a message begins with a thinking block.
    """
    match request.options:
        case {"thinking": {"type": "enabled"}}:
            return False
    model = find_model(request.model)
    return model is not None and model.supports.prefill is True


def append_answer(messages: list[Message], text: str) -> list[Message]:
    """Returns `messages` with a partial answer, which continues a last message of the assistant (the client's prefill).

    `text` does not end in white space: the API refuses such a prefill. The API joins consecutive messages of one role,
    but its documentation does not say with which separator.
    """
    *before, last = messages
    match last:
        case Message(role="assistant", content=str(beginning)):
            return [*before, Message("assistant", beginning + text)]
        case Message(role="assistant", content=[*blocks, {"type": "text", "text": str(beginning)} as block]):
            return [*before, Message("assistant", [*blocks, block | {"text": beginning + text}])]
    return [*messages, Message("assistant", text)]


def prepare_call(
    turn: Turn, mode: Mode, filters: Sequence[FilterCall] = ()
) -> tuple[Call, "ContinuationMapper | None"]:
    """Returns the call of an attempt, and the mapper of its events if it continues the stored message."""
    assert turn.request is not None  # noqa: S101  # the fold of a turn that is run has one
    request = turn.request
    if mode == "continue":
        call = limit_tokens(build_continuation_call(request, turn, filters), tokens_left(turn))
        # The partial answer may have megabytes.
        return msgspec.structs.replace(call, is_large=True), build_mapper(request, turn)
    return build_call(request, filters, turn), None


def bind_thinking(call: Call, turn: Turn, mode: Mode, *, is_refused: bool = False) -> BoundPrompt:
    """Returns the messages of `call` without the stored thinking that its model would refuse (PROTOCOL R140).

    That of the answer so far is stored, too: a continuation may have written it after its prompt, which a further
    continuation does not send. `is_refused`: the API has refused the call because of its thinking, so all thinking is
    left out.
    """
    assert turn.request is not None  # noqa: S101  # the fold of a turn that is run has one
    blocks = turn.blocks if mode == "continue" else ()
    stored = [*(turn.request.thinking or ()), *find_stored_thinking(turn.prefixes, map(content, blocks))]
    if is_refused:
        stored = [StoredThinking(name) for name in thinking_ids(call.messages)]
    bound = bind(
        call.system,
        call.tools,
        call.messages,
        stored,
        turn.request.previous,
        is_checked=is_refused or checks_thinking(call.model),
    )
    # The first thinking of a continuation is not stored (R20), and its later thinking names it.
    has_more = bool(blocks and not turn.is_paused) or is_extended(begin_with_user(turn.request.messages), call.messages)
    return bound._replace(prefix=msgspec.structs.replace(bound.prefix, block=len(blocks), is_extended=has_more))


def wants_refusal(options: dict[str, Any] | None) -> bool:
    """Returns whether the client has asked for a refusal of thinking behind another prompt."""
    match options:
        case {"thinking": {"block_binding": {"prefix_mismatch_behavior": "error"}}}:
            return True
    return False


def limit_tokens(call: Call, tokens: int) -> Call:
    """Returns `call` with at most `tokens` tokens of output, and a budget for thinking that fits in them."""
    tokens = max(1, min(call.max_tokens, tokens))
    options = call.options
    match options:
        case {"thinking": {"budget_tokens": int(budget)} as thinking} if budget >= tokens:
            left = max(THINKING_TOKENS_MIN, tokens // 2)
            fitting = thinking | {"budget_tokens": left} if left < tokens else {"type": "disabled"}
            options = {**(options or {}), "thinking": fitting}
    return msgspec.structs.replace(call, max_tokens=tokens, options=options)


class ContinuationMapper:
    """Maps the events of a continuing call onto the message that is stored so far."""

    def __init__(
        self,
        blocks: tuple[Block, ...],
        repetition: RepetitionFilter,
        pending_space: str,
        stop_sequences: StopSequenceFilter | None = None,
        repeatable: Sequence[str] = (),
        *,
        is_paused: bool = False,
    ) -> None:
        """`blocks` are the stored blocks. `pending_space` is white space that is stored but was not in the call.

        `repeatable` are the last texts of the answer. If the call begins with one of them, it has begun the answer anew
        (RepeatedAnswer). After a pause (`is_paused`), new thinking is a part of the answer.
        """
        self.repeated = 0
        """Characters of the stored text that the model repeated and that were left out."""
        self._open = len(blocks) - 1 if blocks and not blocks[-1].is_closed else None
        self._next = len(blocks)
        # True until the call begins a block other than thinking.
        self._drops_thinking = bool(blocks) and not is_paused
        self._repetition = repetition
        # The new call's block whose text goes into the block that was open.
        self._continued: int | None = None
        self._pending_space = pending_space
        self._stop_sequences = stop_sequences or StopSequenceFilter("", ())
        self._repeated_answer = RepeatedAnswer(repeatable, is_open=self._open is not None)
        self._left_out = 0
        # The stored message's block index by the new call's; None: the block is left out.
        self._targets: dict[int, int | None] = {}

    def wrap(self, sink: Sink) -> Sink:
        """Returns a sink that passes on the events of the new call, changed by `map`.

        The sink raises CloseCall after a stop sequence whose beginning was stored before the call.
        """

        def map_event(event: ModelEvent) -> None:
            for one in self.map(event):
                sink(one)
            if self._stop_sequences.found is not None:
                raise CloseCall

        return map_event

    def map(self, event: ModelEvent) -> list[ModelEvent]:
        """Returns the events to store for an event of the new call: usually one, sometimes none or two."""
        passed, left_out = self._repeated_answer.filter(event)
        self._count_repeated(left_out)
        mapped: list[ModelEvent] = []
        for one in passed:
            if self._stop_sequences.found is None:
                mapped += self._map(one)
        if not mapped and self._left_out >= LEFT_OUT_BYTES_MAX:
            # If the process dies, or a client cancels, only the number of a few bytes is lost.
            mapped, self._left_out = [report_left_out(self._left_out)], 0
        if mapped and self._left_out:
            mapped[0] = msgspec.structs.replace(mapped[0], left_out=self._left_out)
            self._left_out = 0
        return mapped

    def _map(self, event: ModelEvent) -> list[ModelEvent]:
        match event.event:
            case events.MessageStart():
                return [msgspec.structs.replace(event, is_hidden=True)]
            case events.BlockStart(index, block):
                return self._start(index, block)
            case events.BlockDelta(index, delta):
                return self._delta(index, delta)
            case events.BlockStop(index):
                target = self._targets.get(index)
                return [] if target is None else self._flush_before(index, events.BlockStop(target))
            case events.MessageDelta():
                # If only the stop of the open block was lost, the model has no text to add to it.
                return [*self._close_open(), event]
            case _:
                return self._move_unknown(event)

    def _move_unknown(self, event: ModelEvent) -> list[ModelEvent]:
        """Returns an event of an unknown type with the stored index of its block, if it names a stored block."""
        target = self._targets.get(event.index, event.index)
        return [] if target is None else [move(event, target)]

    def _start(self, index: int, block: dict[str, Any]) -> list[ModelEvent]:
        kind = block.get("type")
        if kind in ("thinking", "redacted_thinking") and self._drops_thinking:
            # Before it continues, the model thinks again. Readers have the thinking that led to the stored text.
            self._targets[index] = None
            return []
        self._drops_thinking = False
        if kind == "text" and self._open is not None:
            self._targets[index], self._open, self._continued = self._open, None, index
            text = str(block.get("text") or "")
            return self._delta(index, events.TextDelta(text)) if text else []
        # The model continues with a block other than text, so the open block is complete.
        closing = self._close_open()
        self._targets[index] = self._next
        self._next += 1
        return [*closing, from_event(events.BlockStart(self._next - 1, block))]

    def _close_open(self) -> list[ModelEvent]:
        """Returns the stop of the block that was open, if it is still open."""
        if self._open is None:
            return []
        stop, self._open = events.BlockStop(self._open), None
        return [from_event(stop)]

    def _delta(self, index: int, delta: events.Delta) -> list[ModelEvent]:
        target = self._targets.get(index)
        if target is None:
            self._left_out += utf8_bytes(delta.thinking) if isinstance(delta, events.ThinkingDelta) else 0
            return []
        if not isinstance(delta, events.TextDelta):
            return self._flush_before(index, events.BlockDelta(target, delta))
        if index != self._continued:
            return self._text(target, delta.text)
        text, repeated = self._repetition.filter(delta.text)
        self._count_repeated(repeated)
        return self._continue_text(target, text)

    def _count_repeated(self, text: str) -> None:
        self.repeated += len(text)
        self._left_out += utf8_bytes(text)

    def _flush_before(self, index: int, event: events.BlockDelta | events.BlockStop) -> list[ModelEvent]:
        """Returns the held text of block `index`, and then `event`.

        If that text completes a stop sequence, returns the end of the message instead.
        """
        held: list[ModelEvent] = []
        if index == self._continued:
            held = self._continue_text(event.index, self._repetition.flush())
            if self._stop_sequences.found is not None:
                return held
            held += self._text(event.index, self._stop_sequences.flush())
        return [*held, from_event(event)]

    def _continue_text(self, target: int, text: str) -> list[ModelEvent]:
        """Returns the events of `text`, which continues the stored block; or the end of the message."""
        text = self._stop_sequences.filter(self._skip_pending_space(text))
        if self._stop_sequences.found is None:
            return self._text(target, text)
        return [from_event(events.BlockStop(target)), stop_message("stop_sequence", self._stop_sequences.found)]

    def _text(self, target: int, text: str) -> list[ModelEvent]:
        return [from_event(events.BlockDelta(target, events.TextDelta(text)))] if text else []

    def _skip_pending_space(self, text: str) -> str:
        """Returns `text` without the leading white space that is stored already."""
        while self._pending_space and text and text[0] == self._pending_space[0]:
            text, self._pending_space = text[1:], self._pending_space[1:]
        if text:
            # The model went on with other text: dropping more white space would be a guess.
            self._pending_space = ""
        return text


def build_mapper(request: Request, turn: Turn) -> ContinuationMapper:
    """Returns the mapper for the events of `build_continuation_call(request, turn)`."""
    if turn.is_paused:
        return ContinuationMapper(turn.blocks, RepetitionFilter(""), "", is_paused=True)
    # If the stored text is only white space, the call does not contain it: then the model's text does not repeat it.
    sent = turn.text if turn.text.strip() and not can_prefill(request) else turn.text.rstrip()
    open_text = turn.blocks[-1].text if turn.blocks and not turn.blocks[-1].is_closed else ""
    stop_sequences = StopSequenceFilter(open_text, (request.options or {}).get("stop_sequences"))
    repeatable = repeatable_texts(without_half_calls(turn.blocks)) if sent.strip() else ()
    return ContinuationMapper(turn.blocks, RepetitionFilter(sent), turn.text[len(sent) :], stop_sequences, repeatable)
