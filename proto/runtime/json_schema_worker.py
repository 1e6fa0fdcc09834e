"""Judges one JSON Schema, or one text by it, and leaves. A process of its own, which is killed when it is slow.

It is run as a file (see child.py), and imports nothing of Tailrace. What it reads is the work of strangers.
"""

import json
import resource
import sys
from contextlib import suppress
from typing import Any

import jsonschema_rs

MEMORY_BYTES_MAX = 1024**3
ERRORS_MAX = 3
ERROR_CHARS_MAX = 300


def main() -> None:
    # A second between the two limits: the first says why, the other cannot be ignored.
    cpu_s = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    with suppress(ValueError, OSError):
        # Not every system can say that.
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    schema_bytes = int(sys.stdin.buffer.readline())
    schema = json.loads(sys.stdin.buffer.read(schema_bytes))
    text = sys.stdin.buffer.read()
    sys.stdout.write(json.dumps(verdict(schema, text)))


def verdict(schema: Any, text: bytes) -> dict[str, str]:
    """`invalid`: what is wrong with the schema; `misfit`: what is wrong with the text; neither: nothing."""
    try:
        # Offline: nothing that a schema refers to is ever fetched.
        validator = jsonschema_rs.validator_for(schema, offline=True)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        return {"invalid": first_line(error)}
    if not text:
        return {}
    try:
        told = json.loads(text, parse_constant=no_json)
    except (ValueError, RecursionError) as error:
        return {"misfit": f"it is not JSON: {first_line(error)}"}
    errors = [problem(error) for _, error in zip(range(ERRORS_MAX), validator.iter_errors(told), strict=False)]
    return {"misfit": "; ".join(errors)} if errors else {}


def problem(error: jsonschema_rs.ValidationError) -> str:
    where = "".join(f"[{json.dumps(step)}]" for step in error.instance_path)
    return f"{where or 'the whole'}: {error.message}"[:ERROR_CHARS_MAX]


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:ERROR_CHARS_MAX]


def no_json(word: str) -> None:
    # Python reads NaN and Infinity, which are no JSON (RFC 8259).
    raise ValueError(f"{word} is no JSON value")


if __name__ == "__main__":
    main()
