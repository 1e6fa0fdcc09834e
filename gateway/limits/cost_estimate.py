"""What a request may come to, before anybody has answered it: tokens and nano-dollars. Pure; the log says what it was.

It is the most that is likely: all that the request says, at the dearer price where it is to be kept, an answer as long
as it may be, and each further call that may have to be made. Text is counted as Anthropic's glossary has it (3.5
characters a token), a picture as the largest that a model is shown, a document by its pages.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from tailrace.gateway.limits.pdf_pages import UNKNOWN_PAGES, PageCounter, of_size
from tailrace.proto.blobs import parse_reference
from tailrace.proto.entries import Request
from tailrace.proto.models import cost_nano_usd, find_model
from tailrace.proto.schema import schema_of
from tailrace.proto.usage import ESTIMATE_CHARS, ESTIMATE_TOKENS, CallUsage

# platform.claude.com, "Vision": what has more is scaled down to that; for models before Opus 4.7 to a third of it.
PICTURE_TOKENS = 4784
# platform.claude.com, "PDF support": 1,500 to 3,000 for its text, and the page as a picture, of some 1,600.
PAGE_TOKENS = 3000 + 1600
# What a model is told of an answer that did not fit: why, of a thousand characters at most, and to say it anew.
MISFIT_TOKENS = 350
# A call that has lost to another is closed with its first word.
LOST_TOKENS = 1


class Estimate(NamedTuple):
    tokens: int
    nano_usd: int


NOTHING = Estimate(0, 0)


def estimate_of(request: Request, counter: PageCounter | None = None, *, is_hedged: bool = False) -> Estimate:
    """The most that `request` is likely to use. `is_hedged`: a late call may be made a second time beside itself.

    `counter` is one for all that comes with one body.
    """
    model = find_model(request.model)
    told = _told(request, counter or PageCounter())
    if model is not None:
        # What is longer is refused, and costs nothing.
        told = told._replace(tokens=min(told.tokens, model.input_tokens_max))
    calls, beside = [_call(request, told, request.max_tokens)], []
    if request.via == "messages":
        if schema_of(request.options) is not None:
            again = told.with_more(request.max_tokens + MISFIT_TOKENS)
            calls.append(_call(request, again, request.max_tokens))
        if is_hedged:
            beside.append(_call(request, told, LOST_TOKENS))
    tokens = sum(sum(call.counts) for call in (*calls, *beside))
    if model is None:
        return Estimate(tokens, 0)
    nano_usd = sum(cost_nano_usd(model, call) for call in calls)
    if request.max_cost_nano_usd is not None:
        # An answer is closed when it has cost that; what the model was told is paid for by then, and a call that is
        # made before it is spent is told all of it.
        *before, last = (cost_nano_usd(model, msgspec.structs.replace(call, output_tokens=0)) for call in calls)
        nano_usd = min(nano_usd, request.max_cost_nano_usd + last if before else max(request.max_cost_nano_usd, last))
    return Estimate(tokens, nano_usd + sum(cost_nano_usd(model, call) for call in beside))


def _call(request: Request, told: "_Told", answered: int) -> CallUsage:
    """A call as its `usage` would have it."""
    return CallUsage(
        0 if told.is_kept else told.tokens,
        answered,
        told.tokens if told.is_kept else 0,
        cache_creation={"ephemeral_1h_input_tokens": told.tokens} if told.is_kept_1h else None,
        service_tier="batch" if request.via == "message_batches" else None,
        speed=(request.options or {}).get("speed"),
    )


class _Told(NamedTuple):
    """What a model is told, and whether it is to keep it: for five minutes, or an hour."""

    tokens: int
    is_kept: bool
    is_kept_1h: bool

    def with_more(self, tokens: int) -> "_Told":
        return self._replace(tokens=self.tokens + tokens)


def _told(request: Request, counter: PageCounter) -> _Told:
    chars = tokens = 0
    options = request.options or {}
    marks = [request.cache, _mark(options)]
    waiting: list[Any] = [message.content for message in request.messages]
    waiting += [request.system, request.tools, schema_of(options)]
    while waiting:
        match waiting.pop():
            case str(text):
                chars += len(text)
            case list(items):
                # 100,000 empty ones are as many commas.
                chars += max(0, len(items) - 1)
                waiting += items
            case {"type": "document", "source": {"type": "base64" | "url" | "file"} as source, **more}:
                tokens += _pages(source, counter) * PAGE_TOKENS
                waiting.append(more)
            case {"type": "base64" | "url" | "file"}:
                tokens += PICTURE_TOKENS
            case dict(fields) if (blob := parse_reference(fields)) is not None:
                # Elsewhere than in the source of a picture or a document, it was a text.
                chars += blob.bytes
            case dict(fields):
                marks.append(_mark(fields))
                chars += sum(map(len, fields))
                waiting += fields.values()
            case None:
                pass
            case number:
                # Or `true`: 100,000 of them are as many tokens, and more.
                chars += len(str(number))
    return _Told(-(-chars * ESTIMATE_TOKENS // ESTIMATE_CHARS) + tokens, any(marks), "1h" in marks)


def _mark(fields: Mapping[str, Any]) -> str | None:
    """For how long a client has asked the model to keep what comes until here."""
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
            return counter.pages(base64)
        case dict(fields) if (blob := parse_reference(fields)) is not None:
            # Of an earlier turn.
            return of_size(blob.bytes)
        case _:
            return UNKNOWN_PAGES
