"""The items of a history in the format of each protocol, as its clients write them, and those of a model's request.

Inexpressible is raised for what a format cannot say.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from tailrace.features.client_calls.records import Decision, result_block
from tailrace.protocols.ag_ui.blocks import Answer, add_blocks
from tailrace.protocols.common.history_items import SIGNED
from tailrace.protocols.common.tool_definition import DENIED
from tailrace.protocols.openai.responses_object import Head
from tailrace.protocols.openai.responses_stream import output_items
from tests.conformance.history_case import REFUSED_FILES, Item, groups, kind_of

Json = dict[str, Any]
ENCRYPTED = {
    "openai": "gAAAAABo4dQm0vWZ3kq",
    "gemini": "EvAGCu0GAWdlbWluaWdlbWluaWdlbWluaWdlbWluaQ==",
    "compatible": "3f2a9c0b7d",
}
"""Reasoning of other vendors. `compatible`: one with Anthropic's API. A signature of Gemini begins as Claude's do: in
base64, a message of Protocol Buffers whose first field is number 2 (router-for-me/CLIProxyAPI#3615).
"""
EMPTY = "empty"
"""The vendor of thinking that has the field of a signature, without one."""
THOUGHTS = ("Hm.", *(f"t{number}" for number in range(50)))
"""The texts of thinking."""
MARK = {"type": "ephemeral"}
LOOK = "look"


class Inexpressible(Exception):
    """The format cannot say this."""


class File(NamedTuple):
    media: str
    name: str
    data: str = ""
    """In base64."""
    url: str = ""
    file_id: str = ""

    @property
    def data_url(self) -> str:
        return self.url or f"data:{self.media};base64,{self.data}"

    @property
    def is_image(self) -> bool:
        return self.media.startswith("image/")


PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
FILES = {
    "png": File("image/png", "a.png", PNG),
    "png-url": File("image/png", "a.png", url="https://a.example/a.png"),
    "pdf": File("application/pdf", "a.pdf", "JVBERi0xLjQK"),
    "pdf-url": File("application/pdf", "a.pdf", url="https://a.example/a.pdf"),
    "text": File("text/plain", "a.txt", "aGVsbG8="),
    "docx": File("application/vnd.openxmlformats-officedocument.wordprocessingml.document", "a.docx", "UEsDBA=="),
    "wav": File("audio/wav", "a.wav", "UklGRg=="),
    "mp4": File("video/mp4", "a.mp4", "AAAAGGZ0eXA="),
    "tiff": File("image/tiff", "a.tiff", "SUkqAA=="),
}


def signature_of(item: Item) -> str:
    """Returns a signature of Claude's, which the simulated one accepts behind any prompt."""
    return f"EsignatureOf{THOUGHTS.index(item['thinking'])}"


def parts_of(item: Item) -> list[Any]:
    """Returns the texts (str) and files (File) of a message of the user, or of a result."""
    given = item["user"] if "user" in item else item.get("content", f"result of {item.get('result')}")
    parts = given if isinstance(given, list) else [given]
    return [FILES[part["file"]] if isinstance(part, dict) else part for part in parts]


def text_of(item: Item) -> str:
    """Returns the text of an item that can have no file. Raises Inexpressible."""
    parts = parts_of(item)
    if len(parts) != 1 or not isinstance(parts[0], str):
        raise Inexpressible("only a text")
    return parts[0]


def arguments_of(item: Item) -> str:
    """Returns the input of a call as text: `json` is one that is cut, or no object."""
    return item["json"] if "json" in item else json.dumps(item.get("input", {}))


def refuse(item: Item, *fields: str) -> None:
    """Raises Inexpressible if an item has one of the fields."""
    if found := [field for field in fields if field in item]:
        raise Inexpressible(found[0])


# OpenAI's chat completions


def chat_messages(items: Sequence[Item]) -> list[Json]:
    found: list[Json] = []
    for of_assistant, group in groups(items):
        if of_assistant:
            found.append(_chat_answer(group))
            continue
        (item,) = group
        marked = {"cache_control": MARK} if "mark" in item else {}
        match kind_of(item):
            case "user":
                found.append({"role": "user", "content": _chat_content(parts_of(item)), **marked})
            case "system":
                found.append({"role": item.get("role", "system"), "content": item["system"], **marked})
            case "result":
                refuse(item, "is_error")
                is_list = isinstance(item.get("content"), list)
                content = [*map(_chat_part, parts_of(item))] if is_list else text_of(item)
                found.append({"role": "tool", "tool_call_id": item["result"], "content": content, **marked})
            case kind:
                raise Inexpressible(kind)
    return found


def _chat_answer(group: list[Item]) -> Json:
    message: Json = {"role": "assistant", "content": None}
    parts = [
        FILES[item["shown"]] if "shown" in item else item["answer"] for item in group if {"answer", "shown"} & {*item}
    ]
    if parts:
        message["content"] = _chat_content(parts)
    calls: list[Json] = []
    for item in group:
        match kind_of(item):
            case "answer" | "shown" if not calls:
                pass
            case "call":
                function = {"name": item.get("tool", LOOK), "arguments": arguments_of(item)}
                calls.append({"id": item["call"], "type": "function", "function": function})
            case "thinking" if item["of"] != "claude":
                message["reasoning_content"] = item["thinking"]
            case kind:
                raise Inexpressible(kind)
    return message | ({"tool_calls": calls} if calls else {})


def _chat_content(parts: list[Any]) -> Any:
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]
    return [_chat_part(part) for part in parts]


