"""The exception tree and the table of error codes."""

import inspect
import re

import nats.errors
import nats.js.errors
import pytest

from tailrace.proto import errors
from tailrace.proto.errors import CODES, Code, LogError, TailraceError

CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, Exception) and kind is not TailraceError
]
# https: Anthropic's docs, "API errors".
ANTHROPIC_TYPES = {
    "invalid_request_error": {400, 405, 408, 409, 410, 415, 422, 426, 431},
    "authentication_error": {401, 502},
    "permission_error": {403},
    "not_found_error": {404},
    "request_too_large": {413},
    "rate_limit_error": {429},
    "billing_error": {402},
    "api_error": {500, 502, 503},
    "timeout_error": {504},
    "overloaded_error": {503, 529},
}


@pytest.mark.parametrize("kind", CLASSES)
def test_docstring_tree_shows_every_exception_class(kind: type[Exception]) -> None:
    lines = re.findall(r"^([ |+-]+)([A-Z]\w+)", str(errors.__doc__), re.MULTILINE)
    drawn = {name: len(indent) for indent, name in lines}
    parent = kind.__mro__[1].__name__
    assert drawn[kind.__name__] > drawn.get(parent, 0) or parent == "TailraceError"


@pytest.mark.parametrize("kind", [one for one in CLASSES if issubclass(one, LogError)])
def test_every_log_error_has_a_code(kind: type[LogError]) -> None:
    assert kind.code in CODES


@pytest.mark.parametrize("code", CODES)
def test_a_code_has_anthropics_error_type_a_retryable_status_if_it_is_retryable_a_meaning_and_advice(code: str) -> None:
    """Clients that handle Anthropic's errors handle these. docs/ERRORS.md prints meaning and advice as sentences."""
    row: Code = CODES[code]
    assert row.status in ANTHROPIC_TYPES[row.type]
    assert not row.is_retryable or row.status in (408, 429) or row.status >= 500
    assert [text for text in (row.meaning, row.advice) if not text.endswith(".") or "|" in text] == []


NATS_ERRORS = [
    kind
    for module in (nats.errors, nats.js.errors)
    for _, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, Exception)
]


@pytest.mark.parametrize("kind", NATS_ERRORS)
def test_every_nats_exception_has_the_root_that_proto_nats_catches(kind: type[Exception]) -> None:
    """proto.nats catches nats.errors.Error: an exception with another root would escape as it is."""
    assert issubclass(kind, nats.errors.Error)
