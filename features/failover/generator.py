"""Failover: a turn goes on with the next backend of its list, and new turns avoid backends that are down."""

from itertools import product

from tailrace.features.failover.circuit_breaker import CircuitBreakers
from tailrace.generators import metrics
from tailrace.generators.backend_order import FAILOVER_CODES
from tailrace.generators.feature import Feature, Generator, Parts


def start(generator: Generator) -> Parts:
    """Returns the parts of one generator: circuit breakers choose the backends of its calls."""
    for backend, code in product(generator.orders.backends, FAILOVER_CODES):
        metrics.FAILOVERS.labels(backend, code)
    breakers = CircuitBreakers(generator.orders)
    return Parts(routing=breakers, prepare=(breakers.prepare,))


FEATURE = Feature(start=start)
