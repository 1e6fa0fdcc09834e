"""Subprocess that describes or renders Jinja2 templates, with limits on CPU, memory and output.

proto/runtime/sandbox.py runs this file, and kills it after a time limit; it imports nothing of Tailrace. Operators
write the templates, clients send the values. The block `system` becomes the system prompt and `message` the message;
a template without these blocks is a message. docs/DEPENDENCIES.md says why this is not an in-process engine.
"""

import json
import resource
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES_MAX = 1024**3
RENDERED_CHARS_MAX = 1_000_000
# The output holds results of so many characters, and of one more input.
OUTPUT_CHARS_MAX = 4_000_000
BLOCKS = ("system", "message")


def main() -> None:
    """Renders or describes the templates on standard input, and prints the results as JSON.

    The first argument is the limit of CPU time in seconds. The process is killed above it.
    """
    # The soft limit raises a signal that names the reason; the hard one, a second later, cannot be caught.
    cpu_s = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    with suppress(ValueError, OSError):
        # Not every system supports this limit.
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    task = json.loads(sys.stdin.buffer.read())
    # No loader, so that no template can include a file. No escaping, because the reader is a model.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    sources = task["sources"]
    if task["inputs"] is None:
        results = [attempt(describe, environment, source) for source in sources]
    else:
        # A batch may have thousands of inputs for one template.
        template_of = cache(environment.from_string)
        results = []
        chars = 0
        for number, values in task["inputs"]:
            results.append(attempt(render, template_of, sources[number], values))
            chars += sum(map(len, results[-1].values()))
            if chars > OUTPUT_CHARS_MAX:
                # The caller sends the other inputs again.
                break
    sys.stdout.write(json.dumps(results))


def attempt(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Returns the result of `work`, or the error of the template or of its values."""
    try:
        return work(*arguments)
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as error:
        return {"error": f"{error}"[:300] or type(error).__name__}


def describe(environment: ImmutableSandboxedEnvironment, source: str) -> dict[str, Any]:
    """Returns a template's description (its first comment), its variables and the fields that it makes."""
    comments = (text for _, kind, text in environment.lex(source) if kind == "comment")
    names = meta.find_undeclared_variables(environment.parse(source)) - environment.globals.keys()
    blocks = [name for name in BLOCKS if name in environment.from_string(source).blocks]
    return {
        "description": " ".join(next(comments, "").split()),
        "variables": sorted(names),
        "makes": blocks or ["message"],
    }


def render(template_of: Callable[[str], Template], source: str, variables: dict[str, Any]) -> dict[str, str]:
    """Returns the text of each field that the template makes."""
    template = template_of(source)
    context = template.new_context(variables)
    blocks = {name: template.blocks[name] for name in BLOCKS if name in template.blocks}
    functions = blocks or {"message": template.root_render_func}
    return {name: join(function(context)) for name, function in functions.items()}


def join(parts: Iterable[str]) -> str:
    """Joins rendered parts. Raises ValueError above RENDERED_CHARS_MAX."""
    text, chars = [], 0
    for part in parts:
        chars += len(part)
        if chars > RENDERED_CHARS_MAX:
            raise ValueError(f"the result has more than {RENDERED_CHARS_MAX} characters")
        text.append(part)
    return "".join(text).strip()


if __name__ == "__main__":
    main()
