"""The tour of ARCHITECTURE.md is true: what it names is there, and what is there it names."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
# What a tour need not stop at: what every program has, and what a folder's first file explains.
PASSED_BY = {
    "__init__.py",
    "__main__.py",
    "settings.py",
    "metrics.py",
    "logger.py",
    "usage.py",
    "records.py",
    "ending.py",
}


def test_every_link_in_the_docs_leads_somewhere() -> None:
    """A link inside the repository names a file or folder that exists."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "proto/PROTOCOL.md"]
    broken = [
        f"{page.name}: {link}"
        for page in pages
        for link in LINK.findall(page.read_text())
        if not (page.parent / link).exists()
    ]
    assert broken == []


def test_the_tour_stops_at_every_file_of_the_gateway_the_generators_and_the_log() -> None:
    """A file that the tour does not know is a room that a newcomer will not find."""
    tour = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = [
        *ROOT.glob("gateway/**/*.py"),
        *ROOT.glob("generators/*.py"),
        *ROOT.glob("proto/*.py"),
        *ROOT.glob("proto/log/*.py"),
    ]
    named = [str(room.relative_to(ROOT)) for room in rooms if room.name not in PASSED_BY]
    missed = [room for room in named if f"({room})" not in tour]
    assert missed == []
