"""Every setting of every process is explained, has a default, and stands in docs/SETTINGS.md."""

import importlib
import re
from pathlib import Path

import msgspec
import pytest

from deploy.environment import SERVICES
from proto.settings import table

ROOT = Path(__file__).parents[2]
KINDS = [kind for _, kind in SERVICES]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__module__)
def test_every_setting_has_a_meaning_a_default_and_a_line_in_the_docs(kind: type[msgspec.Struct]) -> None:
    """`python -m … --env` and docs/SETTINGS.md say what each is for; a laptop needs none."""
    kind()
    page = (ROOT / "docs/SETTINGS.md").read_text()
    for name, _, _, meaning in table(kind):
        assert meaning, f"{name} has no description"
        assert f"| `{name}` |" in page, f"{name} is not in docs/SETTINGS.md: run `make schema`"


def test_no_settings_are_forgotten() -> None:
    """Every `settings.py` of a process is one that is documented."""
    files = {path.parent.name for path in ROOT.glob("*/settings.py")} - {"proto"}
    assert files == {kind.__module__.split(".")[0] for kind in KINDS}
    for name in files:
        assert importlib.import_module(f"{name}.settings").Settings in KINDS


def test_only_the_doors_read_the_environment() -> None:
    """Settings are read once and passed as values: a name that is looked up elsewhere is one nobody documents."""
    doors = {"proto/process.py", "deploy/cli.py", "deploy/up.py"}
    folders = ("proto", "gateway", "generators", "persistence", "deploy")
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text() for name in folders for path in (ROOT / name).rglob("*.py")
    }
    readers = {path for path, source in sources.items() if re.search(r"os\.environ|getenv", source)}
    assert readers <= doors
    assert readers
