"""Lines of code of each room, and the longest files and functions. `python -m tests.bench.lines`.

A line counts when it is neither blank nor comment nor docstring; a function goes from `def` to its last line.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("proto", "gateway", "generators", "persistence", "deploy", "tests")
SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def code_lines(source: str) -> int:
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {line for token in tokens if token.type not in SKIPPED for line in range(token.start[0], token.end[0] + 1)}
    return len(lines - docstrings)


def functions(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            yield (node.end_lineno or node.lineno) - node.lineno + 1, f"{path.relative_to(ROOT)}:{node.name}"


def main() -> None:
    print(f"{'room':<12} {'files':>5} {'code':>6}   longest file, longest function")
    for room in ROOMS:
        paths = sorted((ROOT / room).rglob("*.py"))
        sizes = [(code_lines(path.read_text()), str(path.relative_to(ROOT))) for path in paths]
        longest_file = max(sizes)
        longest_function = max(found for path in paths for found in functions(path))
        print(
            f"{room:<12} {len(paths):>5} {sum(size for size, _ in sizes):>6}   "
            f"{longest_file[1]} {longest_file[0]}, {longest_function[1]} {longest_function[0]}"
        )


if __name__ == "__main__":
    main()
