"""What other dialects make of each case: one file a case in tests/conformance/golden.

`python -m tests.conformance.golden_files --update` writes the files again; review the difference before you commit it.
"""

import argparse
import sys
from pathlib import Path

from tailrace.features.gateway import DIALECTS
from tests.conformance.case import read_cases
from tests.conformance.played import Play
from tests.golden import render_log

FOLDER = Path(__file__).parent / "golden"
SHOWN = ("openai-chat", "openai-responses", "ui", "ag-ui-1", "tailrace")
# Long texts are in other cases, too, and would fill these files.
NAMES = [name for name, case in read_cases().items() if not case.repeat]


def golden_path(name: str) -> Path:
    return FOLDER / f"{name}.txt"


def render_case(name: str) -> str:
    """Returns the content of a file."""
    played = Play(read_cases()[name])
    played.run()
    return "".join(f"##### {dialect}\n{render_log(played.stored, DIALECTS[dialect])}" for dialect in SHOWN)


def main() -> int:
    """Writes the files that differ, and prints their names."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.golden_files", description=__doc__)
    parser.add_argument("--update", action="store_true", required=True, help="write the files")
    parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for path in set(FOLDER.glob("*.txt")) - {golden_path(name) for name in NAMES}:
        path.unlink()
    for name in NAMES:
        text = render_case(name)
        if not golden_path(name).exists() or golden_path(name).read_text() != text:
            golden_path(name).write_text(text)
            sys.stdout.write(f"{name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
