"""The cases have each type of an answer, and the message that the vendor's SDK accumulates."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.case import read_cases
from tests.conformance.differences import comparable
from tests.conformance.sdk import accumulate
from tools.api_surface import read_table

# Groups of the table that an answer can have.
OF_ANSWERS = (
    *("stream_events", "answer_blocks", "deltas", "stop_reasons", "iterations", "server_tools", "citations"),
    *("message_fields", "usage_fields", "answer_parts", "tool_error_codes"),
)
# They end no answer, or need an answer that the vendor documents nowhere.
WITHOUT_CASE = {"error"}


def words(value: Any, path: str = "") -> Iterator[str]:
    """Yields the names and the values of all fields, and the paths inside of `usage`."""
    match value:
        case dict():
            for name, inner in value.items():
                yield from (name, f"{path}{name}")
                yield from words(inner, "" if name == "usage" else f"{path}{name}.")
        case list():
            for inner in value:
                yield from words(inner, path)
        case str():
            yield value


@pytest.mark.parametrize("name", read_cases())
def test_the_message_is_that_of_the_sdk(name: str) -> None:
    case = read_cases()[name]
    if case.message is None:
        with pytest.raises(ValueError, match="Unable to parse tool parameter JSON"):
            accumulate(case.stream)
    else:
        assert comparable(accumulate(case.stream)) == comparable(case.accumulated)


@pytest.mark.parametrize("group", OF_ANSWERS)
def test_the_cases_have_each_type_of_an_answer(group: str) -> None:
    found = {
        word
        for case in read_cases().values()
        for event in case.events
        for word in words(json.loads(event) if isinstance(event, str) else event)
    }
    assert set(read_table()[group].rows) - found - WITHOUT_CASE == set()
