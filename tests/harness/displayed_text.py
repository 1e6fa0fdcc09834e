"""The text that a client of each dialect shows for the bytes that it received."""

import json
from collections.abc import Callable
from html import unescape
from typing import Any

from tests.harness.sse_parser import parse


def add_deltas(sent: bytes, kind: str, field: str, reset: str) -> str:
    """Adds the field of each event of a kind; clears the text at a reset."""
    text = ""
    for event in data(sent):
        if event["type"] == kind:
            text += event[field]
        elif event["type"] == reset:
            text = ""
    return text


def tailrace(sent: bytes) -> str:
    return add_deltas(sent, "delta", "text", "reset")


def text(sent: bytes) -> str:
    return sent.decode()


def anthropic(sent: bytes) -> str:
    parts = [event.get("delta") or event.get("content_block") or {} for event in data(sent)]
    return "".join(part.get("text", "") for part in parts if part.get("type") in ("text", "text_delta"))


def delta(sent: bytes) -> str:
    return "".join(event["text"] for event in data(sent) if event["type"] == "delta")


def content(sent: bytes) -> str:
    return "".join(event.get("content", "") for event in data(sent))


def job(sent: bytes) -> str:
    """Shows progress until the complete result replaces it."""
    text = ""
    for event in data(sent):
        match event:
            case {"type": "progress", "text": str(more)}:
                text += more
            case {"type": "reset"}:
                text = ""
            case {"type": "complete", "result": str(whole)}:
                text = whole
    return text


def state(sent: bytes) -> str:
    """Shows the last event, which has the whole text."""
    events = data(sent)
    return str(events[-1]["text"]) if events else ""


def html(sent: bytes) -> str:
    """Appends deltas to an element, and replaces its content at a reset."""
    text = ""
    for event in parse(sent):
        if event.event == "delta":
            assert "<" not in event.data
            text += unescape(event.data)
        if event.event == "reset":
            text = ""
    return text


def openai_chat(sent: bytes) -> str:
    """Adds the content of the one choice, as OpenAI's SDKs do."""
    chunks = [chunk for chunk in data(sent) if chunk.get("choices")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def ui(sent: bytes) -> str:
    """Clears the deltas of a step that is reset."""
    return add_deltas(sent, "text-delta", "delta", "reset-step")


def ag_ui(sent: bytes) -> str:
    """Adds the text of the answer's messages, which a snapshot drops."""
    return add_deltas(sent, "TEXT_MESSAGE_CONTENT", "delta", "MESSAGES_SNAPSHOT")


def openai_responses(sent: bytes) -> str:
    """Adds the text of message items; a new response replaces the old one."""
    return add_deltas(sent, "response.output_text.delta", "delta", "response.created")


def data(sent: bytes) -> list[dict[str, Any]]:
    return [json.loads(event.data) for event in parse(sent) if event.data.startswith("{")]


SAYS: dict[str, Callable[[bytes], str]] = {
    "tailrace": tailrace,
    "text": text,
    "anthropic": anthropic,
    "delta": delta,
    "content": content,
    "job": job,
    "state": state,
    "html": html,
    "ui": ui,
    "ag-ui": ag_ui,
    "ag-ui-1": ag_ui,
    "openai-chat": openai_chat,
    "openai-chat-usage": openai_chat,
    "openai-responses": openai_responses,
}
