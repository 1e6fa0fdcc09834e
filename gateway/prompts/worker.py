"""Reads Jinja2 templates, or fills them, and leaves: a process of its own, which is killed when it is slow.

It is run as a file (proto/runtime/sandbox.py), and imports nothing of Tailrace. Operators write templates, clients the
values. Of a template the block `system` is the system prompt and `message` the message; one without these is a message.
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
FILLED_CHARS_MAX = 1_000_000
BLOCKS = ("system", "message")


def main() -> None:
    # A second between the two limits: the first says why, the other cannot be ignored.
    cpu_s = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    with suppress(ValueError, OSError):
        # Not every system can say that.
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    told = json.loads(sys.stdin.buffer.read())
    # No loader: a template stands for itself, and names no file. Nothing is escaped: it is read by a model.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    sources = told["sources"]
    if told["fillings"] is None:
        said = [said_of(described, environment, source) for source in sources]
    else:
        # Thousands of inputs may be of one template.
        template_of = cache(environment.from_string)
        said = [said_of(filled, template_of, sources[number], values) for number, values in told["fillings"]]
    sys.stdout.write(json.dumps(said))


def said_of(work: Callable[..., dict[str, Any]], *told: Any) -> dict[str, Any]:
    """What comes of it, or the error that a template has, or makes of its values."""
    try:
        return work(*told)
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


def described(environment: ImmutableSandboxedEnvironment, source: str) -> dict[str, Any]:
    """What there is to know of a template: its first comment, the names that it takes, and what it makes."""
    comments = (text for _, kind, text in environment.lex(source) if kind == "comment")
    names = meta.find_undeclared_variables(environment.parse(source)) - environment.globals.keys()
    blocks = [name for name in BLOCKS if name in environment.from_string(source).blocks]
    return {
        "description": " ".join(next(comments, "").split()),
        "variables": sorted(names),
        "makes": blocks or ["message"],
    }


def filled(template_of: Callable[[str], Template], source: str, variables: dict[str, Any]) -> dict[str, str]:
    template = template_of(source)
    context = template.new_context(variables)
    blocks = {name: template.blocks[name] for name in BLOCKS if name in template.blocks}
    making = blocks or {"message": template.root_render_func}
    return {name: joined(render(context)) for name, render in making.items()}


def joined(pieces: Iterable[str]) -> str:
    text, chars = [], 0
    for piece in pieces:
        chars += len(piece)
        if chars > FILLED_CHARS_MAX:
            raise ValueError(f"it makes more than {FILLED_CHARS_MAX} characters")
        text.append(piece)
    return "".join(text).strip()


if __name__ == "__main__":
    main()
