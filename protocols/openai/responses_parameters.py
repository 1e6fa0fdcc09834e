"""The table of Responses API parameters that Claude does not support (unsupported.py). docs/OPENAI.md shows it."""

from tailrace.protocols.common.unsupported import IGNORED, REFUSED, UnsupportedParameter

CACHING = "this protocol cannot control Claude's prompt cache"

UNSUPPORTED = (
    UnsupportedParameter("prompt", (), REFUSED, "there are no stored prompts; send `instructions` and `input`"),
    UnsupportedParameter("moderation", (), REFUSED, "there is no moderation"),
    UnsupportedParameter(
        "context_management", ([],), REFUSED, "conversations are not compacted; send what the model needs"
    ),
    UnsupportedParameter("top_logprobs", (0,), REFUSED, "Claude does not return probabilities"),
    UnsupportedParameter("service_tier", ("auto", "default"), REFUSED, "there is one tier; send `auto` or `default`"),
    UnsupportedParameter("access_programs", ({},), REFUSED, "there are no access programs"),
    UnsupportedParameter(
        "truncation", ("disabled",), IGNORED, "nothing is cut; a conversation that is too long is refused"
    ),
    UnsupportedParameter(
        "background_options",
        ({}, {"completion_window": "soonest"}),
        IGNORED,
        "a response with `background` is generated at once",
    ),
    UnsupportedParameter("stream_options", ({}, {"include_obfuscation": False}), IGNORED, "deltas are not padded"),
    UnsupportedParameter("client_metadata", ({},), IGNORED, "it is Codex's, for OpenAI's statistics of its sessions"),
    UnsupportedParameter("image", (), IGNORED, "images are passed on unchanged"),
    UnsupportedParameter("prompt_cache_key", (), IGNORED, CACHING),
    UnsupportedParameter("prompt_cache_options", (), IGNORED, CACHING),
    UnsupportedParameter("prompt_cache_retention", (), IGNORED, CACHING),
)
