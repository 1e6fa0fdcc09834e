"""Copies all streams, with their sequences and consumers, from one NATS server to another by snapshot and restore.

Nothing may write to either server meanwhile. The protocol is ADR-22 of nats-architecture-and-design.
"""

from typing import Any

import msgspec
import nats.errors

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.stream_configs import BODIES_SHARE, EVERY_STREAM
from tailrace.proto.subjects import BODIES

CHUNK_BYTES = 128 * 1024
ASK_TIMEOUT_S = 10.0
STEP_TIMEOUT_S = 30.0
NO_MORE = "204"


async def copy_streams(source: Connection, target: Connection, *, replicas: int, bytes_max: int | None) -> None:
    """Copies every stream of Tailrace with `replicas` copies and byte limits as for a log of `bytes_max`; None: as they
    are.

    `target` must be empty. Raises LogUnavailable: the target is then incomplete, and may look complete (an interrupted
    restore leaves an empty stream), so that a retry needs a new target.
    """
    for name in EVERY_STREAM:
        try:
            share = BODIES_SHARE if name == BODIES else 1.0
            await _copy(source, target, name, replicas, None if bytes_max is None else int(share * bytes_max))
        except nats.errors.Error as error:
            raise LogUnavailable(f"{name} cannot be copied: {type(error).__name__}") from error


async def _copy(source: Connection, target: Connection, name: str, replicas: int, bytes_max: int | None) -> None:
    inbox = source.client.new_inbox()
    chunks = await source.client.subscribe(inbox)
    snapshot = await _ask(
        source, f"$JS.API.STREAM.SNAPSHOT.{name}", {"deliver_subject": inbox, "chunk_size": CHUNK_BYTES}
    )
    config = snapshot["config"] | {"num_replicas": replicas}
    if bytes_max is not None and config.get("max_bytes", -1) > 0:
        config["max_bytes"] = min(config["max_bytes"], bytes_max)
    restore = {"config": config, "state": snapshot["state"]}
    accepted = await _ask(target, f"$JS.API.STREAM.RESTORE.{name}", restore)
    # nats-server 2.15 may answer with another type on a full disk.
    if (to := accepted.get("deliver_subject")) is None:
        raise LogUnavailable(f"the server does not accept the copy of {name}: {accepted.get('type')}")
    while (chunk := await chunks.next_msg(timeout=STEP_TIMEOUT_S)).data:
        _require_success(await target.request(to, chunk.data, timeout_s=STEP_TIMEOUT_S))
        if chunk.reply:
            await source.publish(chunk.reply, b"")
    # The last message has a status that tells whether the snapshot is complete.
    if chunk.headers and chunk.headers.get("Status") != NO_MORE:
        raise LogUnavailable(f"the snapshot of {name} is incomplete: {chunk.headers}")
    held = _require_success(await target.request(to, b"", timeout_s=STEP_TIMEOUT_S))["state"]
    # The number of messages may differ: messages expire meanwhile, on one server earlier than on the other.
    if held["last_seq"] != snapshot["state"]["last_seq"]:
        raise LogUnavailable(f"the copy of {name} is incomplete: it ends at {held['last_seq']}")
    await chunks.unsubscribe()


async def _ask(connection: Connection, subject: str, query: dict[str, Any]) -> dict[str, Any]:
    return _require_success(await connection.request(subject, msgspec.json.encode(query), timeout_s=ASK_TIMEOUT_S))


def _require_success(reply: Any) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode(reply.data) if reply.data else {}
    if (error := answer.get("error")) is not None:
        raise LogUnavailable(f"the server refuses the copy: {error.get('description')}")
    return answer
