"""Relative links in Markdown pages point to existing files and headings, also in the generated parts of the site."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.generated_pages import PARTS, build_page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)\s]+)\)")
SKIPPED = {"dist", "mutants", "node_modules", ".tailrace", ".shipped", ".git"}


def pages() -> Iterator[Path]:
    """Yields all pages. The skipped folders have tens of thousands of files, and are not listed."""
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith(".venv"))
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".md"))


PAGES = list(pages())
GENERATED = [path for path in PARTS if path.endswith(".md")]


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_point_to_existing_files_and_headings(page: Path) -> None:
    """External URLs are not checked."""
    assert find_broken(page, page.read_text()) == []


@pytest.mark.parametrize("path", GENERATED)
def test_links_of_generated_pages_point_to_existing_files_and_headings(path: str) -> None:
    """`make docs` checks them, too, but needs MkDocs."""
    assert find_broken(ROOT / path, build_page(path)) == []


def find_broken(page: Path, text: str) -> list[str]:
    broken = []
    for link in LINK.findall(text):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    return broken


def test_pages_are_found() -> None:
    """Without any page, the test above would check nothing."""
    assert {ROOT / "proto/PROTOCOL.md", ROOT / "README.md"} <= set(PAGES)
