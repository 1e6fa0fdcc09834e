"""Conversion between folded turns, database rows and API records. Pure."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from tailrace.persistence.tables import AddedRows
from tailrace.proto.blobs import blobs_needed
from tailrace.proto.entries import Failure, Message
from tailrace.proto.fold import Turn
from tailrace.proto.ids import TurnId, TurnKey
from tailrace.proto.records import SessionRecord, TurnDetails, TurnRecord, details_of, record_from_fold, shares_of
from tailrace.proto.resources import Branch
from tailrace.proto.usage import NANO_USD_PER_USD, ModelUsage, Usage

# Times are whole microseconds: a float loses precision from the year 2255 on, and earlier in sums.
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
# The limits of OpenAI's API for the metadata of a request.
LABELS_MAX, LABEL_NAME_CHARS_MAX, LABEL_CHARS_MAX = 16, 64, 512
# A list of sessions reads no longer messages than this, and sends no longer previews.
PREVIEW_INPUT_CHARS_MAX, PREVIEW_CHARS_MAX = 256 * 1024, 200

_encoder = msgspec.json.Encoder()
_messages = msgspec.json.Decoder(list[Message])
_blocks = msgspec.json.Decoder(list[dict[str, Any]])
_envelope = msgspec.json.Decoder(dict[str, Any])
_failure = msgspec.json.Decoder(Failure)
_system: msgspec.json.Decoder[str | list[dict[str, Any]]] = msgspec.json.Decoder(str | list[dict[str, Any]])
_metadata = msgspec.json.Decoder(dict[str, str])
_by_model = msgspec.json.Decoder(dict[str, ModelUsage])
_details = msgspec.json.Decoder(TurnDetails)


class TurnRow(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of `turns`, `usage` and `sessions.project`: times in microseconds since 1970, structs as JSON.

    Some fields become rows of other tables. `blobs` is a JSON list of the SHA-256 of the blobs that the turn refers to,
    which become rows of `blob_uses`. `labels` is the JSON object that `labels_of` returns, whose fields become rows of
    `labels`. `added` are the rows of the features.
    """

    tenant: str
    turn: str
    session: str
    project: str | None
    parent: str | None
    model: str
    outcome: str
    input: str
    content: str
    text: str
    stop_reason: str | None
    stop_sequence: str | None
    envelope: str
    fits: bool | None
    error: str | None
    attempts: int
    metadata: str
    asked_at: int
    first_token_at: int | None
    ended_at: int | None
    cursor: int
    text_chars: int | None
    text_sha256: str | None
    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    is_estimated: bool
    cost_nusd: int
    cost_is_unknown: bool
    answered_by: str | None
    by_model: str | None
    details: str
    messages: int
    asked_by: str | None
    blobs: str
    user: str | None
    owner: str | None
    labels: str
    added: AddedRows = {}


def build_row(
    key: TurnKey, turn: Turn, features: Sequence[Callable[[TurnKey, Turn, TurnRecord], AddedRows]] = ()
) -> TurnRow:
    """Returns the row of a folded turn, with the rows that `features` add. Raises TurnUnknown without a request."""
    found = record_from_fold(key, turn)
    return TurnRow(
        tenant=key.tenant,
        turn=found.turn,
        session=found.session,
        project=found.project,
        parent=found.parent,
        model=found.model,
        outcome=found.outcome,
        input=_json(found.input),
        content=_json(found.content),
        text=found.text,
        stop_reason=found.stop_reason,
        stop_sequence=found.stop_sequence,
        envelope=_json(found.envelope),
        fits=found.schema_valid,
        error=_json(found.error) if found.error else None,
        attempts=found.attempts,
        metadata=_json(found.metadata),
        asked_at=micros(found.asked_at),
        first_token_at=micros(found.first_token_at) if found.first_token_at else None,
        ended_at=micros(found.ended_at) if found.ended_at else None,
        cursor=found.cursor,
        text_chars=turn.end.text_chars if turn.end else None,
        text_sha256=turn.end.text_sha256 if turn.end else None,
        **msgspec.structs.asdict(found.usage),
        is_estimated=found.usage_is_estimated,
        cost_nusd=turn.end.cost_nano_usd if turn.end else 0,
        cost_is_unknown=turn.end is not None and turn.end.cost_is_unknown,
        answered_by=found.answered_by,
        by_model=_json(turn.end.by_model) if turn.end is not None and turn.end.by_model else None,
        details=_json(TurnDetails(**details_of(turn))),
        messages=len(found.input) + bool(found.content),
        asked_by=turn.request.by if turn.request else None,
        blobs=_json(blobs_of(turn)),
        user=found.user,
        owner=found.owner,
        labels=_json(labels_of(found, turn.request.by if turn.request else None)),
        added={name: values for rows_of in features for name, values in rows_of(key, turn, found).items()},
    )


