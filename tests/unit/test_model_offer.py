"""Which models a gateway offers, and how it resolves their names."""

import msgspec
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
        ("opus", "claude-opus-5-5"),
        ("claude-haiku-latest", "claude-haiku-5-5"),
        ("claude-tomorrow-1", "claude-tomorrow-1"),
        (None, "claude-haiku-5-5"),
        ("", "claude-haiku-5-5"),
    ],
)
def test_listed_model_is_found_by_any_of_its_names(name: str | None, found: str) -> None:
    """Claude's names, the operator's aliases, the name of a line, none for the default; what looks like Claude's."""
    assert Offer(TWO, {"gpt-4o": "claude-opus-5-5-latest"}).model(name).id == found


@pytest.mark.parametrize("name", ["claude-sonnet-5-5", "gpt-4o", "gpt-5", "claude-3-opus-latest", "fable", "claude-X"])
def test_unlisted_model_is_refused(name: str) -> None:
    """By its own name and by an alias: the API would refuse it later."""
    with pytest.raises(Refused) as refused:
        Offer(TWO, {"gpt-4o": "claude-sonnet-5-5"}).model(name)
    assert refused.value.code == "model_not_found"
    assert refused.value.message == (
        f"unknown model `{name}`; choose one of claude-haiku-5-5, claude-opus-5-5; "
        "the operator can define aliases with TAILRACE_MODEL_ALIASES, and models with TAILRACE_MODELS_FILE"
    )


@pytest.mark.parametrize("name", models())
def test_without_a_list_every_model_of_the_data_file_is_offered(name: str) -> None:
    assert Offer().model(name) == models()[name]


@pytest.mark.parametrize("name", ["claude-sonnet-4-5-20250929", "snapshot"])
def test_a_dated_name_is_kept(name: str) -> None:
    """Also as the target of an operator's alias. The rest of the model is that of the table."""
    found = Offer(aliases={"snapshot": "claude-sonnet-4-5-20250929"}).model(name)
    assert found.id == "claude-sonnet-4-5-20250929"
    assert msgspec.structs.replace(found, id="claude-sonnet-4-5") == models()["claude-sonnet-4-5"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("claude-sonnet-4-5-latest", "claude-sonnet-4-5"),
        ("claude-opus-4-20250514", "claude-opus-4-8"),
        ("claude-opus-4-6-20260205", "claude-opus-4-6"),
    ],
)
def test_a_name_that_the_api_does_not_know_is_replaced(name: str, found: str) -> None:
    """An alias without a date, and a retired model."""
    assert Offer().model(name).id == found


def test_error_message_truncates_the_name() -> None:
    """A client's name may be as long as the body."""
    with pytest.raises(Refused) as refused:
        Offer(TWO).model("x" * 1_000_000)
    assert refused.value.message.count("x") == 64
