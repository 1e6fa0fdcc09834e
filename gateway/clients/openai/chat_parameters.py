"""The table of chat completion parameters that Claude does not support (unsupported.py). docs/OPENAI.md shows it."""

from tailrace.gateway.clients.openai.unsupported import IGNORED, REFUSED, Unsupported

UNSUPPORTED = (
    Unsupported("n", (1,), REFUSED, "a request has one answer; send several requests"),
    Unsupported("logprobs", (False,), REFUSED, "Claude does not return probabilities"),
    Unsupported("top_logprobs", (0,), REFUSED, "Claude does not return probabilities"),
    Unsupported("logit_bias", ({},), REFUSED, "Claude's tokens cannot be weighted"),
    Unsupported("modalities", (["text"],), REFUSED, "Claude answers in text; the only value is `text`"),
    Unsupported("audio", (), REFUSED, "Claude answers in text"),
    Unsupported("functions", ([],), REFUSED, "it is deprecated; send `tools`"),
    Unsupported("function_call", (), REFUSED, "it is deprecated; send `tool_choice`"),
    Unsupported("web_search_options", (), REFUSED, "there is no built-in search; give the model a search tool"),
    Unsupported("moderation", (), REFUSED, "there is no moderation"),
    Unsupported("service_tier", ("auto", "default"), REFUSED, "there is one tier; send `auto` or `default`"),
    Unsupported("presence_penalty", (0,), IGNORED, "Claude has no penalties"),
    Unsupported("frequency_penalty", (0,), IGNORED, "Claude has no penalties"),
    Unsupported("seed", (), IGNORED, "Claude has no seed, and OpenAI's guarantees nothing"),
    Unsupported("verbosity", ("medium",), IGNORED, "ask for it in the prompt"),
    Unsupported("prediction", (), IGNORED, "it changes only the speed"),
    Unsupported("store", (), IGNORED, "every turn is stored; `/v1/responses` and `/v1/turns` have `store: false`"),
    Unsupported("prompt_cache_key", (), IGNORED, "use `cache_control` for caching"),
    Unsupported("prompt_cache_options", (), IGNORED, "use `cache_control` for caching"),
    Unsupported("prompt_cache_retention", (), IGNORED, "use `cache_control` for caching"),
)
