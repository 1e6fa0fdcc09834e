"""What a request may come to, before anybody has answered it: tokens and nano-dollars. Pure; the log says what it was.

Text is counted as Anthropic's glossary has it (3.5 characters a token), a picture or a document as one picture's most.
"""

from typing import Any, NamedTuple

from proto.blobs import blob_of
from proto.entries import Request
from proto.models import cost_nusd, model_named
from proto.usage import CHARS, TOKENS, CallUsage

# platform.claude.com, "Vision": a picture is scaled down to about so many.
PICTURE_TOKENS = 1600


class Estimate(NamedTuple):
    tokens: int
    nusd: int


def estimate_of(request: Request) -> Estimate:
    """The most that `request` is likely to use: all that it says, and an answer as long as it may be."""
    chars = pictures = 0
    waiting: list[Any] = [[message.content for message in request.messages], request.system, request.tools]
    while waiting:
        match waiting.pop():
            case str(text):
                chars += len(text)
            case list(items):
                waiting += items
            case {"type": "base64" | "url" | "file"}:
                pictures += 1
            case dict(fields) if (blob := blob_of(fields)) is not None:
                # Elsewhere than in a picture's source, it was a text.
                chars += blob.bytes
            case dict(fields):
                waiting += fields.values()
            case _:
                pass
    asked = -(-chars * TOKENS // CHARS) + pictures * PICTURE_TOKENS
    model = model_named(request.model)
    tier = "batch" if request.via == "message_batches" else None
    call = CallUsage(asked, request.max_tokens, service_tier=tier, speed=(request.options or {}).get("speed"))
    nusd = cost_nusd(model, call) if model is not None else 0
    if request.max_cost_nusd is not None:
        nusd = min(nusd, request.max_cost_nusd)
    return Estimate(asked + request.max_tokens, nusd)
