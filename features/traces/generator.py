"""The spans of a generator, where traces are on."""

from tailrace.features.traces.attempt_span import attempt_span
from tailrace.features.traces.call_span import call_span
from tailrace.generators.feature import Feature, Parts

FEATURE = Feature(start=lambda _: Parts(observe_attempt=attempt_span, observe_call=call_span))
