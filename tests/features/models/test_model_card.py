"""The bodies of the model routes: Anthropic's list takes precedence over the data file; pages are complete."""

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.features.models.card import ModelPage, build_card, build_page, build_sheet
from tailrace.gateway.models.capabilities import update_supports
from tailrace.gateway.models.catalogue import index_by_id
from tailrace.gateway.models.offer import Offer
from tailrace.proto.errors import Refused
from tailrace.proto.model_records import ListedModel
from tailrace.proto.models import Supports, models

CARDS = [build_card(model, None) for model in Offer().models]
IDS = [one.id for one in CARDS]
SONNET = models()["claude-sonnet-4-5"]


def capabilities(**fields: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(fields))


def ids(found: ModelPage) -> list[str]:
    return [one.id for one in found.data]


@given(limit=st.integers(1, len(IDS) + 1))
def test_pages_are_the_list(limit: int) -> None:
    """Forwards by last_id and backwards by first_id: every model once, in order."""
    forwards = [build_page(CARDS, after_id=None, before_id=None, limit=limit)]
    while forwards[-1].has_more:
        forwards.append(build_page(CARDS, after_id=forwards[-1].last_id, before_id=None, limit=limit))
    assert [name for found in forwards for name in ids(found)] == IDS
    backwards: list[str] = []
    cursor: str | None = IDS[-1]
    while cursor is not None:
        found = build_page(CARDS, after_id=None, before_id=cursor, limit=limit)
        assert (found.first_id, found.last_id) == ((ids(found)[0], ids(found)[-1]) if found.data else (None, None))
        backwards = ids(found) + backwards
        cursor = found.first_id if found.has_more else None
    assert backwards == IDS[:-1]


@pytest.mark.parametrize(
    ("after_id", "before_id"),
    [("claude-unheard-of", None), (None, "claude-sonnet-5-5-latest"), ("", None), (IDS[0], IDS[1])],
)
def test_unknown_or_double_cursor_is_refused(after_id: str | None, before_id: str | None) -> None:
    """Otherwise a wrong page would look like the right one."""
    with pytest.raises(Refused) as refused:
        build_page(CARDS, after_id=after_id, before_id=before_id, limit=5)
    assert refused.value.code == "request_invalid"


def test_anthropics_list_selects_models_of_the_data_file() -> None:
    """By any of their names, in the order of the data file; then models that only Anthropic knows, with its limits."""
    unheard = ListedModel(
        id="claude-unheard-of", max_tokens=1_000, capabilities=capabilities(pdf_input={"supported": True})
    )
    listed = index_by_id([unheard, *(ListedModel(id=name) for name in ("claude-sonnet-4-5-20250929", IDS[0]))])
    found = Offer(listed).models
    assert [model.id for model in found] == [IDS[0], "claude-sonnet-4-5", "claude-unheard-of"]
    assert msgspec.to_builtins(build_sheet(found[-1], listed)) == {
        "id": "claude-unheard-of",
        "display_name": "claude-unheard-of",
        "aliases": (),
        "lifecycle": "active",
        "limits": {"output_tokens": 1_000},
        "supports": {"pdf": True},
    }


@pytest.mark.parametrize("names", [[], ["gpt-4o", "claude-unheard-of"]])
def test_list_without_known_models_excludes_none(names: list[str]) -> None:
    """Something else than Anthropic's API has answered: the data file is used, and what is listed."""
    listed = index_by_id([ListedModel(id=name) for name in names])
    assert [model.id for model in Offer(listed).models] == [*models(), *names]


def test_anthropics_values_take_precedence_over_the_data_file() -> None:
    """Limits, date and capabilities; name and prices are from the file."""
    flags = capabilities(pdf_input={"supported": False})
    offered = ListedModel(
        id="claude-sonnet-4-5-20250929",
        created_at=datetime(2025, 9, 30, tzinfo=UTC),
        max_input_tokens=1_000_000,
        max_tokens=1_000,
        capabilities=flags,
    )
    listed = index_by_id([offered])
    shown, sheeted = build_card(SONNET, listed), build_sheet(SONNET, listed)
    assert (shown.created_at, shown.created) == (offered.created_at, 1_759_190_400)
    assert (shown.max_input_tokens, shown.max_tokens, shown.capabilities) == (1_000_000, 1_000, flags)
    assert (sheeted.limits.context_tokens, sheeted.limits.output_tokens) == (1_000_000, 1_000)
    assert sheeted.supports == msgspec.structs.replace(SONNET.supports, pdf=False)
    assert sheeted.usd_per_million_tokens == build_sheet(SONNET, None).usd_per_million_tokens


def test_capabilities_update_only_what_they_contain() -> None:
    """Absent and unknown capabilities change nothing."""
    known_before = Supports(vision=True, tools=True, prefill=True, effort=("low",))
    listed = capabilities(
        image_input={"supported": False},
        structured_outputs={"supported": True},
        thinking={"supported": True, "types": {"adaptive": {"supported": True}, "enabled": {"supported": False}}},
        effort={"supported": True, "low": {"supported": True}, "max": {"supported": True}},
        telepathy={"supported": True},
    )
    assert update_supports(known_before, listed) == Supports(
        vision=False, tools=True, prefill=True, structured_outputs=True, thinking=("adaptive",), effort=("low", "max")
    )


@pytest.mark.parametrize("listed", [b"null", b"{}", b"[]", b'{"image_input": true}', b"{"])
def test_invalid_capabilities_are_ignored(listed: bytes) -> None:
    """A changed format must not turn the model list into an error."""
    assert update_supports(Supports(vision=True), listed) == Supports(vision=True)


def test_unknown_release_date_is_the_epoch() -> None:
    """Anthropic's SDK requires a date, and its API uses the epoch."""
    assert build_card(models()["claude-fable-5-2"], None).created_at == datetime(1970, 1, 1, tzinfo=UTC)
