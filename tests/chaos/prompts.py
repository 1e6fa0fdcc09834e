"""The requests of a chaos run, and the failures of the model that they ask for, by a seed."""

import random
from collections.abc import Sequence

import msgspec

from tailrace.proto.entries import OnInterrupt
from tests.chaos.faults import MODEL

# The first prompts ask for each failure once, because a short run has few prompts. After them, one of so many does.
FAILING_OF = 2


class Prompt(msgspec.Struct, frozen=True):
    line: str
    model: str
    on_interrupt: OnInterrupt


def new_prompt(number: int, chance: random.Random, failures: Sequence[str] = ()) -> Prompt:
    """Returns mostly texts, which continue after an interruption in both ways; some answers restart."""
    tag = f"t{number}-"
    count, rate, more = chance.randint(20, 120), chance.choice((20, 40, 80)), ""
    model = chance.choice(("claude-sonnet-5-5", "claude-haiku-5-5", "claude-sonnet-4-5"))
    on_interrupt: OnInterrupt = "continue"
    if failures and (number < len(failures) or number % FAILING_OF == 0):
        kind = failures[number % len(failures)]
        # The generator may be killed before the first call has failed.
        more = f" fault={kind}@{MODEL[kind]}x2"
    elif chance.random() < 0.2:
        # An interruption loses this answer, so it must be short enough to complete between two kills.
        count, rate = chance.randint(5, 20), 80
        more = chance.choice(("", " thinking=10", " tool=look"))
        on_interrupt = "continue" if more else "restart"
    return Prompt(f"#sim words={count} rate={rate} tag={tag}{more}", model, on_interrupt)
