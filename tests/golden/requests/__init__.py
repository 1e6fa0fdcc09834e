"""Golden requests: the body that a client of each protocol sends, and the turn that the gateway makes of it.

A line of API.jsonl is one case: its name, the fields of `body` besides DEFAULTS, perhaps `headers`, and the outcome:
the fields of the turn that are not at their default and the names of ignored parameters, or the refusal.
`python -m tests.golden --update` writes the outcomes again; review the difference before you commit it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace
from starlette.datastructures import Headers

from tailrace.gateway.http.read_body import decode
from tailrace.gateway.turns.request_body import NewTurn, check_turn
from tailrace.proto.errors import Refused
from tailrace.proto.models import models
from tailrace.protocols.ag_ui import request as ag_ui
from tailrace.protocols.ai_sdk import request as ai_sdk
from tailrace.protocols.anthropic import request as anthropic
from tailrace.protocols.common.built_turn import BuiltTurn
from tailrace.protocols.openai import chat_request, responses_request

FOLDER = Path(__file__).parent
HI = {"role": "user", "content": "hi"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "chat": {"model": "claude-haiku-5-5", "messages": [HI]},
    "responses": {"model": "claude-sonnet-5-5", "input": "hi"},
    "ui": {"messages": [{"role": "user", "parts": [{"type": "text", "text": "hi"}]}]},
    "agents": {"threadId": "t", "runId": "r", "messages": [{"id": "u", **HI}]},
    "messages": {
        "model": "claude-opus-5-5",
        "max_tokens": 100,
        "messages": [HI, {"role": "system", "content": "Be brief."}],
        "stream": True,
    },
}


class Case(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    case: str
    body: dict[str, Any]
    headers: dict[str, str] = {}
    turn: dict[str, Any] | None = None
    ignored: list[str] = []
    refused: str | None = None


def read_cases(api: str) -> list[Case]:
    return [msgspec.json.decode(line, type=Case) for line in (FOLDER / f"{api}.jsonl").read_bytes().splitlines()]


def build_turn(api: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> BuiltTurn:
    """Returns the turn of a request with `body` and DEFAULTS. Raises Refused."""
    return BUILD[api]({**DEFAULTS[api], **body}, headers or {})


def run_case(api: str, case: Case) -> Case:
    """Returns the case with the outcome of this version."""
    try:
        built = build_turn(api, case.body, case.headers)
        check_turn(built.turn)
    except Refused as refused:
        return Case(case=case.case, body=case.body, headers=case.headers, refused=f"{refused.code}: {refused.message}")
    turn = msgspec.to_builtins(built.turn)
    plain = msgspec.to_builtins(NewTurn())
    changed = {name: value for name, value in turn.items() if name not in plain or value != plain[name]}
    return Case(case=case.case, body=case.body, headers=case.headers, turn=changed, ignored=built.ignored)


def update() -> None:
    for api in DEFAULTS:
        lines = [msgspec.json.encode(run_case(api, case)) + b"\n" for case in read_cases(api)]
        (FOLDER / f"{api}.jsonl").write_bytes(b"".join(lines))


def _chat(body: dict[str, Any], _: Mapping[str, str]) -> BuiltTurn:
    request = chat_request.convert(body)
    return chat_request.build_turn(request, models()[body["model"]], body)


def _responses(body: dict[str, Any], _: Mapping[str, str]) -> BuiltTurn:
    request = decode(msgspec.json.encode(body), responses_request.ResponseRequest)
    return responses_request.build_turn(request, models()[body["model"]])


def _ui(body: dict[str, Any], _: Mapping[str, str]) -> BuiltTurn:
    return BuiltTurn(ai_sdk.build_turn(decode(msgspec.json.encode(body), ai_sdk.UIChatRequest)), [], {})


def _agents(body: dict[str, Any], _: Mapping[str, str]) -> BuiltTurn:
    """Returns the turn of a run with a model that checks its thinking."""
    run = decode(msgspec.json.encode(body), ag_ui.RunAgentInput)
    turn = ag_ui.build_turn(run, None)
    messages = ag_ui.with_context(turn.messages or [], ag_ui.context_text(run))
    return BuiltTurn(replace(turn, messages=messages), ag_ui.ignored_fields(body), {})


def _messages(body: dict[str, Any], headers: Mapping[str, str]) -> BuiltTurn:
    request = decode(msgspec.json.encode(body), anthropic.MessagesRequest)
    return BuiltTurn(anthropic.build_turn(request, body, Headers(headers)), [], {})


BUILD: dict[str, Callable[[dict[str, Any], Mapping[str, str]], BuiltTurn]] = {
    "chat": _chat,
    "responses": _responses,
    "ui": _ui,
    "agents": _agents,
    "messages": _messages,
}
