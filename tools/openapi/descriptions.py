"""The descriptions and examples of the properties in the OpenAPI document.

A description is the docstring below the field. For a parameter that Claude does not support, it is the reason in the
field's annotation. This module parses the source.
"""

import ast
import inspect
import textwrap
from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise
from typing import Any

import msgspec
from msgspec import inspect as types

from tailrace.protocols.common.unsupported import unsupported_fields
from tools.openapi.examples import EXAMPLES, WHOLE

Json = dict[str, Any]


def describe(components: Json, kinds: Collection[Any]) -> None:
    """Adds descriptions and examples to the properties of `components`, the schemas of `kinds` and of their fields."""
    add_meanings(components, kinds)
    for struct in structs_in(kinds):
        name = struct.__name__
        whole = WHOLE.get(struct.__name__, {})
        if whole:
            components[name]["examples"] = [whole]
        for field, schema in components[name].get("properties", {}).items():
            if field in whole:
                known = [whole[field]]
            else:
                known = [EXAMPLES[key] for key in (f"{struct.__name__}.{field}", field) if key in EXAMPLES]
                if names := _enumerated_values(schema):
                    known = [value for value in known if value in names]
            found = known[0] if known else example_of(schema)
            if known or found is not None:
                schema["examples"] = [found]


def add_meanings(components: Json, kinds: Collection[Any]) -> None:
    """Adds only the descriptions: a constant, or the docstring below the field."""
    for struct in structs_in(kinds):
        meanings = meanings_of(struct)
        for field, schema in components[struct.__name__].get("properties", {}).items():
            if meaning := _constant(schema) or meanings.get(field):
                schema["description"] = meaning


def example_of(schema: Json, components: Json | None = None) -> Any:
    """Returns a value that fits `schema`, or None. Named schemas are looked up in `components`, if it is given."""
    match schema:
        case {"examples": [first, *_]}:
            return first
        case {"const": value}:
            return value
        case {"enum": [*values]}:
            return next((value for value in values if value is not None), None)
        case {"$ref": str(ref)} if components is not None:
            return example_of(components[ref.rpartition("/")[2]], components)
        case {"anyOf": [*kinds]}:
            return next((value for kind in kinds if (value := example_of(kind, components)) is not None), None)
        case {"default": value} if value not in (None, [], {}):
            return value
        case {"type": "boolean"}:
            return True
        case {"type": "array", "items": dict(items)} if (item := example_of(items, components)) is not None:
            return [item]
        case {"properties": dict(properties)} if components is not None:
            found = {name: example_of(one, components) for name, one in properties.items()}
            return {name: value for name, value in found.items() if value is not None or name in schema["required"]}
        case _:
            return None


def _enumerated_values(schema: Json) -> list[Any]:
    """Returns the values that `schema` enumerates, if it does."""
    kinds = (schema, *schema.get("anyOf", ()))
    return [value for one in kinds for value in one.get("enum", [one["const"]] if "const" in one else [])]


def _constant(schema: Json) -> str:
    match schema:
        case {"enum": [value]} | {"const": value}:
            return f"Always `{value}`."
        case _:
            return ""


def meanings_of(struct: type) -> dict[str, str]:
    """Returns the descriptions of a Struct's own and inherited fields, by their names in JSON."""
    named = {one.name: one.encode_name for one in msgspec.structs.fields(struct)}
    unsupported = unsupported_fields(struct).items()
    found = {name: f"{'Refused' if one.is_refused else 'Ignored'}: {one.reason}." for name, one in unsupported}
    for parent in reversed(struct.__mro__):
        if issubclass(parent, msgspec.Struct) and parent is not msgspec.Struct:
            found |= dict(_docstrings(parent))
    return {named[field]: meaning for field, meaning in found.items() if field in named}


def _docstrings(struct: type) -> Iterator[tuple[str, str]]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(struct))).body
    statements = getattr(definition, "body", [])
    for field, following in pairwise(statements):
        match field, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, inspect.cleandoc(text).replace("\n", " ")


def structs_in(kinds: Iterable[Any]) -> list[type[msgspec.Struct]]:
    """Returns the Structs of the given types and of all fields below them."""
    seen: dict[type[msgspec.Struct], None] = {}
    waiting = list(types.multi_type_info(kinds))
    while waiting:
        match waiting.pop():
            case types.StructType(cls=struct, fields=fields) if struct not in seen:
                seen[struct] = None
                waiting += [field.type for field in fields]
            case types.StructType():
                pass
            case types.Type() as kind:
                parts = [getattr(kind, name) for name in kind.__struct_fields__]
                waiting += [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
    return list(seen)
