"""Who is asked next when a backend has failed, and how the operator's lists are read."""

import pytest

from tailrace.generators.failover import FAILOVER_CODES, BackendOrder, BackendOrders, Source, parse_backends
from tailrace.proto.errors import CODES, BackendError, SettingsInvalid

A, B, C = (Source(name) for name in ("a", "b", "c"))
TWO = BackendOrders((A, B))
# Errors by what they say about the one who failed.
PASSING = [code for code in FAILOVER_CODES if CODES[code].is_retryable]
BAD_REQUEST = "backend_refused_request"


def failed(rota: BackendOrder, *codes: str, has_begun: bool) -> list[str] | None:
    """Who is asked after those failures, first who is next; None when nobody is."""
    left: BackendOrder | None = rota
    for code in codes:
        assert left is not None, "nobody was there to fail"
        left = left.after_failure(BackendError(code, "x"), has_begun=has_begun)
    return None if left is None else [source.backend for source in left.sources]


def test_every_code_of_a_backend_is_failed_over_and_no_other() -> None:
    """A new code has to be thought about: here, or by whoever reads that this fails."""
    assert {code for code in CODES if code.startswith("backend_")} == FAILOVER_CODES


@pytest.mark.parametrize("code", sorted(FAILOVER_CODES - {BAD_REQUEST}))
def test_before_an_answer_each_backend_has_one_attempt(code: str) -> None:
    """All the calls of an attempt could not reach it: it is not asked again, and the last one's failure is final."""
    rota = TWO.order_for("claude-sonnet-5-5")
    assert failed(rota, code, has_begun=False) == ["b"]
    assert failed(rota, code, code, has_begun=False) is None


def test_a_bad_request_is_nobody_elses_business() -> None:
    """The next one would refuse it, too; and it would be paid for, if it did not."""
    assert failed(TWO.order_for("m"), BAD_REQUEST, has_begun=False) is None


@pytest.mark.parametrize("code", ["deadline_exceeded", "blob_expired", "attempts_exhausted", "interrupted"])
@pytest.mark.parametrize("has_begun", [True, False])
def test_what_is_the_turns_own_is_not_mended_by_anybody(code: str, has_begun: bool) -> None:
    """A deadline is over for everybody."""
    assert failed(TWO.order_for("m"), code, has_begun=has_begun) is None


@pytest.mark.parametrize("code", sorted(PASSING))
def test_in_the_middle_of_an_answer_they_take_turns(code: str) -> None:
    """What has been shown is worth an attempt of each, and again, until attempts are used up."""
    rota = TWO.order_for("m")
    assert failed(rota, code, has_begun=True) == ["b", "a"]
    assert failed(rota, code, code, has_begun=True) == ["a", "b"]


@pytest.mark.parametrize("code", ["backend_refused_key", BAD_REQUEST])
def test_a_second_that_is_of_no_use_is_worse_than_none_for_nobody(code: str) -> None:
    """A wrong key in the second place does not take the first one's next try away."""
    rota = TWO.order_for("m")
    assert failed(rota, "backend_broken", code, has_begun=True) == ["a"]
    assert failed(rota, "backend_broken", code, "backend_broken", has_begun=True) == ["a"]
    assert failed(rota, "backend_broken", code, code, has_begun=True) is None


def test_only_who_has_failed_before_is_waited_for() -> None:
    """Somebody new is asked at once: it is not he who is overloaded."""
    rota: BackendOrder | None = TWO.order_for("m")
    waits = []
    for _ in range(4):
        assert rota is not None
        rota = rota.after_failure(BackendError("backend_overloaded", "x"), has_begun=True)
        assert rota is not None
        waits.append(rota.is_repeat)
    assert waits == [False, True, True, True]
    alone = BackendOrders((A,)).order_for("m").after_failure(BackendError("backend_overloaded", "x"), has_begun=True)
    assert alone is not None
    assert alone.is_repeat


@pytest.mark.rule("R50")
def test_whoever_takes_over_begins_with_the_last_one_asked() -> None:
    """It may be the generator that died, and not the backend. One that is not in the list any more is not asked."""
    rotas = BackendOrders((A, B, C))
    assert [source.backend for source in rotas.order_for("m", "b").sources] == ["b", "c", "a"]
    assert [source.backend for source in rotas.order_for("m", "gone").sources] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "rotas"),
    [
        ("claude", BackendOrders((Source("claude"),))),
        (" claude , bedrock ;", BackendOrders((Source("claude"), Source("bedrock")))),
        (
            "claude; claude-opus-5-5 = bedrock:us.anthropic.x:1, claude ; claude-haiku-5-5-latest=vertex",
            BackendOrders(
                (Source("claude"),),
                {
                    "claude-opus-5-5": (Source("bedrock", "us.anthropic.x:1"), Source("claude")),
                    "claude-haiku-5-5": (Source("vertex"),),
                },
            ),
        ),
    ],
)
def test_lists_of_backends_are_read(text: str, rotas: BackendOrders) -> None:
    """One for all models, then those of models that have their own, each backend maybe with its name for it."""
    assert parse_backends(text) == rotas


def test_a_model_has_its_own_list_or_the_common_one() -> None:
    """By any of its names; all that are named anywhere are opened."""
    rotas = parse_backends("claude; claude-opus-5-5 = bedrock, vertex")
    assert [source.backend for source in rotas.order_for("claude-opus-5-5-latest").sources] == ["bedrock", "vertex"]
    assert [source.backend for source in rotas.order_for("claude-sonnet-5-5").sources] == ["claude"]
    assert rotas.backends == ["claude", "bedrock", "vertex"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        ";",
        "claude,",
        "claude, claude",
        "claude; gpt = bedrock",
        "claude; claude-opus-5-5",
        "claude; claude-opus-5-5 =",
        "claude; claude-opus-5-5 = a; claude-opus-5-5-latest = b",
        "claude-opus-5-5 = bedrock",
    ],
)
def test_what_is_no_list_is_refused(text: str) -> None:
    """By the setting's name, before anything starts."""
    with pytest.raises(SettingsInvalid, match=r"^TAILRACE_BACKENDS: "):
        parse_backends(text)
