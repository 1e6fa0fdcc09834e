"""The version of Anthropic's API for requests whose client names none."""

from typing import Any

import pytest

from tailrace.features.vertex.backend import Vertex
from tailrace.gateway.models.offer import Offer
from tailrace.gateway.turns.api_version import WITH_SAMPLING, choose_version
from tailrace.gateway.turns.conversation_match import Position
from tailrace.gateway.turns.request_body import NewTurn, build_entry, new_messages
from tailrace.generators.backends import Call
from tailrace.proto.entries import Message
from tailrace.proto.ids import SessionId
from tailrace.proto.models import Model, Supports, models

HELLO = [Message("user", "hello")]
CITED = {"type": "text", "text": "a", "citations": [{"type": "char_location"}]}
DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a"}}


def model(*, sampling: bool | None) -> Model:
    return Model(id="m", supports=Supports(sampling=sampling))


@pytest.mark.rule("R131")
@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k"])
@pytest.mark.parametrize("sampling", [True, None])
def test_sampling_is_sent_with_the_version_that_has_it(name: str, sampling: bool | None) -> None:
    """Also to a model that the table does not know: the default version always refuses these fields."""
    options = {name: 1, "thinking": {"type": "adaptive"}}
    assert choose_version(options, HELLO, model(sampling=sampling), None) == (options, WITH_SAMPLING)


@pytest.mark.rule("R131")
@pytest.mark.parametrize(
    ("options", "left"), [({"temperature": 1, "top_k": 2}, None), ({"a": 1, "top_p": 1}, {"a": 1})]
)
def test_sampling_is_removed_for_a_model_that_refuses_it(options: dict[str, Any], left: dict[str, Any] | None) -> None:
    assert choose_version(options, HELLO, model(sampling=False), None) == (left, None)


@pytest.mark.rule("R131")
@pytest.mark.parametrize("version", ["2023-06-01", "2026-10-21"])
@pytest.mark.parametrize("sampling", [True, False, None])
def test_what_the_client_names_is_not_changed(version: str, sampling: bool | None) -> None:
    options = {"temperature": 1}
    assert choose_version(options, HELLO, model(sampling=sampling), version) == (options, version)


@pytest.mark.rule("R131")
@pytest.mark.parametrize(
    ("message", "version"),
    [
        (Message("assistant", [{"type": "text", "text": "a"}, DOCUMENT]), WITH_SAMPLING),
        (Message("user", [DOCUMENT]), None),
        (Message("user", [CITED]), WITH_SAMPLING),
        (Message("user", [{"type": "search_result", "content": [CITED]}]), WITH_SAMPLING),
        (Message("user", [{**CITED, "citations": []}]), None),
        (Message("assistant", [CITED]), None),
        (Message("assistant", "a"), None),
    ],
)
def test_messages_that_the_default_version_refuses_have_the_one_before(message: Message, version: str | None) -> None:
    """Source: platform.claude.com/docs/en/api/versioning, "2026-10-21"."""
    assert choose_version(None, [*HELLO, message], model(sampling=False), None) == (None, version)


@pytest.mark.rule("R131")
@pytest.mark.parametrize("found", models().values(), ids=lambda found: found.id)
def test_the_entry_of_each_model_has_the_version_and_the_options(found: Model) -> None:
    """The generator, a batch and every backend read them there."""
    turn = NewTurn(message="hi", model=found.id, options={"temperature": 0.5, "stop_sequences": ["x"]})
    entry = build_entry(turn, Position(session=SessionId("s"), new=new_messages(turn)), 10, Offer(), pseudonym=str)
    takes = found.supports.sampling is not False
    assert entry.api_version == (WITH_SAMPLING if takes else None)
    assert entry.options == {"stop_sequences": ["x"]} | ({"temperature": 0.5} if takes else {})


@pytest.mark.rule("R131")
@pytest.mark.parametrize(
    ("version", "sent"), [(None, "2026-10-21"), (WITH_SAMPLING, "vertex-2023-10-16"), ("2026-10-21", "2026-10-21")]
)
async def test_vertex_has_the_version_in_the_body(
    version: str | None, sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under Vertex's own name."""
    monkeypatch.setenv("CLOUD_ML_REGION", "europe-west1")
    monkeypatch.setenv("ANTHROPIC_VERTEX_PROJECT_ID", "project")
    vertex = Vertex(1, 1)
    call = Call(model="m", max_tokens=1, messages=HELLO, api_version=version)
    _, (body,) = await vertex.build_request(call)
    await vertex.close()
    assert f'"anthropic_version":"{sent}"'.encode() in body
