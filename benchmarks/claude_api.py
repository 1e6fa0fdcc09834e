"""Figures of the carriage of Claude's API: `python -m benchmarks.claude_api kills`, `events` or `captures FOLDER`.

`kills`: answers with three server tools whose generator is killed at random events. No call with a stored result may
run again. `events`: CPU time in which a large event of the model is decoded. `captures`: the cost of recorded answers,
beside a plain calculation. FOLDER is a checkout of a project that has recorded them as Claude's API sends them, such as
vercel/ai (folders `__fixtures__`).
"""

import json
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks.command_line import count, new_parser
from tailrace.features.batches.message_events import to_events
from tailrace.generators.backends.event_order import EventOrder
from tailrace.generators.backends.model_event import read_event
from tailrace.generators.backends.sse_decoder import SseDecoder
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import End, Event
from tailrace.proto.errors import BackendError
from tests.harness.turn_builder import Handwritten
from tests.unit.test_server_tool_kills import TEXT, run_turn

TOOLS = "server=web_search,code_execution,mcp"
DIRECTIVES = (TOOLS, f"{TOOLS} thinking=3", "server=mcp*3 pauses=3")
MODELS = ("claude-sonnet-5-5", "claude-sonnet-4-5")
KILLS = 8
# Sizes in bytes of the events, and of the pieces in which they come.
EVENTS = ((900_000, 1_400), (3_600_000, 1_400), (30_000_000, 16_384))
# US dollars per million tokens of input and output. Typed from the page
# https://docs.anthropic.com/en/docs/about-claude/pricing, not read from the product's price table.
USD = {
    "claude-fable-5": (10, 50),
    "claude-haiku-4-5": (1, 5),
    "claude-opus-4-1": (15, 75),
    **{f"claude-opus-4-{number}": (5, 25) for number in (5, 6, 7, 8)},
    "claude-opus-5": (5, 25),
    "claude-sonnet-4-5": (3, 15),
    "claude-sonnet-4-6": (3, 15),
    "claude-sonnet-5": (2, 10),
}
USD_PER_SEARCH = Decimal("0.01")

Json = dict[str, Any]


def measure_kills(seeds: int) -> Counter[str]:
    """Returns counts over all answers: kills, executed calls, repeated calls, wrong texts."""
    total = Counter[str](turns=0, kills=0, attempts=0, executed=0, repeated=0, wrong_texts=0)
    for directives in DIRECTIVES:
        for model in MODELS:
            for seed in range(seeds):
                generator = run_turn(directives, seed, kills=KILLS, model=model)
                turn = generator.log.turn
                total.update(turns=1, kills=KILLS - generator.kills_left, attempts=turn.attempt)
                total.update(executed=generator.executed.total(), repeated=len(generator.repeated))
                total.update(wrong_texts=int(turn.text != TEXT))
    return total


def decode_s(size: int, piece: int) -> float:
    """Returns the CPU time in which one event of about `size` bytes is decoded, the least of three."""
    block = {"type": "web_fetch_tool_result", "tool_use_id": "srvtoolu_1", "content": {"data": "x" * size}}
    data = json.dumps({"type": "content_block_start", "index": 0, "content_block": block}).encode()
    stream = b"event: content_block_start\ndata: " + data + b"\n\n"

    def once() -> float:
        decoder, began_at = SseDecoder(), time.process_time()
        found = sum(len(list(decoder.decode(stream[at : at + piece]))) for at in range(0, len(stream), piece))
        assert found == 1
        return time.process_time() - began_at

    return min(once() for _ in range(3))


def read_captures(folder: Path) -> Iterator[tuple[str, list[bytes], str, Json]]:
    """Yields of each recorded call: a name, its events, its model and its usage object."""
    for path in sorted(path for path in folder.rglob("*") if "__fixtures__" in path.parts and path.is_file()):
        text = path.read_text(errors="replace")
        if path.suffix == ".json":
            message = json.loads(text)
            if isinstance(message, dict) and message.get("type") == "message" and "usage" in message:
                yield path.name, [bytes(one) for one in to_events(message)], message["model"], message["usage"]
            continue
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith(("{", "data: {"))]
        decoded = [json.loads(line) for line in lines]
        # Some files hold several calls.
        begins = [index for index, one in enumerate(decoded) if one.get("type") == "message_start"]
        for begin, end in zip(begins, [*begins[1:], len(lines)], strict=True):
            message, usage = decoded[begin]["message"], dict(decoded[begin]["message"]["usage"])
            for one in decoded[begin:end]:
                if one["type"] == "message_delta":
                    usage |= {name: value for name, value in (one.get("usage") or {}).items() if value is not None}
            yield path.name, [line.encode() for line in lines[begin:end]], message["model"], usage


