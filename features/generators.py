"""The features of a generator, in the order in which they change calls and answers."""

from tailrace.features.backends import BACKENDS
from tailrace.features.batches.generator import FEATURE as BATCHES
from tailrace.features.count_tokens.generator import FEATURE as COUNT_TOKENS
from tailrace.features.failover.generator import FEATURE as FAILOVER
from tailrace.features.limits.generator import FEATURE as LIMITS
from tailrace.features.prompt_cache.generator import FEATURE as PROMPT_CACHE
from tailrace.features.queued_turns.generator import FEATURE as QUEUED_TURNS
from tailrace.features.structured_output.generator import FEATURE as STRUCTURED_OUTPUT
from tailrace.features.traces.generator import FEATURE as TRACES
from tailrace.generators.feature import Feature, Features

FEATURES: Features = (
    # First: the others get the whole conversation.
    QUEUED_TURNS,
    STRUCTURED_OUTPUT,
    # The marks for the prompt cache come after the schema, which may be in the system prompt.
    PROMPT_CACHE,
    FAILOVER,
    BATCHES,
    COUNT_TOKENS,
    TRACES,
    Feature(backends=BACKENDS),
    LIMITS,
)
