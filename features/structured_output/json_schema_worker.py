"""Helper script: validates one JSON Schema, or one text against it, and exits. Run by sandbox.py.

It runs as a file, imports nothing of Tailrace, and handles untrusted input.
"""

import json
import resource
import sys
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from typing import Any

import jsonschema_rs

MEMORY_BYTES_MAX = 1024**3
ERRORS_MAX = 3
ERROR_CHARS_MAX = 300
# Bytes of all messages, if there is an error for each byte of the text, and each message repeats the whole schema.
MESSAGE_BYTES_MAX = 200_000_000


def main() -> None:
    """Reads the schema's size, the schema and the text from standard input, and prints the verdict as JSON.

    The first argument is the limit of CPU time in seconds. The process is killed above it.
    """
    # The soft limit kills with SIGXCPU, which tells the reason; the hard limit a second later cannot be ignored.
    cpu_s = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    with suppress(ValueError, OSError):
        # Not every system supports this limit.
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    schema_bytes = int(sys.stdin.buffer.readline())
    schema = json.loads(sys.stdin.buffer.read(schema_bytes))
    text = sys.stdin.buffer.read()
    errors_max = ERRORS_MAX if schema_bytes * len(text) <= MESSAGE_BYTES_MAX else 1
    sys.stdout.write(json.dumps(verdict(schema, text, errors_max)))


def verdict(schema: Any, text: bytes, errors_max: int) -> dict[str, str]:
    """Returns `invalid` with the schema's error, `misfit` with the text's errors, at most `errors_max`, or nothing."""
    try:
        # Offline: references of a schema are never fetched.
        validator = jsonschema_rs.validator_for(schema, offline=True)
    except jsonschema_rs.ValidationError as error:
        return {"invalid": describe(error)}
    except (jsonschema_rs.ReferencingError, ValueError) as error:
        return {"invalid": first_line(error)}
    if not text:
        return {}
    try:
        instance = json.loads(text, parse_constant=reject_constant)
    except (ValueError, RecursionError) as error:
        return {"misfit": f"it is not JSON: {first_line(error)}"}
    errors = list(map(describe, find_errors(validator, instance, errors_max)))
    return {"misfit": "; ".join(errors)} if errors else {}


def find_errors(
    validator: jsonschema_rs.Validator, instance: Any, errors_max: int
) -> Iterable[jsonschema_rs.ValidationError]:
    """Returns at most `errors_max` errors of `instance`."""
    if errors_max > 1:
        return islice(validator.iter_errors(instance), errors_max)
    try:
        # `iter_errors` makes the messages of all errors at once. Each may repeat a `const` or an `enum`.
        validator.validate(instance)
    except jsonschema_rs.ValidationError as error:
        return [error]
    return []


def describe(error: jsonschema_rs.ValidationError) -> str:
    """Returns where in the text or the schema the error is, and what is wrong: at most ERROR_CHARS_MAX characters."""
    where = "".join(f"[{json.dumps(step)}]" for step in error.instance_path)
    return f"{where or 'the whole'}: {error.message}"[:ERROR_CHARS_MAX]


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, at most ERROR_CHARS_MAX characters."""
    return str(error).partition("\n")[0][:ERROR_CHARS_MAX]


def reject_constant(word: str) -> None:
    # Python's json accepts NaN and Infinity, which are not JSON (RFC 8259).
    """Raises ValueError for NaN and Infinity."""
    raise ValueError(f"{word} is not a JSON value")


if __name__ == "__main__":
    main()
