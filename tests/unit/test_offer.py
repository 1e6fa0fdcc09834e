"""What can be asked: one rule, whoever asks, and a refusal that says what is there."""

import pytest

from tailrace.gateway.models.offer import Offer
from tailrace.proto.errors import Refused
from tailrace.proto.model_records import ListedModel
from tailrace.proto.models import models

TWO = {name: ListedModel(id=name) for name in ("claude-opus-5-5", "claude-haiku-5-5")}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("claude-haiku-5-5", "claude-haiku-5-5"),
        ("claude-opus-5-5-latest", "claude-opus-5-5"),
        ("gpt-4o", "claude-opus-5-5"),
        (None, "claude-haiku-5-5"),
    ],
)
def test_what_anthropic_lists_is_found_by_any_of_its_names(name: str | None, found: str) -> None:
    """Claude's own, an operator's, and none at all, which is the first."""
    assert Offer(TWO, {"gpt-4o": "claude-opus-5-5-latest"}).model(name).id == found


@pytest.mark.parametrize("name", ["claude-sonnet-5-5", "gpt-4o", "gpt-5", ""])
def test_what_anthropic_does_not_list_cannot_be_asked(name: str) -> None:
    """Not by its own name and not by an operator's: the model would refuse it later, when the turn is accepted."""
    with pytest.raises(Refused) as refused:
        Offer(TWO, {"gpt-4o": "claude-sonnet-5-5"}).model(name)
    assert refused.value.code == "model_unknown"
    assert refused.value.message == (
        f"unknown model `{name}`; choose one of claude-haiku-5-5, claude-opus-5-5; "
        "the operator can define aliases with TAILRACE_MODEL_ALIASES"
    )


@pytest.mark.parametrize("name", models())
def test_while_nobody_has_said_every_model_of_the_file_can_be_asked(name: str) -> None:
    assert Offer().model(name) == models()[name]


def test_a_refusal_quotes_no_more_of_a_name_than_a_name_has() -> None:
    """It is a client's word, and may be as long as its body."""
    with pytest.raises(Refused) as refused:
        Offer(TWO).model("x" * 1_000_000, "model_not_found")
    assert (refused.value.code, refused.value.message.count("x")) == ("model_not_found", 64)
