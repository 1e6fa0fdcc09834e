"""A stream with all that it holds, sequences and consumers too, from one NATS to another: a snapshot that is restored.

Nothing may write to either meanwhile. ADR-22 of nats-architecture-and-design has no more than what is used here.
"""

from typing import Any

import msgspec
import nats.errors

from proto.errors import LogUnavailable
from proto.log.connection import Connection
from proto.log.streams import BODIES_SHARE, EVERY_STREAM
from proto.subjects import BODIES

CHUNK_BYTES = 128 * 1024
# A question that nobody answers, since nobody leads yet, is asked again.
ASK_TIMEOUT_S = 3.0
STEP_TIMEOUT_S = 30.0


async def copy(source: Connection, target: Connection, *, replicas: int, bytes_max: int) -> None:
    """Every stream of ours, each `replicas` times and with at most as many bytes as one of `bytes_max` would have.

    What is there was copied before, and is left. Raises LogUnavailable, also while servers have not found each other:
    then it is to be called again.
    """
    try:
        there = {info.config.name for info in await target.jetstream.streams_info()}
    except nats.errors.Error as error:
        raise LogUnavailable(f"nobody takes a copy: {type(error).__name__}") from error
    for name in EVERY_STREAM:
        if name in there:
            continue
        try:
            await _copy(source, target, name, replicas, int(BODIES_SHARE * bytes_max) if name == BODIES else bytes_max)
            last = [(await end.jetstream.stream_info(name)).state.last_seq for end in (source, target)]
        except nats.errors.Error as error:
            raise LogUnavailable(f"{name} cannot be copied: {type(error).__name__}") from error
        if last[0] != last[1]:
            raise LogUnavailable(f"{name} was copied up to {last[1]}, and goes to {last[0]}")


async def _copy(source: Connection, target: Connection, name: str, replicas: int, bytes_max: int) -> None:
    inbox = source.client.new_inbox()
    chunks = await source.client.subscribe(inbox)
    snapshot = await _ask(
        source, f"$JS.API.STREAM.SNAPSHOT.{name}", {"deliver_subject": inbox, "chunk_size": CHUNK_BYTES}
    )
    config = snapshot["config"] | {"num_replicas": replicas}
    if config.get("max_bytes", -1) > 0:
        config["max_bytes"] = min(config["max_bytes"], bytes_max)
    restore = {"config": config, "state": snapshot["state"]}
    to = (await _ask(target, f"$JS.API.STREAM.RESTORE.{name}", restore))["deliver_subject"]
    while (chunk := await chunks.next_msg(timeout=STEP_TIMEOUT_S)).data:
        _checked(await target.request(to, chunk.data, timeout_s=STEP_TIMEOUT_S))
        if chunk.reply:
            await source.publish(chunk.reply, b"")
    _checked(await target.request(to, b"", timeout_s=STEP_TIMEOUT_S))
    await chunks.unsubscribe()


async def _ask(connection: Connection, subject: str, question: dict[str, Any]) -> dict[str, Any]:
    return _checked(await connection.request(subject, msgspec.json.encode(question), timeout_s=ASK_TIMEOUT_S))


def _checked(reply: Any) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode(reply.data) if reply.data else {}
    if (error := answer.get("error")) is not None:
        raise LogUnavailable(f"the server refuses a copy: {error.get('description')}")
    return answer
