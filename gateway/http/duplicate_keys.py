"""Refuses keys that occur twice in one object of a JSON text.

JSON parsers disagree on which of the values counts (RFC 8259, section 4): a proxy may check one value, and the model
get the other. msgspec takes the last one without an error, so the text is parsed once more, with Python's parser. That
takes 2 µs for a short body and 45 µs for 23 kB. Long strings were cut out of a large body earlier
(proto/long_strings.py).
"""

import json
from typing import Any

from tailrace.gateway.http.json_mistake import not_json
from tailrace.proto.errors import Refused

PATH_CHARS_MAX = 200

Members = list[tuple[str, Any]]


class _DuplicateFound(Exception):  # ends the parsing
    """An object has a key twice."""


class _Duplicate:
    """Stands for an object that has `key` twice."""

    def __init__(self, key: str) -> None:
        self.key = key


def _check(members: Members) -> None:
    if len(dict(members)) != len(members):
        raise _DuplicateFound


def _mark(members: Members) -> dict[str, Any] | _Duplicate:
    unique: dict[str, Any] = {}
    for key, value in members:
        if key in unique:
            return _Duplicate(key)
        unique[key] = value
    return unique


# Numbers stay text: Python refuses to convert thousands of digits.
_checker = json.JSONDecoder(object_pairs_hook=_check, parse_int=str, parse_float=str)
_marker = json.JSONDecoder(object_pairs_hook=_mark, parse_int=str, parse_float=str)


def require_unique_keys(body: bytes) -> None:
    """Raises Refused with the path, such as `messages[0].role`, if an object in `body` has a key twice.

    Another parser has accepted `body`.
    """
    # count_tokens leaves it to the API to refuse text that is not UTF-8.
    text = body.decode(errors="replace")
    try:
        try:
            _checker.decode(text)
        except _DuplicateFound:
            path = (_path(_marker.decode(text), "") or "")[:PATH_CHARS_MAX]
        else:
            return
    except (ValueError, RecursionError) as error:
        raise not_json(error, None) from error
    raise Refused("request_invalid", f"`{path}` occurs twice in its object: send it once", param=path)


def _path(value: object, path: str) -> str | None:
    """Returns the path of the first duplicate in `value`, which is at `path`."""
    match value:
        case _Duplicate(key=key):
            return f"{path}.{key}".removeprefix(".")
        case dict():
            inner = ((f"{path}.{key}", one) for key, one in value.items())
        case list():
            inner = ((f"{path}[{index}]", one) for index, one in enumerate(value))
        case _:
            return None
    return next((found for where, one in inner if (found := _path(one, where)) is not None), None)
