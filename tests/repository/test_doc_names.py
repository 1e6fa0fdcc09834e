"""Each setting, route and command that a page names exists."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailrace.deploy.cli.main import GROUPS
from tailrace.features.gateway import ROUTES

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
# A release says what it has removed, and a comparison what others have. `/api/tailrace` is a route of an application.
PAGES = [page for page in PAGES if page.name not in ("CHANGELOG.md", "COMPARISON.md")]
FOLDERS = (
    "client",
    "deploy",
    "examples",
    "features",
    "gateway",
    "generators",
    "persistence",
    "proto",
    "protocols",
    "web",
)
SETTING = re.compile(r"\bTAILRACE_[A-Z0-9_]*[A-Z0-9]\b(?!_?…)")
ROUTE = re.compile(r"(?<![\w.])/(?:v1|chat|ag-ui|api(?!/tailrace))/[\w/{}$.:<>-]*")
COMMAND = re.compile(r"(?:`|\$ |^ {4}|/bin/|uvx --from \S+ )tailrace ([a-z]+(?:-[a-z]+)*)", re.MULTILINE)
# A part of a path that stands for a value.
VALUE = re.compile(r"[{$<]|[A-Z0-9_-]{2,}$|[0-9a-f]{8}-|\.\.\.$")


def texts(suffixes: tuple[str, ...]) -> Iterator[str]:
    """Yields the source files of the product."""
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in suffixes and "node_modules" not in path.parts and path.is_file():
                yield path.read_text(errors="replace")


@pytest.fixture(scope="module")
def settings() -> set[str]:
    """The settings of all processes, and the other variables of the product."""
    suffixes = (".py", ".js", ".mjs", ".sh", ".yaml", ".yml", ".service", ".conf", ".env")
    named = {name for text in texts(suffixes) for name in SETTING.findall(text)}
    return named | set(SETTING.findall((ROOT / "docs/tables/SETTINGS.md").read_text()))


def is_route(path: str) -> bool:
    """Returns whether the path is one of a route, or the beginning of one."""
    parts = path.rstrip("/.:").split("/")[1:]

    def fits(route: str) -> bool:
        of_route = route.split("/")[1:]
        pairs = zip(parts, of_route, strict=False)
        return len(parts) <= len(of_route) and all(
            "{" in there or VALUE.match(here) or here == there for here, there in pairs
        )

    return any(fits(route.path) for route in ROUTES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path, settings: set[str]) -> None:
    text = page.read_text()
    commands = {name for group in GROUPS.values() for name in group}
    assert sorted(set(SETTING.findall(text)) - settings) == []
    assert sorted({path for path in ROUTE.findall(text) if not is_route(path)}) == []
    assert sorted(set(COMMAND.findall(text)) - commands) == []
