"""Clients that play the turns of a rule's case, each in one protocol, and return how the last turn ends.

A turn ends with its stop reason (Anthropic's), or with the message of its error.
"""

import json
from typing import Any

import httpx2

from tests.conformance.rule_case import RuleCase
from tests.conformance.sdk import accumulate

Json = dict[str, Any]
HEADERS = {"x-api-key": "sk-any", "anthropic-version": "2026-10-21"}
# OpenAI's and the AI SDK's words for Anthropic's stop reasons.
REASONS = {
    "stop": "end_turn",
    "tool_calls": "tool_use",
    "tool-calls": "tool_use",
    "length": "max_tokens",
    "content_filter": "refusal",
    "content-filter": "refusal",
}


async def play_verbatim(claude: httpx2.AsyncClient, case: RuleCase) -> str:
    """Asks the API itself. Sends each answer back as it came."""
    messages: list[Json] = []
    calls: list[str] = []
    ended = ""
    for turn in case.turns:
        results = [
            {"type": "tool_result", "tool_use_id": call, "content": turn.result} for call in calls if turn.result
        ]
        messages.append({"role": "user", "content": [*results, *(turn.blocks if turn.message else [])]})
        fields: Json = {"model": turn.model, "max_tokens": turn.max_tokens, "messages": messages, "stream": False}
        fields |= {"system": turn.system} if turn.system else {}
        fields |= {"tools": turn.tools} if turn.tools else {}
        fields |= {"metadata": {"user_id": turn.user}} if turn.user else {}
        fields |= {"stop_sequences": turn.stop} if turn.stop else {}
        answered = await claude.post("/v1/messages", json=fields, headers=HEADERS)
        if answered.status_code != 200 and "wants a stream" in answered.text:
            message = await _streamed(claude, fields)
        elif answered.status_code != 200:
            return str(answered.json()["error"]["message"])
        else:
            message = answered.json()
        calls = [block["id"] for block in message["content"] if block["type"] == "tool_use"]
        messages.append({"role": "assistant", "content": message["content"]})
        ended = str(message["stop_reason"])
    return ended


async def _streamed(claude: httpx2.AsyncClient, fields: Json) -> Json:
    """Returns the message of an answer that the simulated Claude gives only as a stream."""
    return accumulate((await claude.post("/v1/messages", json=fields | {"stream": True}, headers=HEADERS)).content)


async def play_turns(gateway: httpx2.AsyncClient, case: RuleCase, session: str) -> str:
    """Tailrace's own API, in a session."""
    calls: list[str] = []
    record: Json = {}
    for turn in case.turns:
        results = [
            {"type": "tool_result", "tool_use_id": call, "content": turn.result} for call in calls if turn.result
        ]
        content = [*results, *(turn.blocks if turn.message else [])]
        body: Json = {"session": session, "create_session": True, "messages": [{"role": "user", "content": content}]}
        body |= {"model": turn.model, "max_tokens": turn.max_tokens}
        body |= {"system": turn.system} if turn.system else {}
        body |= {"tools": turn.tools} if turn.tools else {}
        posted = await gateway.post("/v1/turns", json=body)
        if posted.status_code != 202:
            return posted.text
        await gateway.get(f"/v1/turns/{posted.json()['turn']}/events")
        record = (await gateway.get(f"/v1/turns/{posted.json()['turn']}")).json()
        if record["outcome"] != "completed":
            return str(record["error"])
        calls = [block["id"] for block in record["content"] if block["type"] == "tool_use"]
    return str(record["stop_reason"])


