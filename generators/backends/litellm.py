"""Any other provider, by LiteLLM: it translates the call to the provider's words, and the answer back to Anthropic's.

It stands in a venv of its own (`make litellm`), for what it brings along is more than all the rest of us together.
"""

import logging
import time
from collections.abc import AsyncGenerator

import litellm
import msgspec
import openai
from litellm.llms.anthropic.pass_through.adapters.transformation import AnthropicAdapter

from tailrace.generators.backends import Call
from tailrace.generators.backends.anthropic_api import code_of, events, retry_after_s
from tailrace.generators.backends.event_order import EventOrder
from tailrace.generators.backends.sse_decoder import SseDecoder
from tailrace.generators.settings import Settings
from tailrace.proto.errors import BackendError

# What LiteLLM has a translation for, or what only hints. Any other option it would pass over in silence.
TRANSLATED = frozenset(
    {
        "metadata",
        "output_config",
        "service_tier",
        "stop_sequences",
        "temperature",
        "thinking",
        "tool_choice",
        "top_p",
    }
)

litellm.suppress_debug_info = True  # it prints advice to standard output
# It has handlers of its own, and quotes what was asked.
logging.getLogger("LiteLLM").disabled = True


class LiteLLM:
    def __init__(self, stall_timeout_s: float) -> None:
        self._stall_timeout_s = stall_timeout_s

    def model_id(self, model: str) -> str:
        """LiteLLM's names begin with the provider's."""
        return f"anthropic/{model}"

    async def answer(self, call: Call) -> AsyncGenerator[bytes, None]:
        """See Backend.answer."""
        refuse_unable(call)
        lines, grammar, adapter = SseDecoder(), EventOrder(), AnthropicAdapter()
        asked, names = adapter.translate_completion_input_params_with_tool_mapping(body_of(call))
        try:
            chunks = await litellm.acompletion(
                **asked,
                stream_options={"include_usage": True},
                timeout=self._stall_timeout_s,
                # Repeating is retry.py's business, where it is counted.
                max_retries=0,
                num_retries=0,
            )
            told = adapter.translate_completion_output_params_streaming(
                chunks, model=call.model, tool_name_mapping=names
            )
            async for chunk in told:
                for kind, data in events(lines, chunk):
                    if kind == "message_delta" and chunks.received_finish_reason is None:
                        # LiteLLM makes an ending of its own for a stream that broke off without one.
                        raise BackendError("backend_broken", "the provider's answer ended before it was complete")
                    grammar.require(kind, data)
                    if kind == "message_stop":
                        return
                    yield data
        except openai.OpenAIError as error:
            raise backend_error(error) from error
        raise BackendError("backend_broken", "the provider's answer ended before it was complete")

    async def close(self) -> None: ...


def body_of(call: Call) -> dict[str, object]:
    """A Messages request as plain values."""
    named = {field: getattr(call, field) for field in ("model", "max_tokens", "messages", "system", "tools")}
    given = {field: value for field, value in named.items() if value is not None}
    body: dict[str, object] = msgspec.to_builtins(given | {"stream": True} | (call.options or {}))
    return body


def refuse_unable(call: Call) -> None:
    """Raises BackendError for what would not reach the provider, and for what LiteLLM would call by itself."""
    if unable := sorted(set(call.options or {}) - TRANSLATED):
        raise BackendError("backend_refused_request", f"LiteLLM takes no {', '.join(unable)}")
    if any(map(names_url, [*(message.content for message in call.messages), call.system])):
        # For some providers it fetches that itself, from wherever this process can reach.
        raise BackendError("backend_refused_request", "LiteLLM takes no picture or document by its URL: send it")


def names_url(content: object) -> bool:
    """Whether something in `content` is to be fetched, in Anthropic's words or in OpenAI's."""
    match content:
        case {"type": "tool_use"}:
            return False
        case {"source": {"type": "url"}} | {"type": "image_url"} | {"image_url": _}:
            return True
        case dict(fields):
            return any(map(names_url, fields.values()))
        case list(items):
            return any(map(names_url, items))
        case _:
            return False


def backend_error(error: openai.OpenAIError) -> BackendError:
    """What an exception of LiteLLM is to us: all of them are kinds of the openai library's."""
    match error:
        case litellm.exceptions.Timeout():
            return BackendError("backend_stalled", "the provider fell silent")
        case litellm.exceptions.MidStreamFallbackError():
            return BackendError("backend_broken", "the provider's answer broke off")
        case litellm.exceptions.APIConnectionError():
            return BackendError("backend_unreachable", "no connection to the provider")
        case openai.APIStatusError():
            wish_s = retry_after_s(error.response.headers, time.time())
            code = code_of(error.status_code, None)
            # Of other failures it tells hosts, addresses with their keys, and pieces of itself.
            is_ours = code == "backend_refused_request"
            told = error.message if is_ours else f"the provider answered with the status {error.status_code}"
            return BackendError(code, told, retry_after_s=wish_s)
        case _:
            return BackendError("backend_failed", "the call to the provider failed")


def backend(settings: Settings) -> LiteLLM:
    return LiteLLM(settings.stall_timeout_s)
