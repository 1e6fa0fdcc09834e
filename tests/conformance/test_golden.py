"""Other dialects render each case as its golden file has it."""

import pytest

from tests.conformance.golden_files import FOLDER, NAMES, golden_path, render_case


@pytest.mark.parametrize("name", NAMES)
def test_other_dialects_render_the_case_as_its_golden_file_has_it(name: str) -> None:
    """After a deliberate change: `python -m tests.conformance.golden_files --update`, and review the difference."""
    assert render_case(name) == golden_path(name).read_text()


def test_every_golden_file_has_a_case() -> None:
    assert set(FOLDER.glob("*.txt")) == {golden_path(name) for name in NAMES}