async def play_chat(gateway: httpx2.AsyncClient, case: RuleCase, session: str) -> str:
    """OpenAI's chat completions, with `session_id`."""
    calls: list[str] = []
    ended = ""
    for turn in case.turns:
        messages: list[Json] = [{"role": "system", "content": turn.system}] if turn.system else []
        messages += [{"role": "tool", "tool_call_id": call, "content": turn.result} for call in calls if turn.result]
        messages += [{"role": "user", "content": list(map(_chat_part, turn.blocks))}] if turn.message else []
        body: Json = {"model": turn.model, "session_id": session, "messages": messages}
        body |= {"max_tokens": turn.max_tokens, "user": turn.user, "stop": turn.stop}
        body |= {"tools": [{"type": "function", "function": _function(tool)} for tool in turn.tools]}
        answered = await gateway.post("/v1/chat/completions", json={k: v for k, v in body.items() if v})
        if answered.status_code != 200:
            return answered.text
        choice = answered.json()["choices"][0]
        calls = [call["id"] for call in choice["message"].get("tool_calls") or []]
        ended = REASONS.get(choice["finish_reason"], choice["finish_reason"])
    return ended


def _function(tool: Json) -> Json:
    return {"name": tool["name"], "parameters": tool["input_schema"]}


def _chat_part(block: Json) -> Json:
    if block["type"] == "image":
        return {"type": "image_url", "image_url": {"url": _data_url(block)}}
    return block


def _data_url(block: Json) -> str:
    return f"data:{block['source']['media_type']};base64,{block['source']['data']}"


async def play_responses(gateway: httpx2.AsyncClient, case: RuleCase, session: str) -> str:
    """OpenAI's responses, with `previous_response_id`."""
    calls: list[str] = []
    previous: str | None = None
    ended = ""
    for turn in case.turns:
        items: list[Json] = [
            {"type": "function_call_output", "call_id": call, "output": turn.result} for call in calls if turn.result
        ]
        items += [{"role": "user", "content": list(map(_input_part, turn.blocks))}] if turn.message else []
        body: Json = {"model": turn.model, "input": items, "previous_response_id": previous, "user": turn.user}
        body |= {"instructions": turn.system, "max_output_tokens": turn.max_tokens}
        body |= {"tools": [{"type": "function", **_function(tool)} for tool in turn.tools]}
        answered = await gateway.post("/v1/responses", json={k: v for k, v in body.items() if v})
        if answered.status_code != 200 or answered.json()["status"] == "failed":
            return answered.text
        response = answered.json()
        previous = response["id"]
        calls = [item["call_id"] for item in response["output"] if item["type"] == "function_call"]
        details = response["incomplete_details"] or {}
        reason = {"max_output_tokens": "max_tokens", "content_filter": "refusal"}.get(details.get("reason", ""))
        ended = reason or ("tool_use" if calls else "end_turn")
    return ended


def _input_part(block: Json) -> Json:
    if block["type"] == "image":
        return {"type": "input_image", "image_url": _data_url(block)}
    return {"type": "input_text", "text": block["text"]}


async def play_ui(gateway: httpx2.AsyncClient, case: RuleCase, session: str) -> str:
    """useChat: the page sends the messages that it has, without thinking and without containers."""
    messages: list[Json] = []
    out = ""
    for number, turn in enumerate(case.turns):
        if turn.result:
            for part in messages[-1]["parts"]:
                if part.get("toolCallId"):
                    part.update(state="output-available", output=turn.result)
        else:
            messages.append({"id": f"u{number}", "role": "user", "parts": list(map(_ui_part, turn.blocks))})
        body: Json = {"id": session, "messages": messages, "system": turn.system, "tools": turn.tools}
        body |= {"model": turn.model, "max_tokens": turn.max_tokens}
        answered = await gateway.post("/api/chat", json={k: v for k, v in body.items() if v})
        out = answered.text
        if answered.status_code != 200 or '"type":"error"' in out:
            return out
        messages = (await gateway.get(f"/api/chat/{session}/messages")).json()
    return next((ours for theirs, ours in REASONS.items() if f'"finishReason":"{theirs}"' in out), out)


def _ui_part(block: Json) -> Json:
    if block["type"] == "image":
        return {"type": "file", "mediaType": block["source"]["media_type"], "url": _data_url(block)}
    return {"type": "text", "text": block["text"]}


