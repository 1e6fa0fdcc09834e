"""The backend `litellm`: other providers, through LiteLLM, which translates calls and answers from and to Anthropic's.

LiteLLM is installed into a venv of its own (`make litellm`): its dependencies are more than all of ours together.
"""

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import litellm
import msgspec
import openai
from litellm.llms.anthropic.pass_through.adapters.transformation import AnthropicAdapter

from tailrace.generators.backends import Call
from tailrace.generators.backends.api_errors import api_error, code_for
from tailrace.generators.backends.event_order import EventOrder
from tailrace.generators.backends.model_event import ModelEvent, Put, put_each, read_event
from tailrace.generators.backends.obstacle import find_obstacle
from tailrace.generators.backends.sse_decoder import SseDecoder
from tailrace.generators.settings import Settings
from tailrace.proto.errors import BackendError
from tailrace.proto.runtime.retry_after import parse_retry_after

# The options that LiteLLM translates, or that are only hints. It ignores any other option silently.
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
# Its log handlers write prompts into the log.
logging.getLogger("LiteLLM").disabled = True


class LiteLLM:
    """The backend `litellm`."""

    provider = "litellm"
    """It calls several providers, so its own name stands for them."""

    def __init__(self, stall_timeout_s: float) -> None:
        self._stall_timeout_s = stall_timeout_s

    def model_id(self, model: str) -> str:
        """Returns `model` after the provider's name, as LiteLLM names models."""
        return f"anthropic/{model}"

    async def stream(self, call: Call, put: Put) -> None:
        """See Backend.stream."""
        await put_each(put, self._answer(call))

    async def _answer(self, call: Call) -> AsyncGenerator[ModelEvent, None]:
        refuse_unsupported(call)
        decoder, order, adapter = SseDecoder(), EventOrder(), AnthropicAdapter()
        try:
            request, names = adapter.translate_completion_input_params_with_tool_mapping(build_body(call))
            chunks = await litellm.acompletion(
                **request,
                stream_options={"include_usage": True},
                timeout=self._stall_timeout_s,
                # retry.py repeats calls, and counts them.
                max_retries=0,
                num_retries=0,
            )
            # The connection to the provider is closed with this generator.
            async with aclosing(chunks):
                translated = adapter.translate_completion_output_params_streaming(
                    chunks, model=call.model, tool_name_mapping=names
                )
                async for chunk in translated:
                    for data in decoder.decode(chunk):
                        event = read_event(data)
                        if event is None:
                            continue
                        if event.kind == "message_delta" and chunks.received_finish_reason is None:
                            # LiteLLM makes up an ending for a stream that broke off without one.
                            raise BackendError("backend_broken", "the provider's answer ended before it was complete")
                        for one in order.accept(event):
                            yield one
                        if event.kind == "message_stop":
                            return
        except BackendError:
            raise
        except Exception as error:
            # LiteLLM also raises ValueError, KeyError and others for what it cannot translate.
            raise backend_error(error) from error
        raise BackendError("backend_broken", "the provider's answer ended before it was complete")

    async def close(self) -> None: ...


def build_body(call: Call) -> dict[str, object]:
    """Returns a Messages request as plain values."""
    named = {field: getattr(call, field) for field in ("model", "max_tokens", "messages", "system", "tools")}
    given = {field: value for field, value in named.items() if value is not None}
    # A system message without content only sets options of Claude.
    given["messages"] = [one for one in call.messages if one.role != "system" or one.content]
    body: dict[str, object] = msgspec.to_builtins(given | {"stream": True} | (call.options or {}))
    return body


def refuse_unsupported(call: Call) -> None:
    """Raises BackendError for options that LiteLLM ignores, and for URLs that LiteLLM would fetch itself."""
    if unsupported := sorted(set(call.options or {}) - TRANSLATED):
        raise BackendError("backend_refused_request", f"LiteLLM does not support {', '.join(unsupported)}")
    if any(map(has_url, [*(message.content for message in call.messages), call.system])):
        # For some providers LiteLLM fetches the URL, from any address that this process can reach.
        raise BackendError(
            "backend_refused_request", "LiteLLM takes no picture or document by URL: send its content instead"
        )


def has_url(content: object) -> bool:
    """Returns whether `content` refers to something by URL, in Anthropic's format or in OpenAI's."""
    match content:
        case {"type": "tool_use"}:
            return False
        case {"source": {"type": "url"}} | {"type": "image_url"} | {"image_url": _}:
            return True
        case dict(fields):
            return any(map(has_url, fields.values()))
        case list(items):
            return any(map(has_url, items))
        case _:
            return False


def backend_error(error: Exception) -> BackendError:
    """Maps an exception of LiteLLM to a BackendError. Exceptions about the provider are of the openai library."""
    match error:
        case litellm.exceptions.Timeout():
            return BackendError("backend_stalled", "the provider sent nothing for too long")
        case litellm.exceptions.MidStreamFallbackError():
            return BackendError("backend_broken", "the provider's answer broke off")
        case litellm.exceptions.APIConnectionError():
            return BackendError(
                "backend_unreachable", "no connection to the provider", reason=str(error), obstacle=find_obstacle(error)
            )
        case openai.APIStatusError():
            # An error of LiteLLM's own has no response.
            response = getattr(error, "response", None)
            retry_after_s = parse_retry_after(response.headers, time.time()) if response is not None else None
            code = code_for(error.status_code, None)
            # Messages of other errors contain hosts, URLs with keys, and internals of LiteLLM.
            is_about_request = code == "backend_refused_request"
            message = error.message if is_about_request else f"the provider answered with status {error.status_code}"
            return api_error(code, message, retry_after_s)
        case openai.OpenAIError():
            return BackendError("backend_failed", "the call to the provider failed")
        case _:
            return BackendError("backend_failed", f"LiteLLM failed with {type(error).__name__}")


def backend(settings: Settings) -> LiteLLM:
    """Opens the backend."""
    return LiteLLM(settings.stall_timeout_s)
