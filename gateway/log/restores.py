"""The list of restores of the log, in the bucket SECRETS, from which nothing expires."""

import msgspec

from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.kv import Bucket
from tailrace.proto.restores import Restore
from tailrace.proto.subjects import SECRETS

NAME = "restores"
_decoder = msgspec.json.Decoder(list[Restore])


async def read_restores(connection: Connection) -> list[Restore]:
    """Returns the restores of the log, oldest first. Raises LogUnavailable."""
    found = await bucket(connection).get(NAME)
    return [] if found is None else _decoder.decode(found.data)


def bucket(connection: Connection) -> Bucket:
    """Returns the bucket with the list."""
    return Bucket(connection, SECRETS, "the list of restores")
