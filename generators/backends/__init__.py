"""What a generator asks for an answer. One file a backend, each the only door to its library."""

from collections.abc import AsyncGenerator
from typing import Any, Protocol

import msgspec

from tailrace.proto.entries import Message


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a model, in the words of Anthropic's Messages API."""

    model: str
    max_tokens: int
    messages: list[Message]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    options: dict[str, Any] | None = None
    """Further fields, by the names that the API knows them by."""
    betas: list[str] | None = None
    api_version: str | None = None
    """None: the SDK's own."""
    tenant: str = ""
    """Whose turn it is."""
    project: str | None = None
    """What the conversation belongs to: both are for a backend that keeps something of its own for each."""


class Backend(Protocol):
    """A source of answers in Anthropic's streaming vocabulary."""

    def model_id(self, model: str) -> str:
        """Its own name for one of Claude's models; it goes into the call."""
        ...

    def answer(self, call: Call) -> AsyncGenerator[bytes, None]:
        """The raw JSON of each event that is to be stored, in order: all but `ping` and `message_stop` (PROTOCOL R6).

        It ends after a whole answer only: whatever else ends it raises BackendError. Closing the iterator closes the
        connection to the model, which also stops the bill.
        """
        ...

    async def close(self) -> None: ...
