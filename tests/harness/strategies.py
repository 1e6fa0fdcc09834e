"""Hypothesis strategies for turn logs: attempts, answers, forks, late writers, junk, and which entries are valid."""

from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st

from tailrace.generators.plan import next_mode
from tailrace.proto import entries, events
from tailrace.proto.chain import Chain, link
from tailrace.proto.entries import KINDS, End, Entry, Failure, Mode, Outcome, StoredEntry, Unknown, Unreadable
from tailrace.proto.ids import Seq
from tailrace.proto.usage import CallUsage, Usage
from tests.harness.turn_builder import Handwritten, answer_block, attempt, event, junk, opening_events, request

# Any Unicode text without lone surrogates, which msgspec refuses in JSON.
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
# Pieces of JSON need not be cut where its tokens are.
INPUTS = st.sampled_from([(), ('{"a":', "1}"), ('{"b":"🌊"}',), ("{", "}")])
COUNTS = st.integers(0, 1000)
MODES: st.SearchStrategy[Mode] = st.sampled_from(["fresh", "continue", "restart"])
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS)
CALL_USAGES = st.builds(CallUsage, COUNTS, COUNTS, COUNTS, COUNTS)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)

# In the form of Anthropic's API: a web page, a search result, a PDF and an untitled document.
PAGE: dict[str, Any] = {
    "type": "web_search_result_location",
    "cited_text": "Water runs.",
    "url": "https://rivers.example/water",
    "title": "Rivers",
    "encrypted_index": "c2VjcmV0",
}
RESULT: dict[str, Any] = {
    "type": "search_result_location",
    "cited_text": "Water runs.",
    "source": "https://rivers.example/handbook",
    "title": None,
    "search_result_index": 0,
    "start_block_index": 0,
    "end_block_index": 1,
}
FILE: dict[str, Any] = {
    "type": "page_location",
    "cited_text": "Water runs.",
    "document_index": 0,
    "document_title": "rivers.pdf",
    "start_page_number": 1,
    "end_page_number": 2,
    "file_id": "file_1",
}
TEXT_CITATION: dict[str, Any] = {
    "type": "char_location",
    "cited_text": "Water runs.",
    "document_index": 0,
    "document_title": None,
    "start_char_index": 0,
    "end_char_index": 11,
    "file_id": None,
}
CITATIONS = [PAGE, RESULT, FILE, TEXT_CITATION, RESULT | {"source": "shelf 7"}]


class MadeUp(msgspec.Struct, frozen=True):
    """A generated log and the set of its valid entries."""

    stored: list[StoredEntry]
    valid: list[StoredEntry]


@st.composite
def anthropic_events(draw: st.DrawFn) -> events.Event:
    index = draw(st.integers(0, 2))
    deltas: st.SearchStrategy[events.Delta] = st.one_of(
        TEXTS.map(events.TextDelta),
        TEXTS.map(events.ThinkingDelta),
        TEXTS.map(events.InputJsonDelta),
        TEXTS.map(events.SignatureDelta),
        TEXTS.map(lambda text: events.CitationsDelta({"cited_text": text})),
    )
    blocks = st.sampled_from(["text", "thinking", "tool_use", "redacted_thinking", "newer"])
    heads = st.builds(events.MessageHead, st.just("msg_1"), st.just("claude-x"), CALL_USAGES)
    counts = st.none() | COUNTS
    made: events.Event = draw(
        st.one_of(
            deltas.map(lambda delta: events.BlockDelta(index, delta)),
            blocks.map(lambda type_: events.BlockStart(index, {"type": type_})),
            st.just(events.BlockStop(index)),
            heads.map(events.MessageStart),
            st.builds(
                events.MessageDelta,
                st.builds(events.StopReason, st.sampled_from([None, "end_turn", "max_tokens"])),
                st.builds(events.UsageSoFar, counts, counts, counts, counts),
            ),
        )
    )
    return made


@st.composite
def next_entries(draw: st.DrawFn, chain: Chain) -> Entry:
    """An entry that is valid after `chain`, which has a request and no end."""
    kind = draw(st.sampled_from(["event"] * 8 + ["attempt", "unknown"]))
    if kind == "attempt":
        return attempt(chain, draw(MODES))
    if kind == "unknown":
        return Unknown(prev=chain.last, attempt=chain.attempt)
    return event(chain, draw(anthropic_events()), is_hidden=draw(st.booleans()))


@st.composite
def invalid_entries(draw: st.DrawFn, chain: Chain, seq: Seq) -> Entry:
    """An entry that is invalid after `chain`: of a fork, of a late writer, or unreadable."""
    elsewhere = st.integers(0, seq - 1).map(Seq).filter(lambda prev: prev != chain.last)
    made: Entry = draw(
        st.one_of(
            st.just(Unreadable()),
            elsewhere.map(lambda prev: request(prev=prev)),
            elsewhere.map(lambda prev: Unknown(prev=prev, attempt=chain.attempt)),
            elsewhere.map(lambda prev: event(Chain(prev, chain.attempt), events.BlockDelta(0, events.TextDelta("!")))),
            elsewhere.map(lambda prev: attempt(Chain(prev, chain.attempt))),
            elsewhere.map(lambda prev: an_end(Chain(prev, chain.attempt))),
            st.just(event(Chain(chain.last, chain.attempt - 1), events.BlockDelta(0, events.TextDelta("?")))),
        )
    )
    return made if link(chain, seq, made) is None else Unreadable()


