"""The table of chat completion parameters that Claude does not support (unsupported.py). docs/OPENAI.md shows it."""

from tailrace.protocols.common.unsupported import IGNORED, REFUSED, UnsupportedParameter

UNSUPPORTED = (
    UnsupportedParameter("n", (1,), REFUSED, "a request has one answer; send several requests"),
    UnsupportedParameter("logprobs", (False,), REFUSED, "Claude does not return probabilities"),
    UnsupportedParameter("top_logprobs", (0,), REFUSED, "Claude does not return probabilities"),
    UnsupportedParameter("logit_bias", ({},), REFUSED, "Claude's tokens cannot be weighted"),
    UnsupportedParameter("modalities", (["text"],), REFUSED, "Claude answers in text; the only value is `text`"),
    UnsupportedParameter("audio", (), REFUSED, "Claude answers in text"),
    UnsupportedParameter("functions", ([],), REFUSED, "it is deprecated; send `tools`"),
    UnsupportedParameter("function_call", (), REFUSED, "it is deprecated; send `tool_choice`"),
    UnsupportedParameter("moderation", (), REFUSED, "there is no moderation"),
    UnsupportedParameter("service_tier", ("auto", "default"), REFUSED, "there is one tier; send `auto` or `default`"),
    UnsupportedParameter("presence_penalty", (0,), IGNORED, "Claude has no penalties"),
    UnsupportedParameter("frequency_penalty", (0,), IGNORED, "Claude has no penalties"),
    UnsupportedParameter("seed", (), IGNORED, "Claude has no seed, and OpenAI's guarantees nothing"),
    UnsupportedParameter("verbosity", ("medium",), IGNORED, "ask for it in the prompt"),
    UnsupportedParameter("prediction", (), IGNORED, "it changes only the speed"),
    UnsupportedParameter(
        "store", (), IGNORED, "every turn is stored; `/v1/responses` and `/v1/turns` have `store: false`"
    ),
    UnsupportedParameter("prompt_cache_key", (), IGNORED, "use `cache_control` for caching"),
    UnsupportedParameter("prompt_cache_options", (), IGNORED, "use `cache_control` for caching"),
    UnsupportedParameter("prompt_cache_retention", (), IGNORED, "use `cache_control` for caching"),
)
