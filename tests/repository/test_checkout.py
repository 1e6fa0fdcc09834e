"""The files that `make setup` writes into the venv of a checkout."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.harness.processes import CHECKOUT

PATH_FILE = Path(sysconfig.get_path("purelib"), "checkout.pth")


def copy_makefile(folder: Path) -> None:
    """Copies the Makefile and the programs with which it makes a venv."""
    (folder / "tools").mkdir()
    for name in ("Makefile", "tools/install_packages.py", "tools/new_venv.sh", "tools/write_launcher.py"):
        shutil.copy(CHECKOUT / name, folder / name)


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
def test_the_command_of_a_checkout_runs_after_a_move_and_whatever_its_folder_is_called(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "first"
    (folder / "tailrace").mkdir(parents=True)
    (folder / "tailrace" / "__main__.py").write_text("import sys\n\nprint(__file__, sys.argv[1:])\n")
    copy_makefile(folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    moved = folder.rename(tmp_path / name)
    subprocess.run(["make", ".venv/bin/tailrace"], cwd=moved, check=True)
    moved = moved.rename(tmp_path / f"{name} 2")
    (link := tmp_path / "link").symlink_to(moved / ".venv" / "bin" / "tailrace")
    for command in (link.resolve(), link):
        shown = subprocess.run([command, "a b", "$c"], cwd="/", capture_output=True, text=True, check=True).stdout
        assert shown == f"{moved}/tailrace/__main__.py ['a b', '$c']\n"


@pytest.mark.timeout(240)
def test_packages_are_installed_into_the_venv_whatever_pip_is_configured_to(tmp_path: Path) -> None:
    wheel = tmp_path / "demo-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("demo.py", "")
        archive.writestr("demo-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1\n")
        archive.writestr("demo-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("demo-1.dist-info/RECORD", "demo.py,,\n")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (tmp_path / "locks").mkdir()
    for lock in ("locks/product.lock", "locks/docs.lock"):
        (tmp_path / lock).write_text(f"demo @ {wheel.as_uri()} --hash=sha256:{digest}\n")
    copy_makefile(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / ".venv"], check=True)
    configuration = tmp_path / "pip.conf"
    environ = os.environ | {"PIP_CONFIG_FILE": str(configuration)}
    for venv, option in (
        (".venv", "user = true"),
        (".venv", f"target = {tmp_path}/other"),
        (".venv", f"prefix = {tmp_path}/other"),
        (".venv-docs", f"prefix = {tmp_path}/other"),
    ):
        configuration.write_text(f"[global]\nno-index = true\n{option}\n")
        command = ["make", f"{venv}/installed"]
        made = subprocess.run(command, cwd=tmp_path, env=environ, stderr=subprocess.PIPE, text=True, check=True)
        assert "installed 1 of 1 packages" in made.stderr
        python = tmp_path / venv / "bin" / "python"
        where = subprocess.run(
            [python, "-c", "import demo; print(demo.__file__)"], cwd="/", capture_output=True, check=True
        )
        # The next option starts as this one did.
        Path(where.stdout.decode().strip()).unlink()
        shutil.rmtree(next((tmp_path / venv).rglob("demo-1.dist-info")))
        (tmp_path / venv / "installed").unlink()


def test_a_checkout_without_symbolic_links_is_refused(tmp_path: Path) -> None:
    """Git for Windows writes a link as a file that contains its target, and the folder can be opened in WSL."""
    copy_makefile(tmp_path)
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks/product.lock").touch()
    (tmp_path / "tailrace").mkdir()
    (tmp_path / "tailrace" / "proto").write_text("../proto")
    made = subprocess.run(["make", "run"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert made.returncode == 2
    assert "clone again" in made.stderr
    assert not (tmp_path / ".venv").exists()
