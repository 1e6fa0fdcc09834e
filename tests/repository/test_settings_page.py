"""Every setting of every process has a default, a description, and a row in docs/SETTINGS.md."""

from pathlib import Path

import msgspec
import pytest

from tailrace.deploy.local.check_environment import SERVICES
from tailrace.proto.runtime.settings import table

ROOT = Path(__file__).parents[2]
KINDS = [kind for _, kind in SERVICES]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__module__)
def test_every_setting_is_documented_and_has_a_default(kind: type[msgspec.Struct]) -> None:
    """`python -m … --env` prints the same descriptions."""
    kind()
    page = (ROOT / "docs/SETTINGS.md").read_text()
    for name, _, _, meaning in table(kind):
        assert meaning, f"{name} has no description"
        assert f"| `{name}` |" in page, f"{name} is not in docs/SETTINGS.md: run `make schema`"
