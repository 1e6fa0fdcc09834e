"""Sessions that meet a rule of requests: tests/conformance/README.md explains their format."""

from functools import cache
from pathlib import Path
from typing import Any

import msgspec

FOLDER = Path(__file__).parent / "rules"
WAYS = ("tailrace", "chat", "responses", "ui", "agents")


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The request of one turn, independent of a protocol."""

    message: str | list[dict[str, Any]] = ""
    """The question; blocks are in Anthropic's form. Empty if the turn has only a result."""
    result: str = ""
    """The result of all calls of the answer before."""
    model: str = "claude-sonnet-5-5"
    max_tokens: int = 100
    system: str = ""
    tools: list[dict[str, Any]] = []
    user: str = ""
    stop: list[str] = []

    @property
    def blocks(self) -> list[dict[str, Any]]:
        return [{"type": "text", "text": self.message}] if isinstance(self.message, str) else self.message


class RuleCase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A session that breaks a rule of the API if its client sends the conversation back as it is."""

    about: str
    source: str
    """Where the rule is written, or a public report of its message."""
    turns: list[Turn]
    verbatim: str
    """How the last turn ends at the API for such a client: a part of the refusal's message, or a stop reason."""
    case: str = ""
    """The answer that the simulated Claude plays, of tests/conformance/cases."""
    ways: tuple[str, ...] = WAYS
    """The protocols in which a client can ask this."""


@cache
def read_rules() -> dict[str, RuleCase]:
    """Returns the cases by name."""
    return {path.stem: msgspec.json.decode(path.read_bytes(), type=RuleCase) for path in sorted(FOLDER.glob("*.json"))}
