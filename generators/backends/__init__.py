"""The interface of model backends: a `Call` goes in, `ModelEvent`s come out. One module a backend."""

from typing import Any, Protocol, runtime_checkable

import msgspec

from tailrace.generators.backends.model_event import Put
from tailrace.proto.entries import Message


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One model call in the fields of Anthropic's Messages API."""

    model: str
    max_tokens: int
    messages: list[Message]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    options: dict[str, Any] | None = None
    """Further fields of the request, by the API's names."""
    betas: list[str] | None = None
    api_version: str | None = None
    """The value of `anthropic-version`; None: the SDK's default."""
    tenant: str = ""
    """The turn's tenant. The backend Claude Code keeps its files by tenant and project."""
    turn: str = ""
    """The turn's id. Circuit breakers count the turns that fail."""
    project: str | None = None
    """The project of the turn's session."""
    is_large: bool = False
    """Whether the call may have long strings, to be encoded in steps (proto/long_strings.py)."""


class Backend(Protocol):
    """A source of answers in Anthropic's streaming vocabulary."""

    provider: str
    """The value of `gen_ai.provider.name` in OpenTelemetry's conventions for generative AI."""

    def model_id(self, model: str) -> str:
        """Returns the backend's own name of one of Claude's models, as it goes into the call."""
        ...

    async def stream(self, call: Call, put: Put) -> None:
        """Passes to `put`, in order, the events that are stored: all but `ping` and `message_stop` (PROTOCOL R6).

        Returns only after a complete answer; raises BackendError otherwise, and what `put` raises. Its end always
        closes the connection to the model, which also stops the billing. Keeps nothing of `call` after sending it.
        """
        ...

    async def close(self) -> None: ...


@runtime_checkable
class FactsReporter(Protocol):
    """A backend that adds fields to the health report."""

    async def facts(self) -> dict[str, Any]:
        """Returns the fields (PROTOCOL R29)."""
        ...
