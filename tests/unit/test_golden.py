"""Every dialect renders the turns in tests/golden as the golden files have them, and every request becomes its turn."""

import pytest

from tailrace.features.gateway import DIALECTS
from tests.golden import CASES, golden_path, render_golden, requests
from tests.golden.requests import Case

REQUESTS = [(api, case) for api in requests.DEFAULTS for case in requests.read_cases(api)]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("case", CASES)
def test_rendered_turn_equals_golden_file(case: str, dialect: str) -> None:
    """After a deliberate change: `python -m tests.golden --update`, and review the difference."""
    assert render_golden(case, DIALECTS[dialect]) == golden_path(case, dialect).read_text()


def test_every_golden_file_has_a_case_and_a_dialect() -> None:
    """A file of a removed case or dialect would be tested by nothing."""
    files = {path.name for path in golden_path("x", "y").parent.glob("*.txt")}
    assert files == {golden_path(case, dialect).name for case in CASES for dialect in DIALECTS}


@pytest.mark.parametrize(("api", "case"), REQUESTS, ids=[f"{api}: {case.case}" for api, case in REQUESTS])
def test_request_becomes_the_turn_of_its_golden_case(api: str, case: Case) -> None:
    assert requests.run_case(api, case) == case
