"""The complete reply to one call, decided before its first byte. Pure."""

import hashlib
import re
from collections.abc import Mapping, Sequence

import msgspec

from tailrace.deploy.simulated_claude import answer, conversation, directive
from tailrace.deploy.simulated_claude.answer import Part
from tailrace.deploy.simulated_claude.cache import CachedTokens
from tailrace.deploy.simulated_claude.case import Lines, count_deltas, find_rest
from tailrace.deploy.simulated_claude.conversation import Conversation
from tailrace.deploy.simulated_claude.directive import Directive, DirectiveInvalid
from tailrace.deploy.simulated_claude.fault import Break, first_break
from tailrace.deploy.simulated_claude.refusal import Refusal
from tailrace.deploy.simulated_claude.request import INVALID, Request
from tailrace.deploy.simulated_claude.sample import INPUT, sample, sample_input
from tailrace.deploy.simulated_claude.server_tool import IN_CONTAINER
from tailrace.deploy.simulated_claude.settings import Settings
from tailrace.deploy.simulated_claude.thinking import Transformation
from tailrace.proto.decoding import DECODE_ERRORS

NOTHING = CachedTokens()
DEFAULT = Settings()
NO_CASES: Mapping[str, Lines] = {}
# A phrase in the prompts of clients whose model has no structured outputs.
IN_THE_PROMPT = re.compile(r"fits this JSON Schema[^\n]*\n(.*)")


class ParsedRequest(msgspec.Struct, frozen=True):
    """A parsed request. `body` is its JSON."""

    request: Request
    conversation: Conversation
    directed: Directive
    body: bytes = b""
    dropped: list[Transformation] | None = None
    """The thinking that was dropped from it; None if the request did not ask for the list."""
    container: int = 0
    """The number of a new container."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The reply to one call. `part` is the part of the whole answer that it sends."""

    turn: str
    """Conversation.key: the same for every call of one turn."""
    message_id: str
    model: str
    input_tokens: int
    cached: CachedTokens = NOTHING
    part: Part
    stop_reason: str
    breaks: Break | None
    service_tier: str = "standard"
    container: str | None = None  # the id of the container in which code ran
    lines: Lines | None = None  # the events of a case, in place of the part's
    is_managed: bool = False  # the request has `context_management`, so the reply reports it
    body: bytes = b""  # the JSON of the request, which signatures are bound to
    dropped: list[Transformation] | None = None  # `input_transformations`, for a request that asks for it
    is_mismatched: bool  # the partial answer is not a prefix of the answer, so the whole answer is sent


def parse_message(
    request: Request,
    body: bytes = b"",
    dropped: list[Transformation] | None = None,
    settings: Settings = DEFAULT,
) -> ParsedRequest:
    """Parses the conversation and the directive of a Messages request. Raises Refusal for an invalid `#sim` line."""
    talk = conversation.read(request.messages)
    try:
        return ParsedRequest(request, talk, directive.read(talk.question), body, dropped, settings.containers_from)
    except DirectiveInvalid as error:
        raise Refusal("invalid_request_error", str(error)) from error


