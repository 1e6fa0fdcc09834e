"""Writes docs/CLIENTS.md: which client proved what of which dialect, read from the tests' own marks. Runs no test.

A test says `@pytest.mark.proves("tailrace", "resumes after cuts", "httpx-sse")`, once for each row that it is. `make
schema` writes the page anew, and a house test compares.
"""

import ast
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/CLIENTS.md"
PACKAGE = Path(__file__).parent / "js/package.json"

HEAD = """# The clients that people already have

Written by `make schema` from the marks of the tests; do not edit. Each row is a test that runs the real client, as it
is, against a running gateway: `make test`. Python's versions are those of `pyproject.toml`.
"""

NOTES = """
## Limitations of the clients

Observed with the versions above; tests verify each of them.

- **EventSource** cannot send a key: let it read from your own backend, with your cookie ([API.md](API.md),
  "Architecture of an app"). It reconnects after a clean end, so close it at `done` or `error`.
- **eventsource** (npm) does not keep the Node process alive while it waits to reconnect.
- **fetch-event-source** does not reconnect after a clean end: throw in `onclose` unless `done` or `error` came. It
  stores an id when it has read its line, before the event is complete. Tailrace therefore sends the id last; if the
  connection is cut exactly between an event's last two newlines, this client loses the event.
- **fetch** in Chromium without TLS treats a connection that closes within the headers as a response without a body.
- **useChat** treats a clean end without `finish` as success. It requests a resume on every page load; `204` is no
  error for it, `404` is. Its `stop()` sends no request: POST `/api/chat/{id}/stop` as well.
- **WorkflowChatTransport** 2.0.43 includes its own `ai` (7.0.112), which rejects the finish reason `interrupted`. It
  reconnects until it receives `finish`, and sends no chat name: add one (`body: { session_id }`).
- **Claude Code** as installed by `make clients` does not start by its link `node_modules/.bin/claude`, because npm's
  install scripts are disabled. The program is `node_modules/@anthropic-ai/claude-code-linux-x64/claude`.
- **npm** with Node before 22 installs old versions of these clients without a warning.
"""


class Proof(NamedTuple):
    dialect: str
    feature: str
    client: str
    test: str
    """`tests/clients/test_readers.py::test_…`"""


def proofs() -> list[Proof]:
    """All of them, by dialect, feature and client."""
    return sorted(proof for path in ROOT.glob("tests/**/test_*.py") for proof in of_file(path))


def of_file(path: Path) -> Iterator[Proof]:
    """A mark's words are strings, or constants of its module."""
    test, module = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())
    constants: dict[str, str] = {}
    for node in module.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(word))):
                constants[name] = word
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.proves":
                        dialect, feature, client = (word_of(given, constants) for given in mark.args)
                        yield Proof(dialect, feature, client, f"{test}::{node.name}")


def word_of(given: ast.expr, constants: dict[str, str]) -> str:
    return constants[given.id] if isinstance(given, ast.Name) else str(ast.literal_eval(given))


def page() -> str:
    parts = [HEAD]
    for dialect, rows in groupby(proofs(), lambda proof: proof.dialect):
        parts += [f"\n## {dialect}\n\n", "| what | client | test |\n|---|---|---|\n"]
        parts += [f"| {row.feature} | {row.client} | {linked(row.test)} |\n" for row in rows]
    return "".join([*parts, NOTES, "\n## Versions from npm\n\n", *(f"- {line}\n" for line in versions())])


def linked(test: str) -> str:
    path, _, name = test.partition("::")
    return f"[{name.removeprefix('test_').replace('_', ' ')}](../{path})"


def versions() -> list[str]:
    """What npm's clients are; Python's stand in the lock."""
    pinned: dict[str, str] = json.loads(PACKAGE.read_text())["dependencies"]
    return [f"{name} {version}" for name, version in sorted(pinned.items())]


if __name__ == "__main__":
    PAGE.write_text(page())
