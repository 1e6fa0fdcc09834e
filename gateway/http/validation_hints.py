"""Reads msgspec's validation errors: which field is wrong, and which names or values are allowed there. Pure."""

import re
from collections.abc import Collection, Iterable, Iterator

import msgspec
from msgspec import inspect

from tailrace.proto.decoding import DECODE_ERRORS

# The text before the path may quote megabytes of the body, and the pattern takes quadratic time.
PATH_CHARS_MAX = 200
# Members of an object that are tried one by one, and characters of the key that is shown.
KEYS_MAX, KEY_CHARS_MAX = 64, 64
SEARCHED_BYTES_MAX = 8 * 1024
# msgspec ends its messages with a path: "… - at `$.messages[0].role`"; without one for the outermost object.
PATH = re.compile(r" - at `\$([^`]*)`$")
FIELD = re.compile(r"Object (?:contains unknown|missing required) field `(.*)`$", re.DOTALL)
STEP = re.compile(r"\.[^.\[]+|\[[^\]]*\]")


# Fields of Anthropic's Messages API that a turn has in `options`. Other model APIs have them, too, as top-level fields.
SAMPLING = frozenset({"temperature", "top_p", "top_k"})
OPTIONS = SAMPLING | {
    "billing_policy",
    "cache_control",
    "compaction",
    "container",
    "context_management",
    "diagnostics",
    "fallback_credit_token",
    "fallbacks",
    "inference_geo",
    "mcp_servers",
    "output_config",
    "service_tier",
    "speed",
    "stop_sequences",
    "thinking",
    "tool_choice",
}
# Fields that other APIs have for the user's question.
QUESTIONS = frozenset({"content", "contents", "input", "inputs", "query", "question", "text"})
# Fields of OpenAI's APIs, and what a turn has in their place.
REPLACED = {
    "thread": "send the new messages and their `session`",
    "user_profile_id": "the end user is `user`",
    "workspace_id": "the server's key decides which workspace is used",
    "instructions": "the system prompt is `system`",
    "response_format": "the JSON Schema of the answer is `schema`",
    "stop": "put `stop_sequences` into `options`",
}


def advise(field: str, names: Collection[str]) -> str:
    """Returns where the unknown `field` of a turn belongs; empty if it belongs nowhere, or `names` are not a turn's."""
    if "options" not in names:
        return ""
    if field in SAMPLING:
        return " (put it into `options`, but the current models refuse sampling)"
    if field in OPTIONS:
        return " (put it into `options`)"
    if field in QUESTIONS:
        return " (the user's question is `message`)"
    if field in REPLACED:
        return f" ({REPLACED[field]})"
    # The name of the most similar field, `store`, would mislead. An input of a batch has no session, and no stream.
    if field == "stream" and "session" in names:
        return " (send `Accept: text/event-stream` to receive the stream)"
    return ""


def wrong_field(problem: str) -> str | None:
    """Returns the path of the field that is wrong, as OpenAI's API writes it: `messages[0].content`. None: the body.

    An unknown or missing field is part of the path.
    """
    path = PATH.search(problem[-PATH_CHARS_MAX:])
    where = path[1] if path else ""
    if (field := FIELD.match(problem.removesuffix(path[0]) if path else problem)) is not None:
        where += f".{field[1][:PATH_CHARS_MAX]}"
    return where.removeprefix(".") or None


def with_key(kind: type, problem: str, body: bytes) -> str:
    """Returns msgspec's `problem` with the object's key in place of `[...]`, if it can be found in `body`."""
    path = PATH.search(problem[-PATH_CHARS_MAX:])
    # The search converts the body once for each key.
    if path is None or path[1].count("[...]") != 1 or len(body) > SEARCHED_BYTES_MAX:
        return problem
    try:
        value = found = msgspec.json.decode(body)
    except DECODE_ERRORS:
        # A number is out of range, or a mistake follows the wrong field.
        return problem
    try:
        for step in STEP.findall(path[1].partition("[...]")[0]):
            found = found[step[1:]] if step.startswith(".") else found[int(step[1:-1])]
    except (LookupError, TypeError):
        # Of a key that the body has twice, this decoder keeps another value.
        return problem
    if not isinstance(found, dict) or len(found) > KEYS_MAX:
        return problem
    members = dict(found)
    for key, member in members.items():
        # msgspec does not say which member is wrong: it is the one that alone causes the same error.
        found.clear()
        found[key] = member
        try:
            msgspec.convert(value, kind)
        except DECODE_ERRORS as error:
            if str(error) == problem:
                shown = path[1].replace("[...]", f".{key[:KEY_CHARS_MAX]}")
                return f"{problem.removesuffix(path[0])} - at `${shown}`"
    return problem


def allowed_names(kind: type, problem: str) -> list[str]:
    """Returns the fields for msgspec's "unknown field", the values for its "invalid enum value", otherwise []."""
    path = PATH.search(problem[-PATH_CHARS_MAX:])
    found = [inspect.type_info(kind)]
    for step in STEP.findall(path[1] if path else ""):
        found = [inner for one in _without_unions(found) for inner in _children(one, step)]
    # Several types of a union may have the same field.
    return list(dict.fromkeys(_names(found, problem)))


def _names(found: Iterable[inspect.Type], problem: str) -> Iterator[str]:
    for one in _without_unions(found):
        match one:
            case inspect.StructType(fields=fields) if problem.startswith("Object contains unknown field"):
                yield from (field.encode_name for field in fields)
            case inspect.LiteralType(values=values) if problem.startswith("Invalid enum value"):
                yield from map(str, values)


def _children(one: inspect.Type, step: str) -> Iterator[inspect.Type]:
    match one:
        case inspect.StructType(fields=fields):
            yield from (field.type for field in fields if f".{field.encode_name}" == step)
        case inspect.ListType(item_type=inner) | inspect.DictType(value_type=inner) if step.startswith("["):
            yield inner


def _without_unions(found: Iterable[inspect.Type]) -> Iterator[inspect.Type]:
    """Yields each of `found`; a union is replaced by its members."""
    for one in found:
        if isinstance(one, inspect.UnionType):
            yield from one.types
        else:
            yield one
