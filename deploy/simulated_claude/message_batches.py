"""The simulated Message Batches API: create, retrieve, list, cancel and delete batches; results as JSON lines.

A batch ends when its longest answer would have been complete. As in the API, its counts are zero until then, an invalid
request gets an errored result but the batch is accepted, and the order of results is not that of the requests.
"""

import asyncio
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic_ns
from typing import Any, Literal

import msgspec

from tailrace.deploy.simulated_claude import event
from tailrace.deploy.simulated_claude.account import SubmittedRequest
from tailrace.deploy.simulated_claude.fault import ERROR_TYPES, Fault, FaultKind
from tailrace.deploy.simulated_claude.refusal import Refusal, error_body
from tailrace.deploy.simulated_claude.reply import DEFAULT, ParsedRequest, Reply, parse_message, reply
from tailrace.deploy.simulated_claude.request import INVALID, OLD_VERSION, decode, require_max_tokens
from tailrace.deploy.simulated_claude.rules import refuse_request
from tailrace.deploy.simulated_claude.settings import Settings
from tailrace.deploy.simulated_claude.stats import Stats
from tailrace.proto.decoding import DECODE_ERRORS

REQUESTS_MAX = 100_000
LIFE = timedelta(hours=24)
# Requests that are being processed when a batch is cancelled may still be finished.
CANCELLING_S = 0.05
CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
LIMIT, LIMIT_MAX = 20, 1000

Kind = Literal["succeeded", "errored", "canceled", "expired"]


class Request(msgspec.Struct, frozen=True):
    """One request of a batch; its `params` are parsed when it is processed."""

    custom_id: str
    params: msgspec.Raw
    version: str = OLD_VERSION
    """The version of the API that the batch was created with."""
    betas: str = ""
    """The betas that it was created with."""


class NewBatch(msgspec.Struct, frozen=True):
    """The body of a creation."""

    requests: list[Request]


class Result(msgspec.Struct, frozen=True):
    """One line of the results."""

    custom_id: str
    kind: Kind
    fields: dict[str, Any] = {}

    def line(self) -> bytes:
        return msgspec.json.encode({"custom_id": self.custom_id, "result": {"type": self.kind, **self.fields}}) + b"\n"


class MessageBatch:
    """One batch. `process`, called once for each request, returns its result. `faults` are the first request's."""

    def __init__(
        self, number: int, requests: list[Request], process: Callable[[Request], Result], faults: Sequence[Fault] = ()
    ) -> None:
        self.id = f"msgbatch_sim{number:012d}"
        self.created_at = datetime.now(UTC)
        self.created_ns = monotonic_ns()
        self.cancelled_at: datetime | None = None
        self.ended_at: datetime | None = None
        self.results: list[Result] = []
        self._requests = requests
        self._process = process
        self._faults = faults
        self._requested = Counter[str]()
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        self._times_s = [time_of(request) for request in requests]
        self._timer = loop.call_later(max(self._times_s), self._end)

    def is_hidden(self, kind: FaultKind, operation: str) -> bool:
        """Counts a request for `operation`. Returns whether a fault of this kind hides the batch from that request."""
        self._requested[operation] += 1
        count = self._requested[operation]
        return any(
            fault.kind == kind
            and fault.after < count <= fault.after + (math.inf if fault.calls is None else fault.calls)
            for fault in self._faults
        )

    def cancel(self) -> None:
        """Ends the batch soon. Requests whose time has passed by now are answered."""
        if self.ended_at is not None:
            raise Refusal(INVALID, f"Batch {self.id} has ended and cannot be canceled")
        if self.cancelled_at is None:
            self.cancelled_at = datetime.now(UTC)
            self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(CANCELLING_S, self._end, "canceled")

    @property
    def submitted_requests(self) -> list[SubmittedRequest]:
        """Requests with the type of the result; `open` while the batch runs."""
        over = {result.custom_id: result.kind for result in self.results}
        return [
            SubmittedRequest(one.custom_id, self.id, self.created_ns, over.get(one.custom_id, "open"))
            for one in self._requests
        ]

    def expire(self) -> None:
        """Ends the batch as if a day had passed."""
        if self.ended_at is None:
            self._timer.cancel()
            self._end("expired")

    def describe(self, url: str) -> dict[str, Any]:
        """Returns the API's object for the batch; `url` is this server's base URL."""
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        for result in self.results:
            counts[result.kind] += 1
        status = "ended" if self.ended_at else "canceling" if self.cancelled_at else "in_progress"
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": status,
            "request_counts": counts | ({} if self.ended_at else {"processing": len(self._requests)}),
            "created_at": self.created_at,
            "expires_at": self.created_at + LIFE,
            "cancel_initiated_at": self.cancelled_at,
            "ended_at": self.ended_at,
            "archived_at": None,
            "results_url": f"{url}v1/messages/batches/{self.id}/results" if self.ended_at else None,
        }

    def _end(self, rest: Kind | None = None) -> None:
        """Makes the results. `rest`: the kind of all unfinished ones; without it, all are finished."""
        # A timer may fire a moment early (uvloop's have whole milliseconds), so a timed end reads no clock.
        had_s = asyncio.get_running_loop().time() - self._began if rest else math.inf
        self.results = [
            Result(request.custom_id, rest) if rest and time_s > had_s else self._process(request)
            for request, time_s in zip(self._requests, self._times_s, strict=True)
        ]
        self.results.reverse()
        self.ended_at = datetime.now(UTC)


