"""Counts code lines by folder: without docstrings, comments, blank lines and imports.

`python -m tools.code_lines` prints them. CEILINGS are held by tests/repository/test_size.py.
"""

import argparse
import ast
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ("gateway", "generators", "persistence", "proto")
FOLDERS = (*CORE, "protocols", "features", "deploy", "client", "testing")
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def count_code_lines(path: Path) -> int:
    """Returns the number of lines of a Python file that have code."""
    with tokenize.open(path) as file:
        source = file.read()
    with path.open("rb") as binary:
        tokens = [token for token in tokenize.tokenize(binary.readline) if token.type not in LAYOUT][1:]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    return len(lines.difference(*_left_out(ast.parse(source))))


def _left_out(tree: ast.Module) -> Iterator[range]:
    """Yields the lines of each import, and of each text that stands alone: a docstring of a module, class or field."""
    for node in ast.walk(tree):
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Expr(ast.Constant(str())):
                yield range(node.lineno, (node.end_lineno or node.lineno) + 1)


def count_folder(name: str) -> int:
    """Returns the code lines of a folder of the repository."""
    return sum(map(count_code_lines, sorted((ROOT / name).rglob("*.py"))))


def rows(folders: Iterable[str] = FOLDERS) -> Iterator[tuple[str, int]]:
    """Yields each folder with its code lines, and `core` with those of the core together."""
    counted = {name: count_folder(name) for name in folders}
    yield from counted.items()
    yield "core", sum(counted[name] for name in CORE)


def main() -> None:
    argparse.ArgumentParser(prog="python -m tools.code_lines", description=__doc__.partition("\n")[0]).parse_args()
    for name, lines in rows():
        print(f"{name:12}{lines:7}")


if __name__ == "__main__":
    main()
