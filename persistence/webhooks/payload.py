"""What a webhook says of a turn that has ended, and what its receiver's answer means. Pure; it sends nothing."""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Literal

import msgspec

from tailrace.proto.records import TurnRecord, WebhookPayload

# A receiver that has come back after hours is told within one.
WAIT_S_MAX = 3600.0
# Many that failed at the same time do not all come again at the same time.
JITTER = 0.25

Verdict = Literal["taken", "again", "unwanted"]


def body(told: TurnRecord) -> bytes:
    """The same bytes each time that a turn is told."""
    links = {"self": f"/v1/turns/{told.turn}"}
    return msgspec.json.encode(WebhookPayload(f"turn.{told.outcome}", told.ended_at or told.asked_at, told, links))


def verdict(status: int) -> Verdict:
    """A redirect is not followed: it would lead where nobody has looked. What fails may be mended within the day."""
    if 200 <= status < 300:
        return "taken"
    return "unwanted" if status == 410 else "again"


def wait_s(tries: int, first_s: float, asked_s: float | None, chance: float) -> float:
    """How long to wait after the `tries`th try; `asked_s` is the receiver's own wish, `chance` is from 0 to 1."""
    doubled = min(first_s * 2.0 ** min(tries - 1, 32), WAIT_S_MAX) * (1 - JITTER + 2 * JITTER * chance)
    return max(doubled, min(asked_s or 0.0, WAIT_S_MAX))


def retry_after_s(text: str | None, now: datetime) -> float | None:
    """What a `Retry-After` says, in seconds; None for nothing, and for what is neither a number nor a date."""
    if text is None:
        return None
    if text.isascii() and text.isdecimal() and len(text) <= 9:
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds())


def is_over(ended_at: datetime | None, now: datetime, give_up_s: float) -> bool:
    """Whether a webhook is too old to be tried once more."""
    return ended_at is not None and now - ended_at > timedelta(seconds=give_up_s)
