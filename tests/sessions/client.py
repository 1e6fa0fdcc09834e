"""Client: what the client of one session does, turn by turn, in one of the protocols. All random choices are here."""

import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import msgspec

from tailrace.deploy.simulated_claude.thinking import EXPECTED, find_open, has_its_thinking, mark_call, read_places
from tailrace.proto.conversation import without_trailing_thinking
from tailrace.proto.records import TurnRecord
from tailrace.protocols.ag_ui.stream import AG_UI
from tests.conformance.rule_ways import apply_event
from tests.harness.sse_parser import parse
from tests.sessions.stand_in import CONTAINER, Json, Special, sign

SESSION = "s"
CHECKED = ("claude-sonnet-5-5", "claude-opus-5-5", "claude-haiku-5-5", "claude-fable-5-1", "claude-fable-5-2")
UNCHECKED = ("claude-opus-4-8", "claude-sonnet-4-6", "claude-haiku-4-5")
PROTOCOLS = ("turns", "turns", "turns", "chat", "responses", "messages", "ai_sdk", "ag_ui")
LOOK: Json = {"type": "object", "properties": {"query": {"type": "string"}}, "additionalProperties": False}
TOOLS: tuple[Json, ...] = (
    {"name": "look", "description": "Looks something up.", "input_schema": LOOK},
    {"name": "see", "description": "Sees something.", "input_schema": LOOK},
)
DEFERRED: Json = {"name": "late", "description": "Comes late.", "input_schema": LOOK, "defer_loading": True}
NATIVE: Json = {
    "type": "object",
    "properties": {"a": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}
# No API enforces it.
LOOSE: Json = {"type": "object"}
CLEAR_AT = "mid-conversation-system-clear-at-2026-08-21"
PER_TURN = "per-turn-control-2026-08-21"
MARK: Json = {"type": "ephemeral"}
KINDS_OF_THINKING = ("thinking", "redacted_thinking")
SUMMARY = "They have spoken."
# How an answer is disturbed, or what the client wants of it; plain answers are twice as frequent.
KINDS = (
    *("plain", "plain", "plain", "tool", "tool", "tools", "server", "paused", "thoughts"),
    *("schema", "loose", "wrong", "forced", "forced_any", "cut", "kill", "drain", "cancel", "overloaded", "refuse"),
    *("short", "blank", "redacted", "compaction", "code", "cleared", "effort", "marks", "restart", "fallback"),
    *("steer", "queue", "interrupt", "branch", "older", "tampered", "stripped"),
)
# A second question while the answer runs: `steer`, or `on_busy`. They are requests of Tailrace's own API.
SECOND_KINDS = ("steer", "queue", "interrupt", "branch")
# Bad input, which only the own messages of a client of `/v1/messages` can have: the API's own refusal comes back.
BAD_KINDS = ("tampered", "stripped")
# Kinds in which nothing that the product adds stands in the prompt.
STILL_KINDS = ("plain", "tool", "tools", "server", "thoughts", "marks", "redacted", "overloaded", "schema")


class Profile(NamedTuple):
    """The changes that a session may have."""

    name: str
    changes: bool
    """Whether the client changes its prompt, its tools, the model and the history."""
    kinds: tuple[str, ...]


PROFILES = (
    Profile("still", changes=False, kinds=STILL_KINDS),
    Profile("steady", changes=False, kinds=KINDS),
    Profile("changing", changes=True, kinds=KINDS),
    Profile("changing", changes=True, kinds=KINDS),
)


class Asked(NamedTuple):
    """One exchange as the client has it: its messages, and the record of the answer."""

    messages: list[Json]
    """In Anthropic's format."""
    record: TurnRecord


class Sent(NamedTuple):
    """A request of the client."""

    path: str
    body: Json
    headers: dict[str, str] | None = None


class Step(NamedTuple):
    """The next turn: its request, and what happens to it."""

    sent: Sent
    kind: str
    messages: list[Json]
    changed: tuple[str, ...]
    """The changes that the client has made."""
    special: Special | None = None
    at_delta: int = 0
    patch: Json | None = None
    """The body of a PATCH of the session before the turn."""
    second: "Step | None" = None
    """A further question, which follows when the answer has so many deltas."""
    refusal: str = ""
    """A part of the API's message for this bad input."""


class Client:
    """The client of one session. `branch` is the conversation that it shows."""

    def __init__(self, random: Random, session: str = SESSION, directives: str = "") -> None:
        """`directives` are further ones of each question."""
        self.random = random
        self._session = session
        self._directives = directives
        self.profile = PROFILES[random.randrange(len(PROFILES))]
        self.protocol = random.choice(PROTOCOLS)
        self.model = random.choice(CHECKED if random.random() < 0.7 else UNCHECKED)
        self.system: str | None = random.choice((None, "Be brief. Today is day 0.", "You are a guide."))
        self.tools: list[Json] | None = random.choice((None, [*TOOLS], [*TOOLS], [*TOOLS, DEFERRED]))
        self.branch: list[Asked] = []
        self.number = 0
        self.betas: list[str] = []
        self.patch: Json = {}
        """The defaults of the session."""
        self.has_stripped = False
        """Whether the client has left its thinking out."""

    def next(self) -> Step:
        """Returns the next turn."""
        random = self.random
        self.number += 1
        changed = self._change()
        if self.profile.changes and self.branch and not self.has_stripped and random.random() < 0.12:
            # An edit, or the same question once more: the newest exchanges are gone.
            del self.branch[-random.randint(1, len(self.branch)) :]
            changed = (*changed, "branch")
        if self.protocol == "messages":
            self._drop_unfinished_code()
        kind = random.choice(self.profile.kinds)
        if kind in ("paused", "blank") and self.protocol == "messages":
            # Its clients send a paused answer back themselves, and cannot send a blank text back.
            kind = "server"
        is_possible = (kind not in BAD_KINDS or self.protocol == "messages") and (
            kind not in SECOND_KINDS or self.protocol == "turns"
        )
        kind = kind if is_possible else "plain"
        if self.protocol == "messages" and self.profile.name != "still" and self._is_answer_open():
            # Few sessions have such an answer.
            kind = random.choice((kind, "stripped"))
        # A client of chat completions has no thinking to send back with the calls of an open answer. Messages of the
        # user alone continue the session (append_to_history), also if the client has meant an edit.
        is_lost = self.protocol == "chat" and ("branch" in changed or self._has_only_questions())
        calls = [] if is_lost else self._open_calls()
        results: list[Json] = []
        is_careful = self.profile.name == "still" or self.protocol == "messages"
        if calls and (is_careful or random.random() < 0.8):
            some = calls if is_careful or random.random() < 0.9 else calls[:1]
            results = [{"type": "tool_result", "tool_use_id": one["id"], "content": f"{self.number}"} for one in some]
            changed = changed if len(some) == len(calls) else (*changed, "results")
        elif calls or (self.profile.changes and random.random() < 0.05 and not is_careful):
            changed = (*changed, "results")
            results = self._late_results() if random.random() < 0.5 else []
        return self._step(kind, results, changed)

    def _drop_unfinished_code(self) -> None:
        """Drops what follows code that has got the result of its call, and has none itself: its turn has failed.

        The API refuses another question behind it.
        """
        blocks = [block for one in self.branch for block in one.record.content]
        results = {block.get("tool_use_id") for block in blocks}
        for number, asked in enumerate(self.branch[:-1]):
            if any("caller" in block and block["caller"]["tool_id"] not in results for block in asked.record.content):
                del self.branch[number:]
                return

    def _step(self, kind: str, results: list[Json], changed: tuple[str, ...]) -> Step:
        random, options, fields = self.random, dict[str, Any](), dict[str, Any]()
        words, line, special, at_delta = random.randint(2, 9), "", None, 0
        thinking = random.choice((0, 5, 9, 9))
        tools = self.tools
        match kind:
            case "tool" | "tools" if tools and self.protocol:
                line = f"tool={'look' if kind == 'tool' else 'look,see'}"
            case "server":
                line = "server=web_search*2"
            case "paused":
                line = f"server=web_search,code_execution pauses={random.randint(1, 2)}"
            case "schema" | "loose":
                options["output_config"] = {
                    "format": {"type": "json_schema", "schema": NATIVE if kind == "schema" else LOOSE}
                }
                line = 'json={"a":"b"}'
            case "wrong":
                options["output_config"] = {"format": {"type": "json_schema", "schema": LOOSE}}
                line = 'json={"a":"b"} wrong=nothing'
            case "forced" | "forced_any" if tools:
                options["tool_choice"] = {"type": "any"} if kind == "forced_any" else {"type": "tool", "name": "look"}
            case "cut":
                line = f"fault=cut@{random.randint(1, 20)}x1"
            case "overloaded":
                line = "fault=529x1"
            case "restart":
                line, fields["on_interrupt"] = f"fault=cut@{random.randint(1, 20)}x1", "restart"
            case "kill" | "drain" | "cancel" | "steer" | "queue" | "interrupt" | "branch":
                at_delta = random.randint(1, 20)
                if kind in ("kill", "drain"):
                    line = random.choice(("", "server=web_search*2", "server=web_search,code_execution pauses=1"))
            case "refuse":
                line = f"refuse={random.randint(0, 12)}"
            case "short":
                fields["max_tokens"] = random.randint(1, 14)
                line = random.choice(("", "tool=look" if tools else ""))
            case "blank":
                special = answer_with({"type": "text", "text": "\n\n"}, thought(), say("Yes."))
            case "redacted":
                special = answer_with({"type": "redacted_thinking", "data": ""}, thought(), say("Yes."))
            case "compaction":
                special = answer_with({"type": "compaction", "content": SUMMARY}, thought(), say("Yes."))
            case "code":
                special = code_answer if self.protocol in ("turns", "messages", "responses") else None
            case "fallback":
                special = fallback_answer(random.choice((*CHECKED, *UNCHECKED)))
            case "thoughts":
                special = answer_with(thought("one"), say("1"), thought("two"), say("2"))
        text = f"Question {self.number} of {random.randint(0, 10**6)}.\n#sim words={words} thinking={thinking} {line}"
        text += self._directives
        if special is not None:
            at_delta = 0
        messages: list[Json] = []
        if results:
            # The API wants nothing beside the results of code's calls.
            has_text = random.random() < 0.3 and not self._is_code_open()
            blocks = [*results, *([say(text)] if has_text else [])]
            messages.append({"role": "user", "content": blocks})
        else:
            messages.append({"role": "user", "content": text})
        if self.protocol in ("turns", "messages") and not results:
            if kind == "cleared":
                messages.append({"role": "system", "content": "Hurry.", "clear_at": "next_user_message"})
                self._use_beta(CLEAR_AT)
            elif kind == "effort":
                messages.append({"role": "system", "content": [], "output_config": {"effort": "low"}})
                self._use_beta(PER_TURN)
            elif kind == "marks":
                messages[-1] = {"role": "user", "content": [say(text) | {"cache_control": MARK}]}
        sent = self._send(messages, options, fields)
        step = Step(sent, kind, messages, changed, special, at_delta, self.patch if "patch" in changed else None)
        if kind in BAD_KINDS:
            return spoil(step)
        return step._replace(second=self._second(kind)) if kind in SECOND_KINDS else step

    def _send(self, messages: list[Json], options: Json, fields: Json) -> Sent:
        sent: Sent = getattr(self, f"_as_{self.protocol}")(messages, options, fields)
        return sent

    def _second(self, kind: str) -> Step:
        """Returns the question that the user asks while the answer runs."""
        text = f"And {self.number}?\n#sim words={self.random.randint(2, 9)} thinking={self.random.choice((0, 5))}"
        messages: list[Json] = [{"role": "user", "content": text}]
        if kind == "steer":
            return Step(Sent("steer", {"message": text}), kind, messages, ())
        body = self._own_fields() | {"session": self._session, "messages": messages, "on_busy": kind}
        return Step(Sent("/v1/turns", body), kind, messages, ())

    def _change(self) -> tuple[str, ...]:
        """Changes the prompt, the tools or the model; returns what."""
        random, changed = self.random, list[str]()
        if not self.profile.changes or not self.branch:
            return ()
        if self.protocol == "messages" and self._is_answer_open():
            return ()
        if random.random() < 0.15:
            self.system = f"Be brief. Today is day {self.number}."
            changed.append("system")
        if self.protocol != "messages" and self.system is None and random.random() < 0.3:
            self.patch = {"system_prompt": f"Be kind. Today is day {self.number}."}
            changed.append("patch")
        if random.random() < 0.12:
            self.tools = random.choice((None, [*TOOLS], [TOOLS[0]], [*TOOLS, DEFERRED], [*TOOLS[::-1]]))
            changed.append("tools")
        if random.random() < 0.12:
            self.model = random.choice(CHECKED if random.random() < 0.7 else UNCHECKED)
            changed.append("model")
        if self.protocol == "messages" and changed and self.model in CHECKED:
            # Anthropic's page "Preserved thinking" says that a client leaves its thinking out then. No other model
            # checks it, and one of them may ask for it back: it is the client's history that stays as it is.
            self.has_stripped = True
            self.branch = [
                asked._replace(record=msgspec.structs.replace(asked.record, content=without_thoughts(asked.record)))
                for asked in self.branch
            ]
        return tuple(changed)

    def _use_beta(self, beta: str) -> None:
        if beta not in self.betas:
            self.betas.append(beta)

    def _open_calls(self) -> list[Json]:
        """Returns the calls of the newest answer that wait for results."""
        if not self.branch or self.branch[-1].record.stop_reason != "tool_use":
            return []
        return [block for block in self.branch[-1].record.content if block["type"] == "tool_use"]

    def _has_only_questions(self) -> bool:
        """Returns whether the client has sent no answer before the newest question, but questions."""
        earlier = [asked.record for asked in self.branch[:-1]]
        return bool(earlier) and not any(plain_answer(record, set()) for record in earlier)

    def _is_answer_open(self) -> bool:
        """Returns whether the newest answer that the client sends back waits for results, or for what follows them.

        A question beside the results, or after them, does not end the answer: the messages of the user are combined.
        """
        sent = (asked.record for asked in reversed(self.branch) if whole_answer(asked.record, call_ids(asked.record)))
        return next((record.stop_reason == "tool_use" for record in sent), False)

    def _late_results(self) -> list[Json]:
        """Returns results of the newest answer's calls, if later questions have got no answer."""
        newest = next((asked.record for asked in reversed(self.branch) if asked.record.content), None)
        if newest is None or newest.outcome != "completed" or newest.stop_reason != "tool_use":
            return []
        calls = [block for block in newest.content if block["type"] == "tool_use" and "caller" not in block]
        return [{"type": "tool_result", "tool_use_id": one["id"], "content": "late"} for one in calls]

    def _is_code_open(self) -> bool:
        return any("caller" in block for block in self._open_calls())

    def _whole(self, new: list[Json], answer: Callable[[TurnRecord, set[str]], list[Json]]) -> list[Json]:
        """Returns the conversation before the messages `new`, without calls that have no results."""
        found: list[Json] = []
        following = [*(asked.messages for asked in self.branch[1:]), new]
        for asked, after in zip(self.branch, following, strict=False):
            blocks = [block for one in after if isinstance(one["content"], list) for block in one["content"]]
            answered = {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
            found += [*asked.messages, *answer(asked.record, answered)]
        return found

    def _as_turns(self, messages: list[Json], options: Json, fields: Json) -> Sent:
        """Sends only what is new; now and then, the whole conversation or a `parent`."""
        more: Json = {"session": self._session, "create_session": True}
        if self.random.random() < 0.2 and self.branch:
            before = self._whole(messages, plain_answer)
            messages, more["full_history"] = [*before, *messages], True
        elif self.branch:
            more["parent"] = self.branch[-1].record.turn
        elif self.number > 1:
            more["parent"] = None
        body = self._own_fields() | {"messages": messages, "options": options or None} | more | fields
        return Sent("/v1/turns", body)

    def _own_fields(self) -> Json:
        return {
            "model": self.model,
            "system": self.system,
            "tools": self.tools,
            "betas": list(self.betas) or None,
        }

    def _as_messages(self, messages: list[Json], options: Json, fields: Json) -> Sent:
        """Anthropic's SDKs send the whole conversation, with the answers as they were."""
        before = self._whole(messages, whole_answer)
        if any("caller" in block for asked in self.branch for block in asked.record.content):
            options = options | {"container": CONTAINER}
        body = {
            "model": self.model,
            "max_tokens": fields.get("max_tokens", 4096),
            "messages": [*before, *messages],
            **({"system": self.system} if self.system else {}),
            **({"tools": self.tools} if self.tools else {}),
            **options,
        }
        return Sent("/v1/messages", body, {"x-session-id": self._session, "anthropic-beta": ",".join(self.betas)})

    def _as_chat(self, messages: list[Json], options: Json, fields: Json) -> Sent:
        sent = [one for message in [*self._whole(messages, plain_answer), *messages] for one in as_chat(message)]
        body = {
            "model": self.model,
            "messages": [*([{"role": "system", "content": self.system}] if self.system else []), *sent],
            "session_id": self._session,
            **openai_fields(options, self.tools, is_chat=True),
            **fields,
        }
        return Sent("/v1/chat/completions", body)

    def _as_responses(self, messages: list[Json], options: Json, fields: Json) -> Sent:
        fields = dict(fields)
        if "max_tokens" in fields:
            fields["max_output_tokens"] = fields.pop("max_tokens")
        body = {
            "model": self.model,
            "input": [one for message in messages for one in as_items(message)],
            **({"instructions": self.system} if self.system else {}),
            **({"previous_response_id": f"resp_{self.branch[-1].record.turn}"} if self.branch else {}),
            **openai_fields(options, self.tools, is_chat=False),
            **fields,
        }
        return Sent("/v1/responses", body)

    def _as_ai_sdk(self, messages: list[Json], options: Json, fields: Json) -> Sent:
        ui: list[Json] = []
        for asked in self.branch:
            ui += add_results(ui, asked.messages)
            add_answer(ui, asked.record)
        ui += add_results(ui, messages)
        body = {
            "id": self._session,
            "messages": ui,
            "model": self.model,
            "system": self.system,
            "tools": self.tools,
            "options": options or None,
            "trigger": "submit-message",
            **fields,
        }
        return Sent("/api/chat", body)

    def _as_ag_ui(self, messages: list[Json], options: Json, fields: Json) -> Sent:
        """HttpAgent sends the messages that it has made of the events, and what its page shows now."""
        known: list[Json] = []
        for number, asked in enumerate(self.branch):
            known += agent_messages(asked.messages, str(number))
            for event in parse(AG_UI.render_record(asked.record, 0).data):
                apply_event(known, json.loads(event.data))
        known += agent_messages(messages, str(len(self.branch)))
        has_context = self.model in CHECKED and self.random.random() < 0.5
        body = {
            "threadId": self._session,
            "runId": f"{self._session}-{self.number}-{self.random.randint(0, 10**9)}",
            "messages": known,
            "tools": [],
            "context": [{"description": "page", "value": f"page {self.number}"}] if has_context else [],
            "forwardedProps": {"model": self.model, "system": self.system, "tools": self.tools}
            | ({"options": options} if options else {})
            | fields,
        }
        return Sent("/api/agui", body)


def spoil(step: Step) -> Step:
    """Returns the step with bad input, if its messages have what can be spoilt; else a plain one."""
    body = step.sent.body
    blocks = [place.block for place in read_places(body) if place.block.get("type") == "thinking"]
    if step.kind == "tampered" and blocks:
        spoilt = sent_with(body, lambda block: block | {"thinking": "altered"} if block is blocks[0] else block)
        return step._replace(sent=step.sent._replace(body=spoilt), refusal="Invalid `signature` in `thinking` block.")
    # The API would refuse each of these calls without its thinking. The simulated Claude does not know those that
    # Tailrace has made of JSON (a forced call of a model that takes none).
    is_needed = not all(has_its_thinking(place, []) for place in find_open(read_places(body)))
    if step.kind == "stripped" and body["model"] in UNCHECKED and is_needed:
        spoilt = sent_with(body, lambda block: None if block.get("type") in KINDS_OF_THINKING else block)
        return step._replace(sent=step.sent._replace(body=spoilt), refusal=EXPECTED)
    return step._replace(kind="plain")


def sent_with(body: Json, change: Callable[[Json], Json | None]) -> Json:
    """Returns a request with other blocks in its messages; None: without the block."""
    messages = [
        one if isinstance(one["content"], str) else one | {"content": [*filter(None, map(change, one["content"]))]}
        for one in body["messages"]
    ]
    return body | {"messages": [one for one in messages if one["content"] or one["role"] == "system"]}


def say(text: str) -> Json:
    return {"type": "text", "text": text}


def thought(text: str = "thinking about it") -> Json:
    return {"type": "thinking", "thinking": text, "signature": ""}


def answer_with(*content: Json) -> Special:
    return lambda request: sign(request, list(content))


def code_answer(request: Json) -> list[Json]:
    """Returns an answer whose code calls the client's tool."""
    number = len(request["messages"])
    caller = {"type": "code_execution_20250825", "tool_id": f"srvtoolu_{number}"}
    code = {"type": "server_tool_use", "id": caller["tool_id"], "name": "code_execution", "input": {"code": "look()"}}
    thinking = thought()
    # The simulated Claude knows by the id which thinking must come back with the call.
    name = mark_call(f"toolu_simcode{number}", thinking["thinking"])
    call = {"type": "tool_use", "id": name, "name": "look", "input": {}, "caller": caller}
    return sign(request, [thinking, say("I look."), code, call])


def fallback_answer(model: str) -> Special:
    """Returns an answer that another model gives after a refusal, on the server of the API."""

    def answer(request: Json) -> list[Json]:
        change = {"type": "fallback", "from": {"model": request["model"]}, "to": {"model": model}}
        return sign(request | {"model": model}, [change, thought(), say("Yes.")])

    return answer


def plain_answer(record: TurnRecord, answered: set[str]) -> list[Json]:
    """Returns an answer as a page has it: its text, and the calls that are `answered`."""
    calls = [block for block in record.content if block["type"] == "tool_use" and block["id"] in answered]
    text = [say(record.text)] if record.text.strip() else []
    if calls:
        return [{"role": "assistant", "content": [*text, *calls]}]
    return [{"role": "assistant", "content": record.text}] if text else []


def whole_answer(record: TurnRecord, answered: set[str]) -> list[Json]:
    """Returns an answer as Anthropic's SDKs send it back, without what the API is known to refuse."""
    ids = {block.get("tool_use_id") for block in record.content} | answered
    ids |= {block["caller"]["tool_id"] for block in record.content if "caller" in block}
    content = [
        block
        for block in record.content
        if not (block["type"] == "text" and not block["text"].strip()) and ("input" not in block or block["id"] in ids)
    ]
    content = without_trailing_thinking(content)
    return [{"role": "assistant", "content": content}] if content else []


def call_ids(record: TurnRecord) -> set[str]:
    return {block["id"] for block in record.content if block["type"] == "tool_use"}


def without_thoughts(record: TurnRecord) -> list[Json]:
    return [block for block in record.content if "thinking" not in block["type"]]


def as_chat(message: Json) -> list[Json]:
    """Returns a message in the form of OpenAI's chat completions."""
    content = message["content"]
    blocks = [say(content)] if isinstance(content, str) else content
    text = "".join(block["text"] for block in blocks if block["type"] == "text")
    results = [
        {"role": "tool", "tool_call_id": block["tool_use_id"], "content": block["content"]}
        for block in blocks
        if block["type"] == "tool_result"
    ]
    calls = [
        {
            "id": block["id"],
            "type": "function",
            "function": {"name": block["name"], "arguments": json.dumps(block["input"])},
        }
        for block in blocks
        if block["type"] == "tool_use"
    ]
    if message["role"] == "assistant":
        return [{"role": "assistant", "content": text or None, **({"tool_calls": calls} if calls else {})}]
    return [*results, *([{"role": "user", "content": text}] if text else [])]


def as_items(message: Json) -> list[Json]:
    """Returns a message of the user as items of OpenAI's responses."""
    content = message["content"]
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    return [
        {"role": "user", "content": block["text"]}
        if block["type"] == "text"
        else {"type": "function_call_output", "call_id": block["tool_use_id"], "output": block["content"]}
        for block in content
    ]


def openai_fields(options: Json, tools: list[Json] | None, *, is_chat: bool) -> Json:
    """Returns options and tools in the names of OpenAI's two protocols."""
    fields: Json = {}
    if tools:
        functions = [
            {"name": one["name"], "description": one["description"], "parameters": one["input_schema"]} for one in tools
        ]
        fields["tools"] = [
            {"type": "function", "function": one} if is_chat else {"type": "function", **one} for one in functions
        ]
    match options.get("tool_choice"):
        case {"type": "any"}:
            fields["tool_choice"] = "required"
        case {"name": name}:
            fields["tool_choice"] = (
                {"type": "function", "function": {"name": name}} if is_chat else {"type": "function", "name": name}
            )
    match options.get("output_config"):
        case {"format": {"schema": schema}} if is_chat:
            fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        case {"format": {"schema": schema}}:
            fields["text"] = {"format": {"type": "json_schema", "schema": schema}}
    return fields


def add_answer(ui: list[Json], record: TurnRecord) -> None:
    """Adds an answer to the page's messages: to the last one, if it is an answer with tool results."""
    parts: list[Json] = [{"type": "step-start"}]
    for block in record.content:
        match block:
            case {"type": "text", "text": text}:
                parts.append({"type": "text", "text": text})
            case {"type": "thinking", "thinking": text, "signature": signature}:
                metadata = {"anthropic": {"signature": signature}}
                parts.append({"type": "reasoning", "text": text, "providerMetadata": metadata})
            case {"type": "tool_use", "id": call, "name": name, "input": given}:
                fields = {"toolCallId": call, "state": "input-available", "input": given}
                parts.append({"type": f"tool-{name}", **fields})
    if ui and ui[-1]["role"] == "assistant":
        ui[-1]["parts"] += parts
    else:
        ui.append({"role": "assistant", "id": record.turn, "parts": parts})


def add_results(ui: list[Json], messages: list[Json]) -> list[Json]:
    """Adds the results in `messages` to the calls of the page's last message; returns the page's new messages."""
    found: list[Json] = []
    for message in messages:
        content = message["content"]
        blocks = [say(content)] if isinstance(content, str) else content
        for block in blocks:
            if block["type"] == "tool_result":
                for part in (part for one in ui for part in one["parts"]):
                    if part.get("toolCallId") == block["tool_use_id"]:
                        part |= {"state": "output-available", "output": block["content"]}
        texts = [{"type": "text", "text": block["text"]} for block in blocks if block["type"] == "text"]
        if texts:
            found.append({"role": "user", "id": "u", "parts": texts})
    return found


def agent_messages(messages: list[Json], name: str) -> list[Json]:
    """Returns the messages of a client of AG-UI: a question, or the results of tools."""
    found: list[Json] = []
    for message in messages:
        content = message["content"]
        for at, block in enumerate([say(content)] if isinstance(content, str) else content):
            own = f"u{name}-{at}"
            if block["type"] == "tool_result":
                call = block["tool_use_id"]
                found.append({"id": own, "role": "tool", "toolCallId": call, "content": block["content"]})
            elif block["type"] == "text":
                found.append({"id": own, "role": "user", "content": block["text"]})
    return found
