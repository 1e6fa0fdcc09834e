"""The tables of docs/CLIENTS.md, from the client matrix and from the marks of the tests of single clients.

The matrix gives each client three features. A test of another feature is marked with `@pytest.mark.proves("ui",
"cancel", "useChat (Chromium)")`.
"""

import ast
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tests.clients.matrix import CLIENTS

ROOT = Path(__file__).parents[2]
PACKAGE = Path(__file__).parent / "js/package.json"


class Proof(NamedTuple):
    """A feature of a dialect that is tested with a client."""

    dialect: str
    feature: str
    client: str


def proofs() -> list[Proof]:
    """Returns the rows of the matrix and the marks of all tests, sorted by dialect, feature and client."""
    return sorted({*of_matrix(), *marks()})


def of_matrix() -> Iterator[Proof]:
    for client in CLIENTS:
        for feature in client.features:
            yield Proof(client.dialect, feature, client.name)


def marks() -> list[Proof]:
    """Returns the marks of all tests."""
    return [proof for path in ROOT.glob("tests/*/test_*.py") for proof in of_file(path)]


def of_file(path: Path) -> Iterator[Proof]:
    """Yields the marks in a file. Their arguments are strings or constants of the module."""
    module = ast.parse(path.read_text())
    constants: dict[str, str] = {}
    for node in module.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(word))):
                constants[name] = word
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.proves":
                        dialect, feature, client = (word_of(given, constants) for given in mark.args)
                        yield Proof(dialect, feature, client)


def word_of(given: ast.expr, constants: dict[str, str]) -> str:
    return constants[given.id] if isinstance(given, ast.Name) else str(ast.literal_eval(given))


def tables() -> str:
    """Returns a table of features and clients for each dialect, and the versions of the npm packages, in Markdown."""
    parts = []
    for dialect, rows in groupby(proofs(), lambda proof: proof.dialect):
        parts.append(f"## {dialect}\n\n| feature | clients |\n|---|---|\n")
        for feature, proved in groupby(rows, lambda proof: proof.feature):
            parts.append(f"| {feature} | {', '.join(sorted({proof.client for proof in proved}))} |\n")
        parts.append("\n")
    return "".join([*parts, "## Versions from npm\n\n", *(f"- {line}\n" for line in versions())])


def versions() -> list[str]:
    """Returns names and versions of the npm packages."""
    pinned: dict[str, str] = json.loads(PACKAGE.read_text())["dependencies"]
    return [f"{name} {version}" for name, version in sorted(pinned.items())]
