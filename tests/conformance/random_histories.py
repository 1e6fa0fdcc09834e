"""Random odd histories: the model gets the same of each in all ways, except where a protocol has a rule of its own.

The own rules are those of the rows in rules/histories. Exit status 1 if a history is wrong.

python -m tests.conformance.random_histories --count 10000 --processes 2
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.conformance import history_format as form
from tests.conformance.history_case import Item, exchanges, has_refused_file, is_answered, kind_of
from tests.conformance.history_ways import WAYS, Outcome, play
from tests.sessions.play import patched

MODEL = "claude-sonnet-5-5"
# The ways that send the whole history in a protocol in which Claude's API refuses a call without its result.
STRICT = (
    "chat",
    "chat-batch",
    "responses",
    "responses-output",
    "responses-reference",
    "responses-socket",
    "responses-batch",
)
OPENAI = ("chat", "responses")
PAGES = ("ui", "ui-content", "agents")
# The items that are not compared.
PARTS = {
    "all": (),
    "all but system messages": ("system", "prompt"),
    "all but thinking and system messages": ("system", "prompt", "thinking"),
}
# The ways in which the model gets nothing from a session.
WHOLE = (*STRICT, *PAGES)


class Features(NamedTuple):
    """The odd things in a history for which a protocol has a rule of its own."""

    unanswered: bool
    """A call of an answer that others follow has no result."""
    orphan: bool
    """A result has no call before it."""
    moved: bool
    """Results that do not directly follow their calls in the order of the calls, or that are repeated."""
    blank: bool
    """A blank text of the user."""
    refused_file: bool
    """A file that Claude does not take, behind the last answer that has a text or a call."""
    server: bool
    """A call of a server tool."""
    reused: bool
    """The id of a call occurs again."""
    repeated: bool
    """A question is asked again that has got no answer."""
    divided: bool
    """A system message divides an answer with calls, unless the protocol hoists it."""
    split_calls: bool
    """Calls in several messages of the assistant in a row."""
    has_system: bool
    begins_with_system: bool
    ends_with_answer: bool
    """Nothing but results of earlier answers follows the last answer."""
    blank_before_thinking: bool
    """Thinking of an answer follows a blank text, which later requests do not have."""
    late_between: bool
    """A late result stands between two parts of an answer, which a page keeps as two messages."""
    late: bool
    """A result follows another answer than that with its call, or is repeated."""


@st.composite
def histories(draw: st.DrawFn) -> list[Item]:
    """Returns a history that ends with a question or with results."""
    items: list[Item] = []
    opened: list[str] = []
    used: list[str] = []
    has_server = draw(st.integers(0, 7)) == 0
    vendors = draw(
        st.sampled_from([("claude",), ("openai", "none"), ("gemini", "compatible"), ("empty", "claude"), ()])
    )

    def rarely(one_of: int) -> bool:
        return draw(st.integers(0, one_of - 1)) == one_of - 1

    def ask(*, is_last: bool) -> None:
        before = len(items)
        if opened and not rarely(4):
            some = draw(st.permutations(opened)) if rarely(4) else list(opened)
            for call in some[: len(some) if not rarely(5) else 1]:
                opened.remove(call)
                items.append(_result(call, draw))
        if used and rarely(15):
            items.append({"result": draw(st.sampled_from(used)), "content": "again"})
        if rarely(8):
            items.append({"system": draw(st.sampled_from(["Be kind.", "Be brief."]))})
        if len(items) == before or kind_of(items[-1]) == "system" or rarely(3):
            items.append(draw(QUESTIONS))
        if rarely(12):
            items.append({"system": "Hurry."})
        if opened and rarely(8):
            items.append(_result(opened.pop(), draw))

    def answer() -> None:
        for number in range(draw(st.integers(1, 4))):
            kind = draw(st.sampled_from(["answer", "answer", "call", "call", "thinking", "blank", "break", "shown"]))
            match kind:
                case "answer":
                    items.append({"answer": f"w{len(items)}"})
                case "call":
                    name = draw(st.sampled_from(used)) if used and rarely(8) else f"c{len(items)}"
                    if name in opened:
                        continue
                    used.append(name)
                    opened.append(name)
                    if has_server and rarely(2):
                        items.append({"search": f"srvtoolu_{len(items)}"})
                    items.append({"call": name, **draw(INPUTS)})
                case "thinking" if vendors:
                    items.append({"thinking": f"t{len(items)}", "of": draw(st.sampled_from(vendors))})
                case "shown" if rarely(6):
                    items.append({"shown": "png"})
                case "blank" if rarely(3):
                    items.append({"answer": " "})
                case "break" if number and rarely(4):
                    items.append({"break": True})

    if rarely(8):
        # A page greets its user, or a client has cut a long history.
        answer()
    for _ in range(draw(st.integers(0, 4))):
        ask(is_last=False)
        if rarely(12):
            items.append({"failed": True})
        else:
            answer()
    ask(is_last=True)
    return items


def _result(call: str, draw: st.DrawFn) -> Item:
    return {"result": call, **({"content": draw(CONTENTS)} if draw(st.booleans()) else {})}


QUESTIONS = st.one_of(
    *[st.integers(0, 99).map(lambda number: {"user": f"q{number}"})] * 6,
    st.sampled_from(["png", "png-url", "pdf", "docx", "mp4"]).map(lambda name: {"user": [{"file": name}, "what?"]}),
    st.just({"user": " "}),
)
CONTENTS = st.sampled_from(["", "x", "y", "x", "y", ["x", {"file": "png"}], [{"file": "docx"}]])
INPUTS: st.SearchStrategy[Item] = st.sampled_from(
    [{}, {}, {"input": {"city": "Oslo"}}, {"json": '{"city": "Os'}, {"json": "[1]"}]
)


def features_of(items: Sequence[Item]) -> Features:
    """Finds what is odd, by a reading of its own."""
    waiting: dict[str, int] = {}
    calls: list[str] = []
    unanswered = orphan = moved = False
    expected: list[str] = []
    is_behind = late = late_between = False
    newest: list[str] = []
    for number, item in enumerate(items):
        match kind_of(item):
            case "call":
                waiting[item["call"]] = number
                newest = [item["call"]] if is_behind else [*newest, item["call"]]
                calls.append(item["call"])
                expected = [*expected, item["call"]] if not is_behind else [item["call"]]
                is_behind = False
            case "result":
                orphan = orphan or item["result"] not in calls
                moved = moved or expected[:1] != [item["result"]]
                late = late or item["result"] not in newest
                after = next((one for one in items[number:] if "result" not in one), {"user": ""})
                late_between = late_between or (item["result"] not in newest and is_answered(after))
                newest = [call for call in newest if call != item["result"]]
                waiting.pop(item["result"], None)
                expected, is_behind = expected[1:], True
            case "answer" | "shown" | "thinking" | "search" | "found":
                if is_behind:
                    expected, newest, is_behind = [], [], False
            case _:
                expected, is_behind = [], True
    unanswered, repeated, asked = bool(waiting), False, list[str]()
    for item in items:
        if _has_answer(item):
            asked = []
        elif "user" in item:
            repeated = repeated or json.dumps(item) in asked
            asked.append(json.dumps(item))
    last = exchanges(items)[-1].asked
    answered = max((n for n, item in enumerate(items) if _has_answer(item)), default=0)
    said = [part for item in items if "user" in item for part in form.parts_of(item)]
    return Features(
        unanswered=unanswered,
        orphan=orphan,
        moved=moved,
        blank=any(isinstance(part, str) and not part.strip() for part in said),
        refused_file=has_refused_file(items[answered:]),
        server=any("search" in item for item in items),
        reused=len(calls) != len(set(calls)),
        repeated=repeated,
        divided=any(is_dividing(number, items) for number in range(len(items))),
        split_calls=any("break" in item for item in items) and bool(calls),
        has_system=any("system" in item for item in items),
        begins_with_system="system" in items[0],
        ends_with_answer=not any("user" in item for item in last) and late,
        blank_before_thinking=any(
            not one.get("answer", "x").strip() and "thinking" in after for one, after in pairwise(items)
        ),
        late_between=late_between,
        late=late,
    )


def _has_answer(item: Item) -> bool:
    return bool(item.get("answer", " ").strip()) or "shown" in item or "call" in item


def is_dividing(number: int, items: Sequence[Item]) -> bool:
    """Returns whether the item is a system message between two parts of the assistant, with or without results."""
    if "system" not in items[number]:
        return False
    others = ("system", "result")
    before = next((one for one in reversed(items[:number]) if kind_of(one) not in others), {})
    after = next((one for one in items[number:] if kind_of(one) not in others), {})
    return bool(before and after) and is_answered(before) and is_answered(after)


class Verdict(NamedTuple):
    items: list[Item]
    wrong: list[str]
    ways: list[str]


async def judge(items: list[Item]) -> Verdict:
    """Plays a history in all ways."""
    found = features_of(items)
    outcomes = {way: outcome for way in WAYS if (outcome := await play(way, items, MODEL)) is not None}
    wrong = [f"{way}: {outcome}" for way, outcome in outcomes.items() if not is_allowed(way, outcome, found)]
    same: dict[str, tuple[str, str]] = {}
    for way, outcome in outcomes.items():
        if outcome.sent is None or has_own_rule(way, found):
            continue
        for name in compared_parts(way, found):
            sent = json.dumps(joined([item for item in outcome.sent if kind_of(item) not in PARTS[name]]))
            first, expected = same.setdefault(name, (way, sent))
            if sent != expected:
                wrong.append(f"{way} differs from {first}:\n    {sent}\n    {expected}")
                break
    return Verdict(items, wrong, list(outcomes))


def is_allowed(way: str, outcome: Outcome, found: Features) -> bool:
    """Returns whether the outcome may be: accepted by Claude's API, or a refusal that a row names."""
    if outcome.sent is not None:
        return True
    if outcome.refused:
        # Tailrace names what it refuses.
        is_named = "`" in outcome.refused
        ends = found.ends_with_answer or (found.late and way.endswith(("-thread", "-socket")))
        return is_named and (found.refused_file or found.blank or found.orphan or ends)
    if way == "turns":
        return found.moved or found.orphan or found.blank or found.refused_file
    if way in ("chat-session", "responses-previous", "responses-socket"):
        return found.late or found.orphan or (found.unanswered and way == "responses-socket")
    # A late result begins a branch with the whole history, in which a call without a result is refused as in STRICT.
    is_strict = way in STRICT or (found.late and way in ("chat-thread", "responses-thread"))
    return (found.unanswered and is_strict) or (found.orphan and not way.startswith(PAGES))


