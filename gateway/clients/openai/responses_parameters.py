"""The table of Responses API parameters that Claude does not support (unsupported.py). docs/OPENAI.md shows it."""

from tailrace.gateway.clients.openai.unsupported import IGNORED, REFUSED, Unsupported

CACHING = "this protocol cannot control Claude's prompt cache"

UNSUPPORTED = (
    Unsupported("prompt", (), REFUSED, "there are no stored prompts; send `instructions` and `input`"),
    Unsupported("moderation", (), REFUSED, "there is no moderation"),
    Unsupported("context_management", ([],), REFUSED, "conversations are not compacted; send what the model needs"),
    Unsupported("top_logprobs", (0,), REFUSED, "Claude does not return probabilities"),
    Unsupported("service_tier", ("auto", "default"), REFUSED, "there is one tier; send `auto` or `default`"),
    Unsupported("access_programs", ({},), REFUSED, "there are no access programs"),
    Unsupported("truncation", ("disabled",), IGNORED, "nothing is cut; a conversation that is too long is refused"),
    Unsupported(
        "include",
        ([], ["reasoning.encrypted_content"]),
        IGNORED,
        "encrypted reasoning is always included, nothing else",
    ),
    Unsupported(
        "background_options",
        ({}, {"completion_window": "soonest"}),
        IGNORED,
        "a response with `background` is generated at once",
    ),
    Unsupported("max_tool_calls", (), IGNORED, "it limits OpenAI's built-in tools, which do not exist here"),
    Unsupported("stream_options", ({}, {"include_obfuscation": False}), IGNORED, "deltas are not padded"),
    Unsupported("client_metadata", ({},), IGNORED, "it is Codex's, for OpenAI's statistics of its sessions"),
    Unsupported("image", (), IGNORED, "images are passed on unchanged"),
    Unsupported("prompt_cache_key", (), IGNORED, CACHING),
    Unsupported("prompt_cache_options", (), IGNORED, CACHING),
    Unsupported("prompt_cache_retention", (), IGNORED, CACHING),
)
