"""What is too long for the log: stored before the request that refers to it. It reads none of it back."""

import asyncio

from tailrace.gateway.dependencies import Gateway
from tailrace.gateway.limits.limiter import Admission
from tailrace.gateway.turns.read_body import VALUES_MAX, values_in
from tailrace.proto import blobs, entries
from tailrace.proto.errors import BlobUnknown, Refused
from tailrace.proto.subjects import TurnKey

EXPIRED = (
    "a picture, document or long text of this conversation has expired: "
    "send it again in a new session, or go on from a turn before it (`parent`)"
)
TOO_LARGE = (
    "the conversation has more than {most} bytes of pictures, documents and long texts: "
    "begin a new session, or go on from an earlier turn (`parent`)"
)
TOO_MANY = (
    "the conversation has more than {most} JSON values: begin a new session, or go on from an earlier turn (`parent`)"
)


async def check_in(gateway: Gateway, key: TurnKey, request: entries.Request, admission: Admission) -> entries.Request:
    """`request` with references for what is long, all of it stored, and what the session refers to kept alive.

    All of it is held for the turn, until that is asked (proto/nats/blob_pins.py). Raises Refused when one has expired,
    or the whole is more than one body may bring; LogFull, LogUnavailable.
    """
    # Elsewhere: to hash 30 MB takes 15 ms, for which every stream would stand still.
    entry, lifted = await asyncio.to_thread(_lifted, request)
    found, most = blobs.references(entry), gateway.settings.body_bytes_max
    if sum(blob.bytes for blob in found) > most:
        raise Refused("body_too_large", TOO_LARGE.format(most=most))
    if lifted:
        await admission.count_stored_bytes(sum(map(len, lifted.values())))
    await gateway.holds.pin(key.tenant, key.turn, {blob.sha256 for blob in found})
    await gateway.bodies.put(key.tenant, lifted)
    try:
        await gateway.bodies.renew(key.tenant, {blob for blob in found if blob.sha256 not in lifted})
    except BlobUnknown as error:
        raise Refused("blob_expired", EXPIRED) from error
    return entry


def _lifted(request: entries.Request) -> tuple[entries.Request, dict[str, bytes]]:
    entry, lifted = blobs.lift(request)
    if values_in(entries.encode(entry)) > VALUES_MAX:
        raise Refused("body_too_large", TOO_MANY.format(most=VALUES_MAX))
    return entry, lifted
