"""A small value that fits a JSON Schema, for calls of tools and for answers without `json=`. Pure.

It does not read `not`, `if`, `propertyNames`, `dependentSchemas` and `unevaluatedProperties`: beside them, and in an
option of `oneOf`, an object has its required members only.
"""

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import msgspec

from tailrace.deploy.simulated_claude.pattern import text_of_pattern
from tailrace.deploy.simulated_claude.refusal import Refusal

TEXT = "tailrace"
# The input of a tool whose schema names no members, and of a tool that the request does not have.
INPUT = '{"query":"tailrace"}'
LEVELS_MAX = 64
# The most items or characters.
LENGTH_MAX = 1000
COMBINING = ("$ref", "allOf", "anyOf", "oneOf")
HARD = ("oneOf", "not", "if", "propertyNames", "dependentSchemas", "unevaluatedProperties")
REQUIRED_ONLY = "required only"
# With these keywords alone, an object may have any members.
OPEN = {"type", "properties", "required", "title", "description", "$schema", "$defs", "definitions"}
LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "minContains")
UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties", "maxContains")
# The formats that pydantic, zod and the vendor's structured outputs check.
FORMATS = {
    "date-time": "2026-01-01T12:00:00Z",
    "date": "2026-01-01",
    "time": "12:00:00Z",
    "duration": "P1D",
    "email": "ann@example.com",
    "hostname": "example.com",
    "uri": "https://example.com/",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "01890a5d-ac96-774b-bcce-b302099a8057",
}
# Inputs of the vendor's tools that a client executes, by the beginning of their type.
VENDOR_INPUTS = {
    "bash_": '{"command":"echo tailrace"}',
    "text_editor_": '{"command":"view","path":"/tailrace"}',
    "computer_": '{"action":"screenshot"}',
    "memory_": '{"command":"view","path":"/memories"}',
}


class NoValue(Exception):
    """No value is complete: a definition refers to itself, or parts of the schema exclude each other."""


def sample(schema: Any) -> str:
    """Returns the value as JSON. Raises Refusal if the part of the schema that is read is not valid."""
    try:
        found = value(schema, schema, LEVELS_MAX)
    except NoValue:
        found = TEXT
    except (TypeError, AttributeError, ValueError) as error:
        raise Refusal("invalid_request_error", f"JSON schema is invalid: {error}") from error
    return msgspec.json.encode(found).decode()


def sample_input(schema: Any, type_: str) -> str:
    """Returns an input of a tool as JSON. `type_` is that of one of the vendor's tools. Raises Refusal."""
    for beginning, tool_input in VENDOR_INPUTS.items():
        if type_.startswith(beginning):
            return tool_input
    if set(schema) <= OPEN and not schema.get("properties") and not schema.get("required"):
        return INPUT
    found = sample(schema)
    return found if found.startswith("{") else "{}"


def value(schema: Any, root: Any, levels: int, within: frozenset[str] = frozenset()) -> Any:
    """Returns a value that fits the schema, at most `levels` deep. `root` resolves references.

    Raises NoValue, also for a reference that is one of `within`, the references that lead to this schema.
    """
    if levels == 0:
        return TEXT
    for plain, references in alternatives(schema, root, within):
        try:
            return plain_value(plain, root, levels - 1, references)
        except NoValue:
            continue
    raise NoValue


def alternatives(schema: Any, root: Any, within: frozenset[str]) -> Iterator[tuple[dict[str, Any], frozenset[str]]]:
    """Yields the schema without references and combinations: each schema that a value may fit, and its references."""
    if schema is False:
        return
    if not isinstance(schema, dict):
        yield {}, within
        return
    plain = {name: given for name, given in schema.items() if name not in COMBINING}
    if any(name in schema for name in HARD):
        plain[REQUIRED_ONLY] = True
    rest = {name: schema[name] for name in COMBINING if name in schema}
    if "$ref" in rest:
        reference = rest.pop("$ref")
        if reference in within:
            return
        within |= {reference}
        parts = [resolve(reference, root)]
    elif "allOf" in rest:
        parts = rest.pop("allOf")
    elif "anyOf" in rest or "oneOf" in rest:
        for option in rest.pop("anyOf" if "anyOf" in rest else "oneOf"):
            yield from combined([plain, option, rest], root, within)
        return
    else:
        yield plain, within
        return
    yield from combined([plain, *parts, rest], root, within)


