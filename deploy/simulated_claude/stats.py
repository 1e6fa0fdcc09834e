"""What was asked of the simulated Claude, and what it sent: a test sees here what was paid for. It decides nothing."""

from collections import Counter

import msgspec

TURNS_MAX = 20_000  # the turns that were called longest ago are forgotten first


class Stats(msgspec.Struct):
    """Counted since the start or the last reset. Refused requests are not counted: they cost nothing."""

    calls: int = 0
    streams_open: int = 0
    streams_aborted: int = 0  # the client left before the end
    continuations: int = 0
    continuations_mismatched: int = 0  # the partial answer was not ours: the whole one began again
    output_tokens: int = 0
    batches: int = 0
    creations: Counter[str] = msgspec.field(default_factory=Counter)  # of batches, by the fault that was asked for
    by_fault: Counter[str] = msgspec.field(default_factory=Counter)
    turns: dict[str, int] = msgspec.field(default_factory=dict)  # calls, by Conversation.key

    def next_call(self, turn: str) -> int:
        """The number, from 1, of the call of `turn` that now begins."""
        self.calls += 1
        call = self.turns.pop(turn, 0) + 1
        self.turns[turn] = call
        if len(self.turns) > TURNS_MAX:
            del self.turns[next(iter(self.turns))]
        return call

    def reset(self) -> None:
        """Everything to zero, but for the streams that are open."""
        fresh = Stats(streams_open=self.streams_open)
        for name in self.__struct_fields__:
            setattr(self, name, getattr(fresh, name))