async def play_agents(gateway: httpx2.AsyncClient, case: RuleCase, session: str) -> str:
    """HttpAgent: the client sends the messages that it has made of the events."""
    messages: list[Json] = []
    ended = ""
    for number, turn in enumerate(case.turns):
        if turn.result:
            messages += [
                {"id": f"r{call['id']}", "role": "tool", "toolCallId": call["id"], "content": turn.result}
                for call in _unanswered(messages)
            ]
        else:
            messages.append({"id": f"u{number}", "role": "user", "content": list(map(_agent_part, turn.blocks))})
        props: Json = {"model": turn.model, "max_tokens": turn.max_tokens, "system": turn.system}
        own = [one for one in turn.tools if "input_schema" in one]
        props["tools"] = [one for one in turn.tools if one not in own]
        tools = [{"name": one["name"], "description": "", "parameters": one["input_schema"]} for one in own]
        body = {"threadId": session, "runId": f"{session}-{number}", "messages": messages, "tools": tools}
        answered = await gateway.post(
            "/api/agui", json=body | {"forwardedProps": {k: v for k, v in props.items() if v}}
        )
        if answered.status_code != 200:
            return answered.text
        for line in answered.text.splitlines():
            event = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if event.get("type") == "RUN_ERROR":
                return str(event["message"])
            if event.get("name") == "tailrace.end":
                ended = str(event["value"]["stop_reason"])
            apply_event(messages, event)
    return ended


def _unanswered(messages: list[Json]) -> list[Json]:
    answered = {message.get("toolCallId") for message in messages}
    calls = [call for message in messages for call in message.get("toolCalls", [])]
    return [call for call in calls if call["id"] not in answered]


def apply_event(messages: list[Json], event: Json) -> None:
    """Adds an event of AG-UI to the messages of a client."""
    by_id = {message["id"]: message for message in messages}
    match event:
        case {"type": "MESSAGES_SNAPSHOT", "messages": snapshot}:
            messages[:] = snapshot
        case {"type": "TEXT_MESSAGE_START" | "REASONING_MESSAGE_START", "messageId": name, "role": role}:
            messages.append({"id": name, "role": role, "content": ""})
        case {"type": "TEXT_MESSAGE_CONTENT" | "REASONING_MESSAGE_CONTENT", "messageId": name, "delta": delta}:
            by_id[name]["content"] += delta
        case {"type": "REASONING_ENCRYPTED_VALUE", "entityId": name, "encryptedValue": secret}:
            by_id[name]["encryptedValue"] = secret
        case {"type": "TOOL_CALL_START", "toolCallId": call, "toolCallName": tool, "parentMessageId": name}:
            if name not in by_id:
                by_id[name] = {"id": name, "role": "assistant"}
                messages.append(by_id[name])
            begun = {"id": call, "type": "function", "function": {"name": tool, "arguments": ""}}
            by_id[name].setdefault("toolCalls", []).append(begun)
        case {"type": "TOOL_CALL_ARGS", "toolCallId": call, "delta": delta}:
            calls = [one for message in messages for one in message.get("toolCalls", []) if one["id"] == call]
            calls[-1]["function"]["arguments"] += delta
        case {"type": "TOOL_CALL_RESULT", "messageId": name, "toolCallId": call, "content": content}:
            messages.append({"id": name, "role": "tool", "toolCallId": call, "content": content})


def _agent_part(block: Json) -> Json:
    if block["type"] == "image":
        source = block["source"]
        return {"type": "image", "source": {"type": "data", "value": source["data"], "mimeType": source["media_type"]}}
    return {"type": "text", "text": block["text"]}


PLAYERS = {
    "tailrace": play_turns,
    "chat": play_chat,
    "responses": play_responses,
    "ui": play_ui,
    "agents": play_agents,
}
