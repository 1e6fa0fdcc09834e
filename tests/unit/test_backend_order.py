"""The order of backends after failures, and the parser of the setting `backends`."""

import pytest
from structlog.testing import capture_logs

from tailrace.generators.backend_order import (
    FAILOVER_CODES,
    REPEATED_FAULTS,
    BackendOrder,
    BackendOrders,
    Candidate,
    parse_backends,
)
from tailrace.generators.model_caller import OneBackend
from tailrace.generators.serve import warn_of_others
from tailrace.proto.errors import CODES, REFUSED_REQUEST, BackendError

A, B, C = (Candidate(name) for name in ("a", "b", "c"))
TWO = BackendOrders((A, B))
# Errors after which the same backend may succeed.
PASSING = [code for code in FAILOVER_CODES if CODES[code].is_retryable]
BAD_REQUEST = "backend_refused_request"


def backends_after(order: BackendOrder, *codes: str, has_begun: bool) -> list[str] | None:
    """Returns the backends that are left after those failures, the next one first; None if none is left."""
    left: BackendOrder | None = order
    for code in codes:
        assert left is not None, "no backend was left to fail"
        left = left.after_failure(BackendError(code, "x"), has_begun=has_begun)
    return None if left is None else [one.backend for one in left.candidates]


def test_failover_codes_are_all_codes_of_backends_but_one() -> None:
    """A new code has to be decided about here. An event above the limit would be as large from another backend."""
    codes = {code for code in CODES if code.startswith("backend_")} | {"model_not_found"}
    assert codes - {"backend_event_too_large"} == FAILOVER_CODES


@pytest.mark.parametrize("code", sorted(FAILOVER_CODES - REFUSED_REQUEST - REPEATED_FAULTS))
def test_before_an_answer_each_backend_gets_one_attempt(code: str) -> None:
    """All calls of an attempt have failed: the backend is not called again, and the last failure is final."""
    order = TWO.order_for("claude-sonnet-5-5")
    assert backends_after(order, code, has_begun=False) == ["b"]
    assert backends_after(order, code, code, has_begun=False) is None


@pytest.mark.rule("R118")
@pytest.mark.parametrize("code", sorted(REPEATED_FAULTS))
def test_an_answer_that_breaks_the_rules_is_requested_from_the_next_backend_or_else_again(code: str) -> None:
    """Its attempt has made one call only."""
    assert backends_after(TWO.order_for("m"), code, has_begun=False) == ["b", "a"]
    assert backends_after(TWO.order_for("m"), code, "backend_overloaded", has_begun=False) == ["a"]
    assert backends_after(BackendOrders((A,)).order_for("m"), code, has_begun=False) == ["a"]


OF_THE_TURN = ["backend_event_too_large", "deadline_exceeded", "blob_expired", "attempts_exhausted", "interrupted"]


@pytest.mark.parametrize(
    ("code", "has_begun"), [(BAD_REQUEST, False), *((code, begun) for code in OF_THE_TURN for begun in (True, False))]
)
def test_errors_of_the_turn_and_a_refused_request_before_an_answer_are_not_failed_over(
    code: str, has_begun: bool
) -> None:
    """A deadline, for example, is over for every backend, and other backends would refuse the request too."""
    assert backends_after(TWO.order_for("m"), code, has_begun=has_begun) is None


@pytest.mark.parametrize("code", sorted(PASSING))
def test_within_an_answer_backends_alternate(code: str) -> None:
    order = TWO.order_for("m")
    assert backends_after(order, code, has_begun=True) == ["b", "a"]
    assert backends_after(order, code, code, has_begun=True) == ["a", "b"]


@pytest.mark.parametrize("code", ["backend_refused_key", BAD_REQUEST])
def test_a_second_backend_with_a_wrong_key_takes_no_attempt_from_the_first(code: str) -> None:
    order = TWO.order_for("m")
    assert backends_after(order, "backend_broken", code, has_begun=True) == ["a"]
    assert backends_after(order, "backend_broken", code, "backend_broken", has_begun=True) == ["a"]
    assert backends_after(order, "backend_broken", code, code, has_begun=True) is None


def test_only_a_backend_that_failed_before_is_waited_for() -> None:
    """A backend that was not called yet is called at once."""
    order: BackendOrder | None = TWO.order_for("m")
    waits = []
    for _ in range(4):
        assert order is not None
        order = order.after_failure(BackendError("backend_overloaded", "x"), has_begun=True)
        assert order is not None
        waits.append(order.is_repeat)
    assert waits == [False, True, True, True]
    alone = BackendOrders((A,)).order_for("m").after_failure(BackendError("backend_overloaded", "x"), has_begun=True)
    assert alone is not None
    assert alone.is_repeat


@pytest.mark.rule("R50")
def test_a_takeover_begins_with_the_last_backend() -> None:
    """The generator may have died, and not the backend. A backend that left the list is not called."""
    orders = BackendOrders((A, B, C))
    assert [one.backend for one in orders.order_for("m", "b").candidates] == ["b", "c", "a"]
    assert [one.backend for one in orders.order_for("m", "gone").candidates] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "orders"),
    [
        ("claude", BackendOrders((Candidate("claude"),))),
        (" claude , bedrock ;", BackendOrders((Candidate("claude"), Candidate("bedrock")))),
        (
            "claude; claude-opus-5-5 = bedrock:us.anthropic.x:1, claude ; claude-haiku-5-5-latest=vertex",
            BackendOrders(
                (Candidate("claude"),),
                {
                    "claude-opus-5-5": (Candidate("bedrock", "us.anthropic.x:1"), Candidate("claude")),
                    "claude-haiku-5-5": (Candidate("vertex"),),
                },
            ),
        ),
    ],
)
def test_lists_of_backends_are_parsed(text: str, orders: BackendOrders) -> None:
    assert parse_backends(text) == orders


def test_a_model_has_its_own_list_or_the_common_one() -> None:
    """By any of its names. All backends of all lists are opened."""
    orders = parse_backends("claude; claude-opus-5-5 = bedrock, vertex")
    assert [one.backend for one in orders.order_for("claude-opus-5-5-latest").candidates] == ["bedrock", "vertex"]
    assert [one.backend for one in orders.order_for("claude-sonnet-5-5").candidates] == ["claude"]
    assert orders.backends == ["claude", "bedrock", "vertex"]


def test_without_the_feature_a_turn_keeps_its_backend() -> None:
    """That of its first attempt, also in a generator that takes over. Operators are warned of the others."""
    alone = OneBackend(TWO)
    assert [alone.begin_call("t", "m", last).current.backend for last in ("", "a", "b", "gone")] == ["a", "a", "b", "a"]
    order = alone.begin_call("t", "m")
    assert backends_after(order, "backend_overloaded", has_begun=True) == ["a"]
    assert backends_after(order, "backend_overloaded", has_begun=False) is None
    with capture_logs() as logged:
        warn_of_others(TWO)
        warn_of_others(BackendOrders((A,), {"m": (B,)}))
    assert [(line["log_level"], line["backends"]) for line in logged] == [("warning", ["b"])]
