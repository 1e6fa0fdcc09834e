"""All dialects by name. A new dialect is one stream module and one line here."""

from tailrace.gateway.clients.ai_sdk.stream import UI
from tailrace.gateway.clients.anthropic.stream import ANTHROPIC
from tailrace.gateway.clients.native.stream import TAILRACE
from tailrace.gateway.clients.native.text_stream import TEXT
from tailrace.gateway.clients.openai.chat_stream import OPENAI_CHAT, OPENAI_CHAT_USAGE
from tailrace.gateway.clients.openai.responses_stream import OPENAI_RESPONSES
from tailrace.gateway.clients.tutorials.content_stream import CONTENT
from tailrace.gateway.clients.tutorials.delta_stream import DELTA
from tailrace.gateway.clients.tutorials.html_stream import HTML
from tailrace.gateway.clients.tutorials.job_stream import JOB
from tailrace.gateway.clients.tutorials.state_stream import STATE
from tailrace.gateway.streaming.dialect import Dialect

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        TAILRACE,
        TEXT,
        ANTHROPIC,
        DELTA,
        CONTENT,
        JOB,
        STATE,
        HTML,
        OPENAI_CHAT,
        OPENAI_CHAT_USAGE,
        OPENAI_RESPONSES,
        UI,
    )
}
