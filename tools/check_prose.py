"""Prose check: finds the words and phrases that the style guide bans, and lines of pages that are too long.

It reads Markdown pages (without code), the docstrings, comments, messages and names of Python files, and whole scripts
in JavaScript and shell. Exit status 1 if it finds one.
"""

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

ROOT = Path(__file__).parent.parent

# What is banned, and what to write instead.
BANNED: dict[str, str] = {
    r"whoever|whomever": "name the actor: the client, the gateway, another process",
    r"nobody|somebody|everybody": "name the actor: no client, another process, every reader",
    r"strangers?(?:'s?)?": "another client, an unauthenticated client, a foreign server",
    r"told": "sent, reported, rendered, stored",
    r"what (?:is|was|are|were) (?:asked|said|kept|taken|held|left|made)": "name the thing: the request",
    r"(?:those )?who (?:asks?|asked|comes?|came|reads?|goes|went|waits?|waited|may|has|have|is|does|falls?|wakes?)"
    r" (?!should)": "a noun: a client that …, the reader, a process that …",
    r"comes? to nothing|came to nothing": "fails, ends without an answer",
    r"as (?:ever|always)\b": "as usual, or leave it out",
    r"(?:the|a|its?|one|same) doors?": "module, route, authentication, entrance to …",
    r"(?:the|this) house": "the project, the code base",
    r"rotas?\b|leash|doomed|condemn(?:s|ed)?|befalls?": "failover order, process reaper, marked as deleted, happens to",
    r"half-way": "in the middle",
    r"dead man": "a process that died",
    r"lets go of": "releases, closes",
    r"is no (?:\w+ )?(?:JSON|HTTP|checkout|reason|failure|answer)": "is not …",
}
PATTERNS = {re.compile(rf"\b(?:{pattern})", re.IGNORECASE): advice for pattern, advice in BANNED.items()}
# The same for words of the names that a module defines. The names of tests are sentences: BANNED holds for them.
BANNED_NAMES: dict[str, str] = {
    "told": "reported, rendered, or the noun: story, headers",
    "said": "the noun: message, text",
    "asked": "the noun: question, request, body",
    "rota": "order",
    "crowd": "queue, readers",
    "door": "authenticator, route, module",
    "house": "project",
    "seam": "the noun of the class: filter, interface",
    "doomed": "deleted",
    "condemned": "deleted",
    "leash": "reaper",
    "mend": "repair, restore, correct",
    "mended": "repaired, restored, corrected",
    "looker": "reader, poller",
    "stranger": "client, other",
    "nobody": "None, invalid, or the thing that is missing",
    "somebody": "the actor: client, generator",
    "whoever": "the actor: client, generator",
}
# Names of stored columns and fields.
ALLOWED_NAMES = ("asked_at", "asked_by")
# `HTTPServer`, `server_url2`: the words of a name.
NAME_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# Files whose words are data: they quote the banned words, or record what older versions said.
SKIPPED = (
    "tools/check_prose.py",
    "tests/repository/test_prose.py",
    "docs/KILLS.md",
    "docs/CLIENTS.md",
    "tests/upgrade/",
    "deploy/simulated_claude/prose.py",
    "gateway/page/libraries.js",
)
SCRIPTS = (".js", ".jsx", ".mjs", ".ts", ".tsx", ".sh", ".ci/run")
CHECKED = (".md", ".py", *SCRIPTS)
COLUMNS_MAX = 100
# The parts of a line that stay together: a word, a code span, a picture. A link may be broken in its text.
UNBREAKABLE = re.compile(r"!\[[^]]*\]\([^)]*\)|(?:`[^`]*`|\S)+")
LIST_MARK = re.compile(r"^ *(?:[-*]|\d+\.) +")
CODE = re.compile(r"^( *)```.*?^\1```$|^ {4}[^\n]*$|`[^`\n]*`|\]\([^)]*\)", re.MULTILINE | re.DOTALL)


class Hit(NamedTuple):
    """One banned phrase: where it is, what it is, and what to write instead."""

    path: str
    line: int
    phrase: str
    advice: str


