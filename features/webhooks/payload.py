"""Webhook bodies, and decisions about retries: meaning of a status, wait before a retry, expiry. Pure."""

from datetime import datetime, timedelta
from typing import Literal

import msgspec

from tailrace.features.common.client_calls import calls_of
from tailrace.proto import odd_json
from tailrace.proto.records import TurnRecord

# A receiver that was down for hours gets its webhooks within an hour after it is back.
WAIT_S_MAX = 3600.0
# Spreads the retries of webhooks that failed at the same time.
JITTER = 0.25

Verdict = Literal["delivered", "retry", "gone"]


class WebhookPayload(msgspec.Struct, frozen=True):
    """The body of a webhook as Standard Webhooks defines it. `data` equals the response of `GET /v1/turns/{turn}`.

    The type is `turn.completed`, `turn.cancelled` or `turn.failed`; with TAILRACE_WEBHOOK_REQUIRES_ACTION, the type of
    a completed turn with calls of client tools is `turn.requires_action`.
    """

    type: str
    """The event: `turn.` and the outcome, or `turn.requires_action`."""
    timestamp: datetime
    """When the turn ended."""
    data: TurnRecord
    """The turn."""
    links: dict[str, str]
    """Paths by name."""


def render(turn: TurnRecord, *, names_action: bool = False) -> bytes:
    """Returns the JSON body of a turn's webhook: the same bytes for each attempt.

    With `names_action`, the type says whether the turn has ended with calls of client tools.
    """
    links = {"self": f"/v1/turns/{turn.turn}"}
    event: str = turn.outcome
    if names_action and calls_of(turn):
        event, links["calls"] = "requires_action", f"/v1/sessions/{turn.session}/calls"
    return odd_json.encode(WebhookPayload(f"turn.{event}", turn.ended_at or turn.asked_at, turn, links))


def classify(status: int) -> Verdict:
    """Returns the meaning of a receiver's status (Standard Webhooks): 2xx delivered, 410 gone, all others retry.

    A redirect is a failure, because its target was not checked for a private address.
    """
    if 200 <= status < 300:
        return "delivered"
    return "gone" if status == 410 else "retry"


def next_wait_s(attempts: int, first_s: float, retry_after_s: float | None, chance: float) -> float:
    """Returns the seconds to wait after `attempts` failed attempts; `chance` from 0 to 1 chooses the jitter."""
    doubled = min(first_s * 2.0 ** min(attempts - 1, 32), WAIT_S_MAX) * (1 - JITTER + 2 * JITTER * chance)
    return max(doubled, min(retry_after_s or 0.0, WAIT_S_MAX))


def is_expired(ended_at: datetime | None, now: datetime, give_up_s: float) -> bool:
    """Returns whether a webhook is too old for another attempt. False while the end's time is unknown."""
    return ended_at is not None and now - ended_at > timedelta(seconds=give_up_s)
