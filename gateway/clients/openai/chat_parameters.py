"""What a chat completion can ask and Claude cannot do: what is ignored, what refused, and why. A table, nothing else.

The rule is in foreign.py; docs/OPENAI.md shows the same table.
"""

from tailrace.gateway.clients.openai.unsupported import IGNORED, REFUSED, Foreign

FOREIGN = (
    Foreign("n", (1,), REFUSED, "there is one answer to a question: ask as often as you want answers"),
    Foreign("logprobs", (False,), REFUSED, "Claude tells no probabilities"),
    Foreign("top_logprobs", (0,), REFUSED, "Claude tells no probabilities"),
    Foreign("logit_bias", ({},), REFUSED, "Claude's tokens cannot be weighted"),
    Foreign("modalities", (["text"],), REFUSED, "Claude answers in text: `modalities` can be `text` alone"),
    Foreign("audio", (), REFUSED, "Claude answers in text"),
    Foreign("functions", ([],), REFUSED, "it has answers of its own shape: send `tools`"),
    Foreign("function_call", (), REFUSED, "it has answers of its own shape: send `tool_choice`"),
    Foreign("web_search_options", (), REFUSED, "there is no search here: give the model a tool that searches"),
    Foreign("moderation", (), REFUSED, "there is no moderation here"),
    Foreign("service_tier", ("auto", "default"), REFUSED, "there is one tier: `auto` or `default`"),
    Foreign("presence_penalty", (0,), IGNORED, "Claude has no penalties"),
    Foreign("frequency_penalty", (0,), IGNORED, "Claude has no penalties"),
    Foreign("seed", (), IGNORED, "Claude takes none, and a seed promises nothing"),
    Foreign("verbosity", ("medium",), IGNORED, "say it in the prompt"),
    Foreign("prediction", (), IGNORED, "it changes the speed alone"),
    Foreign("store", (False,), IGNORED, "every turn is in the history, also with `false`"),
    Foreign("prompt_cache_key", (), IGNORED, "caching is asked for with `cache_control`"),
    Foreign("prompt_cache_options", (), IGNORED, "caching is asked for with `cache_control`"),
    Foreign("prompt_cache_retention", (), IGNORED, "caching is asked for with `cache_control`"),
)
