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
from tailrace.gateway.turns.auto_idempotency import is_chosen
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.gateway.turns.sdk_retries import counted_request
from tailrace.gateway.turns.submission import TurnSubmission
from tailrace.gateway.turns.submit import (
    StoredTurn,
    TurnSubmitter,
    cursor_of_post,
    idempotency_key_of,
    is_repeatable,
)
from tailrace.proto import entries
from tailrace.proto.errors import LogUnavailable, Refused
from tailrace.proto.fold import fold
from tailrace.proto.ids import BEFORE_FIRST, TurnKey
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

    async def submit(
        self, request: ApiRequest, new_turn: NewTurn, raw: bytes, *, is_followed: bool = False
    ) -> StoredTurn:
        """Stores `new_turn` in the log, once for each Idempotency-Key. Returns the turn and its request entry.

        `raw` is the body as it came, which a repeated POST must equal. `is_followed`: the response follows the turn,
        which then need not be read from the log. A POST with a cursor starts no turn: the turn is the one of the
        cursor. Raises Refused, LogError.
        """
        submission = _submission_of(request, new_turn, raw, is_followed=is_followed)
        return await self._submitter.submit(submission, cursor_of_post(request))

    async def submit_for_stream(self, request: ApiRequest, new_turn: NewTurn, raw: bytes) -> tuple[Reader, TurnKey]:
        """Reserves a stream, then submits `new_turn`. Returns the access for an EventStream, too."""
        reader = Reader(self._streams, request)
        async with reader.reserve():
            key, _ = await self.submit(request, new_turn, raw, is_followed=True)
        return reader, key

    async def answer_at_once(
        self,
        request: ApiRequest,
        new_turn: NewTurn,
        raw: bytes,
        respond: Callable[[TurnKey], StreamedResponse],
        *,
        added_bytes: int = 0,
    ) -> StreamedResponse:
        """Submits `new_turn` and returns the response that `respond` makes, which does not wait for the answer.

        `added_bytes` are those of `new_turn` that are not in `raw`. Raises Refused, LogError.
        """
        submission = _submission_of(request, new_turn, raw, added_bytes=added_bytes)
        key, entry = await self._submitter.submit(submission, cursor_of_post(request))
        response = respond(key)
        response.add_headers({"tailrace-turn": key.turn, **names_of(key, entry)})
        response.is_repeatable = is_repeatable(request) or submission.when_delivered is not None
        response.when_delivered = submission.when_delivered
        return response

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

        `idempotency_key` is for clients that send none. `added_bytes`: see `answer_at_once`.
        `waits_for_answer`: a turn that fails before the model begins to answer has an HTTP error, not a stream.
        The response names the turn and its session, so that a stream that was cut can be resumed at
        `/v1/turns/{turn}/events?dialect=…`.
        """
        submission = _submission_of(
            request, new_turn, raw, default_key=idempotency_key, is_followed=True, added_bytes=added_bytes
        )
        # The submitter may replace it.
        idempotency_key = submission.idempotency_key
        cursor = cursor_of_post(request)
        fails_again = is_chosen(idempotency_key)
        reader = Reader(self._streams, request)
        render = None if is_streamed else dialect.render_json
        async with reader.reserve() if render is None else nullcontext():
            key, entry = await self._submitter.submit(submission, cursor)
        headers = {**names_of(key, entry), **(headers or {})}
        response: StreamedResponse
        if render is None:
            response = EventStream(
                reader,
                key,
                select_variant(dialect, accept_header(request.headers)),
                cursor or BEFORE_FIRST,
                headers=headers,
                waits_for_answer=waits_for_answer and cursor is None,
                fails_again=fails_again,
            )
        else:
            response = JsonAnswer(reader, key, render, headers, fails_again=fails_again)
        # An error that replaces the response, such as the turn's own, names the turn, too.
        response.add_headers({"tailrace-turn": key.turn, "request-id": key.turn, "x-request-id": key.turn})
        response.is_repeatable = bool(idempotency_key or cursor or submission.when_delivered)
        response.when_delivered = submission.when_delivered
        return response


def _submission_of(
    request: ApiRequest,
    new_turn: NewTurn,
    raw: bytes,
    *,
    default_key: str | None = None,
    is_followed: bool = False,
    added_bytes: int = 0,
) -> TurnSubmission:
    """Returns the submission of `new_turn`. `default_key` is its key if the request has no Idempotency-Key.

    Raises Refused.
    """
    key = idempotency_key_of(request) or default_key
    return TurnSubmission(
        request.principal,
        raw,
        key,
        request.response_headers,
        new_turn=new_turn,
        counted=counted_request(request) if key is None else None,
        is_followed=is_followed,
        added_bytes=added_bytes,
    )


def names_of(key: TurnKey, entry: entries.Request) -> dict[str, str]:
    """Returns the response headers that name a turn, its session and its project."""
    return {
        "x-session-id": entry.session,
        # The SDKs of Anthropic and OpenAI show these in errors.
        "request-id": key.turn,
        "x-request-id": key.turn,
        # AI SDK's workflow transport resumes with this.
        "x-workflow-run-id": key.turn,
        # The stored turn's own: a repeated POST may name another project.
        **({"x-project-id": entry.project} if entry.project is not None else {}),
    }


class JsonAnswer(StreamedResponse):
    """The response without a stream: one JSON body, sent when the turn has ended.

    A turn that failed raises TurnFailed, with its code; one that was cancelled raises Refused.
    """

    def __init__(
        self,
        reader: Reader,
        key: TurnKey,
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
        """Returns the turn's record; None if the client has left. Raises Refused and LogError if it cannot wait on."""
        streams = self._reader.streams
        async with streams.fan_out.subscribe(self._key, BEFORE_FIRST) as feed:
            async with self._reader.open(receive, streams.draining, is_counted=False):
                ending = await serve(self._reader, partial(_wait_for_end, feed))
            if feed.is_ended:
                return record_from_fold(self._key, fold(feed.entries))
        if ending.reconnect_window_s is not None:
            streams.on_disconnect(self._key, ending.reconnect_window_s)
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
            raise Refused(
                "turn_cancelled",
                f"turn {record.turn} was cancelled: GET /v1/turns/{record.turn} has the answer so far",
            )
        case _:
            # An SDK that repeats the POST would pay for another answer, after it has paid for a part of this one.
            raise refusal_of(record.error, record.turn, may_repeat=not (fails_again or record.content))