def _chat_part(part: Any) -> Json:
    match part:
        case str():
            return {"type": "text", "text": part}
        case File(is_image=True):
            return {"type": "image_url", "image_url": {"url": part.data_url}}
        case File(media="audio/wav"):
            return {"type": "input_audio", "input_audio": {"data": part.data, "format": "wav"}}
        case File(media="video/mp4"):
            return {"type": "video_url", "video_url": {"url": part.data_url}}
        case File(url=url) if not url:
            return {"type": "file", "file": {"file_data": part.data_url, "filename": part.name}}
        case _:
            raise Inexpressible("a document by its URL")


# OpenAI's responses


def response_items(items: Sequence[Item]) -> list[Json]:
    found: list[Json] = []
    for _, group in groups(items):
        for item in group:
            refuse(item, "mark", "is_error")
            found.append(_response_item(item))
    return found


def _response_item(item: Item) -> Json:
    match kind_of(item):
        case "user":
            parts = parts_of(item)
            is_text = len(parts) == 1 and isinstance(parts[0], str)
            return {"role": "user", "content": parts[0] if is_text else [*map(_input_part, parts)]}
        case "system":
            return {"role": item.get("role", "system"), "content": item["system"]}
        case "answer":
            content = [{"type": "output_text", "text": item["answer"], "annotations": []}]
            return {"type": "message", "role": "assistant", "content": content}
        case "call":
            fields = {"call_id": item["call"], "name": item.get("tool", LOOK), "arguments": arguments_of(item)}
            return {"type": "function_call", **fields}
        case "result":
            parts = parts_of(item)
            is_list = isinstance(item.get("content"), list)
            output = [*map(_input_part, parts)] if is_list else parts[0]
            return {"type": "function_call_output", "call_id": item["result"], "output": output}
        case "shown":
            return {"type": "message", "role": "assistant", "content": [_input_part(FILES[item["shown"]])]}
        case "thinking" if item["of"] == "claude":
            # As Tailrace itself has sent it, without the id, as Codex sends it.
            shown = output_items(Head("t"), [thinking_block(item)])[0]
            return {name: value for name, value in shown.items() if name != "id"}
        case "thinking":
            summary = [{"type": "summary_text", "text": item["thinking"]}]
            named = {"id": "rs_0123"} if item["of"] == "openai" else {}
            return {"type": "reasoning", "summary": summary, "encrypted_content": foreign_secret(item), **named}
        case kind:
            raise Inexpressible(kind)


