"""Batches: ids of their turns, stored inputs and progress entries."""

import uuid
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.features.batches import input_lines
from tailrace.features.batches.anthropic_routes import render_batch, result_line
from tailrace.features.batches.read_batch import EndedInput
from tailrace.features.batches.records import BatchCounts, StoredBatch
from tailrace.features.batches.runner import BatchLane
from tailrace.features.batches.tally import BatchTally
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Batch, BatchSource, End, Failure, Progress, decode, encode
from tailrace.proto.ids import Seq, SessionId, Tenant, TurnId, TurnKey, child_id, is_token, new_id
from tailrace.proto.records import record_from_fold
from tests.harness.turn_builder import NOON, attempted_turn, request

BATCH = TurnKey(Tenant("tenant"), TurnId("01a1f9d6-8530-7bc1-86ec-13a54c14ea1a"))
END = End(prev=Seq(1), attempt=1, outcome="completed", cost_nano_usd=5, text_chars=0, text_sha256="")
FAILED = End(prev=Seq(1), attempt=1, outcome="failed", cost_nano_usd=2, text_chars=0, text_sha256="")


@pytest.mark.rule("R63")
def test_a_childs_id_is_made_of_its_batch_and_its_number() -> None:
    """Every generator computes the same id, so that no input is run twice."""
    assert child_id(BATCH.turn, 0) == "01a1f9d6-8530-7567-8302-56b3d7963420"
    ids = [child_id(BATCH.turn, number) for number in range(1000)]
    assert len({*ids, child_id(TurnId(new_id()), 0)}) == 1001
    for made in ids:
        assert (uuid.UUID(made).version, uuid.UUID(made).variant) == (7, uuid.RFC_4122)
        assert is_token(made)
        assert made[:13] == BATCH.turn[:13]


@pytest.mark.rule("R63")
@pytest.mark.parametrize(
    ("turn", "payload", "part"),
    [
        (BATCH.turn, encode(request()), None),
        (BATCH.turn, encode(request(batch=Batch("0" * 64, 1, 1, 1))), "lane"),
        (BATCH.turn, b'{"batch":null}', None),
        (BATCH.turn, b"{", None),
        (BATCH.turn, b"\xff", None),
        (BATCH.turn, b'{"newer":' + b"[" * 100_000, None),
        (child_id(BATCH.turn, 7), encode(request(parent=BATCH.turn)), "last"),
        (TurnId("01a1f9d6-8531-7567-8302-56b3d7963420"), encode(request(parent=BATCH.turn)), None),
    ],
)
def test_a_batch_and_its_turns_are_recognised_by_their_requests(turn: TurnId, payload: bytes, part: str | None) -> None:
    """Little is decoded for it, and invalid JSON is not a batch: every generator checks every delivery."""
    runner: Any = None
    assert BatchLane(runner).place(turn, payload) == part


@pytest.mark.rule("R63")
@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_decoded_inputs_equal_the_encoded_ones(texts: list[str]) -> None:
    """Each input is one line, whatever line breaks its strings contain."""
    requests = [request(system=text, metadata={"custom_id": text}) for text in texts]
    lines = input_lines.split_inputs(input_lines.encode_inputs(requests))
    assert [input_lines.decode_input(line) for line in lines] == requests
    assert [input_lines.custom_id(input_lines.decode_input(line)) for line in lines] == texts
    assert {input_lines.child_request(BATCH, line).parent for line in lines} == {BATCH.turn}


def test_an_entry_of_progress_is_these_bytes() -> None:
    entry = Progress(prev=Seq(2), attempt=1, done=3, failed=1, of=9, cost_nano_usd=7)
    assert encode(entry) == b'{"prev":2,"attempt":1,"done":3,"failed":1,"of":9,"cost_nusd":7}'
    assert decode("progress", encode(entry)) == entry


