"""The files that `make setup` writes into the venv of a checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.harness.processes import CHECKOUT

PATH_FILE = Path(sysconfig.get_path("purelib"), "checkout.pth")


@pytest.mark.skipif(not PATH_FILE.exists(), reason="not in the venv of a checkout")
def test_python_finds_tailrace_in_a_folder_whose_name_the_locale_cannot_encode(tmp_path: Path) -> None:
    """Python reads the file in the locale's encoding, and does not start if it cannot: so its path is relative."""
    assert PATH_FILE.read_text().isascii()
    venv = CHECKOUT / ".venv"
    moved = tmp_path / "dîr"
    moved.symlink_to(venv.resolve())
    shown = subprocess.run(
        [moved / "bin" / "python", "-c", "import tailrace; print(ascii(tailrace.__file__))"],
        cwd=tmp_path,
        env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.startswith(ascii(str(moved / "checkout" / "tailrace"))[:-1])


@pytest.mark.parametrize("name", ["o'brien & co", "a $HOME `b` \\"])
def test_the_command_of_a_checkout_runs_whatever_its_folder_is_called(tmp_path: Path, name: str) -> None:
    """`make` writes the folder into a shell script."""
    folder = tmp_path / name
    (folder / "tailrace").mkdir(parents=True)
    (folder / "tailrace" / "__main__.py").write_text("import sys\n\nprint(__file__, sys.argv[1:])\n")
    shutil.copy(CHECKOUT / "Makefile", folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    subprocess.run(["make", ".venv/bin/tailrace"], cwd=folder, check=True)
    command = [folder / ".venv" / "bin" / "tailrace", "a b", "$c"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert shown == f"{folder}/tailrace/__main__.py ['a b', '$c']\n"
