"""Lists the rules of PROTOCOL.md, the faults and the attacks with the tests that hold each: `python -m tests.rules`.

A test cites its rule with `@pytest.mark.rule("R14")`, all tests of a file with `pytestmark = …`. Exit status 1 when a
rule has no test, a mark names no rule, or two rules of PROTOCOL.md have one number.
"""

import argparse
import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
MARK = r"^pytest\.mark\.rule\('(\w+)'\)$"
# Where each kind of rule is written down, and what its number looks like there.
PAGES = {
    "proto/PROTOCOL.md": r"^\*\*(R\d+)\.\*\*",
    "tests/faults.csv": r"^[\w ]+,(F\d+),",
    "tests/attacks.csv": r"^[\w ]+,(S\d+),",
}


def marked_tests() -> dict[str, set[str]]:
    """Returns the tests that are marked with each rule.

    The source is parsed, because pytest needs ten seconds to import every test.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for folder in TESTS.iterdir():
        for path in (*folder.glob("test_*.py"), *folder.glob("*/test_*.py")):
            body = ast.parse(path.read_text()).body
            of_all = [node.value for node in body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)]
            for node in body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                    marks = "\n".join(map(ast.unparse, [*of_all, *node.decorator_list]))
                    for rule in re.findall(MARK, marks, re.MULTILINE):
                        found[rule].add(f"{path.relative_to(ROOT)}::{node.name}")
    return found


def rules(page: str) -> list[str]:
    """The numbers of the rules of a page, in its order."""
    return re.findall(PAGES[page], (ROOT / page).read_text(), re.MULTILINE)


def main() -> int:
    argparse.ArgumentParser(prog="python -m tests.rules", description=__doc__).parse_args()
    tests = marked_tests()
    # An attack may repeat a number; two sections of PROTOCOL.md must not have the same.
    protocol = rules("proto/PROTOCOL.md")
    repeated = sorted({rule for rule in protocol if protocol.count(rule) > 1})
    written = list(dict.fromkeys(number for page in PAGES for number in rules(page)))
    for rule in written:
        print(rule)
        for test in sorted(tests[rule]):
            print(f"  {test}")
    untested = [rule for rule in written if not tests[rule]]
    unknown = sorted(set(tests) - set(written))
    if repeated:
        print(f"numbers of two rules: {', '.join(repeated)}", file=sys.stderr)
    if untested:
        print(f"without a test: {', '.join(untested)}", file=sys.stderr)
    if unknown:
        print(f"marks that name no rule: {', '.join(unknown)}", file=sys.stderr)
    return 1 if repeated or untested or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