@pytest.mark.rule("R64")
@given(st.lists(st.sampled_from([END, FAILED, None]), min_size=1, max_size=12), st.data())
def test_progress_only_grows_across_holders(ends: list[End | None], data: Any) -> None:
    """Each holder counts from the beginning and sends no number twice; the last one reaches the total."""
    reports: list[Progress] = []
    for is_last in (False, False, True):
        tally = BatchTally(reports[-1] if reports else None, len(ends))
        upto = len(ends) if is_last else data.draw(st.integers(0, len(ends)))
        for end in ends[:upto]:
            tally.add(end)
            if data.draw(st.booleans()) and (next_progress := tally.next_progress(Chain(Seq(5), 1))) is not None:
                reports.append(next_progress)
    if (next_progress := tally.next_progress(Chain(Seq(5), 1))) is not None:
        reports.append(next_progress)
    assert tally.is_complete
    counts = [one.done + one.failed for one in reports]
    assert counts == sorted(set(counts))
    assert (reports[-1].done, reports[-1].of, counts[-1]) == (ends.count(END), len(ends), len(ends))
    assert reports[-1].cost_nano_usd == 5 * ends.count(END) + 2 * ends.count(FAILED)


@pytest.mark.rule("R64")
def test_progress_counts_cancelled_and_expired_turns_among_the_failed() -> None:
    """A deleted turn, and one with another error, are only failed."""
    cancelled = msgspec.structs.replace(FAILED, outcome="cancelled")
    late, refused = (
        msgspec.structs.replace(FAILED, error=Failure(code, "no"))
        for code in ("deadline_exceeded", "backend_refused_request")
    )
    tally = BatchTally(None, 6)
    for end in (END, refused, cancelled, late, late, None):
        tally.add(end)
    assert (report := tally.next_progress(Chain(Seq(2), 1))) is not None
    assert (report.done, report.failed, report.cancelled, report.expired) == (1, 5, 1, 2)


@pytest.mark.parametrize(
    ("ended", "kind"),
    [
        (("completed", None), "errored"),
        (("cancelled", None), "canceled"),
        (("failed", Failure("deadline_exceeded", "late")), "expired"),
        (("failed", Failure("internal", "a bug")), "errored"),
    ],
)
def test_anthropics_counts_of_a_batch_are_those_of_its_results(ended: tuple[Any, Failure | None], kind: str) -> None:
    """An input without a turn, or whose turn was stopped by a failure of the batch, has the kind of the batch's end."""
    outcome, error = ended
    source = BatchSource(None, "/v1/messages", refused=1)
    counts = BatchCounts(of=6, parallel=1, done=1, failed=4, cancelled=1, expired=2, source=source)
    stored = StoredBatch(
        batch=BATCH.turn,
        session=SessionId("s"),
        outcome=outcome,
        counts=counts,
        error=error,
        metadata={},
        asked_at=NOON,
        ended_at=NOON,
    )
    shown = render_batch(stored)["request_counts"]
    expected = Counter({"succeeded": 1, "errored": 2, "canceled": 1, "expired": 2}) + Counter([kind])
    assert Counter(shown) == expected
    line = result_line(EndedInput(0, "a", None), stored)
    assert line["result"]["type"] == kind
    if outcome == "failed":
        stopped = attempted_turn()
        stopped.end("cancelled")
        record = record_from_fold(BATCH, stopped.turn)
        assert result_line(EndedInput(0, "a", record), stored)["result"]["type"] == kind


def test_progress_names_the_message_batch_from_its_creation_on() -> None:
    """A holder that takes over needs its id."""
    tally = BatchTally(None, 2)
    assert not tally.is_unclear
    tally.set_message_batch("msgbatch_1")
    taken = Chain(Seq(2), 1)
    report = tally.next_progress(taken)
    assert report == Progress(prev=Seq(2), attempt=1, done=0, failed=0, of=2, message_batch="msgbatch_1")
    assert tally.next_progress(taken) is None
    tally.add(None)
    assert (more := tally.next_progress(taken)) is not None
    assert (more.failed, more.message_batch) == (1, "msgbatch_1")
    again = BatchTally(report, 2, was_begun=True)
    assert (again.message_batch, again.is_unclear, again.next_progress(taken)) == ("msgbatch_1", False, None)
    # The previous holder may have died right after it had created it.
    assert BatchTally(None, 2, was_begun=True).is_unclear