def _input_part(part: Any) -> Json:
    match part:
        case str():
            return {"type": "input_text", "text": part}
        case File(is_image=True):
            return {"type": "input_image", "image_url": part.data_url}
        case File(media="audio/wav"):
            return {"type": "input_audio", "input_audio": {"data": part.data, "format": "wav"}}
        case File(media="video/mp4"):
            return {"type": "input_video", "video_url": part.data_url}
        case File(url=url) if url:
            return {"type": "input_file", "file_url": url}
        case _:
            return {"type": "input_file", "file_data": part.data_url, "filename": part.name}


# AI SDK: `parts` of useChat, and `content` of assistant-ui's useDataStreamRuntime


def ui_messages(items: Sequence[Item]) -> list[Json]:
    """The page keeps the result of a call in the part of the call, and what follows the results in the same message."""
    found: list[Json] = []
    follows_result = False
    for number, (of_assistant, group) in enumerate(groups(items)):
        if of_assistant:
            parts: list[Json] = [{"type": "step-start"}]
            for item in group:
                if "found" in item:
                    shown = [*found, {"parts": parts}]
                    _open_part(shown, item["found"]).update(state="output-available", output=[])
                else:
                    parts.append(_ui_part(item))
            if follows_result and found[-1]["role"] == "assistant":
                found[-1]["parts"] += parts
            else:
                found.append({"id": f"a{number}", "role": "assistant", "parts": parts})
            follows_result = False
            continue
        (item,) = group
        refuse(item, "mark")
        match kind_of(item):
            case "user":
                parts = [_ui_content(part, "url") for part in parts_of(item)]
                found.append({"id": f"u{number}", "role": "user", "parts": parts})
            case "system":
                found.append({"id": f"s{number}", "role": "system", "parts": [_ui_content(item["system"], "url")]})
            case "result" | "denied" as kind:
                part = _open_part(found, item[kind])
                part |= _ui_result(item)
                follows_result = any(one is part for one in found[-1]["parts"])
            case kind:
                raise Inexpressible(kind)
    return found


def _open_part(messages: list[Json], call: str) -> Json:
    """Returns the part of the nearest call with this id that has no result. Raises Inexpressible."""
    for message in reversed(messages):
        for part in reversed(message["parts"]):
            if part.get("toolCallId") == call and part["state"] == "input-available":
                found: Json = part
                return found
    raise Inexpressible("a result without its call")


def _ui_result(item: Item) -> Json:
    if "denied" in item:
        return {"state": "output-denied", "approval": {"id": "1", "approved": False, "reason": item.get("reason")}}
    if "is_error" in item:
        return {"state": "output-error", "errorText": text_of(item)}
    return {"state": "output-available", "output": text_of(item)}


def _ui_part(item: Item) -> Json:
    match kind_of(item):
        case "answer":
            return {"type": "text", "text": item["answer"], "state": "done"}
        case "thinking":
            of_vendor = {
                "claude": {"anthropic": {"signature": signature_of(item)}},
                EMPTY: {"anthropic": {"signature": ""}},
                "openai": {"openai": {"itemId": "rs_0123", "reasoningEncryptedContent": ENCRYPTED["openai"]}},
                "gemini": {"google": {"thoughtSignature": ENCRYPTED["gemini"]}},
                "compatible": {"anthropic": {"signature": ENCRYPTED["compatible"]}},
            }
            metadata = of_vendor.get(item["of"])
            more = {} if metadata is None else {"providerMetadata": metadata}
            return {"type": "reasoning", "text": item["thinking"], **more}
        case "shown":
            # As a model that makes pictures sends it, without a name.
            return {
                name: value for name, value in _ui_content(FILES[item["shown"]], "url").items() if name != "filename"
            }
        case "search":
            call = {"type": "tool-web_search", "toolCallId": item["search"], "providerExecuted": True}
            return {**call, "state": "input-available", "input": {"query": "rivers"}}
        case "call":
            given = item["json"] if "json" in item else item.get("input", {})
            call = {"type": f"tool-{item.get('tool', LOOK)}", "toolCallId": item["call"]}
            return {**call, "state": "input-available", "input": given}
        case kind:
            raise Inexpressible(kind)