def has_own_rule(way: str, found: Features) -> bool:
    """Returns whether the way may send something else, as a row says."""
    match way:
        case "turns" | "responses-previous":
            return found.moved or found.orphan or found.reused
        case "ui":
            return found.server or found.split_calls or found.divided or found.late_between
        case "ui-content" | "agents":
            return found.server or found.divided
        case "ui-thread" | "agents-thread":
            return found.divided or (found.server and found.late)  # a late result begins a branch without the session
        case "chat-session":
            return found.moved or found.orphan or found.reused or found.repeated
    return False


def compared_parts(way: str, found: Features) -> Iterator[str]:
    """Yields the names of the parts of what the way sends that are compared with other ways."""
    yield "all but thinking and system messages"
    # Thinking behind a changed prompt or answer, or behind a result that has come late, is left out (PROTOCOL R140).
    is_kept = way in WHOLE or not (found.has_system or found.moved or found.unanswered or found.blank_before_thinking)
    if is_kept:
        yield "all but system messages"
    # OpenAI's protocols hoist system messages.
    if is_kept and not way.startswith(OPENAI) and not (way == "turns" and found.begins_with_system):
        yield "all"


def joined(items: Sequence[Item]) -> list[Item]:
    """Returns items with consecutive texts of an answer as one, without white space: an item of a response has both."""
    found: list[Item] = []
    for item in items:
        if "answer" in item and found and "answer" in found[-1]:
            found[-1] = {"answer": found[-1]["answer"] + "".join(item["answer"].split())}
        else:
            found.append({"answer": "".join(item["answer"].split())} if "answer" in item else item)
    return found


