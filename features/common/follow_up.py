"""The settings of a turn that follows a stored one and has the same: model, tools, system prompt, limits and labels."""

from typing import Any

import msgspec

from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto import blobs, long_strings
from tailrace.proto.entries import OF_ONE_TURN, Request
from tailrace.proto.errors import BlobUnknown, Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import BlobStore
from tailrace.proto.usage import NANO_USD_PER_USD
from tailrace.protocols.common.stored_messages import StoredMessages

EXPIRED = "the system prompt or the tools of the turn have expired: continue with POST /v1/turns"
# The fields that a request and a NewTurn have in common, except those of the position in the conversation.
SAME = sorted({*NewTurn.__struct_fields__}.intersection(Request.__struct_fields__).difference(OF_ONE_TURN))


async def settings_of(blob_store: BlobStore, tenant: Tenant, request: Request) -> dict[str, Any]:
    """Returns fields of a NewTurn, with the blobs' texts. Raises Refused if a blob has expired, LogUnavailable."""
    prompt = StoredMessages([], request.system, request.tools)
    try:
        texts = {
            blob.sha256: await long_strings.decode_text(await blob_store.read(tenant, blob))
            for blob in set(blobs.references(prompt))
        }
    except BlobUnknown as error:
        raise Refused("blob_expired", EXPIRED) from error
    whole = blobs.resolve(prompt, texts) if texts else prompt
    request = msgspec.structs.replace(request, system=whole.system, tools=whole.tools)
    cost = request.max_cost_nano_usd
    return {name: getattr(request, name) for name in SAME} | {
        "max_cost": None if cost is None else cost / NANO_USD_PER_USD
    }
