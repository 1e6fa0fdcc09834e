"""Counters of calls, streams and tokens, by which tests check what would have cost money."""

from collections import Counter

import msgspec

TURNS_MAX = 20_000  # beyond that, turns with the oldest last calls are dropped


class Stats(msgspec.Struct):
    """Counters since the start or the last reset. Refused requests are no calls: they are free."""

    calls: int = 0
    streams_open: int = 0
    streams_aborted: int = 0  # the client disconnected before the end
    continuations: int = 0
    continuations_mismatched: int = 0  # the partial answer was not a prefix of the answer
    resumptions: int = 0  # calls whose last message is an answer that paused
    output_tokens: int = 0
    refused: Counter[str] = msgspec.field(default_factory=Counter)  # requests, by the refusal without its path
    batches: int = 0
    creations: Counter[str] = msgspec.field(default_factory=Counter)  # of batches, by simulated fault
    by_fault: Counter[str] = msgspec.field(default_factory=Counter)
    turns: dict[str, int] = msgspec.field(default_factory=dict)  # calls, by Conversation.key
    executions: dict[str, list[str]] = msgspec.field(default_factory=dict)
    """Calls of server tools (`KEY.NUMBER`), with the `tool_use_id` of each of their results."""

    def execute(self, turn: str, number: int, tool_use_id: str) -> None:
        """Counts the execution of call `number` of a server tool in `turn`."""
        self.executions.setdefault(f"{turn}.{number}", []).append(tool_use_id)
        if len(self.executions) > TURNS_MAX:
            del self.executions[next(iter(self.executions))]

    def next_call(self, turn: str) -> int:
        """Counts a new call of `turn`, and returns its number from 1."""
        self.calls += 1
        call = self.turns.pop(turn, 0) + 1
        self.turns[turn] = call
        if len(self.turns) > TURNS_MAX:
            del self.turns[next(iter(self.turns))]
        return call

    def reset(self) -> None:
        """Sets all counters to zero, except the counter of open streams."""
        fresh = Stats(streams_open=self.streams_open)
        for name in self.__struct_fields__:
            setattr(self, name, getattr(fresh, name))
