"""Parser of the `#sim …` directive lines."""

import re
from typing import Literal, get_args

import msgspec

from tailrace.deploy.simulated_claude.fault import FAULT_KINDS, HTTP_ONLY, Fault
from tailrace.deploy.simulated_claude.server_tool import CALLS_MAX, KINDS, ServerCall, parse_calls
from tailrace.proto.decoding import DECODE_ERRORS

HELP = """\
A line `#sim …` in the last user message directs the answer. What follows its last word is the question:

  words=N        the text is exactly `w000000 w000001 …`: N words joined by one space, one word a delta
  tag=x          the words are `x000000 x000001 …`
  chars=N        each of these words has N characters: `w000000xxx…`
  rate=R         R deltas a second (default 50); 0: as fast as the client reads
  wait=S         the first delta comes after S seconds
  files=1        the text begins with the SHA-256 of all pictures and documents (their base64) in the conversation
  cites=N        the text ends with N citations: of a document, of a page, of a file, and so on
  thinking=N     a thinking block of N words comes first
  tool=NAME,…    a tool_use block of each NAME comes last (not again once the results are in the conversation; none with
                 the tool choice `none`, one with `any`, `tool` and `disable_parallel_tool_use`)
  server=TOOL,…  calls of the API's own tools, each with its result, divide the text; TOOL*N stands for N calls
  pauses=N       the first N calls of server= are paused (pause_turn): the result comes when the answer is sent back
  case=NAME      the events of the case NAME, which a POST to /_sim/cases/NAME has set; nothing else but rate and faults
  json={…}       the input of a call, or several, of the calls in order; with a schema in `output_config`, the text
                 (without it, a value that fits the tool's schema or that one)
  wrong=X        with a schema, the text of the first answer, before a correction is requested: JSON `{…}` or a word
  repeat=N       a continuation repeats the last N words of the partial answer
  refuse=N       the model refuses to go on after N deltas (stop reason `refusal`)
  fault=KIND@N   breaks after delta N of the whole answer; several are allowed; the kinds:
                   429 529 500  an HTTP error at @0 (default), an `error` event later on
                   401 403      the API refuses the key: the generator is `degraded` until its next success (at @0 only)
                   error        an `error` event (overloaded_error)
                   cut          the connection is dropped
                   stall        nothing more is sent, the connection stays open
                   pings        only pings are sent, ten a second
                   eof          the stream ends cleanly without message_stop
                   garbage      a data line that is not JSON, then the rest
                   html         status 200 with an HTML page (at @0 only)
                   credit       a 400 that says that the account is empty (at @0 only)
                   unknown      a message batch is not found (404)
                   unlisted     a message batch is not in the list of message batches
                   broken       the results of a message batch are not whole
  fault=KIND@NxM only in the first M calls of that turn, each after N deltas of its own
  fault=KIND@N+  after delta N of the whole answer, and at once in every call that starts there
  retry_after=S  the Retry-After of a 429 (default 1)

Without such a line, a question that begins with `Count to N` is answered with the numbers from 1 to N. N is at most
10,000, in digits or in words. If the question contains `slowly`, the rate is 15 numbers a second. Any other question
is answered with about 100 words of Markdown.

Without @N a fault happens at @0, before the first delta. Without xM it breaks every call that sends delta N of the
whole answer, so a continuation that starts at N or later is not broken. GET /_sim/stats returns counters of calls and
streams. With --show-calls, GET /_sim/calls returns each call with its question, first delta, begin, end and outcome. In
a message batch, 401, 403, 429 and 529 in its first request refuse the creation of the batch, `cut` drops the response
to it, and 500 and `error` make errored results. With `unknown@NxM` in its first request, the first N requests find the
batch, and the next M do not. Requests to retrieve it, to cancel it and to read its results are counted separately. With
`unlisted@NxM`, the first N lists contain the batch, and the next M do not. With `broken@NxM`, the first N reads of the
results are whole, and the next M are, in turn, an empty line, a line that is not JSON, and a first line after which the
connection is dropped. Without xM, no later one is whole. POST /_sim/expire ends all running batches as if a day had
passed, also for containers.

The tools of server= are web_search, web_fetch, code_execution, bash_code_execution and mcp. The parts of the text have
equal lengths, and joined they are the text of words=N. With thinking=N, a thinking block precedes each part. A result
counts as one delta. The answer goes on after a paused message that is sent back as the last one, and after a
continuation prompt; a call whose result is in the message is not executed again. GET /_sim/stats returns under
`executions`, for each call of a turn (`KEY.NUMBER`), the `tool_use_id` of each of its results: one, if it ran once.

The body of a POST to /_sim/cases/NAME is the JSON of one event a line. The events are sent byte for byte, whatever they
are, and to streaming requests only. A continuation gets the events that follow its partial answer.

A signature of thinking says what stood before it. A request is refused if thinking in it was written after another
`system`, other `tools` or other messages, if the thinking of a tool loop is missing, for a signature of another
program, for more than four marks of the cache, a call by code without its container, an expired or foreign container,
an email address or more than 256 characters as `user_id`, a blank stop sequence, an image of another type than it says,
an MCP server without the beta, at an http URL or with the access token `refused`, and a system message with `clear_at`,
`output_config` or a change of the tools without the beta. A question after a
refused one is refused, too, and a call that max_tokens cuts is left open. With --thinking drop, thinking after a change
is dropped, as for some accounts; with --thinking none, it is not checked unless the request asks for it. Dropped
thinking is listed in `input_transformations` if the request has the beta thinking-binding-controls-2026-08-01. The
signatures and containers of cases are accepted.

It refuses what the real API is known to refuse: calls without results and results without calls, also of server tools,
unless the answer that ends with such a call is the last message, or nothing but results of the client's tools follows
it; a failed result without a reason, or with anything but texts; an answer that ends with thinking; a system message
with content that does not stand directly before an answer or at the end, or that follows no question; ids that do not
match the API's patterns or are not unique; thinking without its signature; texts of white space; types of pictures and
documents; a prefill, sampling parameters and forced tools where the model does not take them; and, under
`anthropic-version: 2026-10-21`, what that version has removed. It accepts some requests that the real API refuses: two
tools of one name, a tool name like `a b`, an image at an http URL, and a `budget_tokens` that is not below
`max_tokens`.
"""
LINE = re.compile(r"^[ \t]*#sim\b(.*)$", re.MULTILINE)
NAME = re.compile(r"\s*([a-z_]+)=")
FAULT = re.compile(r"([a-z]+|[0-9]+)(?:@(\d{1,7}))?(?:x(\d{1,7})|(\+))?")
NUMBER = re.compile(r"\d{1,7}(\.\d{1,6})?")
WORDS_MAX = 1_000_000  # numbered with six digits
# "Count to three hundred, slowly.": a long answer for people who try Tailrace.
COUNT = re.compile(r"\s*(?:please\s+)?count\s+(?:up\s+)?(?:from\s+(?:1|one)\s+)?to\s+(.*)", re.IGNORECASE)
COUNT_MAX = 10_000
SLOW_RATE = 15.0
# Each word has its value as its index, except `a`, which means 1.
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
ONES = f"a one two three four five six seven eight nine {TEENS}"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBERS = {name: max(1, number) for number, name in enumerate(ONES.split())}
NUMBERS |= {name: 10 * ten for ten, name in enumerate(TENS.split(), 2)}