def labels_of(turn: TurnRecord, key: str | None) -> dict[str, str]:
    """Returns the labels by which the turn can be found: model, key, user, owner, and metadata that is short enough."""
    labels = {"model": turn.model, "key": key, "user": turn.user, "owner": turn.owner}
    for name, value in list(turn.metadata.items())[:LABELS_MAX]:
        # SQLite's JSON functions cut text at a NUL character: different values would count as one value.
        is_cut = "\0" in name + value
        if len(name) <= LABEL_NAME_CHARS_MAX and len(value) <= LABEL_CHARS_MAX and not is_cut:
            labels[f"metadata.{name}"] = value
    return {name: value for name, value in sorted(labels.items()) if value is not None}


def blobs_of(turn: Turn) -> list[str]:
    """Returns the SHA-256 of the blobs that the turn refers to, in order."""
    return sorted(blobs_needed(turn.request)) if turn.request else []


def turn_record(row: Mapping[str, Any]) -> TurnRecord:
    """Returns the record of the turn from which `build_row` made the row."""
    return TurnRecord(
        turn=row["turn"],
        session=row["session"],
        parent=row["parent"],
        model=row["model"],
        outcome=row["outcome"],
        input=_messages.decode(row["input"]),
        content=_blocks.decode(row["content"]),
        text=row["text"],
        stop_reason=row["stop_reason"],
        stop_sequence=row["stop_sequence"],
        envelope=_envelope.decode(row["envelope"]),
        schema_valid=bool(row["fits"]) if row["fits"] is not None else None,
        error=_failure.decode(row["error"]) if row["error"] else None,
        usage=_usage(row),
        usage_is_estimated=bool(row["is_estimated"]),
        cost_usd=None if row["cost_is_unknown"] else row["cost_nusd"] / NANO_USD_PER_USD,
        answered_by=row["answered_by"],
        by_model=shares_of(_by_model.decode(row["by_model"])) if row["by_model"] is not None else None,
        attempts=row["attempts"],
        metadata=_metadata.decode(row["metadata"]),
        project=row["project"],
        user=row["user"],
        owner=row["owner"],
        asked_at=moment(row["asked_at"]),
        first_token_at=moment(row["first_token_at"]) if row["first_token_at"] is not None else None,
        ended_at=moment(row["ended_at"]) if row["ended_at"] is not None else None,
        cursor=row["cursor"],
        **msgspec.structs.asdict(_details.decode(row["details"])),
    )


def session_record(row: Mapping[str, Any], since: datetime) -> SessionRecord:
    """Returns the session. It is active if it was used after `since`."""
    return SessionRecord(
        session=row["session"],
        id=row["session"],
        title=row["title"],
        preview=preview_of(row["first_input"]) if row["first_input"] is not None else None,
        project_id=row["project"],
        user=row["user"],
        owner=row["owner"],
        model=row["model"],
        system_prompt=_system.decode(row["system"]) if row["system"] is not None else None,
        created_at=moment(row["created_at"]),
        updated_at=moment(row["updated_at"]),
        is_active=moment(row["updated_at"]) > since,
        **totals_of(row),
    )


def preview_of(first_input: str) -> str | None:
    """Returns the start of the first text of a user in messages, as JSON; None if there is none, or not all of them."""
    if len(first_input) > PREVIEW_INPUT_CHARS_MAX:
        return None
    for message in _messages.decode(first_input):
        content = message.content
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts = [block.get("text") for block in blocks if message.role == "user" and block.get("type") == "text"]
        # A long text is a reference to a blob.
        if text := "\n".join(text for text in texts if isinstance(text, str)).strip():
            return text[:PREVIEW_CHARS_MAX]
    return None


def branch_of(leaf: Mapping[str, Any], turns: list[TurnId]) -> Branch:
    """Returns the branch that ends with the row `leaf`. `turns` are its turns in order."""
    return Branch(
        turn=leaf["turn"],
        outcome=leaf["outcome"],
        asked_at=moment(leaf["asked_at"]),
        length=len(turns),
        turns=turns,
    )


def micros(at: datetime) -> int:
    """Returns Unix time in microseconds, as the database stores times."""
    return (at - EPOCH) // MICROSECOND


def moment(micros: int) -> datetime:
    """Returns the time that the database stores as `micros`."""
    return EPOCH + micros * MICROSECOND


def totals_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of tailrace.proto.records.Totals from a row of sums."""
    usage, cost_usd = _usage(row), row["cost_nusd"] / NANO_USD_PER_USD
    return {
        "turns": row["turns"],
        "usage": usage,
        "cost_usd": cost_usd,
        "message_count": row["messages"],
        "total_tokens": sum(msgspec.structs.astuple(usage)),
        "total_cost": cost_usd,
    }


def _usage(row: Mapping[str, Any]) -> Usage:
    return Usage(
        row["input_tokens"],
        row["output_tokens"],
        row["cache_creation_input_tokens"],
        row["cache_read_input_tokens"],
    )


def _json(value: object) -> str:
    return _encoder.encode(value).decode()
