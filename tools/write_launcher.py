"""Writes the `tailrace` command of this checkout into .venv: `.venv/bin/python tools/write_launcher.py`.

The command can be called from any folder and through a link. It finds the checkout when it runs, because a checkout may
be moved. With `-P` it imports nothing from the current folder. .venv/bin/python imports from a folder that has nothing
but `tailrace`: the checkout would add `proto` and other names (docs/adr/0025-five-packages-under-one-import-name.md).
"""

import sysconfig
from pathlib import Path

VENV = Path(".venv")
TEXT = """\
#!/bin/sh
bin=$(dirname "$(readlink -f "$0")")
PYTHONPATH=$(dirname "$(dirname "$bin")") exec "$bin/python" -P -m tailrace "$@"
"""


def main() -> None:
    launcher = VENV / "bin/tailrace"
    launcher.write_text(TEXT)
    launcher.chmod(0o755)
    link = VENV / "checkout/tailrace"
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to("../../tailrace")
    library = Path(sysconfig.get_path("purelib"))
    # Relative: Python reads the file in the locale's encoding, and does not start if it cannot.
    up = "../" * len(library.relative_to(VENV.resolve()).parts)
    (library / "checkout.pth").write_text(f"{up}checkout")


if __name__ == "__main__":
    main()
