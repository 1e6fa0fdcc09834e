"""The dialects, by the name that a client asks for. A new one is a file and a line here."""

from tailrace.gateway.clients.ai_sdk.stream import UI
from tailrace.gateway.clients.anthropic.stream import ANTHROPIC
from tailrace.gateway.clients.dialect import Dialect, Frame
from tailrace.gateway.clients.native.stream import TAILRACE
from tailrace.gateway.clients.native.text import TEXT
from tailrace.gateway.clients.openai.chat_stream import OPENAI_CHAT, OPENAI_CHAT_USAGE
from tailrace.gateway.clients.openai.responses_stream import OPENAI_RESPONSES
from tailrace.gateway.clients.tutorials.content import CONTENT
from tailrace.gateway.clients.tutorials.delta import DELTA
from tailrace.gateway.clients.tutorials.job import JOB

ALL = (TAILRACE, TEXT, ANTHROPIC, DELTA, CONTENT, JOB, OPENAI_CHAT, OPENAI_CHAT_USAGE, OPENAI_RESPONSES, UI)
DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in ALL}

__all__ = ["DIALECTS", "TAILRACE", "Dialect", "Frame"]