class MessageBatches:
    """All batches, by id."""

    def __init__(self, stats: Stats, settings: Settings = DEFAULT) -> None:
        self._stats = stats
        self._settings = settings
        self._batches: dict[str, MessageBatch] = {}
        self._made = 0

    def create(self, body: bytes, version: str = OLD_VERSION, betas: str = "") -> tuple[MessageBatch, bool]:
        """Returns a new batch, and whether to send the response, which a `fault=cut` drops. Raises Refusal.

        `version` and `betas` are headers for all its requests.
        """
        requests = read(body, version, betas)
        try:
            first = parse_request(requests[0])
        except Refusal:
            first = None
        refused, is_cut = self._fault(first) if first is not None else (None, False)
        if refused is not None:
            raise refused
        self._made += 1
        self._stats.batches += 1
        faults = first.directed.faults if first is not None else ()
        batch = MessageBatch(self._made, requests, self._process, faults)
        self._batches[batch.id] = batch
        return batch, not is_cut

    def get(self, name: str, operation: str | None = None) -> MessageBatch:
        """Returns the batch. Raises Refusal, also if a fault of the batch hides it from a request for `operation`."""
        batch = self._batches.get(name)
        if batch is None or (operation is not None and self._is_hidden(batch, "unknown", operation)):
            raise Refusal("not_found_error", f"Batch {name} not found")
        return batch

    def break_results(self, batch: MessageBatch) -> tuple[bytes, bool] | None:
        """Counts a read of the results; returns what a fault sends instead, and whether the connection then drops."""
        if not self._is_hidden(batch, "broken", "lines"):
            return None
        broken = ((b"\n", False), (b"<!doctype html>\n", False), (batch.results[0].line(), True))
        return broken[self._stats.by_fault["broken"] % len(broken)]

    @property
    def submitted_requests(self) -> list[SubmittedRequest]:
        """The requests of all batches, oldest first."""
        return [one for batch in self._batches.values() for one in batch.submitted_requests]

    def delete(self, name: str) -> None:
        """Raises Refusal."""
        if self.get(name).ended_at is None:
            raise Refusal(INVALID, f"Batch {name} cannot be deleted while it is in progress")
        del self._batches[name]

    def expire(self) -> None:
        """Ends all batches as if a day had passed."""
        for batch in self._batches.values():
            batch.expire()

    def page(self, limit: int, after: str | None, before: str | None) -> tuple[list[MessageBatch], bool]:
        """Returns at most `limit` batches, newest first, and whether there are more. Raises Refusal."""
        if not 1 <= limit <= LIMIT_MAX:
            raise Refusal(INVALID, f"limit: must be from 1 to {LIMIT_MAX}")
        found = list(reversed(self._batches.values()))
        if after is not None:
            found = found[found.index(self.get(after)) + 1 :]
        elif before is not None:
            found = found[: found.index(self.get(before))]
            return found[-limit:], len(found) > limit
        return [one for one in found[:limit] if not self._is_hidden(one, "unlisted", "list")], len(found) > limit

    def _is_hidden(self, batch: MessageBatch, kind: FaultKind, operation: str) -> bool:
        if is_hidden := batch.is_hidden(kind, operation):
            self._stats.by_fault[kind] += 1
        return is_hidden

    def _fault(self, parsed: ParsedRequest) -> tuple[Refusal | None, bool]:
        """Returns the refusal of a creation (401, 403, 429, 529), and whether to drop the response (cut)."""
        for fault in parsed.directed.faults:
            if fault.kind in ("401", "403", "429", "529", "cut"):
                key = f"{fault.kind} {parsed.conversation.key}"
                self._stats.creations[key] += 1
                if fault.calls is not None and self._stats.creations[key] > fault.calls:
                    continue
                if fault.kind == "cut":
                    return None, True
                return Refusal(ERROR_TYPES[fault.kind], event.error_message(fault.kind), {"retry-after": "0"}), False
        return None, False

    def _process(self, request: Request) -> Result:
        try:
            parsed = parse_request(request)
            refuse_request(bytes(request.params), self._settings, request.betas, is_in_batch=True)
        except Refusal as refusal:
            return build_error(request, refusal.type, refusal.message)
        for fault in parsed.directed.faults:
            if fault.kind in ("500", "error"):
                return build_error(request, ERROR_TYPES[fault.kind], event.error_message(fault.kind))
        answered: Reply = reply(parsed, self._stats.next_call(parsed.conversation.key))
        answered = msgspec.structs.replace(answered, breaks=None, service_tier="batch")
        self._stats.output_tokens += answered.part.deltas
        return Result(request.custom_id, "succeeded", {"message": msgspec.Raw(event.message(answered))})