def run(count: int, first_seed: int) -> tuple[int, Counter[str], list[tuple[list[Item], list[str]]]]:
    """Judges `count` histories. Returns their number, that of each way, and the wrong ones."""
    ways, wrong, total = Counter[str](), list[tuple[list[Item], list[str]]](), 0

    @seed(first_seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(histories())
    def play_one(items: list[Item]) -> None:
        nonlocal total
        verdict = runner.run(judge(items))
        total += 1
        ways.update(verdict.ways)
        if verdict.wrong:
            wrong.append((items, verdict.wrong))

    with patched(), asyncio.Runner() as runner:
        play_one()
    return total, ways, wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance.random_histories",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=1000, help="histories (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="(default: %(default)s)")
    options = parser.parse_args()
    began, total, ways, wrong = time.monotonic(), 0, Counter[str](), list[Any]()
    chunk = min(250, -(-options.count // options.processes))
    sizes = [min(chunk, options.count - start) for start in range(0, options.count, chunk)]
    seeds = [options.seed * 100_000 + number for number in range(len(sizes))]
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        for count, of_ways, of_wrong in pool.map(run, sizes, seeds):
            total += count
            ways += of_ways
            wrong += of_wrong
            print(f"{total} of {options.count}, {len(wrong)} wrong", file=sys.stderr, flush=True)
    for items, why in sorted(wrong, key=lambda one: len(json.dumps(one[0])))[:10]:
        print(json.dumps(items), *why, sep="\n  ")
    for way, count in sorted(ways.items()):
        print(f"{count:8} {way}")
    print(f"{total} histories, {ways.total()} cells, {len(wrong)} wrong, {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
