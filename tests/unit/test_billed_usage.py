"""Billed usage and cost of turns: from the model's events to the end, the record, the dialects and the metrics."""

from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from tailrace.generators import metrics
from tailrace.proto.entries import End, Event, decode, encode
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.usage import ModelUsage, Usage
from tailrace.protocols.anthropic import stream as anthropic
from tailrace.protocols.openai.chat_object import usage_of
from tests.harness.turn_builder import KEY, Handwritten

SONNET, OPUS, FABLE = "claude-sonnet-5-5", "claude-opus-4-8", "claude-fable-5"
COMPACTION = [
    {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500},
    {"type": "message", "input_tokens": 23_000, "output_tokens": 1_000},
]


def store_answer(log: Handwritten, start: dict[str, Any], delta: dict[str, Any], *, model: str = SONNET) -> None:
    """Stores the events of a call, with the usage of its `message_start` and of its `message_delta`."""
    answer: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "msg_1", "model": model, "usage": start}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "ok"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": delta},
    ]
    store(log, *answer)


def store(log: Handwritten, *answer: dict[str, Any]) -> None:
    for event in answer:
        raw = msgspec.Raw(msgspec.json.encode(event))
        log.store(Event(prev=log.chain.last, attempt=log.chain.attempt, event=raw))


def log_of(model: str = SONNET) -> Handwritten:
    log = Handwritten()
    log.store_request(model=model)
    log.store_attempt()
    return log


def end_of(log: Handwritten) -> End:
    """Returns the `end` of the log as it is decoded by its readers."""
    log.end()
    end = decode("end", encode(log.stored[-1].entry))
    assert isinstance(end, End)
    return end


def record_of(log: Handwritten) -> TurnRecord:
    return record_from_fold(KEY, log.turn)


def shown_usage(log: Handwritten) -> dict[str, Any]:
    """Returns the usage of the turn in Anthropic's format, which is the same in a stream, a replay and a JSON body."""
    record = record_of(log)
    usage: dict[str, Any] = anthropic.message_of(record)["usage"]
    frame, _ = anthropic.render(KEY, log.stored[-1])
    for rendered in (frame, anthropic.render_record(record, 0)):
        (data,) = (line[6:] for line in rendered.data.splitlines() if b'"type":"message_delta"' in line)
        assert msgspec.json.decode(data)["usage"] == usage
    return usage


@pytest.mark.rule("R121")
def test_a_record_has_the_billed_tokens_and_the_vendors_format_the_reported_ones() -> None:
    """A compaction's tokens are in the usage and the cost, and not at the top level of Anthropic's usage object."""
    log = log_of()
    top = {"input_tokens": 23_000, "output_tokens": 1_000}
    store_answer(log, {"input_tokens": 180_000, "output_tokens": 5}, top | {"iterations": COMPACTION})
    end, record = end_of(log), record_of(log)
    assert end.usage == record.usage == Usage(203_000, 4_500)
    assert (record.cost_usd, end.by_model, end.answered_by) == (0.451, None, None)
    cached = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    assert shown_usage(log) == {"iterations": COMPACTION} | top | cached
    assert usage_of(record.usage, record.envelope)["total_tokens"] == 207_500


@pytest.mark.rule("R121")
def test_a_usage_object_without_steps_is_shown_as_before() -> None:
    """The envelope has no counts if the billed ones are the same."""
    log = log_of()
    store_answer(log, {"input_tokens": 10, "output_tokens": 1}, {"output_tokens": 2})
    assert (end_of(log).envelope, record_of(log).usage) == (None, Usage(10, 2))
    assert shown_usage(log)["output_tokens"] == 2


@pytest.mark.rule("R121")
def test_the_usage_object_of_several_calls_has_their_sums_and_steps() -> None:
    """Two calls of one turn, each with a compaction and a search."""
    log = log_of()
    searched = {"server_tool_use": {"web_search_requests": 1}, "cache_creation": {"ephemeral_1h_input_tokens": 3}}
    for mode in ("continue", None):
        usage = {"input_tokens": 23_000, "output_tokens": 1_000, "iterations": COMPACTION} | searched
        store_answer(log, {"input_tokens": 1}, usage)
        if mode is not None:
            log.store_attempt("continue")
    end, usage = end_of(log), shown_usage(log)
    assert (usage["input_tokens"], usage["output_tokens"], usage["iterations"]) == (46_000, 2_000, COMPACTION * 2)
    assert usage["server_tool_use"] == {"web_search_requests": 2}
    assert usage["cache_creation"] == {"ephemeral_1h_input_tokens": 6}
    assert (end.usage, end.cost_nano_usd) == (Usage(406_000, 9_000), 2 * (451_000_000 + 10_000_000))


