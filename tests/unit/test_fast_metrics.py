"""FastHistogram and FastCounter give Prometheus the same samples as the library's own."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tailrace.proto.runtime.fast_metrics import FastCounter, FastHistogram

BUCKETS = (0.01, 0.5, 1)
VALUES = (0.0, 0.01, 0.011, 0.5, 0.7, 1.0, 2.0)


def samples(registry: CollectorRegistry) -> dict[tuple[str, str, str], float]:
    text = generate_latest(registry).decode()
    return {
        (sample.name, sample.labels.get("le", ""), sample.labels.get("model", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@pytest.mark.parametrize("label", ["", "model"])
def test_its_samples_are_those_of_the_librarys_histogram(label: str) -> None:
    fast_registry, library_registry = CollectorRegistry(), CollectorRegistry()
    fast = FastHistogram("wait_seconds", "a wait", buckets=BUCKETS, label=label, registry=fast_registry)
    library = Histogram("wait_seconds", "a wait", [label] if label else [], buckets=BUCKETS, registry=library_registry)
    for value in VALUES:
        fast.get_series("claude" if label else "").observe(value)
        (library.labels("claude") if label else library).observe(value)
    found, expected = samples(fast_registry), samples(library_registry)
    # The library writes every bound as a float, and ours as it was given.
    assert {(name, float(le or 0), model): v for (name, le, model), v in found.items()} == {
        (name, float(le or 0), model): v for (name, le, model), v in expected.items()
    }
    assert len(found) == len(BUCKETS) + 1 + 2


def test_the_sample_of_a_counter_is_that_of_the_librarys_counter() -> None:
    fast_registry, library_registry = CollectorRegistry(), CollectorRegistry()
    fast = FastCounter("sent_bytes_total", "bytes", registry=fast_registry)
    library = Counter("sent_bytes_total", "bytes", registry=library_registry)
    for size in (3, 0, 4):
        fast.value += size
        library.inc(size)
    assert samples(fast_registry) == samples(library_registry) == {("sent_bytes_total", "", ""): 7}
