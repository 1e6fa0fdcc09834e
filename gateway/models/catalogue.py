"""The cached list of models that Anthropic offers for the operator's key, requested from a generator.

The gateway has no API key. If no generator has listed the models for an hour, all models of the table are offered.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

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

CACHED_S = 300.0
# The time until the next request if no generator has answered.
RETRY_S = 5.0
# The list outlives an outage of the generators or of Anthropic's API. Then another backend may have replaced them.
KEPT_S = 3600.0


class Catalogue:
    """A cache of the offered models, refreshed in the background by tasks in `group`."""

    def __init__(self, services: Rpc, group: asyncio.TaskGroup, timeout_s: float, aliases: Mapping[str, str]) -> None:
        self._services = services
        self._group = group
        self._timeout_s = timeout_s
        self._offer = Offer(aliases=aliases)
        self._request: asyncio.Task[None] | None = None
        self._is_loaded = False
        self._listed_at = self._fresh_until = 0.0

    async def offer(self, tenant: Tenant) -> Offer:
        """Returns the offered models, which are the same for all tenants.

        Waits only for the first answer of a generator: every new turn calls this.
        """
        is_old = asyncio.get_running_loop().time() >= self._fresh_until
        if is_old and (self._request is None or self._request.done()):
            self._request = self._group.create_task(self._load(tenant))
        if self._request is not None and not self._is_loaded:
            await asyncio.shield(self._request)
        return self._offer

    def close(self) -> None:
        """Cancels a running request."""
        if self._request is not None:
            self._request.cancel()

    async def _load(self, tenant: Tenant) -> None:
        found, now = await self._request_list(tenant), asyncio.get_running_loop().time()
        if found is not None:
            self._offer = replace(self._offer, listed=index_by_id(found.data), is_simulated=found.is_simulated)
            self._listed_at = now
        elif now - self._listed_at >= KEPT_S:
            self._offer = replace(self._offer, listed=None, is_simulated=False)
        self._is_loaded = True
        self._fresh_until = now + (RETRY_S if found is None else CACHED_S)

    async def _request_list(self, tenant: Tenant) -> ListedModels | None:
        """Returns None if no generator answers."""
        try:
            reply = await self._services.request(tenant, MODELS, b"", timeout_s=self._timeout_s, role=GENERATORS)
            return msgspec.json.decode(reply, type=ListedModels)
        except (TailraceError, *DECODE_ERRORS) as error:
            logger.info("no generator listed the models", error=str(error))
            return None


def index_by_id(listed: list[ListedModel]) -> Listed:
    """Returns the listed models by the ids of the table, or by their own ids if the table does not have them."""
    return {model.id if (model := find_model(one.id)) is not None else one.id: one for one in listed}