def combined(parts: list[Any], root: Any, within: frozenset[str]) -> Iterator[tuple[dict[str, Any], frozenset[str]]]:
    """Yields the alternatives of a schema that a value fits if it fits each of `parts`."""
    if False in parts:
        return
    whole: dict[str, Any] = {}
    try:
        for part in parts:
            whole = merge(whole, part if isinstance(part, dict) else {})
    except NoValue:
        return
    yield from alternatives(whole, root, within)


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema of the values that fit both. Raises NoValue if there is none."""
    both = first | second
    for name in first.keys() & second.keys():
        one, other = first[name], second[name]
        if one == other:
            continue
        if name in COMBINING:
            # Two combinations of one kind: all but the first are parts of `allOf`.
            both[name] = one
            both["allOf"] = [*both.get("allOf", ()), {name: other}] if name != "allOf" else [*one, *other]
        elif name == "required":
            both[name] = [*one, *(more for more in other if more not in one)]
        elif name == "properties":
            both[name] = one | {key: {"allOf": [one[key], new]} if key in one else new for key, new in other.items()}
        elif name in ("items", "contains"):
            both[name] = {"allOf": [one, other]}
        elif name == "additionalProperties" and False in (one, other):
            both[name] = False
        elif name in LOWER:
            both[name] = max(one, other)
        elif name in UPPER:
            both[name] = min(one, other)
        elif name == "enum":
            both[name] = [given for given in one if given in other]
        elif name == "type":
            both[name] = common_kinds(kinds(one), kinds(other))
        elif name == "const":
            raise NoValue
    return both


def kinds(given: Any) -> list[str]:
    return given if isinstance(given, list) else [given]


def common_kinds(first: list[str], second: list[str]) -> list[str]:
    """Returns the kinds of both; an integer is a number. Raises NoValue if there is none."""
    found = [kind for kind in first if kind in second or (kind == "integer" and "number" in second)]
    found += ["integer"] if "integer" in second and "number" in first and "integer" not in found else []
    if not found:
        raise NoValue
    return found


def kind_of(plain: dict[str, Any]) -> str:
    """Returns the first type of a schema, or the one that its keywords are about."""
    if "type" in plain:
        return str(kinds(plain["type"])[0])
    if plain.keys() & {"properties", "required", "additionalProperties", "minProperties"}:
        return "object"
    if plain.keys() & {"items", "prefixItems", "minItems", "contains"}:
        return "array"
    return "number" if plain.keys() & {"minimum", "maximum", "exclusiveMinimum", "multipleOf"} else "string"


def plain_value(plain: dict[str, Any], root: Any, levels: int, within: frozenset[str]) -> Any:
    """Returns a value that fits a schema without references and combinations. Raises NoValue."""
    if "const" in plain:
        if plain["const"] not in plain.get("enum", [plain["const"]]):
            raise NoValue
        return plain["const"]
    if "enum" in plain:
        if not plain["enum"]:
            raise NoValue
        return plain["enum"][0]
    match kind_of(plain):
        case "object":
            return members(plain, root, levels, within)
        case "array":
            return items(plain, root, levels, within)
        case "integer":
            return number(plain, Fraction(1))
        case "number":
            return number(plain, None)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return text(plain)


def number(plain: dict[str, Any], step: Fraction | None) -> float:
    """Returns a number within the bounds, a multiple of `step` and of `multipleOf`, where one is. Raises NoValue."""
    low, high = exact(plain.get("minimum")), exact(plain.get("maximum"))
    above, below = exact(plain.get("exclusiveMinimum")), exact(plain.get("exclusiveMaximum"))
    if (multiple := exact(plain.get("multipleOf"))) is not None:
        step = multiple if step is None else Fraction(math.lcm(multiple.numerator, step.numerator), 1)
    bottom = max((bound for bound in (low, above) if bound is not None), default=None)
    top = min((bound for bound in (high, below) if bound is not None), default=None)
    size = step or Fraction(1)
    if step is None and bottom is not None and top is not None and top - bottom < 1:
        found = bottom if bottom != above else (bottom + top) / 2
    elif bottom is not None:
        found = -(-bottom // size) * size if step else bottom
        found += size if found == above else 0
    elif top is not None:
        found = min(top // size * size, size)
        found -= size if found == below else 0
    else:
        found = size
    if top is not None and (found > top or found == below):
        raise NoValue
    return int(found) if found.denominator == 1 else float(found)


def exact(bound: Any) -> Fraction | None:
    return None if bound is None else Fraction(str(bound))


def text(plain: dict[str, Any]) -> str:
    """Returns a text of the format, the pattern and the length. Raises NoValue."""
    shortest: int = min(plain.get("minLength", 0), LENGTH_MAX)
    longest: int = plain.get("maxLength", LENGTH_MAX)
    found = FORMATS.get(plain.get("format", ""), TEXT)
    if "pattern" in plain:
        return text_of_pattern(plain["pattern"], shortest, longest) or found
    if plain.get("format") in FORMATS:
        return found
    return (found * -(-max(shortest, 1) // len(found)))[: max(shortest, longest)]


def items(plain: dict[str, Any], root: Any, levels: int, within: frozenset[str]) -> list[Any]:
    """Returns an array of `minItems` items, or of one; of none if items are endless. Raises NoValue."""
    first = [value(one, root, levels, within) for one in plain.get("prefixItems", ())]
    schema = plain.get("items", True)
    needed = min(max(plain.get("minItems", 0), plain.get("minContains", 1) if "contains" in plain else 0), LENGTH_MAX)
    count = max(needed, min(1, plain.get("maxItems", 1))) - len(first)
    if count <= 0 or schema is False:
        return first
    if "contains" in plain:
        schema = {"allOf": [schema, plain["contains"]]}
    try:
        if plain.get("uniqueItems"):
            more = distinct(schema, count, root, levels, within)
        else:
            more = [value(schema, root, levels, within)] * count
    except NoValue:
        more = []
    if len(first) + len(more) < needed:
        raise NoValue
    return first + more


def distinct(schema: Any, count: int, root: Any, levels: int, within: frozenset[str]) -> list[Any]:
    """Returns at most `count` different values; fewer where this simple method finds no more. Raises NoValue."""
    found = [value(schema, root, levels, within)]
    while len(found) < count:
        enum: list[Any] = next((plain.get("enum", []) for plain, _ in alternatives(schema, root, within)), [])
        match found[-1]:
            case _ if enum:
                return [*enum[:count]]
            case bool() as last:
                return [last, not last]
            case int() | float() as last:
                beyond: dict[str, Any] = {"exclusiveMinimum": last}
            case str() as last if len(last) < LENGTH_MAX:
                beyond = {"minLength": len(last) + 1}
            case _:
                return found
        try:
            found.append(value({"allOf": [schema, beyond]}, root, levels, within))
        except NoValue:
            return found
    return found


def members(plain: dict[str, Any], root: Any, levels: int, within: frozenset[str]) -> dict[str, Any]:
    """Returns an object, without optional members that are endless. Raises NoValue."""
    known, required = plain.get("properties", {}), plain.get("required", [])
    patterns, others = plain.get("patternProperties", {}), plain.get("additionalProperties", True)
    found = {}
    is_short = plain.get(REQUIRED_ONLY) or len(known) > plain.get("maxProperties", len(known))
    names = required if is_short else [*known.keys(), *(name for name in required if name not in known)]
    for name in names:
        matching = [inner for pattern, inner in patterns.items() if re.search(pattern, name)]
        parts = [known[name]] if name in known else [] if matching else [others]
        try:
            found[name] = value({"allOf": [*parts, *matching]}, root, levels, within)
        except NoValue:
            if name in required:
                raise
    for number in range(max(0, min(plain.get("minProperties", 0), LENGTH_MAX) - len(found))):
        missing = next((name for name in known if name not in found), f"{TEXT}{number}")
        found[missing] = value(known.get(missing, others), root, levels, within)
    return found


def resolve(reference: str, root: Any) -> Any:
    """Returns the definition that a local reference names; None if there is none."""
    found = root
    for step in reference.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            found = found.get(name) if isinstance(found, dict) else None
    return found
