"""`tailrace monitoring`: writes the dashboards, rules and example configurations of monitoring into a new folder."""

import argparse
import re
import shutil
import sys
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path

from tailrace.deploy.cli.arguments import add_json
from tailrace.deploy.cli.result import print_result
from tailrace.deploy.monitoring import RUNBOOK_URL
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.runtime.exit_status import EXIT_ERROR

DESCRIPTION = "Write the files of monitoring, whose panels and alerts link to your copy of docs/RUNBOOK.md."
EXAMPLES = """\
examples:
  tailrace monitoring tailrace-monitoring --runbook https://wiki.example/RUNBOOK.md
  tailrace monitoring tailrace-monitoring          with TAILRACE_RUNBOOK_URL, which links the panels of /ops, too

An alert names a section of the runbook, which says what to do. Put docs/RUNBOOK.md where your operators can read it.

The folder has dashboards for Grafana, rules for Prometheus, and example configurations of Grafana, Prometheus and
Alertmanager.
docs/RUNBOOK.md says how to install them.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder")
    about = "address of your copy of the runbook (default: TAILRACE_RUNBOOK_URL)"
    parser.add_argument("--runbook", type=url, metavar="URL", help=about)


def url(text: str) -> str:
    """argparse type: an http or https URL without quotes, spaces and angle brackets."""
    # Quotes and the like would end a string in the files.
    if not re.fullmatch(r"""https?://[^\s"'\\<>]+""", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an http or https URL such as https://wiki.example/RUNBOOK.md"
        )
    return text


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Writes the files into a new folder and prints their paths.

    Returns EXIT_ERROR if the folder exists or cannot be written. Raises SettingsInvalid without the runbook's address.
    """
    runbook = args.runbook
    if runbook is None:
        if not (configured := environ.get("TAILRACE_RUNBOOK_URL")):
            raise SettingsInvalid(
                "panels and alerts link to your copy of docs/RUNBOOK.md: name its address with --runbook"
            )
        try:
            runbook = url(configured)
        except argparse.ArgumentTypeError as error:
            raise SettingsInvalid(f"TAILRACE_RUNBOOK_URL: {error}") from error
    try:
        written = write(args.folder, runbook)
    except FileExistsError:
        print(f"tailrace: {args.folder} exists already: name a new folder", file=sys.stderr)
        return EXIT_ERROR
    except OSError as error:
        print(f"tailrace: cannot write {args.folder} ({error.strerror}): name another folder", file=sys.stderr)
        return EXIT_ERROR
    print_result(args, "\n".join(map(str, written)), files=written)
    return 0


def write(folder: Path, runbook: str) -> list[Path]:
    """Writes the files, in which panels and alerts link to `runbook`; returns their paths. Raises FileExistsError."""
    with as_file(files("tailrace.deploy.monitoring")) as source:
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    written = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in written:
        path.write_text(path.read_text().replace(RUNBOOK_URL, runbook))
    return written
