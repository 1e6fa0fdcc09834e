"""The cache of the models that Anthropic lists, on virtual time."""

import asyncio
from typing import Any

import msgspec

from tailrace.gateway.models.catalogue import CACHED_S, KEPT_S, RETRY_S, Catalogue
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.model_records import ListedModel, ListedModels
from tests.harness.virtual_time import run

HAIKU = msgspec.json.encode(ListedModels([ListedModel(id="claude-haiku-5-5")]))
OPUS = msgspec.json.encode(ListedModels([ListedModel(id="claude-opus-5-5")]))


class Generators:
    """The RPC to the generators. With `answer` None, no generator runs."""

    answer: bytes | None = None

    async def request(self, *_: object, **__: object) -> bytes:
        if self.answer is None:
            raise Refused("generators_unavailable", "no generator is available at the moment: retry")
        return self.answer


def test_the_list_outlives_an_outage_of_the_generators() -> None:
    """Otherwise a turn without a model would get one that the operator's key does not have."""
    table, haiku, opus = "claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-5-5"
    steps = [
        (0.0, None, table),
        (RETRY_S, HAIKU, haiku),
        (CACHED_S, None, haiku),
        (RETRY_S, OPUS, opus),
        (KEPT_S - 1, None, opus),
        (RETRY_S, None, table),
    ]

    async def default_models() -> list[str]:
        generators: Any = Generators()
        found = []
        async with asyncio.TaskGroup() as group:
            catalogue = Catalogue(generators, group, 1.0, {})
            for after_s, answer, _ in steps:
                await asyncio.sleep(after_s)
                generators.answer = answer
                await catalogue.offer(Tenant("acme"))
                # The list is requested in the background.
                await asyncio.sleep(0)
                found.append((await catalogue.offer(Tenant("acme"))).model(None).id)
        return found

    assert run(default_models()) == [expected for _, _, expected in steps]