def read(body: bytes, version: str = OLD_VERSION, betas: str = "") -> list[Request]:
    """Returns the requests of a new batch. Raises Refusal."""
    try:
        requests = msgspec.json.decode(body, type=NewBatch).requests
    except DECODE_ERRORS as error:
        raise Refusal(INVALID, str(error)) from error
    if not 1 <= len(requests) <= REQUESTS_MAX:
        raise Refusal(INVALID, f"requests: must have from 1 to {REQUESTS_MAX}")
    names: set[str] = set()
    for number, request in enumerate(requests):
        if CUSTOM_ID.fullmatch(request.custom_id) is None:
            raise Refusal(INVALID, f"requests.{number}.custom_id: should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
        if request.custom_id in names:
            raise Refusal(INVALID, f"requests.{number}.custom_id: must be unique")
        names.add(request.custom_id)
    return [msgspec.structs.replace(request, version=version, betas=betas) for request in requests]


def parse_request(request: Request) -> ParsedRequest:
    """Parses a request of a batch. Raises Refusal."""
    message = decode(bytes(request.params), request.version)
    require_max_tokens(message)
    if message.stream:
        raise Refusal(INVALID, "stream: is not supported in a batch")
    return parse_message(message, bytes(request.params))


def time_of(request: Request) -> float:
    """Returns the seconds that the answer takes without streaming."""
    try:
        parsed = parse_request(request)
    except Refusal:
        return 0.0
    rate = parsed.directed.rate
    return parsed.directed.wait_s + (reply(parsed, 1).part.deltas / rate if rate else 0.0)


def build_error(request: Request, kind: str, message: str) -> Result:
    return Result(request.custom_id, "errored", {"error": msgspec.Raw(error_body(kind, message, "req_simbatch"))})
