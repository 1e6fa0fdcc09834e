"""Lists the rules of PROTOCOL.md, FAULTS.md and SECURITY.md with the tests that hold each: `python -m tests.rules`.

A test cites its rule with `@pytest.mark.rule("R14")`. Exit status 1 when a rule has no test, a mark
names no rule, or two rules of PROTOCOL.md have one number.
"""

import re
import sys
from collections import defaultdict
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Where each kind of rule is written down, and what its number looks like there.
PAGES = {
    "proto/PROTOCOL.md": r"^\*\*(R\d+)\.\*\*",
    "docs/FAULTS.md": r"^\| (F\d+) \|",
    "SECURITY.md": r"^\| (S\d+) \|",
}


class Collector:
    """A pytest plugin that gathers, for each rule, the tests that are marked with it."""

    def __init__(self) -> None:
        self.tests: dict[str, set[str]] = defaultdict(set)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for mark in item.iter_markers("rule"):
                self.tests[mark.args[0]].add(item.nodeid.partition("[")[0])


def rules(page: str) -> list[str]:
    """The numbers of the rules of a page, in its order."""
    return re.findall(PAGES[page], (ROOT / page).read_text(), re.MULTILINE)


def main() -> int:
    collector = Collector()
    with redirect_stdout(StringIO()) as said:
        status = pytest.main(["--collect-only", "-q", str(ROOT / "tests")], plugins=[collector])
    if status != 0:
        print(said.getvalue(), file=sys.stderr)
        print("the tests cannot be collected: run pytest --collect-only", file=sys.stderr)
        return 1
    # A row of SECURITY.md may repeat a number; two sections of PROTOCOL.md must not have the same.
    protocol = rules("proto/PROTOCOL.md")
    repeated = sorted({rule for rule in protocol if protocol.count(rule) > 1})
    written = list(dict.fromkeys(number for page in PAGES for number in rules(page)))
    for rule in written:
        print(rule)
        for test in sorted(collector.tests[rule]):
            print(f"  {test}")
    untested = [rule for rule in written if not collector.tests[rule]]
    unknown = sorted(set(collector.tests) - set(written))
    if repeated:
        print(f"numbers of two rules: {', '.join(repeated)}", file=sys.stderr)
    if untested:
        print(f"without a test: {', '.join(untested)}", file=sys.stderr)
    if unknown:
        print(f"marks that name no rule: {', '.join(unknown)}", file=sys.stderr)
    return 1 if repeated or untested or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
