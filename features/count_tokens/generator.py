"""The query that counts the tokens of a prompt: it calls Anthropic's API."""

from functools import partial
from typing import Any

import msgspec

from tailrace.features.count_tokens.records import COUNT_TOKENS, CountTokens, PromptFields
from tailrace.generators.backends.anthropic_api import AnthropicApi
from tailrace.generators.feature import Feature, Generator, Parts
from tailrace.generators.rpc import refuse_backend_errors
from tailrace.proto import long_strings
from tailrace.proto.ids import Tenant
from tailrace.proto.nats.rpc import decode_query


async def count_tokens(generator: Generator, claude: AnthropicApi, tenant: Tenant, body: bytes) -> bytes:
    """Returns the answer of Anthropic's API (PROTOCOL R36). Raises Refused, LogUnavailable."""
    query = decode_query(body, CountTokens)
    fields = decode_query(bytes(query.body), dict[str, Any])
    with refuse_backend_errors():
        fields["model"] = generator.orders.claude_model_id(fields["model"], "token counts")
        if not query.is_lifted:
            return await claude.count_tokens(msgspec.json.encode(fields), query.betas, query.api_version)
        async with generator.blobs.load(tenant, msgspec.convert(fields, PromptFields)) as prompt:
            pieces = await long_strings.encode(fields | msgspec.to_builtins(prompt))
            return await claude.count_tokens(b"".join(pieces), query.betas, query.api_version)


def start(generator: Generator) -> Parts:
    """Makes the handler of the query, if Anthropic's API is one of the backends."""
    if generator.claude is None:
        return Parts()
    return Parts(handlers={COUNT_TOKENS: partial(count_tokens, generator, generator.claude)})


FEATURE = Feature(start=start)
