"""What OpenAI's Responses API can ask and Claude cannot do: the table that gateway/foreign.py goes by."""

from tailrace.gateway.clients.openai.unsupported import IGNORED, REFUSED, Foreign

CACHING = "how Claude caches is not asked for in this protocol"

FOREIGN = (
    Foreign("prompt", (), REFUSED, "there are no stored prompts here: send `instructions` and `input`"),
    Foreign("moderation", (), REFUSED, "there is no moderation here"),
    Foreign("context_management", ([],), REFUSED, "no conversation is compacted here: send what is to be remembered"),
    Foreign("top_logprobs", (0,), REFUSED, "Claude tells no probabilities"),
    Foreign("service_tier", ("auto", "default"), REFUSED, "there is one tier: `auto` or `default`"),
    Foreign("access_programs", ({},), REFUSED, "there are no such programs here"),
    Foreign("truncation", ("disabled",), IGNORED, "nothing is left out: a conversation that is too long is refused"),
    Foreign("include", ([], ["reasoning.encrypted_content"]), IGNORED, "that alone is there, and always"),
    Foreign("store", (True,), IGNORED, "every turn is in the history, also with `false`: delete it to forget it"),
    Foreign("max_tool_calls", (), IGNORED, "it counts calls of OpenAI's own tools, and there are none here"),
    Foreign("stream_options", ({}, {"include_obfuscation": False}), IGNORED, "deltas are not padded"),
    Foreign("image", (), IGNORED, "pictures are sent on as they came"),
    Foreign("prompt_cache_key", (), IGNORED, CACHING),
    Foreign("prompt_cache_options", (), IGNORED, CACHING),
    Foreign("prompt_cache_retention", (), IGNORED, CACHING),
)
