"""OpenAI's Chat Completions and Responses as a feature of the gateway."""

from tailrace.gateway.feature import Feature, Parts
from tailrace.proto.runtime.settings import NoSettings
from tailrace.protocols.openai import chat_routes, responses_routes
from tailrace.protocols.openai.chat_stream import OPENAI_CHAT, OPENAI_CHAT_USAGE
from tailrace.protocols.openai.responses_stream import OPENAI_RESPONSES

FEATURE = Feature(
    NoSettings,
    lambda _, __: Parts(),
    routes=[*chat_routes.ROUTES, *responses_routes.ROUTES],
    dialects=(OPENAI_CHAT, OPENAI_CHAT_USAGE, OPENAI_RESPONSES),
)
