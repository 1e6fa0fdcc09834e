"""The dialects, by the name that a client asks for. A new one is a file and a line here."""

from gateway.dialects.anthropic import ANTHROPIC
from gateway.dialects.content import CONTENT
from gateway.dialects.delta import DELTA
from gateway.dialects.dialect import Dialect, Frame
from gateway.dialects.job import JOB
from gateway.dialects.openai_chat import OPENAI_CHAT, OPENAI_CHAT_USAGE
from gateway.dialects.openai_responses import OPENAI_RESPONSES
from gateway.dialects.tailrace import TAILRACE
from gateway.dialects.text import TEXT
from gateway.dialects.ui import UI

ALL = (TAILRACE, TEXT, ANTHROPIC, DELTA, CONTENT, JOB, OPENAI_CHAT, OPENAI_CHAT_USAGE, OPENAI_RESPONSES, UI)
DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in ALL}

__all__ = ["DIALECTS", "TAILRACE", "Dialect", "Frame"]