def main() -> int:
    """Prints the hits in the given files, or in all files; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.check_prose", description=__doc__)
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="a page or a source file (default: all of the repository)"
    )
    names = parser.parse_args().files
    if wrong := [name for name in names if not name.endswith(CHECKED) or not (ROOT / name).is_file()]:
        parser.error(f"{', '.join(wrong)}: not a file of type {' '.join(CHECKED)}")
    found = [hit for name in names or tracked_files() for hit in hits(name)]
    for hit in found:
        write_line(f'{hit.path}:{hit.line}: "{hit.phrase}": {hit.advice}')
    write_line(f"prose: {len(found)} banned phrases and long lines")
    return 1 if found else 0


def write_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def tracked_files() -> list[str]:
    """Returns the pages and source files that git tracks, except the skipped ones."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)  # noqa: S607
    names = listed.stdout.decode().split("\0")
    return [
        name for name in names if name.endswith(CHECKED) and not name.startswith(SKIPPED) and (ROOT / name).is_file()
    ]


def hits(name: str) -> Iterator[Hit]:
    """Yields the banned phrases of a file in the repository."""
    text = (ROOT / name).read_text()
    if name.endswith(".md"):
        yield from (Hit(name, line, part, f"wrap at {COLUMNS_MAX} columns") for line, part in long_lines(text))
    for line, prose in pieces(name, text):
        for pattern, advice in PATTERNS.items():
            for found in pattern.finditer(prose):
                yield Hit(name, line + prose.count("\n", 0, found.start()), found[0], advice)
    if name.endswith(".py"):
        for line, defined, advice in banned_names(text):
            yield Hit(name, line, defined, advice)


def long_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yields the number, and the part that is too much, of each line that is too long and can be broken.

    Tables and code blocks are skipped, and lines of a single link or code span.
    """
    in_code = False
    for number, line in enumerate(text.splitlines(), start=1):
        in_code ^= line.lstrip().startswith("```")
        is_prose = not (in_code or line.startswith("    ") or line.lstrip().startswith("|"))
        if is_prose and len(line) > COLUMNS_MAX and len(UNBREAKABLE.findall(LIST_MARK.sub("", line))) > 1:
            yield number, line[COLUMNS_MAX:]


def pieces(name: str, text: str) -> Iterator[tuple[int, str]]:
    """Yields what is checked of the file `name`, and the line where it begins."""
    if name.endswith(SCRIPTS):
        # Its names, too: a parser for comments and strings of these languages would be larger than this check.
        yield 1, text
    else:
        yield from (pieces_of_page if name.endswith(".md") else pieces_of_module)(text)


def pieces_of_page(text: str) -> Iterator[tuple[int, str]]:
    """Yields the page with its code and link targets blanked, so that line numbers stay."""
    yield 1, CODE.sub(lambda found: "\n" * found[0].count("\n"), text)


def pieces_of_module(text: str) -> Iterator[tuple[int, str]]:
    """Yields comments, and strings with a blank: docstrings, error messages, log messages, help texts."""
    # Only the tokenizer can tell a comment from a string. It is slow, so it reads only modules that may have a hit.
    lines = "\n".join(line for line in text.splitlines() if "#" in line)
    if any(pattern.search(lines) for pattern in PATTERNS):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if is_test(node):
            yield node.lineno, node.name.replace("_", " ")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, re.sub(r"`[^`\n]*`", "", node.value)


def banned_names(text: str) -> Iterator[tuple[int, str, str]]:
    """Yields the line, the name and the advice of each name that the module defines and that has a banned word."""
    nodes: Iterator[Any] = ast.walk(ast.parse(text))
    for node in nodes:
        name = None if is_test(node) else defined_name(node)
        if name is not None and name not in ALLOWED_NAMES:
            banned = [word.lower() for word in NAME_WORD.findall(name) if word.lower() in BANNED_NAMES]
            if banned:
                yield node.lineno, name, BANNED_NAMES[banned[0]]


def is_test(node: ast.AST) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef]:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")


def defined_name(node: Any) -> str | None:
    """Returns the name of the function, class, argument, variable, attribute or import that the node defines."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return str(name)
        case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
            return str(name)
        case ast.alias(asname=name) | ast.ExceptHandler(name=name) | ast.MatchAs(name=name) | ast.MatchStar(name=name):
            return None if name is None else str(name)
    return None


if __name__ == "__main__":
    sys.exit(main())