Setting = Literal[
    "words",
    "tag",
    "chars",
    "rate",
    "wait",
    "files",
    "cites",
    "thinking",
    "tool",
    "server",
    "pauses",
    "case",
    "json",
    "wrong",
    "repeat",
    "refuse",
    "fault",
    "retry_after",
]
# Text behind the words of a line that may be a misspelt word, and not the question.
LIKE_SETTING = re.compile(rf"({'|'.join(get_args(Setting))})\b|.*?\b[a-z_]+=\S")


class DirectiveInvalid(ValueError):
    """A `#sim` line that cannot be parsed; the message quotes the invalid part."""


class Directive(msgspec.Struct, frozen=True, kw_only=True):
    """How the simulated Claude answers a question."""

    words: int | None = None  # None: readable Markdown
    count: int | None = None  # the text is the numbers from 1 to `count`
    tag: str = "w"
    chars: int = 0
    rate: float = 50.0
    wait_s: float = 0.0
    files: int = 0
    cites: int = 0
    thinking: int = 0
    tool: str = ""
    server: tuple[ServerCall, ...] = ()
    pauses: int = 0
    case: str = ""
    inputs_json: tuple[str, ...] = ()
    wrong_json: str = ""
    repeat: int = 0
    refuse: int | None = None
    retry_after_s: float = 1.0
    faults: tuple[Fault, ...] = ()

    @property
    def tools(self) -> list[str]:
        """The names of `tool=`."""
        return self.tool.split(",") if self.tool else []

    def json_of(self, number: int) -> str:
        """Returns the JSON of the call with this number, counted from 0; empty without `json=`."""
        return self.inputs_json[min(number, len(self.inputs_json) - 1)] if self.inputs_json else ""


def read(text: str) -> Directive:
    """Returns the directive of the line `#sim`, or of `Count to N`, or the default. Raises DirectiveInvalid."""
    line = LINE.search(text)
    return parse(line[1])[0] if line else parse_count(text)


def parse_count(text: str) -> Directive:
    """Returns the directive of a question such as `Count to three hundred, slowly.`, or the default."""
    found = COUNT.match(text)
    last = number_at_start(found[1]) if found else 0
    if not 0 < last <= COUNT_MAX:
        return Directive()
    return Directive(count=last, rate=SLOW_RATE if "slow" in text.lower() else Directive().rate)


