"""Where tests leave what they leave: in one folder of the run's own. It looks into no other test."""

import subprocess
import sys
import tempfile

WHERE = "import tempfile; print(tempfile.gettempdir())"


def test_temporary_files_are_in_a_folder_that_goes_with_the_run() -> None:
    """Of the tests as of what they start: a browser that is killed, a fork, a generator."""
    started = subprocess.run([sys.executable, "-c", WHERE], check=True, capture_output=True, text=True)
    assert "/tailrace-tests-" in tempfile.gettempdir()
    assert started.stdout.strip() == tempfile.gettempdir()
