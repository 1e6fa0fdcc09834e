"""The definition of a function of a client as a tool of Claude, and the ids of calls that no client runs."""

from typing import Any

# The ids of calls that the model's API runs. The session has them and their results.
SERVER_CALLS = ("srvtoolu_", "mcptoolu_")
# The result of a call that the user has not allowed.
DENIED = "the user denied this tool call"
NO_INPUT: dict[str, Any] = {"type": "object", "properties": {}}


def tool_definition(
    name: str, description: str | None, parameters: dict[str, Any] | None, *, strict: bool | None, **more: object
) -> dict[str, Any]:
    """Returns a function as Anthropic's tool. `more`: further fields of Anthropic's definitions."""
    optional = {"description": description, "strict": strict, **more}
    given = {field: value for field, value in optional.items() if value is not None}
    return {"name": name, "input_schema": parameters or NO_INPUT, **given}
