"""Server tools and pauses of the simulated Claude: what a call executes, and how an answer goes on."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest

from tailrace.deploy.simulated_claude import event
from tailrace.deploy.simulated_claude.conversation import INTERRUPTED
from tailrace.deploy.simulated_claude.directive import Directive, DirectiveInvalid, read
from tailrace.deploy.simulated_claude.refusal import Refusal
from tailrace.deploy.simulated_claude.reply import parse_message, reply
from tailrace.deploy.simulated_claude.request import decode
from tailrace.deploy.simulated_claude.server_tool import KINDS, ServerCall

Block = dict[str, Any]
TEXT = "w000000 w000001 w000002 w000003 w000004 w000005 w000006 w000007"
LINE = "#sim words=8 server=web_search,code_execution,mcp"


class Claude:
    """The simulated Claude without its server. `executed`: the calls of server tools that ran, by number."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.calls = 0
        self.executed: list[int] = []
        self.usage: dict[str, Any] = {}
        self.container: dict[str, Any] | None = None
        self.stop_reason: str | None = None

    def answer(self, *tail: dict[str, Any], deltas: int | None = None, **more: Any) -> list[Block]:
        """Returns the blocks of a streamed answer; those that are complete after `deltas` deltas, and open text."""
        messages = [{"role": "user", "content": self.line}, *tail]
        body = {"model": "claude-sonnet-5-5", "max_tokens": 1000, "messages": messages, **more}
        request = decode(msgspec.json.encode(body))
        self.calls += 1
        blocks: list[Block] = []
        inputs: dict[int, str] = {}
        is_open = False
        for frame in event.frames(reply(parse_message(request), self.calls)):
            if frame.is_delta:
                if deltas == 0:
                    return blocks if not is_open or blocks[-1]["type"] == "text" else blocks[:-1]
                deltas = None if deltas is None else deltas - 1
            if frame.result is not None:
                self.executed.append(frame.call)
            match msgspec.json.decode(frame.data.partition(b"data: ")[2]):
                case {"type": "content_block_start", "content_block": block}:
                    blocks.append(block)
                    is_open = True
                case {"type": "content_block_delta", "index": index, "delta": {"partial_json": piece}}:
                    inputs[index] = inputs.get(index, "") + piece
                case {"type": "content_block_delta", "delta": {"type": "text_delta", "text": piece}}:
                    blocks[-1]["text"] += piece
                case {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": piece}}:
                    blocks[-1]["thinking"] += piece
                case {"type": "content_block_delta", "delta": {"type": "signature_delta", "signature": signature}}:
                    blocks[-1]["signature"] = signature
                case {"type": "content_block_stop", "index": index} if index in inputs:
                    blocks[index]["input"] = msgspec.json.decode(inputs[index])
                    is_open = False
                case {"type": "content_block_stop"}:
                    is_open = False
                case {"type": "message_delta", "delta": delta, "usage": usage}:
                    self.stop_reason, self.usage, self.container = delta["stop_reason"], usage, delta.get("container")
        return blocks


def text_of(blocks: list[Block]) -> str:
    return "".join(block["text"] for block in blocks if block["type"] == "text")


def kinds_of(blocks: list[Block]) -> list[str]:
    return [block["type"] for block in blocks]


def assistant(content: list[Block]) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def test_server_calls_divide_the_text() -> None:
    """Each call is followed by its result; the usage counts searches, and code reports its container."""
    claude = Claude(LINE)
    blocks = claude.answer()
    call, result = "server_tool_use", "code_execution_tool_result"
    assert kinds_of(blocks) == [
        *(
            "text",
            call,
            "web_search_tool_result",
            "text",
            call,
            result,
            "text",
            "mcp_tool_use",
            "mcp_tool_result",
            "text",
        )
    ]
    assert text_of(blocks) == TEXT
    for first, second in pairwise(blocks):
        if first["type"] in (call, "mcp_tool_use"):
            assert second["tool_use_id"] == first["id"]
            assert first["input"]
    assert (claude.executed, claude.stop_reason) == ([1, 2, 3], "end_turn")
    assert claude.usage["server_tool_use"] == {"web_search_requests": 1, "web_fetch_requests": 0}
    assert claude.container is not None
    claude.answer(container="container_mine")
    assert claude.container is not None
    assert claude.container["id"] == "container_mine"


@pytest.mark.parametrize("is_joined", [True, False])
@pytest.mark.parametrize("thinking", ["", " thinking=2"])
def test_an_answer_goes_on_after_each_of_its_pauses(is_joined: bool, thinking: str) -> None:
    """The paused answer is sent back as one message, or as one message for each call."""
    claude = Claude(f"{LINE} pauses=3{thinking}")
    parts = [claude.answer()]
    while claude.stop_reason == "pause_turn":
        assert parts[-1][-1]["type"] in ("server_tool_use", "mcp_tool_use")
        sent = [assistant([block for part in parts for block in part])] if is_joined else map(assistant, parts)
        parts.append(claude.answer(*sent))
        assert parts[-1][0]["tool_use_id"] == parts[-2][-1]["id"]
    whole = [block for part in parts for block in part]
    assert (len(parts), claude.executed, text_of(whole)) == (4, [1, 2, 3], TEXT)
    assert kinds_of(whole) == kinds_of(Claude(LINE + thinking).answer())


@pytest.mark.parametrize("pauses", [0, 2])
@pytest.mark.parametrize("thinking", ["", " thinking=2"])
def test_a_continuation_executes_no_call_whose_result_it_has(pauses: int, thinking: str) -> None:
    """After a break at each delta; half a pair is left out, so its call comes again."""
    line = f"{LINE}{thinking} pauses={pauses}"
    whole = Claude(line + " pauses=0").answer()
    for deltas in range(1, 40):
        claude = Claude(line)
        stored = claude.answer(deltas=deltas)
        # The calls whose results are stored must not run again.
        while claude.stop_reason != "end_turn":
            executed = len(claude.executed)
            if claude.stop_reason == "pause_turn":
                stored += claude.answer(assistant(stored))
                continue
            results = {block.get("tool_use_id") for block in stored}
            sent = [one for one in stored if (one["id"] in results if "id" in one else one.get("text") != "")]
            while sent and sent[-1]["type"] == "thinking":
                sent.pop()
            prompt = {"role": "user", "content": f"{INTERRUPTED}: …"}
            stored = sent + (claude.answer(assistant(sent), prompt) if sent else claude.answer())
            assert not set(claude.executed[executed:]) & set(claude.executed[:executed]) or not sent
        assert text_of(stored) == TEXT, deltas
        results_of = [kind for kind in kinds_of(stored) if kind.endswith("_result")]
        assert results_of == [kind for kind in kinds_of(whole) if kind.endswith("_result")]


def test_a_pause_that_no_call_follows_is_refused() -> None:
    """A user message after a call without its result; as the last message it is accepted, by all models."""
    paused = Claude(f"{LINE} pauses=1").answer()
    with pytest.raises(Refusal, match="was found without a corresponding `web_search_tool_result` block"):
        Claude(f"{LINE} pauses=1").answer(assistant(paused), {"role": "user", "content": "And?"})
    with pytest.raises(Refusal, match="prefill"):
        Claude(LINE).answer(assistant([*paused[:1]]))


def test_a_later_question_repeats_no_call() -> None:
    """Pairs of earlier answers belong to the history."""
    claude = Claude(LINE)
    first = claude.answer()
    second = claude.answer(assistant(first), {"role": "user", "content": "#sim words=2 server=mcp"})
    assert (kinds_of(second), claude.executed) == (["text", "mcp_tool_use", "mcp_tool_result", "text"], [1, 2, 3, 1])


def test_calls_of_one_turn_have_different_ids() -> None:
    claude = Claude(LINE)
    ids = [block["id"] for _ in range(2) for block in claude.answer() if "id" in block]
    assert len(set(ids)) == len(ids) == 6


def test_server_lists_the_calls() -> None:
    calls = tuple(ServerCall(number, kind) for number, kind in enumerate(["mcp", "mcp", "web_fetch"], 1))  # type: ignore[arg-type]
    assert read("#sim server=mcp*2,web_fetch pauses=1") == Directive(server=calls, pauses=1)


@pytest.mark.parametrize("listed", ["", "shell", "mcp*0", "mcp,,mcp", "mcp*101", "mcp*60,mcp*60"])
def test_an_invalid_list_of_calls_is_refused(listed: str) -> None:
    with pytest.raises(DirectiveInvalid, match="server="):
        read(f"#sim server={listed}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_has_the_content_of_the_stream(kind: str) -> None:
    claude = Claude(f"#sim words=2 server={kind}")
    streamed = claude.answer()
    body = {"model": "claude-sonnet-5-5", "max_tokens": 99, "messages": [{"role": "user", "content": claude.line}]}
    message = msgspec.json.decode(event.message(reply(parse_message(decode(msgspec.json.encode(body))), 1)))
    assert message["content"] == streamed
    assert message["usage"] == claude.usage
