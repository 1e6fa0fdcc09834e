"""Stores the strings of a request that are too long for the log, before the request that refers to them."""

import asyncio

from tailrace.gateway.dependencies import Gateway
from tailrace.gateway.http.read_body import VALUES_MAX, values_in
from tailrace.gateway.limits.limiter import Admission
from tailrace.proto import blobs, entries
from tailrace.proto.errors import BlobUnknown, Refused
from tailrace.proto.subjects import TurnKey

EXPIRED = (
    "a picture, document or long text of this conversation has expired: "
    "send it again in a new session, or continue from a turn before it (`parent`)"
)
TOO_LARGE = (
    "the conversation has more than {most} bytes of pictures, documents and long texts: "
    "start a new session, or continue from an earlier turn (`parent`)"
)
TOO_MANY = (
    "the conversation has more than {most} JSON values: start a new session, or continue from an earlier `parent`"
)


async def store(gateway: Gateway, key: TurnKey, request: entries.Request, admission: Admission) -> entries.Request:
    """Returns `request` with references to its long strings, which are stored, and renews blobs of the session.

    All of them are pinned until the turn is stored (proto/nats/blob_pins.py). Raises Refused when one has expired, or
    all together are larger than a body may be; LogFull, LogUnavailable.
    """
    # In a thread: to hash 30 MB takes 15 ms, in which the loop would serve no stream.
    entry, lifted = await asyncio.to_thread(_lift, request)
    found, most = blobs.references(entry), gateway.settings.body_bytes_max
    if sum(blob.bytes for blob in found) > most:
        raise Refused("body_too_large", TOO_LARGE.format(most=most))
    if lifted:
        await admission.count_stored_bytes(sum(map(len, lifted.values())))
    await gateway.blob_pins.pin(key.tenant, key.turn, {blob.sha256 for blob in found})
    await gateway.blobs.put(key.tenant, lifted)
    try:
        await gateway.blobs.renew(key.tenant, {blob for blob in found if blob.sha256 not in lifted})
    except BlobUnknown as error:
        raise Refused("blob_expired", EXPIRED) from error
    return entry


def _lift(request: entries.Request) -> tuple[entries.Request, dict[str, bytes]]:
    entry, lifted = blobs.lift(request)
    if values_in(entries.encode(entry)) > VALUES_MAX:
        raise Refused("body_too_large", TOO_MANY.format(most=VALUES_MAX))
    return entry, lifted
