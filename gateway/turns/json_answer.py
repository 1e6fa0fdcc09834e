"""The response without a stream: one JSON body, sent when the turn has ended."""

from collections.abc import Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tailrace.gateway.auth.authenticate import credential_invalid
from tailrace.gateway.streaming.fanout import TurnFeed
from tailrace.gateway.streaming.response import Interruptions, StreamedResponse
from tailrace.gateway.streaming.stream_access import StreamAccess
from tailrace.proto.errors import CODES, LogUnavailable, Refused
from tailrace.proto.fold import fold
from tailrace.proto.ids import BEFORE_FIRST
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.subjects import TurnKey

NOT_COMPLETE = (
    "the answer is not complete yet and continues: GET /v1/turns/{turn}, or repeat the request with the same key"
)


class JsonAnswer(StreamedResponse):
    """Waits for the turn's end. A turn that failed or was cancelled raises Refused, with its code."""

    def __init__(
        self,
        access: StreamAccess,
        key: TurnKey,
        render: Callable[[TurnRecord], bytes],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__({"cache-control": "no-store", "tailrace-turn": key.turn, **headers})
        self._access = access
        self._key = key
        self._render = render

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = await self._wait(receive)
        if record is None:
            self._access.report_disconnect(self._key, 0.0)
            return
        require_completed(record)
        await Response(self._render(record), 200, self._headers, "application/json")(scope, receive, send)

    async def _wait(self, receive: Receive) -> TurnRecord | None:
        """Returns the turn's record after its end; None if the client disconnected first. Raises Refused, LogError."""
        streams = self._access.streams
        async with streams.fan_out.subscribe(self._key, BEFORE_FIRST) as feed:
            with self._access.watch() as expired:
                async with Interruptions(receive, streams.draining, expired) as interruptions:
                    ending = await interruptions.run(_wait_until_ended(feed))
            if feed.is_ended:
                return record_from_fold(self._key, fold(feed.entries))
            match ending.cause:
                case "disconnected":
                    return None
                case "expired":
                    raise credential_invalid()
                case "draining":
                    raise Refused("draining", NOT_COMPLETE.format(turn=self._key.turn), retry_after_s=1)
                case _:
                    raise LogUnavailable(NOT_COMPLETE.format(turn=self._key.turn))


async def _wait_until_ended(feed: TurnFeed) -> None:
    """Returns when no more entries will come."""
    while not (feed.is_ended or feed.is_broken):
        await feed.wait_for_change(len(feed.entries))


def require_completed(record: TurnRecord) -> None:
    """Raises Refused with the reason why the answer is not complete."""
    match record.outcome:
        case "completed":
            return
        case "failed" if record.error is not None and record.error.code in CODES:
            raise Refused(record.error.code, record.error.message, retry_after_s=record.error.retry_after_s)
        case "cancelled":
            raise Refused(
                "turn_cancelled",
                f"turn {record.turn} was cancelled: GET /v1/turns/{record.turn} has the answer so far",
            )
        case _:
            raise Refused(
                "internal", f"turn {record.turn} has an incomplete answer: GET /v1/turns/{record.turn} has its text"
            )