def reply(
    parsed: ParsedRequest, call: int, cached: CachedTokens = NOTHING, cases: Mapping[str, Lines] = NO_CASES
) -> Reply:
    """Returns the reply to call number `call` (from 1) of this turn. Raises Refusal for a case that is not in `cases`.

    `cached` are the tokens of the prompt cache.
    """
    request, talk, directed = parsed.request, parsed.conversation, parsed.directed
    if directed.case:
        return play_case(parsed, call, cases)
    forced = forced_tool(request, directed)
    all_of_it = answer.cut_at_stop_sequence(
        answer.build_answer(
            talk,
            directed,
            json_sample=json_sample(request),
            forced=forced,
            calls_max=calls_max(request),
            inputs={} if directed.inputs_json else sample_inputs(request, [forced, *directed.tools]),
        ),
        request.stop_sequences,
    )
    remainder = answer.find_remainder(all_of_it, talk) if talk.is_continued else all_of_it
    if talk.partial and remainder is not None:
        remainder = answer.with_repeated(remainder, talk.partial, directed.repeat)
    unlimited = answer.pause(all_of_it if remainder is None else remainder, directed.pauses)
    part = answer.limit_tokens(unlimited, request.max_tokens)
    if directed.refuse is not None:
        part = answer.refuse(part, directed.refuse)
    if conversation.has_refused_question(talk):
        part = answer.refuse(part, 0)
    return Reply(
        turn=talk.key,
        message_id="msg_sim" + hashlib.sha256(f"{talk.key}{call}".encode()).hexdigest()[:20],
        model=request.model,
        # The cache counts the words of each block. In the joined blocks, the last word of a block and the first of the
        # next are one word.
        input_tokens=max(0, request.input_tokens - cached.read - cached.written),
        cached=cached,
        part=part,
        stop_reason=stop_reason(part),
        breaks=first_break(directed.faults, part.start, part.deltas, call),
        container=container(request, talk, part, parsed.container),
        body=parsed.body,
        dropped=parsed.dropped,
        is_managed=request.context_management is not None,
        is_mismatched=remainder is None,
    )


def play_case(parsed: ParsedRequest, call: int, cases: Mapping[str, Lines]) -> Reply:
    """Returns the reply with the events of the directive's case. Raises Refusal."""
    request, talk, directed = parsed.request, parsed.conversation, parsed.directed
    lines = cases.get(directed.case)
    if lines is None or not request.stream:
        raise Refusal(INVALID, f"#sim: case={directed.case} wants a stream, and a case that POST /_sim/cases has set")
    rest = find_rest(lines, talk)
    start = count_deltas(lines) - count_deltas(rest)
    return Reply(
        turn=talk.key,
        message_id="",
        model=request.model,
        input_tokens=0,
        part=Part((), start),
        lines=rest,
        stop_reason="",
        breaks=first_break(directed.faults, start, count_deltas(rest), call),
        is_mismatched=talk.is_continued and rest is lines,
    )


def container(request: Request, talk: Conversation, part: Part, number: int) -> str | None:
    """Returns the id of the request's container, or of a new one with `number`; None if no code runs in it."""
    if not any(block.server and block.server.kind in IN_CONTAINER for block in part.blocks):
        return None
    return request.container_id or f"container_sim{number}x{talk.key[:20]}"


def json_sample(request: Request) -> str:
    """Returns JSON that fits the request's schema; empty without a schema."""
    if request.answer_format is not None:
        return sample(request.answer_format.schema)
    prompts = (IN_THE_PROMPT.search(message.text) for message in reversed(request.messages))
    found = next((prompt for prompt in prompts if prompt), None)
    try:
        return sample(msgspec.json.decode(found[1])) if found else ""
    except DECODE_ERRORS:
        return INPUT


def forced_tool(request: Request, directed: Directive) -> str:
    """Returns the name of the tool that the answer must call; empty if there is none.

    Where the request leaves the choice, it is the first tool of `tool=` that the request has.
    """
    names = [tool.name for tool in request.forced_tools]
    return next((name for name in directed.tools if name in names), names[0] if names else "")


def sample_inputs(request: Request, names: Sequence[str]) -> dict[str, str]:
    """Returns an input for each of these tools that the request has. Raises Refusal for an invalid schema."""
    return {tool.name: sample_input(tool.input_schema, tool.type) for tool in request.tools if tool.name in names}


def calls_max(request: Request) -> int | None:
    """Returns the most calls of client tools in the answer; None: any number."""
    if request.tool_choice.type == "none":
        return 0
    return 1 if request.tool_choice.disable_parallel_tool_use else None


def stop_reason(part: Part) -> str:
    if part.is_refused:
        return "refusal"
    if part.is_cut_short:
        return "max_tokens"
    if part.is_paused:
        return "pause_turn"
    if part.stop_sequence is not None:
        return "stop_sequence"
    return "tool_use" if any(block.kind == "tool_use" for block in part.blocks) else "end_turn"
