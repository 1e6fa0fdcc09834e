"""Estimate of the tokens and nano-dollars that a request may use, before the model is called. Pure.

The estimate is the most that is likely: the whole prompt, at the cache-write price if it is to be cached, an answer of
`max_tokens`, and each further call that may follow. Text counts 3.5 bytes of UTF-8 a token. An image counts as the
largest one that a model is shown, a document by its pages. The turn's `end` has what was really used.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from tailrace.features.limits.pdf_pages import UNKNOWN_PAGES, PageCounter, pages_of_size
from tailrace.proto.blobs import parse_reference
from tailrace.proto.entries import Request
from tailrace.proto.forced_tools import answer_schema
from tailrace.proto.models import find_model
from tailrace.proto.pricing import price_calls
from tailrace.proto.usage import CallUsage, estimate_tokens, read_count, utf8_bytes

# platform.claude.com, "Vision": larger images are scaled down to this; for models before Opus 4.7 to a third of it.
IMAGE_TOKENS = 4784
# platform.claude.com, "PDF support": 1,500 to 3,000 for the text of a page, and about 1,600 for its image.
PAGE_TOKENS = 3000 + 1600
# The message that asks for a new answer after one that broke the schema; it quotes at most 1,000 characters.
SCHEMA_RETRY_TOKENS = 350


class Estimate(NamedTuple):
    """The most that a request is likely to use. `nano_usd` is None if the price of its model is unknown."""

    tokens: int
    nano_usd: int | None


ZERO = Estimate(0, 0)


def estimate_request(request: Request, counter: PageCounter | None = None) -> Estimate:
    """Returns the estimate for `request`. Pass one `counter` for all requests of one HTTP body."""
    model = find_model(request.model)
    prompt = _measure(request, counter or PageCounter())
    if model is not None and model.input_tokens_max is not None:
        # The model refuses a longer prompt at no cost.
        prompt = prompt._replace(tokens=min(prompt.tokens, model.input_tokens_max))
    calls = [_call(request, prompt, request.max_tokens)]
    if request.via == "messages" and answer_schema(request) is not None:
        retry = prompt.with_more(request.max_tokens + SCHEMA_RETRY_TOKENS)
        calls.append(_call(request, retry, request.max_tokens))
    tokens = sum(sum(call.counts) for call in calls)
    bill = price_calls(request.model, calls).total
    if bill.cost_is_unknown:
        return Estimate(tokens, None)
    nano_usd = bill.cost_nano_usd
    if request.max_cost_nano_usd is not None:
        # The answer is closed once it has cost `max_cost`. The prompt of the call that runs then is paid in full.
        last = _cost(request, [msgspec.structs.replace(calls[-1], output_tokens=0)])
        most = request.max_cost_nano_usd
        nano_usd = min(nano_usd, most + last if len(calls) > 1 else max(most, last))
    return Estimate(tokens, nano_usd)


def _cost(request: Request, calls: Iterable[CallUsage]) -> int:
    return price_calls(request.model, calls).total.cost_nano_usd


def _call(request: Request, prompt: "_Prompt", output_tokens: int) -> CallUsage:
    """Returns the usage of a call with this prompt and this answer."""
    options = request.options or {}
    return CallUsage(
        0 if prompt.is_cached else prompt.tokens,
        output_tokens,
        prompt.tokens if prompt.is_cached else 0,
        cache_creation={"ephemeral_1h_input_tokens": prompt.tokens} if prompt.is_cached_1h else None,
        service_tier="batch" if request.via == "message_batches" else None,
        speed=options.get("speed"),
        inference_geo=options.get("inference_geo"),
        server_tool_use={"web_search_requests": _searches_max(request)},
    )


def _searches_max(request: Request) -> int:
    """Returns how often a call may search the web, as far as the request limits it."""
    limits = [tool.get("max_uses") for tool in request.tools or () if str(tool.get("type")).startswith("web_search_")]
    return sum(map(read_count, limits))


class _Prompt(NamedTuple):
    """The size of a prompt, and whether the model caches it: for five minutes, or for an hour."""

    tokens: int
    is_cached: bool
    is_cached_1h: bool

    def with_more(self, tokens: int) -> "_Prompt":
        return self._replace(tokens=self.tokens + tokens)


def _measure(request: Request, counter: PageCounter) -> _Prompt:
    size = tokens = 0
    options = request.options or {}
    ttls = [request.cache, _cache_ttl(options)]
    pending: list[Any] = [message.content for message in request.messages]
    pending += [request.system, request.tools, answer_schema(request)]
    while pending:
        match pending.pop():
            case str(text):
                size += utf8_bytes(text)
            case list(items):
                # Commas count too: a list may hold 100,000 empty items.
                size += max(0, len(items) - 1)
                pending += items
            case {"type": "document", "source": {"type": "base64" | "url" | "file"} as source, **more}:
                tokens += _pages(source, counter) * PAGE_TOKENS
                pending.append(more)
            case {"type": "image", "source": {"type": "base64" | "url" | "file"}, **more}:
                tokens += IMAGE_TOKENS
                pending.append(more)
            case dict(fields) if (blob := parse_reference(fields)) is not None:
                # A stored string that is not the source of an image or a document is text.
                size += blob.bytes
            case dict(fields):
                ttls.append(_cache_ttl(fields))
                size += sum(map(utf8_bytes, fields))
                pending += fields.values()
            case None:
                pass
            case scalar:
                # A number or a boolean: 100,000 of them are at least as many tokens.
                size += len(str(scalar))
    return _Prompt(estimate_tokens(size) + tokens, any(ttls), "1h" in ttls)


def _cache_ttl(fields: Mapping[str, Any]) -> str | None:
    """Returns the cache lifetime of a `cache_control` mark, or None."""
    match fields.get("cache_control"):
        case {"ttl": "1h"}:
            return "1h"
        case {"type": "ephemeral"}:
            return "5m"
        case _:
            return None


def _pages(source: dict[str, Any], counter: PageCounter) -> int:
    match source.get("data"):
        case str(base64):
            return counter.count(base64)
        case dict(fields) if (blob := parse_reference(fields)) is not None:
            # Stored by an earlier turn.
            return pages_of_size(blob.bytes)
        case _:
            return UNKNOWN_PAGES
