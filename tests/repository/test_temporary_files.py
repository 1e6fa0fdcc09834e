"""Temporary files of tests are in one folder per test run."""

import subprocess
import sys
import tempfile

WHERE = "import tempfile; print(tempfile.gettempdir())"


def test_temporary_files_are_in_the_folder_of_the_run() -> None:
    """This holds for the tests and for processes that they start, so that the folder can be deleted after the run."""
    started = subprocess.run([sys.executable, "-c", WHERE], check=True, capture_output=True, text=True)
    assert "/tailrace-tests-" in tempfile.gettempdir()
    assert started.stdout.strip() == tempfile.gettempdir()
