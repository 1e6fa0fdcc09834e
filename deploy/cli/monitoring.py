"""`tailrace monitoring`: writes the dashboards, rules and example configurations of monitoring into a new folder."""

import shutil
from importlib.resources import as_file, files
from pathlib import Path

from tailrace.deploy.monitoring import RUNBOOK_URL


def write(folder: Path, runbook: str) -> list[Path]:
    """Writes the files, in which panels and alerts link to `runbook`; returns their paths. Raises FileExistsError."""
    with as_file(files("tailrace.deploy.monitoring")) as source:
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    written = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in written:
        path.write_text(path.read_text().replace(RUNBOOK_URL, runbook))
    return written
