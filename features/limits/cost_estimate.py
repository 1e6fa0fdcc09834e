"""Estimate of the tokens and nano-dollars that a request may use, before the model is called. Pure.

The tokens are the most that is likely: the whole prompt, an answer of `max_tokens`, and each further call that may
follow. The money is that of the prompt, at the cache-write price if it is to be cached, and of the beginning of the
answer: a running turn reserves more in steps (allowance.py). A message batch, whose answers nobody sees before their
end, has no steps. Text counts 3.5 bytes of UTF-8 a token. An image counts as the largest one that a model is shown, a
document by its pages. The turn's `end` has what was really used.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from tailrace.features.limits.pdf_pages import UNKNOWN_PAGES, PageCounter, pages_of_size
from tailrace.proto.blobs import parse_reference
from tailrace.proto.entries import Request
from tailrace.proto.fold import Turn, contents
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
# The output tokens of the first reservation: a step, and the rest at which the next step is reserved (allowance.py).
FIRST_TOKENS = 1024 + 256
# How often an input of a message batch searches the web, if its request does not limit it.
BATCH_SEARCHES = 5


class Estimate(NamedTuple):
    """The most tokens that a request is likely to use, and the money that is reserved for it at first.

    `nano_usd` is None if the price of its model is unknown.
    """

    tokens: int
    nano_usd: int | None


ZERO = Estimate(0, 0)


def estimate_request(request: Request, counter: PageCounter | None = None) -> Estimate:
    """Returns the estimate for `request`. Pass one `counter` for all requests of one HTTP body."""
    prompt = _measure(request, counter or PageCounter())
    calls = [_call(request, prompt, request.max_tokens)]
    if request.via == "messages" and answer_schema(request) is not None:
        retry = prompt.with_more(request.max_tokens + SCHEMA_RETRY_TOKENS)
        calls.append(_call(request, retry, request.max_tokens))
    tokens = sum(sum(call.counts) for call in calls)
    # A message batch answers when everything is paid for.
    output = request.max_tokens if request.via == "message_batches" else min(request.max_tokens, FIRST_TOKENS)
    first = msgspec.structs.replace(calls[0], output_tokens=output)
    bill = price_calls(request.model, [first]).total
    if bill.cost_is_unknown:
        return Estimate(tokens, None)
    nano_usd = bill.cost_nano_usd
    if request.max_cost_nano_usd is not None:
        # The answer is closed once it has cost `max_cost`. The prompt is paid in full.
        nano_usd = min(nano_usd, max(request.max_cost_nano_usd, _cost(request, first, output_tokens=0)))
    return Estimate(tokens, nano_usd)


def estimate_further_call(request: Request, turn: Turn) -> int:
    """Returns what a further call of the running `turn` costs at first, in nano-dollars.

    Its prompt has the answer so far, or the answer that is to be corrected.
    """
    prompt = _measure(request, PageCounter(), [contents(turn.blocks, None), turn.rejected])
    tokens_left = max(0, request.max_tokens - turn.generated_tokens)
    return _cost(request, _call(request, prompt, min(tokens_left, FIRST_TOKENS)))


def _cost(request: Request, call: CallUsage, **changes: Any) -> int:
    return price_calls(request.model, [msgspec.structs.replace(call, **changes)]).total.cost_nano_usd


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
    """Returns how many web searches are reserved for an input of a message batch. Other turns reserve them in steps."""
    if request.via != "message_batches":
        return 0
    limits = [tool.get("max_uses") for tool in request.tools or () if str(tool.get("type")).startswith("web_search_")]
    return sum(read_count(limit) or BATCH_SEARCHES for limit in limits)


class _Prompt(NamedTuple):
    """The size of a prompt, and whether the model caches it: for five minutes, or for an hour."""

    tokens: int
    is_cached: bool
    is_cached_1h: bool

    def with_more(self, tokens: int) -> "_Prompt":
        return self._replace(tokens=self.tokens + tokens)


def _measure(request: Request, counter: PageCounter, answer: Sequence[Any] = ()) -> _Prompt:
    """Returns the size of the prompt of a call; `answer` is the answer so far."""
    size = tokens = 0
    options = request.options or {}
    ttls = [request.cache, _cache_ttl(options)]
    pending: list[Any] = [message.content for message in request.messages]
    pending += [request.system, request.tools, answer_schema(request), *answer]
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
    total, model = estimate_tokens(size) + tokens, find_model(request.model)
    if model is not None and model.input_tokens_max is not None:
        # The model refuses a longer prompt at no cost.
        total = min(total, model.input_tokens_max)
    return _Prompt(total, any(ttls), "1h" in ttls)


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
