"""What is asked in a storm, and the text that has to come of it whatever is killed. Made from a seed."""

import random

import msgspec

from proto.entries import OnInterrupt
from tests.answering import words


class Question(msgspec.Struct, frozen=True):
    line: str
    model: str
    on_interrupt: OnInterrupt
    text: str

    @property
    def body(self) -> dict[str, str]:
        return {"message": self.line, "model": self.model, "on_interrupt": self.on_interrupt}


def question(number: int, chance: random.Random) -> Question:
    """Mostly text that goes on where it broke off, in both ways that models want; sometimes what has to begin anew."""
    tag = f"t{number}-"
    count, rate, more = chance.randint(20, 120), chance.choice((20, 40, 80)), ""
    model = chance.choice(("claude-sonnet-5-5", "claude-haiku-5-5", "claude-sonnet-4-5"))
    on_interrupt: OnInterrupt = "continue"
    if chance.random() < 0.2:
        # These cannot gain by dying, so they must be short enough to come through between two deaths.
        count, rate = chance.randint(5, 20), 80
        more = chance.choice(("", " thinking=10", " tool=look"))
        on_interrupt = "continue" if more else "restart"
    return Question(f"#sim words={count} rate={rate} tag={tag}{more}", model, on_interrupt, words(count, tag))
