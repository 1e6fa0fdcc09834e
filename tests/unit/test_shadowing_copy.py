"""A copy of the checkout in its own venv, as `pip install .` makes it, is noticed by `make`, `up` and `doctor`."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tailrace.deploy.cli import doctor
from tailrace.deploy.local import shadowing_copy
from tests.harness.up import CHECKOUT


@pytest.mark.parametrize("target", ["run", "setup"])
def test_make_refuses_a_copy_before_it_starts_or_installs_anything(tmp_path: Path, target: str) -> None:
    """Otherwise changes of the checkout would have no effect without any message."""
    shutil.copy(CHECKOUT / "Makefile", tmp_path)
    copy = tmp_path / ".venv/lib/python3.11/site-packages/tailrace"
    copy.mkdir(parents=True)
    made = subprocess.run(["make", target], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert made.returncode != 0
    assert "site-packages/tailrace is a copy of this checkout" in made.stderr
    assert "pip uninstall --yes tailrace" in made.stderr
    copy.rmdir()
    subprocess.run(["make", "no-copy"], cwd=tmp_path, check=True)


def test_doctor_reports_a_copy_only_in_the_venv_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any other venv, the package in site-packages is the one that was installed."""
    copy = tmp_path / "site-packages" / "tailrace"
    copy.mkdir(parents=True)
    assert shadowing_copy.find(tmp_path, copy.parent) is None
    (tmp_path / "checkout" / "tailrace").mkdir(parents=True)
    assert shadowing_copy.find(tmp_path, copy.parent) == copy
    monkeypatch.setattr(shadowing_copy, "find", lambda: copy)
    [finding] = doctor.check_copy()
    assert (finding.level, str(copy) in finding.detail) == ("warning", True)
    assert "pip uninstall" in finding.action
