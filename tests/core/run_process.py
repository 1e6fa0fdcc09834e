"""A process without features: `python -m tests.core.run_process gateway|generators|persistence`.

At its end it prints the modules of features that it has loaded, which must be none.
"""

import importlib
import sys

from tailrace.proto import service


def main(role: str) -> int:
    """Runs the process of `role` like its `__main__`, with `features=()`. Returns its exit status."""
    process = importlib.import_module(f"tailrace.{role}.serve")
    settings = importlib.import_module(f"tailrace.{role}.settings").Settings
    status = service.main(role, "The core alone.", settings, process.preflight, process.serve, process.probe)
    sys.stdout.write(f"features: {[name for name in sys.modules if name.startswith('tailrace.features')]}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv.pop(1)))