def end_of(data: list[bytes], model: str) -> End:
    """Returns the end that the product writes for these events. Raises BackendError if they break the API's rules."""
    log, order = Handwritten(), EventOrder()
    log.store_request(model=model)
    log.store_attempt()
    for one in data:
        if (read := read_event(one)) is not None:
            for event in order.accept(read):
                log.store(Event(prev=log.chain.last, attempt=1, event=event.raw, is_hidden=event.is_hidden))
    return build_end(log.turn, "completed")


def plain_usd(usage: Json, model: str) -> Decimal | None:
    """Returns the price of a usage object, as the vendor's page states it; None for a model without a price here."""
    steps = usage.get("iterations") or [usage]
    if any(step.get("type") == "fallback_message" for step in steps):
        # A step that is declined before any output is free.
        steps = [step for step in steps if step.get("output_tokens") or step.get("type") != "message"]
    total = Decimal(0)
    for step in steps:
        name = step.get("model") or model
        row = next((prices for one, prices in USD.items() if name.startswith(one)), None)
        if row is None:
            return None
        per_input, per_output = map(Decimal, row)
        written = step.get("cache_creation_input_tokens") or 0
        hour = (step.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0
        total += (step.get("input_tokens") or 0) * per_input + (step.get("output_tokens") or 0) * per_output
        total += (written - hour) * per_input * Decimal("1.25") + hour * per_input * 2
        total += (step.get("cache_read_input_tokens") or 0) * per_input / 10
    if usage.get("inference_geo") == "us":
        total *= Decimal("1.1")
    searches = (usage.get("server_tool_use") or {}).get("web_search_requests") or 0
    return total / 1_000_000 + searches * USD_PER_SEARCH


def compare_captures(folder: Path) -> Counter[str]:
    """Prints each call that differs, is refused or has no price. Returns counts."""
    counts = Counter[str](calls=0, equal=0, differ=0, without_price=0, refused=0)
    for name, data, model, usage in read_captures(folder):
        counts["calls"] += 1
        try:
            end = end_of(data, model)
        except BackendError as error:
            counts["refused"] += 1
            print(f"{name}: refused: {error}")
            continue
        expected = plain_usd(usage, model)
        if end.cost_is_unknown or expected is None or end.cost_nano_usd is None:
            counts["without_price"] += 1
            print(f"{name}: {model} has no price")
        elif abs(Decimal(end.cost_nano_usd) / 10**9 - expected) <= Decimal("1e-9"):
            counts["equal"] += 1
        else:
            counts["differ"] += 1
            print(f"{name}: {end.cost_nano_usd / 10**9} differs from {expected}")
    return counts


def run(arguments: Namespace) -> bool:
    """Prints the figures; returns whether they are as they should be."""
    if arguments.what == "events":
        for size, piece in EVENTS:
            print(f"{size / 1e6:.1f} MB in pieces of {piece} bytes: {decode_s(size, piece) * 1000:.0f} ms of CPU")
        return True
    if arguments.what == "kills":
        found = measure_kills(arguments.seeds)
        is_right = found["repeated"] == found["wrong_texts"] == 0
    else:
        found = compare_captures(arguments.folder)
        is_right = found["differ"] == 0 < found["calls"]
    print(", ".join(f"{name.replace('_', ' ')}: {number}" for name, number in found.items()))
    return is_right


def main(argv: list[str] | None = None) -> int:
    parser = new_parser(__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    kills = what.add_parser("kills", help="server tools under seeded kills")
    kills.add_argument("--seeds", type=count, default=200, help="the number of seeds for each answer and model")
    what.add_parser("events", help="CPU of large events")
    what.add_parser("captures", help="the cost of recorded answers").add_argument("folder", type=Path)
    return 0 if run(parser.parse_args(argv)) else 1


if __name__ == "__main__":
    sys.exit(main())
