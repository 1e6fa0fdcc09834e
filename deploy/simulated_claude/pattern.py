"""A text that matches a regular expression, for samples of JSON Schemas. Pure."""

import re
from collections.abc import Iterable
from re import _parser  # the only parser of patterns in the standard library
from typing import Any

# Tried in this order for `.`, classes and exclusions.
CHARACTERS = "a0A_ -."
CATEGORIES = {f"CATEGORY_{name}": rf"\{name[0].lower()}" for name in ("DIGIT", "SPACE", "WORD")}
CATEGORIES |= {f"CATEGORY_NOT_{name}": rf"\{name[0]}" for name in ("DIGIT", "SPACE", "WORD")}


def text_of_pattern(pattern: str, shortest: int, longest: int) -> str | None:
    """Returns a text that matches, of `shortest` to `longest` characters; None if this simple method finds none."""
    try:
        parsed, matcher = _parser.parse(pattern), re.compile(pattern)
    except re.error:
        return None
    for more in (0, 1, shortest):
        found = write(parsed, more)
        if shortest <= len(found) <= longest and matcher.search(found):
            return found
    return None


def write(parsed: Iterable[tuple[Any, Any]], more: int) -> str:
    """Returns a text for the parts of a pattern; each repetition has at least `more` copies, if it may."""
    return "".join(write_part(kind, given, more) for kind, given in parsed)


def write_part(kind: Any, given: Any, more: int) -> str:
    match str(kind):
        case "LITERAL":
            return chr(given)
        case "NOT_LITERAL":
            return next(one for one in CHARACTERS if ord(one) != given)
        case "ANY":
            return CHARACTERS[0]
        case "IN":
            return one_of(given)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most, inner = given
            copies: int = min(max(least, more), most)
            return write(inner, more) * copies
        case "SUBPATTERN":
            return write(given[-1], more)
        case "ATOMIC_GROUP":
            return write(given, more)
        case "BRANCH":
            return write(given[1][0], more)
        case _:
            return ""


def one_of(choices: list[tuple[Any, Any]]) -> str:
    """Returns a character of a class such as `[a-z0-9]` or `[^"]`."""
    if str(choices[0][0]) != "NEGATE":
        choice = choices[0]
        known = {"LITERAL": choice[1], "RANGE": choice[1][0] if isinstance(choice[1], tuple) else 0}
        if str(choice[0]) in known:
            return chr(known[str(choice[0])])
        return next((one for one in CHARACTERS if fits(choice, one)), CHARACTERS[0])
    allowed = (one for one in CHARACTERS if not any(fits(choice, one) for choice in choices[1:]))
    return next(allowed, CHARACTERS[0])


def fits(choice: tuple[Any, Any], character: str) -> bool:
    kind, given = choice
    match str(kind):
        case "LITERAL":
            return character == chr(given)
        case "RANGE":
            return ord(character) in range(given[0], given[1] + 1)
        case _:
            return re.fullmatch(CATEGORIES.get(str(given), "(?!)"), character) is not None
