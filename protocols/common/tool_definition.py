"""The definition of a function of a client as a tool of Claude, and the results of its calls."""

from typing import Any

# The ids of calls that the model's API runs. The session has them and their results.
SERVER_CALLS = ("srvtoolu_", "mcptoolu_")
# The result of a call that the user has not allowed, and of one that has failed without a reason: the API wants one.
DENIED, FAILED = "the user denied this tool call", "the tool failed"
NO_INPUT: dict[str, Any] = {"type": "object", "properties": {}}


def tool_definition(
    name: str, description: str | None, parameters: dict[str, Any] | None, *, strict: bool | None, **more: object
) -> dict[str, Any]:
    """Returns a function as Anthropic's tool. `more`: further fields of Anthropic's definitions."""
    optional = {"description": description, "strict": strict, **more}
    given = {field: value for field, value in optional.items() if value is not None}
    return {"name": name, "input_schema": parameters or NO_INPUT, **given}


def build_result(call: str, content: str | list[dict[str, Any]], *, is_error: bool = False) -> dict[str, Any]:
    """Returns the block of a call's result."""
    block = {"type": "tool_result", "tool_use_id": call, "content": content}
    return {**block, "content": content or FAILED, "is_error": True} if is_error else block


def denial(reason: str | None) -> str:
    """Returns the result of a call that the user has denied."""
    return f"{DENIED}: {reason}" if reason else DENIED
