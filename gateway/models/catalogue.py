"""Which of the models that we know can be asked, as Anthropic lists them; asked through a generator, and kept a while.

The gateway has no key. Without anybody who has one, the data file alone says what there is.
"""

import asyncio
from collections.abc import Mapping

import msgspec
import structlog

from tailrace.gateway.models.offer import Listed, Offer
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import TailraceError
from tailrace.proto.ids import Tenant
from tailrace.proto.model_records import MODELS, ListedModel, ListedModels
from tailrace.proto.models import find_model
from tailrace.proto.nats import Rpc
from tailrace.proto.subjects import GENERATORS

logger = structlog.get_logger()

KEPT_S = 300.0
# While no generator is there, and nobody who could say.
ASKED_AGAIN_S = 5.0


class Catalogue:
    def __init__(self, services: Rpc, group: asyncio.TaskGroup, timeout_s: float, aliases: Mapping[str, str]) -> None:
        self._services = services
        self._group = group
        self._timeout_s = timeout_s
        self._offer = Offer(aliases=aliases)
        self._asking: asyncio.Task[None] | None = None
        self._has_asked = False
        self._until = 0.0

    async def offer(self, tenant: Tenant) -> Offer:
        """What can be asked. It is the same for all tenants.

        Only the first wait until a generator has been asked; after that nobody does, for every question comes by here.
        """
        is_old = asyncio.get_running_loop().time() >= self._until
        if is_old and (self._asking is None or self._asking.done()):
            self._asking = self._group.create_task(self._ask(tenant))
        if self._asking is not None and not self._has_asked:
            await asyncio.shield(self._asking)
        return self._offer

    def close(self) -> None:
        """Asks no more."""
        if self._asking is not None:
            self._asking.cancel()

    async def _ask(self, tenant: Tenant) -> None:
        listed = await self._listed(tenant)
        self._offer = self._offer._replace(listed=listed)
        self._has_asked = True
        self._until = asyncio.get_running_loop().time() + (ASKED_AGAIN_S if listed is None else KEPT_S)

    async def _listed(self, tenant: Tenant) -> Listed | None:
        """None when nobody can say."""
        try:
            reply = await self._services.request(tenant, MODELS, b"", timeout_s=self._timeout_s, role=GENERATORS)
            return known(msgspec.json.decode(reply, type=ListedModels).data)
        except (TailraceError, *DECODE_ERRORS) as error:
            logger.info("models come from the data file alone", error=str(error))
            return None


def known(listed: list[ListedModel]) -> Listed | None:
    """Those that can be asked here: a model without a row in the data file would be refused.

    None when there is not one: then it was not Anthropic's API that listed them.
    """
    found = {model.id: one for one in listed if (model := find_model(one.id)) is not None}
    return found or None
