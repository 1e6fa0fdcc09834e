"""find_turn: the full name of a turn in the log, from its id."""

import nats.errors
import nats.js.errors

from tailrace.proto import subjects
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import TurnId
from tailrace.proto.nats.connection import Connection
from tailrace.proto.subjects import STREAM, TurnKey


async def find_turn(connection: Connection, turn: TurnId) -> TurnKey | None:
    """Returns the turn with the id `turn`, of any tenant; None if the log has none. Raises LogUnavailable."""
    try:
        info = await connection.jetstream.stream_info(STREAM, subjects_filter=subjects.requests(turn))
    except nats.errors.Error as error:
        raise LogUnavailable(f"the stream {STREAM} does not answer: {type(error).__name__}") from error
    return next((subjects.parse(subject)[0] for subject in info.state.subjects or {}), None)