def _ui_content(part: Any, place: str) -> Json:
    match part:
        case str():
            return {"type": "text", "text": part}
        case _:
            value = part.data_url if place == "url" else part.data or part.url
            return {"type": "file", "mediaType": part.media, place: value, "filename": part.name}


def ui_contents(items: Sequence[Item]) -> list[Json]:
    """Messages with `content`, and results of their own."""
    found: list[Json] = []
    for of_assistant, group in groups(items):
        if of_assistant:
            found.append({"role": "assistant", "content": [*map(_content_part, group)]})
            continue
        (item,) = group
        refuse(item, "mark")
        match kind_of(item):
            case "user":
                found.append({"role": "user", "content": [_ui_content(part, "data") for part in parts_of(item)]})
            case "system":
                found.append({"role": "system", "content": item["system"]})
            case "result":
                kind = "error-text" if "is_error" in item else "text"
                output = {"type": kind, "value": text_of(item)}
                part = {"type": "tool-result", "toolCallId": item["result"], "toolName": LOOK, "output": output}
                found.append({"role": "tool", "content": [part]})
            case kind:
                raise Inexpressible(kind)
    return found


def _content_part(item: Item) -> Json:
    match kind_of(item):
        case "call":
            given = item["json"] if "json" in item else item.get("input", {})
            return {"type": "tool-call", "toolCallId": item["call"], "toolName": item.get("tool", LOOK), "input": given}
        case "thinking" if item["of"] == "claude":
            # assistant-ui keeps no metadata.
            raise Inexpressible("a signature")
        case "thinking":
            return {"type": "reasoning", "text": item["thinking"]}
        case _:
            return {name: value for name, value in _ui_part(item).items() if name != "state"}


# AG-UI


def agent_messages(items: Sequence[Item]) -> list[Json]:
    found: list[Json] = []
    for number, (of_assistant, group) in enumerate(groups(items)):
        if of_assistant:
            found += _agent_answer(group, f"a{number}")
            continue
        (item,) = group
        refuse(item, "mark")
        match kind_of(item):
            case "user":
                parts = parts_of(item)
                is_text = len(parts) == 1 and isinstance(parts[0], str)
                content = parts[0] if is_text else [*map(_agent_part, parts)]
                found.append({"id": f"u{number}", "role": "user", "content": content})
            case "system":
                role = item.get("role", "system")
                found.append({"id": f"s{number}", "role": role, "content": item["system"]})
            case "result" if "decided" in item:
                # In `resume` of the run, as a denied call.
                pass
            case "result":
                text = text_of(item)
                more = {"error": text} if "is_error" in item else {}
                message = {"id": f"t{number}", "role": "tool", "toolCallId": item["result"], "content": text, **more}
                found.append(message)
            case "denied":
                # In `resume` of the run.
                pass
            case kind:
                raise Inexpressible(kind)
    return found


def agent_decisions(items: Sequence[Item]) -> list[Json]:
    """Returns the `resume` of the newest run."""
    found: list[Json] = []
    for item in items:
        match item:
            case {"denied": call, "reason": reason}:
                payload = {"approved": False, "reason": reason}
                found.append({"interruptId": call, "status": "resolved", "payload": payload})
            case {"denied": call}:
                found.append({"interruptId": call, "status": "cancelled"})
            case {"result": call, "decided": _}:
                found.append({"interruptId": call, "status": "resolved", "payload": {"result": text_of(item)}})
    return found


def _agent_answer(group: list[Item], name: str) -> list[Json]:
    """A message has a text and then calls; what follows is a message of its own."""
    found: list[Json] = []
    for number, item in enumerate(group):
        own: Json = {"id": f"{name}-{number}", "role": "assistant"}
        match kind_of(item):
            case "answer":
                found.append({**own, "content": item["answer"]})
            case "search" | "call" as kind:
                function = {"name": item.get("tool", LOOK), "arguments": arguments_of(item)}
                if not found or found[-1]["role"] != "assistant":
                    found.append(own)
                call = {"id": item[kind], "type": "function", "function": function}
                found[-1].setdefault("toolCalls", []).append(call)
            case "found":
                found.append({**own, "role": "tool", "toolCallId": item["found"], "content": "[]"})
            case "thinking":
                secret = agent_secret(item)
                more = {"encryptedValue": secret} if secret else {}
                if item["of"] == "gemini":
                    del own["id"]
                found.append({**own, "role": "reasoning", "content": item["thinking"], **more})
            case kind:
                raise Inexpressible(kind)
    return found


