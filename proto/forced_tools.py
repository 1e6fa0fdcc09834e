"""Forced tool calls of models that do not support them: the functions, and the JSON Schema of the answer. Pure.

Some models refuse a `tool_choice` of `any` or `tool`, and no model accepts this with a thinking budget (Anthropic's
docs, "Forcing tool use"). The generator then requests structured output, and stores that as the call (PROTOCOL R77).
"""

from collections.abc import Mapping
from typing import Any

from tailrace.proto.entries import Request
from tailrace.proto.errors import Refused
from tailrace.proto.models import find_model
from tailrace.proto.schema import schema_of

Schema = dict[str, Any]
Functions = Mapping[str, Schema]
"""The schema of each function's arguments, by the function's name."""

FORCED_CHOICES = ("any", "tool")
# Names of tools have at most 128 characters.
NAME_CHARS_MAX = 128
DEFINITION_SECTIONS = ("$defs", "definitions")


def answer_schema(request: Request) -> Schema | None:
    """Returns the JSON Schema that the model's answer must fit, or None."""
    functions = forced_functions(request)
    return call_schema(functions) if functions else schema_of(request.options)


def forced_functions(request: Request) -> Functions:
    """Returns the functions of which the answer must call one.

    Returns none if no call is forced, or if the model supports forced calls.
    """
    options = request.options or {}
    choice = options.get("tool_choice")
    if not (isinstance(choice, dict) and choice.get("type") in FORCED_CHOICES and _is_refused(request.model, options)):
        return {}
    functions = {
        tool["name"]: _arguments_schema(tool)
        for tool in request.tools or ()
        if isinstance(tool.get("name"), str) and isinstance(tool.get("input_schema"), dict)
    }
    if choice["type"] == "any":
        return functions
    return {name: schema for name, schema in functions.items() if name == choice.get("name")}


def require_offered(request: Request) -> None:
    """Raises Refused if `tool_choice` forces a call without tools, or names a tool that the request has not.

    The model's refusal would not name this cause. Tools of an MCP server have no names here.
    """
    options = request.options or {}
    names = [tool.get("name") for tool in request.tools or ()]
    if "mcp_servers" in options or None in names:
        return
    match options.get("tool_choice"):
        case {"type": "any"} if not names:
            raise Refused("request_invalid", "`tool_choice` forces a tool call, but there are no `tools`: send some")
        case {"type": "tool", "name": str(name)} if name not in names:
            raise Refused("request_invalid", f"`tool_choice` names `{name[:NAME_CHARS_MAX]}`, which is not in `tools`")


def call_schema(functions: Functions) -> Schema:
    """Returns the schema of a call: the arguments of the only function, or the name and the arguments of one of them.

    The definitions of several functions are renamed, because two functions may use the same name.
    """
    if len(functions) == 1:
        return next(iter(functions.values()))
    definitions: Schema = {}
    for name, schema in functions.items():
        moved = _rename(schema, name)
        for section in DEFINITION_SECTIONS:
            # The schema of a tool is the client's, and has not been checked.
            if isinstance(found := moved.pop(section, None), dict):
                definitions |= {f"{name}.{inner}": value for inner, value in found.items()}
        definitions[name] = moved
    return {"anyOf": [_named_call(name) for name in functions], "$defs": definitions}


def _is_refused(model_name: str, options: Mapping[str, Any]) -> bool:
    model = find_model(model_name)
    # No model accepts a forced call together with a thinking budget.
    has_budget = isinstance(thinking := options.get("thinking"), dict) and thinking.get("type") == "enabled"
    return has_budget or (model is not None and model.supports.forced_tools is False)


def _arguments_schema(tool: Schema) -> Schema:
    """Returns the schema of a tool's arguments, with the tool's description."""
    schema: Schema = tool["input_schema"]
    description = tool.get("description")
    return {"description": description, **schema} if isinstance(description, str) else schema


def _named_call(name: str) -> Schema:
    return {
        "type": "object",
        "properties": {"name": {"type": "string", "const": name}, "arguments": {"$ref": f"#/$defs/{name}"}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _rename(schema: Any, name: str) -> Any:
    """Returns `schema` with its references changed to the definitions of `call_schema` for the function `name`."""
    match schema:
        case dict():
            return {
                key: _rename_reference(value, name) if key == "$ref" else _rename(value, name)
                for key, value in schema.items()
            }
        case list():
            return [_rename(one, name) for one in schema]
        case _:
            return schema


def _rename_reference(reference: Any, name: str) -> Any:
    if not isinstance(reference, str) or not reference.startswith("#"):
        return _rename(reference, name)
    for section in DEFINITION_SECTIONS:
        if reference.startswith(f"#/{section}/"):
            return f"#/$defs/{name}.{reference.removeprefix(f'#/{section}/')}"
    return f"#/$defs/{name}{reference.removeprefix('#')}"
