"""What is asked in a storm, and what the model does wrong there. Made from a seed."""

import random
from collections.abc import Sequence

import msgspec

from tailrace.proto.entries import OnInterrupt
from tests.chaos.faults import MODEL

# One of so many questions has the model break, if it may.
BROKEN_OF = 3


class Question(msgspec.Struct, frozen=True):
    line: str
    model: str
    on_interrupt: OnInterrupt


def question(number: int, chance: random.Random, faults: Sequence[str] = ()) -> Question:
    """Mostly text that goes on where it broke off, in both ways that models want; sometimes what has to begin anew."""
    tag = f"t{number}-"
    count, rate, more = chance.randint(20, 120), chance.choice((20, 40, 80)), ""
    model = chance.choice(("claude-sonnet-5-5", "claude-haiku-5-5", "claude-sonnet-4-5"))
    on_interrupt: OnInterrupt = "continue"
    if faults and number % BROKEN_OF == 0:
        # Each kind in its turn, so that all come.
        kind = faults[number // BROKEN_OF % len(faults)]
        more = f" fault={kind}@{MODEL[kind]}x1"
    elif chance.random() < 0.2:
        # These cannot gain by dying, so they must be short enough to come through between two deaths.
        count, rate = chance.randint(5, 20), 80
        more = chance.choice(("", " thinking=10", " tool=look"))
        on_interrupt = "continue" if more else "restart"
    return Question(f"#sim words={count} rate={rate} tag={tag}{more}", model, on_interrupt)