def an_end(chain: Chain) -> End:
    return End(prev=chain.last, attempt=chain.attempt, outcome="completed", text_chars=0, text_sha256="")


@st.composite
def logs(draw: st.DrawFn, *, has_forks: bool = True, entries_max: int = 10) -> MadeUp:
    """A log of any length, ended or not, between entries of other turns."""
    log = Handwritten(step=draw(st.integers(1, 3)))
    valid = [log.store_request()]
    for _ in range(draw(st.integers(0, entries_max))):
        if has_forks and draw(st.integers(0, 3)) == 0:
            log.store(draw(invalid_entries(log.chain, Seq(log.stored[-1].seq + log.step))))
        elif not log.chain.is_ended:
            is_end = draw(st.integers(0, 9)) == 0
            valid.append(log.store(an_end(log.chain) if is_end else draw(next_entries(log.chain))))
    return MadeUp(log.stored, valid)


@st.composite
def answer_blocks(draw: st.DrawFn, index: int) -> list[events.Event]:
    """A block that Claude may send, and one of a type that does not exist yet."""
    kind = draw(
        st.sampled_from(["text", "begun text", "thinking", "tool_use", "nameless", "redacted_thinking", "newer"])
    )
    texts: st.SearchStrategy[Sequence[str]] = st.lists(TEXTS, max_size=3)
    return answer_block(
        index,
        kind,
        *draw(INPUTS if kind == "tool_use" else texts),
        citations=draw(st.lists(st.sampled_from(CITATIONS), max_size=3)),
    )


@st.composite
def answers(
    draw: st.DrawFn,
    *,
    has_restarts: bool = True,
    outcomes: Sequence[Outcome | None] = ("completed", "cancelled", "failed", None),
) -> Handwritten:
    """A turn as generators write it: attempts of any answer, the last block of each perhaps broken off."""
    log = Handwritten(step=draw(st.integers(1, 3)))
    log.store_request(metadata={"a": "b"}, on_interrupt=draw(st.sampled_from(["continue", "restart"])))
    for _ in range(draw(st.integers(0, 3))):
        mode = next_mode(log.turn)
        if mode is None or (mode == "restart" and not has_restarts):
            break
        log.store_attempt(mode)
        if draw(st.booleans()):
            log.store(junk())
        if draw(st.integers(0, 4)) == 0:
            continue
        log.store_events(opening_events()[0], is_hidden=mode == "continue")
        log.close_block(*draw(st.lists(TEXTS, max_size=2)))
        for _ in range(draw(st.integers(0, 2))):
            log.store_events(*draw(answer_blocks(len(log.turn.blocks))))
        if draw(st.booleans()):
            broken = draw(answer_blocks(len(log.turn.blocks)))
            log.store_events(*broken[: draw(st.integers(1, len(broken) - 1))])
    outcome = draw(st.sampled_from(outcomes))
    if outcome == "completed":
        log.close_block()
        stop = events.StopReason(draw(st.sampled_from(["end_turn", "max_tokens"])))
        log.store_events(events.MessageDelta(stop, events.UsageSoFar(output_tokens=3)))
    if outcome is not None:
        log.end(outcome, Failure("backend_overloaded", "Claude is overloaded") if outcome == "failed" else None)
    return log


@st.composite
def any_entries(draw: st.DrawFn) -> tuple[str, Entry]:
    """A kind and an entry of that kind with any legal field values."""
    kind = draw(st.sampled_from(sorted(KINDS.values())))
    seq, number = st.integers(0, 2**63 - 1).map(Seq), st.integers(0, 99)
    texts = st.none() | TEXTS
    content: st.SearchStrategy[Any] = TEXTS | st.lists(st.dictionaries(TEXTS, JSON, max_size=3), max_size=2)
    made: dict[str, st.SearchStrategy[Entry]] = {
        "request": st.builds(
            request,
            messages=st.lists(st.builds(entries.Message, st.sampled_from(["user", "assistant"]), content), max_size=2),
            system=st.none() | content,
            tools=st.none() | st.lists(st.dictionaries(TEXTS, JSON, max_size=2), max_size=2),
            parent=texts,
            history=number,
            metadata=st.none() | st.dictionaries(TEXTS, TEXTS, max_size=2),
            on_interrupt=st.sampled_from(["continue", "restart", "fail"]),
            on_disconnect=st.sampled_from(["continue", "cancel", "grace:3"]),
        ),
        "attempt": st.builds(
            entries.Attempt,
            prev=seq,
            attempt=number,
            generator=TEXTS,
            backend=TEXTS,
            mode=MODES,
        ),
        "event": st.builds(
            entries.Event,
            prev=seq,
            attempt=number,
            event=st.dictionaries(TEXTS, JSON).map(lambda made: msgspec.Raw(msgspec.json.encode(made))),
            is_hidden=st.booleans(),
        ),
        "progress": st.builds(
            entries.Progress, prev=seq, attempt=number, done=COUNTS, failed=COUNTS, of=COUNTS, cost_nano_usd=COUNTS
        ),
        "end": st.builds(
            End,
            prev=seq,
            attempt=number,
            outcome=st.sampled_from(["completed", "cancelled", "failed"]),
            stop_reason=texts,
            stop_sequence=texts,
            usage=USAGES,
            cost_nano_usd=st.integers(0, 10**15),
            error=st.none() | st.builds(entries.Failure, TEXTS, TEXTS),
            text_chars=COUNTS,
            text_sha256=TEXTS,
        ),
    }
    return kind, draw(made[kind])
