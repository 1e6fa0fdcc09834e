"""The query that counts the tokens of a prompt: it calls Anthropic's API."""

import time
from functools import partial
from typing import Any

import anthropic
import httpx2
import msgspec

from tailrace.features.count_tokens.records import COUNT_TOKENS, CountTokens, PromptFields, TokenCount
from tailrace.generators.backends.anthropic_api import AnthropicApi, backend_error
from tailrace.generators.backends.api_errors import is_prefix_mismatch
from tailrace.generators.continuation import wants_refusal
from tailrace.generators.feature import Feature, Generator, Parts
from tailrace.generators.rpc import refuse_backend_errors
from tailrace.proto import long_strings
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.entries import Message
from tailrace.proto.errors import BackendError
from tailrace.proto.ids import Tenant
from tailrace.proto.nats.rpc import decode_query
from tailrace.proto.thinking_prefix import without_thinking

_decode_token_count = msgspec.json.Decoder(TokenCount).decode


async def count_tokens(generator: Generator, claude: AnthropicApi, tenant: Tenant, body: bytes) -> bytes:
    """Returns the answer of Anthropic's API (PROTOCOL R36). Raises Refused, LogUnavailable."""
    query = decode_query(body, CountTokens)
    fields = decode_query(bytes(query.body), dict[str, Any])
    with refuse_backend_errors():
        fields["model"] = generator.orders.claude_model_id(fields["model"], "token counts")
        if not query.is_lifted:
            return await count(claude, fields, query)
        async with generator.blobs.load(tenant, msgspec.convert(fields, PromptFields)) as prompt:
            return await count(claude, fields | msgspec.to_builtins(prompt), query)


async def count(claude: AnthropicApi, fields: dict[str, Any], query: CountTokens) -> bytes:
    """Returns the API's count, of the prompt without thinking if the API refuses the thinking (PROTOCOL R140).

    A model call is repeated in the same way. Raises BackendError.
    """
    try:
        return await post(claude, b"".join(await long_strings.encode(fields)), query.betas, query.api_version)
    except BackendError as error:
        if not is_prefix_mismatch(error) or wants_refusal(fields):
            raise
    messages = without_thinking(msgspec.convert(fields["messages"], list[Message]), set())
    bare = fields | {"messages": msgspec.to_builtins(messages)}
    return await post(claude, b"".join(await long_strings.encode(bare)), query.betas, query.api_version)


async def post(claude: AnthropicApi, body: bytes, betas: str, api_version: str | None = None) -> bytes:
    """Returns the API's response to the Messages request in `body`, sent unchanged. Raises BackendError."""
    headers = {"content-type": "application/json"} | ({"anthropic-beta": betas} if betas else {})
    headers |= {"anthropic-version": api_version} if api_version else {}
    path = "/v1/messages/count_tokens"
    try:
        response = await claude.client.post(path, cast_to=httpx2.Response, content=body, options={"headers": headers})
        count = await response.aread()
        _decode_token_count(count)
    except (anthropic.AnthropicError, httpx2.HTTPError) as error:
        raise backend_error(error, time.time()) from error
    except DECODE_ERRORS as error:
        raise BackendError("backend_broken", "the response is not a token count: check the API's URL") from error
    return count


def start(generator: Generator) -> Parts:
    """Makes the handler of the query, if Anthropic's API is one of the backends."""
    if generator.claude is None:
        return Parts()
    return Parts(handlers={COUNT_TOKENS: partial(count_tokens, generator, generator.claude)})


FEATURE = Feature(start=start)
