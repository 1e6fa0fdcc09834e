"""The tree of errors and the table of codes: drawn, complete, and sensible."""

import inspect
import re

import nats.errors
import nats.js.errors
import pytest

from tailrace.proto import errors
from tailrace.proto.errors import CODES, BackendError, Code, LogError, Refused, TailraceError

CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, Exception) and kind is not TailraceError
]
# https: Anthropic's docs, "API errors".
ANTHROPIC_TYPES = {
    "invalid_request_error": {400, 405, 408, 409, 410, 415, 422, 431},
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
def test_every_error_is_drawn_in_the_tree(kind: type[Exception]) -> None:
    """The tree at the top of the file shows each class, below its parent."""
    lines = re.findall(r"^([ |+-]+)([A-Z]\w+)", str(errors.__doc__), re.MULTILINE)
    drawn = {name: len(indent) for indent, name in lines}
    parent = kind.__mro__[1].__name__
    assert drawn[kind.__name__] > drawn.get(parent, 0) or parent == "TailraceError"


@pytest.mark.parametrize("kind", [one for one in CLASSES if issubclass(one, LogError)])
def test_every_error_of_the_log_has_a_code_of_the_table(kind: type[LogError]) -> None:
    """Whoever meets one at the edge can answer with its row; FenceLost never leaves a process."""
    assert kind.code in CODES


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_anthropics_type_for_its_status(code: str) -> None:
    """Clients which know Anthropic's errors know ours."""
    row = CODES[code]
    assert row.status in ANTHROPIC_TYPES[row.type]


@pytest.mark.parametrize("code", CODES)
def test_what_may_be_tried_again_has_a_status_that_says_so(code: str) -> None:
    """408, 429 and 5xx may succeed later; another 4xx never does."""
    row: Code = CODES[code]
    assert not row.is_retried or row.status in (408, 429) or row.status >= 500


@pytest.mark.parametrize("kind", [Refused, BackendError])
def test_a_refusal_says_its_code_its_sentence_and_when_to_come_back(kind: type[Refused | BackendError]) -> None:
    """The three things that an answer is made of."""
    refused = kind("log_full", "the log is full", retry_after_s=2.0)
    assert (refused.code, refused.message, refused.retry_after_s) == ("log_full", "the log is full", 2.0)
    assert str(refused) == "the log is full"


NATS_ERRORS = [
    kind
    for module in (nats.errors, nats.js.errors)
    for _, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, Exception)
]


@pytest.mark.parametrize("kind", NATS_ERRORS)
def test_every_error_of_nats_stops_at_the_door(kind: type[Exception]) -> None:
    """The door catches the root of its client's errors: one that does not come from there would pass through."""
    assert issubclass(kind, nats.errors.Error)
