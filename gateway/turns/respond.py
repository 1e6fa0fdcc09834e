"""Submits a turn, and responds to the same request with the turn's stream, or with one JSON body at its end."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial

from starlette.types import Receive, Scope, Send

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.authenticate import credential_invalid
from tailrace.gateway.http.deferred_response import StreamedResponse
from tailrace.gateway.http.media_type import accept_header
from tailrace.gateway.streaming.dialect import Dialect, select_variant
from tailrace.gateway.streaming.endings import BROKEN, DRAINED, EXPIRED, StreamEnding
from tailrace.gateway.streaming.feed import TurnFeed
from tailrace.gateway.streaming.reader import Reader, StreamContext
from tailrace.gateway.streaming.response import EventStream, refusal_of, serve
from tailrace.gateway.turns.draft import Stored, TurnDraft, draft_turn
from tailrace.gateway.turns.idempotency_key import is_chosen, turn_cancelled
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.gateway.turns.submit import TurnSubmitter
from tailrace.proto.errors import LogUnavailable, Refused
from tailrace.proto.fold import fold
from tailrace.proto.ids import BEFORE_FIRST, TurnId
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import TurnRecord, record_from_fold

NOT_COMPLETE = (
    "the answer is not complete yet and continues: GET /v1/turns/{turn}, or repeat the request if it had an "
    "Idempotency-Key"
)


class Responder:
    """Answers POSTs that start a turn, for all client protocols."""

    def __init__(self, submitter: TurnSubmitter, streams: StreamContext) -> None:
        self._submitter = submitter
        self._streams = streams

    async def accept(self, draft: TurnDraft, respond: Callable[[ScopedKey], StreamedResponse]) -> StreamedResponse:
        """Submits the turn and returns the response that `respond` makes, which does not wait for the answer.

        Raises Refused, LogError.
        """
        stored = await self._submitter.submit(draft)
        response = respond(stored.key)
        response.add_headers({"tailrace-turn": stored.key.turn, **names_of(stored)})
        return _with_delivery(response, draft, stored)

    async def find_equal(self, draft: TurnDraft, turn: TurnId) -> Stored | None:
        """Returns `turn` if it answers an equal request with the key `auto`. Raises Refused, LogUnavailable."""
        return await self._submitter.find_equal(draft, turn)

    async def answer(
        self,
        request: ApiRequest,
        new_turn: NewTurn,
        raw: bytes,
        dialect: Dialect,
        *,
        is_streamed: bool,
        waits_for_answer: bool = True,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        added_bytes: int = 0,
    ) -> StreamedResponse:
        """Submits `new_turn` and returns its stream, or its one JSON body. Raises Refused, LogError.

        `idempotency_key` is for clients that send none. `added_bytes` are the bytes of `new_turn` that are not in
        `raw`.
        `waits_for_answer`: a turn that fails before the model begins to answer has an HTTP error, not a stream.
        The response names the turn and its session, so that a stream that was cut can be resumed at
        `/v1/turns/{turn}/events?dialect=…`.
        """
        render = None if is_streamed else dialect.render_json
        draft = draft_turn(
            request,
            new_turn,
            raw,
            default_key=idempotency_key,
            is_followed=True,
            is_json=render is not None,
            added_bytes=added_bytes,
        )
        fails_again = is_chosen(draft.idempotency_key)
        reader = Reader(self._streams, request)
        async with reader.reserve() if render is None else nullcontext():
            stored = await self._submitter.submit(draft)
        key, headers = stored.key, {**names_of(stored), **(headers or {})}
        response: StreamedResponse
        if render is None:
            response = EventStream(
                reader,
                key,
                select_variant(dialect, accept_header(request.headers)),
                draft.cursor or BEFORE_FIRST,
                headers=headers,
                waits_for_answer=waits_for_answer and draft.cursor is None,
                fails_again=fails_again,
            )
        else:
            response = JsonAnswer(reader, key, render, headers, fails_again=fails_again)
        # An error that replaces the response, such as the turn's own, names the turn, too.
        response.add_headers({"tailrace-turn": key.turn, "request-id": key.turn, "x-request-id": key.turn})
        return _with_delivery(response, draft, stored)


def _with_delivery(response: StreamedResponse, draft: TurnDraft, stored: Stored) -> StreamedResponse:
    """Sets whether the client may repeat its request, and what happens when the answer was delivered."""
    response.is_repeatable = draft.is_repeatable or stored.when_delivered is not None
    response.when_delivered = stored.when_delivered
    return response


def names_of(stored: Stored) -> dict[str, str]:
    """Returns the response headers that name a turn, its session and its project."""
    turn, entry = stored.key.turn, stored.entry
    return {
        "x-session-id": entry.session,
        # The SDKs of Anthropic and OpenAI show these in errors.
        "request-id": turn,
        "x-request-id": turn,
        # AI SDK's workflow transport resumes with this.
        "x-workflow-run-id": turn,
        # The stored turn's own: a repeated POST may name another project.
        **({"x-project-id": entry.project} if entry.project is not None else {}),
    }


class JsonAnswer(StreamedResponse):
    """The response without a stream: one JSON body, sent when the turn has ended.

    A turn that failed raises TurnFailed, with its code; a cancelled turn raises Refused.
    """

    def __init__(
        self,
        reader: Reader,
        key: ScopedKey,
        render: Callable[[TurnRecord], bytes],
        headers: Mapping[str, str],
        *,
        fails_again: bool,
    ) -> None:
        """`fails_again`: a repeated request gets the same turn also if it has failed."""
        super().__init__({"cache-control": "no-store", **headers})
        self._fails_again = fails_again
        self._reader = reader
        self._key = key
        self._render = render

    async def respond(self, _scope: Scope, receive: Receive, send: Send) -> None:
        record = await self._wait(receive)
        if record is not None:
            require_completed(record, fails_again=self._fails_again)
            await self.send_json(send, self._render(record))

    async def _wait(self, receive: Receive) -> TurnRecord | None:
        """Returns the turn's record; None if the client has left. Raises Refused and LogError if the wait fails."""
        streams = self._reader.streams
        async with streams.fan_out.subscribe(self._key, BEFORE_FIRST) as feed:
            async with self._reader.open(receive, streams.draining, is_counted=False):
                ending = await serve(self._reader, partial(_wait_for_end, feed))
            if feed.is_ended:
                return record_from_fold(self._key.plain, fold(feed.entries))
        if ending.reconnect_window_s is not None:
            streams.on_disconnect(self._key.plain, ending.reconnect_window_s)
        if ending is EXPIRED:
            raise credential_invalid()
        if ending is DRAINED:
            raise Refused("draining", NOT_COMPLETE.format(turn=self._key.turn), retry_after_s=1)
        if ending is BROKEN:
            raise LogUnavailable(NOT_COMPLETE.format(turn=self._key.turn))
        return None


async def _wait_for_end(feed: TurnFeed) -> StreamEnding | bool:
    """Waits for a change. Returns how the feed has ended, or whether there was news."""
    return feed.ending or await feed.wait_for_change(len(feed.entries))


def require_completed(record: TurnRecord, *, fails_again: bool) -> None:
    """Raises Refused with the reason why the answer is not complete."""
    match record.outcome:
        case "completed":
            return
        case "cancelled":
            raise turn_cancelled(record.turn)
        case _:
            # An SDK that repeats the POST would pay for another answer, after it has paid for a part of this one.
            raise refusal_of(record.error, record.turn, may_repeat=not (fails_again or record.content))
