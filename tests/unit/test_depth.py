"""What nests too deep for some reader is seen without going as deep."""

import pytest

from tailrace.proto.depth import is_deeper


@pytest.mark.rule("R7")
@pytest.mark.parametrize(
    ("value", "is_too_deep"),
    [("text", False), ([[1]], False), ([[[]]], True), ({"a": [1, {"b": 2}]}, True), ([1, {"a": "b"}], False)],
)
def test_levels_are_lists_and_objects_in_one_another(value: object, is_too_deep: bool) -> None:
    """R7: a writer stores nothing so deep that some reader might not read it."""
    assert is_deeper(value, 2) is is_too_deep


def test_looking_for_depth_does_not_go_deeper_than_asked() -> None:
    """What is nested deeper than Python's stack is refused like everything else."""
    value: object = []
    for _ in range(100_000):
        value = [value]
    assert is_deeper(value, 60)