def agent_secret(item: Item) -> str | None:
    """Returns the `encryptedValue` of a reasoning message: Claude's is the one that Tailrace has sent."""
    if item["of"] != "claude":
        return foreign_secret(item)
    events, _ = add_blocks(Answer("a"), [thinking_block(item)])
    secret: str = next(event["encryptedValue"] for event in events if event["type"] == "REASONING_ENCRYPTED_VALUE")
    return secret


def foreign_secret(item: Item) -> str | None:
    """Returns the field of a signature, as another vendor's chat has it."""
    return SIGNED if item["of"] == EMPTY else ENCRYPTED.get(item["of"])


def _agent_part(part: Any) -> Json:
    match part:
        case str():
            return {"type": "text", "text": part}
        case File(url=url) if url:
            source = {"type": "url", "value": url, "mimeType": part.media}
        case _:
            source = {"type": "data", "value": part.data, "mimeType": part.media}
    kind = part.media.partition("/")[0]
    return {"type": kind if kind in ("image", "audio", "video") else "document", "source": source}


# Anthropic's messages: what /v1/turns takes, and what the model answers


def thinking_block(item: Item) -> Json:
    return {"type": "thinking", "thinking": item["thinking"], "signature": signature_of(item)}


def question_messages(items: Sequence[Item]) -> list[Json]:
    """Results are blocks of one message."""
    found: list[Json] = []
    for item in items:
        match kind_of(item):
            case "user":
                found.append({"role": "user", "content": [_block(part, item) for part in parts_of(item)]})
            case "system":
                found.append({"role": "system", "content": item["system"]})
            case "result" | "denied":
                block = _result_block(item)
                if found and found[-1]["role"] == "user" and found[-1]["content"][-1]["type"] == "tool_result":
                    found[-1]["content"].append(block)
                else:
                    found.append({"role": "user", "content": [block]})
            case kind:
                raise Inexpressible(kind)
    return found


def _result_block(item: Item) -> Json:
    if "denied" in item:
        # As `POST /v1/sessions/{session}/calls/{call}` makes it of the decision.
        return result_block(item["denied"], Decision(reason=item.get("reason")))
    if "decided" in item:
        return result_block(item["result"], Decision(result=text_of(item)))
    parts = parts_of(item)
    is_list = isinstance(item.get("content"), list)
    content = [_block(part, {}) for part in parts] if is_list else parts[0]
    block: Json = {"type": "tool_result", "tool_use_id": item["result"], "content": content}
    block |= {"is_error": True} if "is_error" in item else {}
    return block | ({"cache_control": MARK} if "mark" in item else {})


def _block(part: Any, item: Item) -> Json:
    marked = {"cache_control": MARK} if "mark" in item else {}
    match part:
        case str():
            return {"type": "text", "text": part, **marked}
        case File(media="text/plain"):
            return {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "hello"}}
        case File(url=url) if url:
            source = {"type": "url", "url": url}
        case _:
            source = {"type": "base64", "media_type": part.media, "data": part.data}
    return {"type": "image" if part.is_image else "document", "source": source, **marked}


def answer_blocks(items: Sequence[Item]) -> list[Json]:
    """Returns the answer of the model."""
    return [_answer_block(item) for item in items]


