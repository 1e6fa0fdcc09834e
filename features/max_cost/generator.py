"""The hooks that keep a turn within its cost limit."""

from tailrace.features.max_cost.cost_meter import cut_at_cost, limit_cost
from tailrace.generators.feature import Feature, Hooks

FEATURE = Feature(Hooks(sinks=(limit_cost,), cuts=(cut_at_cost,)))
