"""Judges the model calls of a session, and counts what thinking and which part of the prompt were kept.

The most that the simulated Claude would have accepted is computed from its own signatures and its own digests, not from
the product's rule.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from tailrace.deploy.simulated_claude.thinking import (
    Place,
    can_read,
    find_open,
    has_its_thinking,
    read_leaves,
    read_places,
    read_signature,
    runs_check,
    seal_of,
    state_before,
)
from tailrace.proto.ids import TurnId
from tailrace.proto.thinking_prefix import find_open_answer
from tests.sessions.stand_in import Json
from tests.sessions.world import BoundCall, World

# The simulated fault of a call.
OVERLOADED = "Overloaded"
NOTHING = "\0"
REFUSED = "backend_refused_request"
FOREIGN = "bound to a different conversation"


class Verdict(NamedTuple):
    """The faults of the session of a seed, and its counts."""

    seed: int
    wrong: list[str]
    counts: Counter[str]


def judge(seed: int, world: World, profile: str, protocol: str) -> Verdict:
    counts = Counter({"sessions": 1, "turns": world.posted, "calls": len(world.calls), f"protocol {protocol}": 1})
    counts.update(f"with {name}" for name in world.happened)
    bad = {TurnId(turn) for turn, said in world.claude.refused if world.bad.get(TurnId(turn), NOTHING) in said}
    wrong = [f"refused: {said}" for turn, said in world.claude.refused if said != OVERLOADED and turn not in bad]
    counts["refused"] = len(wrong)
    counts["refused for thinking (calls of the net)"] = sum(FOREIGN in said for _, said in world.claude.refused)
    counts["refused, bad input"] = len(bad)
    # The API does not see a tampered block that the product leaves out: it was written after an addition.
    unseen = {call.turn for call in world.calls if call.bound.left_out}
    wrong += [f"{turn}: accepted in spite of its bad input" for turn in world.bad if turn not in bad | unseen]
    wrong += [f"{turn}: ended as {world.ends.get(turn)}" for turn in bad if world.ends.get(turn) != REFUSED]
    before: dict[str, BoundCall] = {}
    for call in world.calls:
        sent, whole = as_body(call, is_bound=True), as_body(call, is_bound=False)
        kept, most = words_of(sent), most_words(whole)
        counts["thinking words: all"] += words_of(whole)
        counts["thinking words: most accepted"] += most
        counts["thinking words: kept"] += kept
        if kept < most:
            counts["calls that keep less than the most"] += 1
        parent = before.get(str(call.request.parent))
        if parent is not None:
            sent_before, whole_before = as_body(parent, is_bound=True), as_body(parent, is_bound=False)
            counts["prompt words: all"] += sum(count for _, count in flat(sent))
            counts["prompt words: unchanged"] += shared(sent_before, sent)
            counts["prompt words: unchanged without all thinking"] += shared(bare(sent_before), bare(sent))
            counts["prompt words: unchanged if nothing was left out"] += shared(whole_before, whole)
        before[call.turn] = call
        if profile == "still" and call.bound.left_out and not is_own(world, call):
            wrong.append(f"{call.turn}: {call.bound.left_out} blocks are left out although nothing has changed")
        if profile != "changing":
            wrong += [f"{call.turn}: {one}" for one in needless(world, call)]
    return Verdict(seed, wrong, counts)


def is_own(world: World, call: BoundCall) -> bool:
    """Returns whether all thinking that is left out was written after what the product had added to a prompt."""
    return not list(needless(world, call))


def needless(world: World, call: BoundCall) -> Iterator[str]:
    """Yields what is wrong with the thinking that is left out of a call, in a session whose client changes nothing.

    Each block was written in a call whose messages, up to the question of its turn, still stand in this call, and not
    the rest: the product has added to that turn alone.
    """
    kept = {id_of(place.block) for place in thoughts(as_body(call, is_bound=True))}
    # Nothing is known of thinking of an older version, and no earlier thinking may come back without it.
    order: list[str] = list(world.history.order)
    older = max((order.index(turn) for turn in world.history.older), default=-1)
    body = as_body(call, is_bound=False)
    now = list(plain_places(body))
    places = read_places(body)
    for number, place in enumerate(places):
        name = id_of(place.block)
        if not place.is_thinking or name in kept or name not in world.claude.written:
            continue
        turn, written = world.claude.written[name]
        if is_of_extended_loop(world, turn) or order.index(turn) <= older:
            continue
        was = list(plain_places(msgspec.json.decode(written)))
        asked = next(one.request for one in world.calls if one.turn == turn)
        before = list(plain_places({"messages": msgspec.to_builtins(asked.messages[: asked.history])}))
        same = next((n for n, (one, other) in enumerate(zip(was, now, strict=False)) if one != other), None)
        if same is not None and same < len(before):
            yield f"thinking of {turn} is left out: block {same} of {len(before)} before its question has changed"
        elif same is None and fits(body, places[:number], place):
            yield f"thinking of {turn} is left out although nothing before it has changed"


def is_of_extended_loop(world: World, turn: str) -> bool:
    """Returns whether the product has added to the prompt of a call in the tool loop of a turn.

    Such an addition costs the thinking of the loop, which is one answer: "a tool-use loop is one assistant turn", and
    its thinking comes back complete (Anthropic's page "Thinking in tool and multi-turn workflows").
    """
    calls: dict[str, BoundCall] = {one.turn: one for one in world.calls}
    parents = {name: str(one.request.parent) for name, one in calls.items()}
    asked = {name: one.request.messages for name, one in calls.items()}
    continues = {name: find_open_answer(messages) < len(messages) for name, messages in asked.items()}
    first = turn
    while continues.get(first) and parents[first] in calls:
        first = parents[first]
    loop, added = {first}, {first}
    while added:
        added = {name for name in calls if continues[name] and parents[name] in added}
        loop |= added
    return any(one.bound.prefix.is_extended for one in world.calls if one.turn in loop)


def as_body(call: BoundCall, *, is_bound: bool) -> Json:
    """Returns the fields of a call, with or without what was left out."""
    messages = call.bound.messages if is_bound else call.before.messages
    fields = {
        "model": call.before.model,
        "system": call.before.system,
        "tools": call.before.tools,
        "messages": messages,
    }
    body: Json = msgspec.to_builtins({name: value for name, value in fields.items() if value is not None})
    return body


def thoughts(body: Json) -> list[Place]:
    return [place for place in read_places(body) if place.is_thinking]


def blocks_of(content: Any) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def plain_places(body: Json) -> Iterator[tuple[str, str]]:
    """Yields role and content of each block but thinking, without marks of the cache."""
    for place in read_places(body):
        if not place.is_thinking:
            block = {
                name: value for name, value in place.block.items() if name != "cache_control" and value is not None
            }
            yield place.role, msgspec.json.encode(block, order="sorted").decode()


def id_of(block: Json) -> str:
    return str(block.get("signature") or block.get("data"))


def words(block: Json) -> int:
    return len(str(block.get("thinking") or "").split())


def words_of(body: Json) -> int:
    """Returns the words of the thinking that the model can read."""
    return sum(words(place.block) for place in thoughts(body) if can_read(str(body["model"]), place.block))


def most_words(body: Json) -> int:
    """Returns the most words of thinking that the simulated Claude would have accepted in a request.

    Each accepted block stands after what it was written after, and its signature names the block before it. In an open
    tool loop all of it comes back, or none. What stands before the loop may come back without the loop's: a block names
    the one before it, and not the ones after it, so nothing that is missing behind it makes it invalid.
    """
    places = read_places(body)
    opened = list(find_open(places))
    every = [(n, place) for n, place in enumerate(places) if place.is_thinking]
    if not runs_check(str(body["model"])):
        return words_of(body)
    fitting = [place for n, place in every if fits(body, places[:n], place)]
    kept_open = [one for one in opened if not one.is_thinking or one in fitting]
    is_whole = all(has_its_thinking(place, kept_open) for place in opened)
    best = longest(body, fitting, [place for place in opened if place.is_thinking]) if is_whole else 0
    return max(best, longest(body, [place for place in fitting if place not in opened], []))


def fits(body: Json, before: Sequence[Place], place: Place) -> bool:
    """Returns whether the block may come back after the blocks `before`."""
    bound = read_signature(place.block)
    if bound is None or not runs_check(bound.model) or not can_read(str(body["model"]), place.block):
        return True
    return (bound.system, bound.tools, bound.messages) == state_before(body, read_leaves(body, before))


def longest(body: Json, fitting: Sequence[Place], needed: Sequence[Place]) -> int:
    """Returns the words of the longest chain of blocks that ends with all blocks of `needed`; 0 if there is none."""
    best: list[tuple[int, int]] = []
    for number, place in enumerate(fitting):
        bound = read_signature(place.block)
        is_free = bound is None or not runs_check(bound.model) or not can_read(str(body["model"]), place.block)
        earlier = [
            best[n]
            for n, one in enumerate(fitting[:number])
            if is_free or (bound is not None and bound.after == seal_of(one.block))
        ]
        found, count = max(earlier, default=(0, 0))
        count += place in needed
        best.append((found + (words(place.block) if can_read(str(body["model"]), place.block) else 0), count))
    return max((found for found, count in best if count == len(needed)), default=0)


def flat(body: Json) -> list[tuple[bytes, int]]:
    """Returns the parts of a prompt in the order of the prompt cache, each with its number of words."""
    system = body.get("system")
    parts: list[Any] = [*body.get("tools", ()), *(blocks_of(system) if system else ())]
    parts += [{"role": place.role, **place.block} for place in read_places(body)]
    bare_parts = [{name: value for name, value in part.items() if name != "cache_control"} for part in parts]
    encoded = [msgspec.json.encode(part, order="sorted") for part in bare_parts]
    return [(one, len(one.split())) for one in encoded]


def shared(before: Json, now: Json) -> int:
    """Returns the words of the parts with which both prompts begin."""
    count = 0
    for (was, number), (one, _) in zip(flat(before), flat(now), strict=False):
        if was != one:
            break
        count += number
    return count


def bare(body: Json) -> Json:
    """Returns a request without all thinking."""
    messages = [
        {**one, "content": [block for block in blocks_of(one["content"]) if "thinking" not in block["type"]]}
        for one in body["messages"]
    ]
    return {**body, "messages": messages}