def store_fallback(log: Handwritten, category: str | None, declined_output: int = 0) -> None:
    """Stores a call whose model refuses, and another one answers, as Anthropic streams it."""
    steps = [
        {"type": "message", "model": FABLE, "input_tokens": 408, "output_tokens": declined_output},
        {"type": "fallback_message", "model": OPUS, "input_tokens": 412, "output_tokens": 264},
    ]
    trigger = {"type": "refusal", "category": category}
    block = {"type": "fallback", "from": {"model": FABLE}, "to": {"model": OPUS}, "trigger": trigger}
    usage = {"input_tokens": 412, "output_tokens": 264, "iterations": steps}
    store(
        log,
        {"type": "message_start", "message": {"model": FABLE, "usage": {"input_tokens": 408, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
    )


@pytest.mark.rule("R121")
@pytest.mark.parametrize(
    ("category", "output", "billed"), [("cyber", 0, 0), (None, 0, 0), ("bio", 0, 408), ("cyber", 7, 408)]
)
def test_the_model_that_answered_after_a_refusal_is_named_and_priced(
    category: str | None, output: int, billed: int
) -> None:
    """The request's model stays the turn's. What it has cost itself depends on its refusal."""
    log = log_of(FABLE)
    store_fallback(log, category, output)
    end, record = end_of(log), record_of(log)
    assert (record.model, end.answered_by) == (FABLE, OPUS)
    served = ModelUsage(412, 264, cost_nano_usd=412 * 5_000 + 264 * 25_000)
    declined = ModelUsage(billed, output, cost_nano_usd=billed * 10_000 + output * 50_000)
    assert end.by_model == {OPUS: served} | ({FABLE: declined} if billed else {})
    assert end.cost_nano_usd == served.cost_nano_usd + declined.cost_nano_usd
    assert shown_usage(log)["input_tokens"] == 412


@pytest.mark.rule("R121")
def test_a_stream_that_breaks_off_after_a_fallback_names_the_model_that_answered() -> None:
    """The block says it before the usage does."""
    log = log_of(FABLE)
    store_fallback(log, "cyber")
    log.stored.pop()
    log.chain = log.turn.chain
    assert end_of(log).answered_by == OPUS


@pytest.mark.rule("R23")
@pytest.mark.parametrize(("category", "is_billed"), [("cyber", False), ("frontier_llm", True), (None, False)])
def test_a_refusal_before_any_output_costs_nothing(category: str | None, *, is_billed: bool) -> None:
    """Anthropic reports its tokens, and bills them only in some categories."""
    log = log_of(FABLE)
    delta = {"stop_reason": "refusal", "stop_details": {"type": "refusal", "category": category}}
    store(
        log,
        {"type": "message_start", "message": {"model": FABLE, "usage": {"input_tokens": 18, "output_tokens": 0}}},
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 0}},
    )
    end = end_of(log)
    assert end.cost_nano_usd == (180_000 if is_billed else 0)
    assert (shown_usage(log)["input_tokens"], end.usage.input_tokens) == (18, 18 if is_billed else 0)
    assert anthropic.message_of(record_of(log))["stop_details"]["category"] == category


@pytest.mark.rule("R121")
@pytest.mark.parametrize("iterations", ["x", 7, {"a": 1}, [7], [{"type": ["deep"] * 3, "input_tokens": "many"}]])
def test_odd_iterations_are_passed_on_and_not_billed(iterations: Any) -> None:
    """The model's counts are billed instead, and no event becomes unreadable."""
    log = log_of()
    store_answer(log, {"input_tokens": 10, "iterations": iterations}, {"output_tokens": 2, "iterations": iterations})
    assert end_of(log).usage == Usage(10, 2)
    assert shown_usage(log)["iterations"] == iterations


@pytest.mark.rule("R23")
def test_a_step_of_a_model_without_a_price_makes_the_cost_unknown() -> None:
    """It is not 0: the record has no cost, and limits count what is known."""
    log = log_of()
    step = {"type": "advisor_message", "model": "claude-opus-99", "input_tokens": 5, "output_tokens": 5}
    steps = [{"type": "message", "input_tokens": 10, "output_tokens": 2}, step]
    store_answer(log, {"input_tokens": 10}, {"output_tokens": 2, "iterations": steps})
    end = end_of(log)
    assert (end.cost_is_unknown, end.cost_nano_usd, record_of(log).cost_usd) == (True, 40_000, None)
    assert end.by_model is not None
    assert end.by_model["claude-opus-99"] == ModelUsage(5, 5, cost_is_unknown=True)


def test_the_metrics_count_each_model_that_has_worked() -> None:
    """Under its own label, which is `other` for a name that the table does not have."""
    log = log_of(FABLE)
    store_fallback(log, "bio")
    log.end()

    def count(kind: str, model: str) -> float:
        return REGISTRY.get_sample_value("tailrace_generator_usage_tokens_total", {"kind": kind, "model": model}) or 0.0

    before = count("input_tokens", FABLE), count("input_tokens", OPUS)
    metrics.count_end(KEY, log.turn)
    after = count("input_tokens", FABLE), count("input_tokens", OPUS)
    assert (after[0] - before[0], after[1] - before[1]) == (408, 412)