def _answer_block(item: Item) -> Json:
    match kind_of(item):
        case "answer":
            return {"type": "text", "text": item["answer"]}
        case "thinking" if item["of"] == "claude":
            return thinking_block(item)
        case "call":
            refuse(item, "json")
            return {
                "type": "tool_use",
                "id": item["call"],
                "name": item.get("tool", LOOK),
                "input": item.get("input", {}),
            }
        case "search":
            return {
                "type": "server_tool_use",
                "id": item["search"],
                "name": "web_search",
                "input": {"query": "rivers"},
            }
        case "found":
            page = {"type": "web_search_result", "url": "https://a.example/1", "title": "A", "encrypted_content": "EE"}
            return {"type": "web_search_tool_result", "tool_use_id": item["found"], "content": [page]}
        case "failed":
            return {"type": "failed"}
        case kind:
            raise Inexpressible(kind)


# The model's request


def items_of(request: Json) -> list[Item]:
    """Returns a request to the model as items. Messages of one role in a row are one, as for the API."""
    system = request.get("system") or []
    prompt = system if isinstance(system, str) else "\n\n".join(block["text"] for block in system)
    found: list[Item] = [{"prompt": prompt}] if prompt else []
    mapped: dict[str, str] = {}
    for message in request["messages"]:
        content = message["content"]
        for block in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            item = _item(message["role"], block, mapped)
            found.append(item | ({"mark": True} if block.get("cache_control") else {}))
    return found


def expand(items: Sequence[Item]) -> list[Item]:
    """Returns expected items with each text and file of a message as an item of its own, as in `items_of`."""
    found: list[Item] = []
    for item in items:
        parts = item.get("user")
        if isinstance(parts, list):
            more = {name: value for name, value in item.items() if name != "user"}
            found += [{"user": part if isinstance(part, str) or "names" in part else [part], **more} for part in parts]
        else:
            found.append(item)
    return found


def _item(role: str, block: Json, mapped: dict[str, str]) -> Item:
    match block:
        case {"type": "text", "text": str(text)}:
            kind = {"assistant": "answer"}.get(role, role)
            return {kind: _named(text)}
        case {"type": "thinking", "thinking": text}:
            return {"thinking": text}
        case {"type": "tool_use", "id": call, "name": name, "input": given}:
            more = ({"tool": name} if name != LOOK else {}) | ({"input": given} if given else {})
            return {"call": _id(call, mapped), **more}
        case {"type": "tool_result", "tool_use_id": call, **rest}:
            call = _id(call, mapped)
            content = rest.get("content", "")
            value = content if isinstance(content, str) else [_inner(one) for one in content]
            value = value[0] if len(value) == 1 and isinstance(value[0], str) else value
            if isinstance(value, str):
                value = value.replace(DENIED, "DENIED")
            more = {} if value == f"result of {call}" else {"content": value}
            return {"result": call, **more, **({"is_error": True} if rest.get("is_error") else {})}
        case {"type": "server_tool_use", "id": call}:
            return {"search": call}
        case {"type": "web_search_tool_result", "tool_use_id": call}:
            return {"found": call}
        case {"type": "image" | "document"}:
            return {role: [_inner(block)]}
        case _:
            return {role: block}


def _id(call: str, mapped: dict[str, str]) -> str:
    """Returns the id of a call; those that Tailrace has made are numbered, because they are hashes."""
    return mapped.setdefault(call, f"~{len(mapped) + 1}") if call.startswith("tailrace_") else call


def _inner(block: Json) -> Any:
    """Returns a text, or the name of a file."""
    match block:
        case {"type": "text", "text": text}:
            return text
        case {"source": {"type": "url", "url": url}}:
            return {"file": next(name for name, file in FILES.items() if file.url == url)}
        case {"source": {"type": "text"}}:
            return {"file": "text"}
        case {"source": {"data": data}}:
            return {"file": next(name for name, file in FILES.items() if file.data == data)}
        case _:
            return block


def _named(text: str) -> Any:
    """Returns `{"names": FILE}` for a text in the place of a file that Claude does not take."""
    if text.startswith("["):
        for name in REFUSED_FILES:
            kind = FILES[name].media.partition("/")[0]
            if FILES[name].name in text or FILES[name].media in text or (kind in ("audio", "video") and kind in text):
                return {"names": name}
    return text