def number_at_start(text: str) -> int:
    """Returns the number with which `text` begins, in digits or in words; 0 if there is none."""
    if digits := re.match(r"\d{1,3}(?:,\d{3})+|\d{1,7}", text):
        return int(digits[0].replace(",", ""))
    total = part = 0
    for word in re.findall(r"[a-z]+|[^a-z\s-]", text.lower()):
        if word in NUMBERS:
            part += NUMBERS[word]
        elif word == "hundred":
            part *= 100
        elif word == "thousand":
            total, part = total + 1000 * part, 0
        elif word != "and":
            break
    return total + part


def remove_directives(text: str) -> str:
    """Returns `text` without its directives: what follows the first one's words is a part of the question."""
    question = LINE.sub(lambda line: parse(line[1])[1], text, count=1)
    return LINE.sub("", question).strip()


def parse(line: str) -> tuple[Directive, str]:
    """Returns the directive of a `#sim` line, and the question behind its words, which has no `NAME=`.

    Raises DirectiveInvalid, with the position and the expected word, so that a misspelt word does not pass as text.
    """
    fields: dict[str, object] = {}
    faults: list[Fault] = []
    inputs: list[str] = []
    at = 0
    while line[at:].strip():
        name = NAME.match(line, at)
        if name is None and at and not LIKE_SETTING.match(line[at:].lstrip()):
            break
        if name is None or name[1] not in get_args(Setting):
            raise DirectiveInvalid(f"#sim: expected one of {', '.join(get_args(Setting))}= at {line[at:].strip()!r}")
        value, at = value_at(line, name.end(), is_json=is_json(name[1], line[name.end() :]))
        if name[1] == "fault":
            faults.append(fault(value))
        elif name[1] == "json":
            inputs.append(value)
        else:
            fields |= setting(name[1], value)
    return msgspec.convert({**fields, "faults": faults, "inputs_json": inputs}, Directive), line[at:].strip()


def value_at(line: str, start: int, *, is_json: bool) -> tuple[str, int]:
    """Returns the value that begins at `start`, and the position after it. Raises DirectiveInvalid for bad JSON."""
    if not is_json:
        value = line[start:].split(maxsplit=1)[0] if line[start : start + 1].strip() else ""
        return value, start + len(value)
    for end in range(start + 1, len(line) + 1):  # JSON may contain spaces: find the shortest object
        if line[end - 1] == "}" and is_object(line[start:end]):
            return line[start:end], end
    raise DirectiveInvalid("#sim: json= and wrong= want a JSON object on the same line")


def is_json(name: str, rest: str) -> bool:
    return name == "json" or (name == "wrong" and rest.startswith("{"))


def is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except DECODE_ERRORS:
        return False


def setting(name: str, value: str) -> dict[str, object]:
    """Returns the field of the directive that a `NAME=VALUE` sets. Raises DirectiveInvalid for a value out of range."""
    if name == "wrong":
        return {"wrong_json": value}
    if name in ("tag", "tool", "case"):
        pattern = r"[A-Za-z0-9_-]{1,64}"
        if not re.fullmatch(rf"{pattern}(,{pattern})*" if name == "tool" else pattern, value):
            raise DirectiveInvalid(f"#sim: {name}= wants letters and digits, got {value!r}")
        return {name: value}
    if name == "server":
        if (calls := parse_calls(value)) is None:
            raise DirectiveInvalid(
                f"#sim: server= wants up to {CALLS_MAX} calls, KIND or KIND*N of {' '.join(KINDS)}, got {value!r}"
            )
        return {name: calls}
    if not NUMBER.fullmatch(value):
        raise DirectiveInvalid(f"#sim: {name}= wants a number, got {value!r}")
    if name in ("words", "chars", "files", "cites", "thinking", "pauses", "repeat", "refuse"):
        if not value.isdecimal() or int(value) > WORDS_MAX:
            raise DirectiveInvalid(f"#sim: {name}= wants a whole number up to {WORDS_MAX}, got {value!r}")
        return {name: int(value)}
    return {name if name == "rate" else f"{name}_s": float(value)}


def fault(value: str) -> Fault:
    """Returns the fault of a `fault=KIND@NxM`. Raises DirectiveInvalid."""
    found = FAULT.fullmatch(value)
    if found is None or found[1] not in FAULT_KINDS:
        raise DirectiveInvalid(f"#sim: fault= wants KIND@NxM with KIND of {' '.join(FAULT_KINDS)}, got {value!r}")
    after = int(found[2] or 0)
    if found[1] in HTTP_ONLY and after:
        raise DirectiveInvalid(f"#sim: {found[1]} is possible at @0 only, got {value!r}")
    return msgspec.convert(
        {"kind": found[1], "after": after, "calls": found[3] and int(found[3]), "lasts": found[4] is not None}, Fault
    )
