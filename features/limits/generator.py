"""Limits the cost of a generator's turns."""

from tailrace.features.limits.cost_limits import CostLimits
from tailrace.generators.feature import Feature, Generator, Parts
from tailrace.proto.nats import Counters
from tailrace.proto.nats.step_records import StepRecords


def start(generator: Generator) -> Parts:
    """Returns the limits of one generator."""
    return Parts(limits=CostLimits(Counters(generator.connection), StepRecords(generator.connection)))


FEATURE = Feature(start=start)
